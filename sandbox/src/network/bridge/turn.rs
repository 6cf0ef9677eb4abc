//! One daemon at a time makes or removes what all of them share: ranges of addresses, settings of the host.

use std::{fs::File, io, os::unix::fs::OpenOptionsExt, path::Path, sync::mpsc, thread, time::Duration};

use rustix::fs::{FlockOperation, flock};

/// For root alone: whoever can open it could hold everybody up.
const LOCK: &str = "/run/podhold-network.lock";
/// What is done in a turn takes milliseconds; a daemon that was stopped in its turn is not waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Waits for our turn, which ends when the answer is dropped. `None` when there is no taking turns here.
pub(super) fn wait() -> Option<File> {
    let lock = match open(Path::new(LOCK)) {
        Ok(lock) => lock,
        Err(error) => {
            tracing::debug!(%error, "{LOCK} cannot be opened; another daemon may choose the same at the same time");
            return None;
        }
    };
    let (tell, told) = mpsc::channel();
    let waiting = thread::Builder::new().name("turn".to_owned()).spawn(move || {
        let locked = flock(&lock, FlockOperation::LockExclusive);
        // When nobody waits any more the lock goes with the answer.
        drop(tell.send(locked.map(|()| lock)));
    });
    let turn = waiting.ok().and_then(|_| told.recv_timeout(PATIENCE).ok());
    if turn.is_none() {
        tracing::warn!("{LOCK} is held for {PATIENCE:?}; going on without it");
    }
    turn?.ok()
}

fn open(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    File::options().create(true).truncate(false).write(true).mode(0o600).custom_flags(flags).open(path)
}
