//! Starting a shim, and dialling one.
//!
//! The daemon makes the listening socket and the shim inherits it as its stdin: dialling works at once,
//! nobody waits for a file to appear. Socket paths may be longer than an address can hold, so both ends
//! are named through a directory fd. Everything here may block.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
            net::{UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::{Layout, PodId, sealed, sys};

/// Copies the shim's program into a sealed memory file.
pub(super) fn sealed_program(binary: &Path) -> io::Result<OwnedFd> {
    sealed::program("podhold-shim", &mut File::open(binary)?)
}

/// The program `podhold-shim`: beside the program that runs, or where packages install it.
pub fn find_shim_binary() -> io::Result<PathBuf> {
    const NAME: &str = "podhold-shim";
    let own = std::env::current_exe()?;
    let beside = own.with_file_name(NAME);
    let candidates = [beside, Path::new("/usr/libexec/podhold").join(NAME)];
    candidates.iter().find(|path| path.is_file()).cloned().ok_or_else(|| {
        let places = candidates.map(|path| path.display().to_string()).join(" nor ");
        io::Error::new(io::ErrorKind::NotFound, format!("{NAME} is neither at {places}"))
    })
}

/// A shim that was started by this daemon, and is to be reaped by it.
pub(super) struct Spawned {
    child: Child,
}

impl Spawned {
    pub(super) fn kill(&mut self) {
        let _ = self.child.kill();
    }

    pub(super) async fn wait(mut self) {
        let _ = tokio::task::spawn_blocking(move || self.child.wait()).await;
    }

    /// Reaps the shim whenever it ends, however long that takes, without holding a thread.
    pub(super) fn reap_in_background(mut self) {
        tokio::spawn(async move {
            let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
            let flags = rustix::process::PidfdFlags::NONBLOCK;
            let pidfd = pid.and_then(|pid| rustix::process::pidfd_open(pid, flags).ok());
            if let Some(pidfd) = pidfd.and_then(|fd| sys::watch(fd, tokio::io::Interest::READABLE).ok()) {
                let _ = pidfd.readable().await;
            }
            self.wait_here();
        });
    }

    fn wait_here(&mut self) {
        let _ = self.child.try_wait();
    }
}

/// Starts a shim on a new socket.
pub(super) fn spawn(layout: &Layout, pod: &PodId, program: &OwnedFd) -> io::Result<Spawned> {
    let directory = layout.pod_run(pod);
    DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
    let handle = open_directory(&directory)?;
    let (short, socket) = (short_name(&handle), layout.shim_socket(pod));
    match UnixStream::connect(&short) {
        Ok(_) => {
            let words = format!("a shim listens on {} already", socket.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, words));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(_) => fs::remove_file(&socket)?,
    }
    let listener = UnixListener::bind(&short)?;
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o600))?;
    let child = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
        .arg0("podhold-shim")
        .args([layout.run(), layout.state()])
        .arg(pod.as_str())
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::null())
        .stderr(log(&directory)?)
        .spawn();
    child.map(|child| Spawned { child }).inspect_err(|_| {
        let _ = fs::remove_file(&socket);
    })
}

/// The shim's own few words; begun anew with each shim, so its size is bounded by what one can say.
fn log(directory: &Path) -> io::Result<File> {
    let mut options = fs::OpenOptions::new();
    options.create(true).write(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    options.open(directory.join("shim.log"))
}

/// Dials the pod's shim. Never waits: a shim that accepts nobody any more, and has been dialled often, is
/// an error (EAGAIN).
pub(super) fn dial(layout: &Layout, pod: &PodId) -> io::Result<UnixStream> {
    let handle = open_directory(&layout.pod_run(pod))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(short_name(&handle))?)?;
    Ok(socket.into())
}

/// Whether dialling failed because there is no shim.
pub(super) fn nobody_listens(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

fn open_directory(path: &Path) -> io::Result<File> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_PATH;
    fs::OpenOptions::new().read(true).custom_flags(flags).open(path)
}

fn short_name(directory: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/shim.sock", directory.as_raw_fd()))
}
