//! Who may have plugins at work for a pod: one locked file for each, beside its record.
//!
//! A plugin inherits the open file and with it the lock, so a plugin that outlives its daemon is seen by
//! the next one: a command for the same pod waits until the plugin has ended. One that does not end is
//! killed.
//!
//! Invariant: the lock is let go, whoever still has the file open, when the daemon that took it says so.
//! Nothing is kept in the files.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, getpid, kill_process_group, pidfd_open, pidfd_send_signal},
};
use tokio::{sync::oneshot, time::timeout};

use super::{CniError, cache::blocking};
use crate::record;

/// How long the kernel may take to end plugins that were killed.
const KILLED: Duration = Duration::from_secs(5);

/// The lock files of a directory.
#[derive(Debug)]
pub(super) struct Locks {
    dir: PathBuf,
    /// How long plugins of an earlier daemon are waited for.
    patience: Duration,
}

/// A lock that is held. Let go when dropped.
#[derive(Debug)]
pub(super) struct Held {
    file: File,
    path: PathBuf,
}

impl Locks {
    pub(super) fn new(dir: PathBuf, patience: Duration) -> Self {
        Self { dir, patience }
    }

    /// Takes the lock `name`, once no plugin of an earlier daemon has it. At most one caller at a time.
    pub(super) async fn take(&self, name: &str) -> Result<Held, CniError> {
        let path = self.path(name);
        let failed = |source| CniError::Cache { operation: "lock", path: self.path(name), source };
        let file = blocking("lock", path.clone(), open).await?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Held { file, path }),
            Err(Errno::WOULDBLOCK) => {}
            Err(error) => return Err(failed(error.into())),
        }
        tracing::warn!(lock = %path.display(), "a network plugin of an earlier daemon is at work; waited for");
        let mut told = wait(&file).map_err(failed)?;
        if timeout(self.patience, &mut told).await.is_err() {
            blocking("end the plugins that hold", path.clone(), kill_holders).await?;
            let ended = timeout(KILLED, &mut told).await;
            ended
                .map_err(|_| failed(io::Error::other("a plugin that holds it does not end; call again")))?
                .ok();
        }
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| failed(error.into()))?;
        Ok(Held { file, path })
    }

    /// Whether there is a lock file of this name.
    pub(super) fn exists(&self, name: &str) -> bool {
        self.path(name).symlink_metadata().is_ok()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.lock"))
    }
}

impl Held {
    /// The same lock under another number, for a child to inherit.
    pub(super) fn copy(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Lets go and removes the file: nothing is left to be locked.
    pub(super) fn discard(self) {
        // Whoever comes after this makes a new one; while it is held nobody else has this one open.
        let _nothing_in_it = fs::remove_file(&self.path);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Closing would leave it with whatever a plugin has left running.
        let _released_by_close_at_the_latest = flock(&self.file, FlockOperation::Unlock);
    }
}

/// Opens the file, which is made when missing. What is no file of ours is in the way and holds nothing.
fn open(path: &Path) -> io::Result<File> {
    if let Some(dir) = path.parent() {
        super::cache::make_directory(dir)?;
    }
    match record::open(path) {
        Ok(_) => {}
        Err(error) if error.is_missing() => {}
        Err(error) => {
            tracing::warn!(%error, "damaged lock file replaced");
            super::cache::clear(path)?;
        }
    }
    // For reading, which a disk that is read-only lets one do.
    let flags = libc::O_CREAT | libc::O_NOFOLLOW | libc::O_NONBLOCK;
    File::options().read(true).mode(0o600).custom_flags(flags).open(path)
}

/// Waits for the lock on a thread of its own, since only one that blocks is woken.
fn wait(file: &File) -> io::Result<oneshot::Receiver<()>> {
    let (tell, told) = oneshot::channel();
    let file = file.try_clone()?;
    std::thread::Builder::new().name("cni-lock".to_owned()).stack_size(64 << 10).spawn(move || {
        while flock(&file, FlockOperation::LockExclusive) == Err(Errno::INTR) {}
        // Nobody waits any more: dropped with the last copy of the file.
        let _waiting = tell.send(());
    })?;
    Ok(told)
}

/// Kills every process that has the file open, with its process group, but this one and its children.
fn kill_holders(path: &Path) -> io::Result<()> {
    let name = path.canonicalize()?.into_os_string();
    for entry in fs::read_dir("/proc")? {
        let pid = entry?.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        let Some(pid) = pid.filter(|pid| *pid != getpid()) else { continue };
        // Means this process for as long as it is open, so that no number is mistaken.
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        if !has_open(pid, &name) || is_child(pid) {
            continue;
        }
        tracing::warn!(lock = %path.display(), pid = pid.as_raw_nonzero(), "network plugin of an earlier daemon killed");
        if let Some(group) = foreign_group(pid) {
            let _gone = kill_process_group(group, Signal::KILL);
        }
        let _gone = pidfd_send_signal(&process, Signal::KILL);
    }
    Ok(())
}

/// The process group of a process, where it can be named and is not ours. One whose leader is in another pid
/// namespace has no number here.
fn foreign_group(pid: Pid) -> Option<Pid> {
    let own = nix::unistd::getpgid(None).ok()?;
    let group = nix::unistd::getpgid(Some(nix::unistd::Pid::from_raw(pid.as_raw_nonzero().get()))).ok()?;
    (group != own && group.as_raw() > 1).then(|| Pid::from_raw(group.as_raw())).flatten()
}

fn has_open(pid: Pid, name: &OsString) -> bool {
    // Links are read, never followed: what a process has open may hang.
    let Ok(files) = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())) else { return false };
    files.filter_map(Result::ok).any(|file| fs::read_link(file.path()).is_ok_and(|to| to.as_os_str() == name))
}

/// One of ours that is between fork and exec has all our files for a moment.
fn is_child(pid: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap_or_default();
    status.contains(&format!("\nPPid:\t{}\n", getpid().as_raw_nonzero()))
}
