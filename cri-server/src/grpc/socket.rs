//! The unix socket of the CRI services, and who listens on one.

use std::{
    io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
};

use tokio::net::{UnixListener, UnixStream};

/// Who listens on a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    /// Its process; `None` when it is in another pid namespace.
    pub pid: Option<i32>,
}

/// Who listens on the socket at `path`, if anybody does. A process that was killed does not: a program that it was
/// just about to execute may still have its socket.
pub async fn listener(path: &Path) -> Option<Listener> {
    let stream = UnixStream::connect(path).await.ok()?;
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid()).filter(|pid| *pid > 0);
    // One that waits to be reaped has no program any more.
    let lives = pid.is_none_or(|pid| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok());
    lives.then_some(Listener { pid })
}

/// Binds the socket, which only root can use, over what a dead daemon left.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let at = |error: io::Error| io::Error::new(error.kind(), format!("socket {}: {error}", path.display()));
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(at)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => std::fs::remove_file(path).map_err(at)?,
        Ok(_) => return Err(at(io::Error::other("is there and is not a socket"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(at(error)),
    }
    let socket = UnixListener::bind(path).map_err(at)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(at)?;
    Ok(socket)
}
