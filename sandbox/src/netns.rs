//! Network namespaces that are pinned by a bind mount, and work inside them.
//!
//! Invariant: a namespace is entered only by a thread made for that purpose, which ends there; no
//! thread of a pool ever changes its namespace. Owns no addresses or links: those are the network's.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    thread,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{FsType, fstatfs},
};
use rustix::fs::{Mode, OFlags};

mod link;
mod stats;

pub(crate) use link::loopback_up;
pub use stats::InterfaceStats;

/// `statfs` type of a namespace file (linux/magic.h); `nix` lacks the constant.
const NSFS: FsType = FsType(0x6e73_6673);

/// Why an operation on a network namespace failed.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// A call on the namespace or its file failed.
    #[error("network namespace {}: cannot {operation}", path.display())]
    Io {
        /// What was attempted.
        operation: &'static str,
        /// The file the namespace is pinned at.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The file is there and no namespace is mounted on it, as after a reboot.
    #[error("network namespace {}: the file exists, but no namespace is mounted on it", .0.display())]
    NotMounted(PathBuf),
    /// The work in the namespace panicked.
    #[error("network namespace {}: the work in it panicked", .0.display())]
    Panicked(PathBuf),
}

impl NetnsError {
    fn io<E: Into<io::Error>>(operation: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { operation, path, source: source.into() }
    }

    /// Whether there is no such namespace.
    pub fn is_missing(&self) -> bool {
        match self {
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::NotMounted(_) => true,
            Self::Panicked(_) => false,
        }
    }
}

/// Makes a network namespace with its loopback interface up, and pins it at `path`.
///
/// The directory of `path` is made when missing. Succeeds when a namespace is pinned there already. A
/// plain file left by an earlier boot is used again.
pub fn create(path: &Path) -> Result<(), NetnsError> {
    let file = pin_file(path)?;
    if is_namespace(&file) {
        return Ok(());
    }
    let made = on_own_thread(path, || make(path, &file))?;
    if made.is_err() {
        let _nothing_mounted_on_it = fs::remove_file(path);
    }
    made
}

/// Unpins the namespace at `path` and removes the file. A missing one is a success.
///
/// The namespace itself ends with its last process.
pub fn remove(path: &Path) -> Result<(), NetnsError> {
    loop {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // Mounted over itself by a race of two daemons: until nothing is mounted.
            Ok(()) => {}
            Err(nix::Error::EINVAL) => break,
            Err(nix::Error::ENOENT) => return Ok(()),
            Err(error) => return Err(NetnsError::io("unmount", path)(error)),
        }
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(NetnsError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Whether a namespace is pinned at `path`.
pub fn exists(path: &Path) -> bool {
    open(path).is_ok()
}

/// Runs `work` in the namespace, on a thread of its own, and waits for it.
pub fn run_in<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    enter(&open(path)?, path, work)
}

fn enter<T: Send>(
    namespace: &OwnedFd,
    path: &Path,
    work: impl FnOnce() -> T + Send,
) -> Result<T, NetnsError> {
    on_own_thread(path, || {
        setns(namespace, CloneFlags::CLONE_NEWNET).map_err(NetnsError::io("enter", path))?;
        Ok(work())
    })?
}

/// A namespace that is pinned nowhere: it ends with its last user.
#[derive(Debug)]
pub(crate) struct Unpinned(OwnedFd);

impl Unpinned {
    /// Makes one with its loopback interface up.
    pub(crate) fn make() -> Result<Self, NetnsError> {
        let path = Path::new("(new)");
        let made = on_own_thread(path, || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(NetnsError::io("make", path))?;
            link::loopback_up().map_err(NetnsError::io("bring up loopback in", path))?;
            let own = fs::File::open("/proc/thread-self/ns/net").map_err(NetnsError::io("open", path))?;
            Ok(Self(own.into()))
        });
        made?
    }

    /// [`run_in`] it.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        enter(&self.0, Path::new("(new)"), work)
    }
}

impl AsFd for Unpinned {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Traffic of every interface in the namespace, loopback included.
pub fn interface_stats(path: &Path) -> Result<Vec<InterfaceStats>, NetnsError> {
    run_in(path, stats::of_this_thread)?.map_err(NetnsError::io("read interface statistics of", path))
}

/// [`interface_stats`] of the namespace at `path` without entering it, through a process that is in it;
/// by entering it when that process cannot be asked.
pub fn interface_stats_of(pid: u32, path: &Path) -> Result<Vec<InterfaceStats>, NetnsError> {
    if let Ok(stats) = stats::of_process(pid, path) { Ok(stats) } else { interface_stats(path) }
}

fn on_own_thread<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".to_owned()).stack_size(256 << 10);
        let running = thread.spawn_scoped(scope, work).map_err(NetnsError::io("start a thread for", path))?;
        running.join().map_err(|_| NetnsError::Panicked(path.to_owned()))
    })
}

/// Pins a network namespace that somebody else has made at `path`. Succeeds when one is pinned there
/// already.
pub fn pin(namespace: impl AsFd, path: &Path) -> Result<(), NetnsError> {
    let file = pin_file(path)?;
    if is_namespace(&file) {
        return Ok(());
    }
    let source = format!("/proc/self/fd/{}", namespace.as_fd().as_raw_fd());
    bind(&source, &file).map_err(NetnsError::io("pin", path)).inspect_err(|_| {
        let _nothing_mounted_on_it = fs::remove_file(path);
    })
}

/// The file a namespace is pinned on, made with its directory when missing.
fn pin_file(path: &Path) -> Result<OwnedFd, NetnsError> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(NetnsError::io("make the directory of", path))?;
    }
    let flags = OFlags::CREATE | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::from_raw_mode(0o444)).map_err(NetnsError::io("create", path))
}

fn bind(source: &str, file: &OwnedFd) -> nix::Result<()> {
    // Through the fd: the name could mean another file by now.
    let target = format!("/proc/self/fd/{}", file.as_raw_fd());
    mount(Some(source), target.as_str(), None::<&str>, MsFlags::MS_BIND, None::<&str>)
}

fn make(path: &Path, file: &OwnedFd) -> Result<(), NetnsError> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(NetnsError::io("make", path))?;
    link::loopback_up().map_err(NetnsError::io("bring up loopback in", path))?;
    bind("/proc/thread-self/ns/net", file).map_err(NetnsError::io("pin", path))
}

/// The namespace that is pinned at `path`.
pub(crate) fn open(path: &Path) -> Result<OwnedFd, NetnsError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(NetnsError::io("open", path))?;
    if is_namespace(&file) { Ok(file) } else { Err(NetnsError::NotMounted(path.to_owned())) }
}

fn is_namespace(file: &OwnedFd) -> bool {
    fstatfs(file).is_ok_and(|stat| stat.filesystem_type() == NSFS)
}

#[cfg(test)]
mod tests;
