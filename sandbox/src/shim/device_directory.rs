//! A directory of the host in the place of a container's `/dev`.
//!
//! libcontainer makes nodes and links in whatever lies at `/dev`, by path: it would make them on the host, and
//! replace the host's `/dev/ptmx`. So it gets the usual tmpfs, and the directory takes that one's place while
//! the container's init waits to be let go. What was mounted beneath `/dev` is mounted on the directory again.
//!
//! Invariants: nothing mounted here reaches the host, since the directory's copy is private or a slave before
//! anything is mounted on it; no link is followed; nothing is made in the directory but the mount points of
//! mounts that the request names.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    sched::{CloneFlags, setns},
    unistd::Pid,
};
use oci_spec::runtime::Spec;
use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
    mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags},
};

use crate::{
    idmap,
    sys::{self, MountChange},
};

/// Mounted in every container: lie on the directory where it has a place for them, and are left out elsewhere.
const OWN: [&str; 4] = ["pts", "shm", "mqueue", "console"];

/// What takes the place of a container's `/dev`.
#[derive(Debug)]
pub(super) struct DeviceDirectory {
    /// A detached copy of the mount.
    tree: OwnedFd,
    options: Vec<String>,
    /// Mount points beneath `/dev`, relative to it.
    beneath: Vec<PathBuf>,
}

/// A mount beneath `/dev`, taken off its place.
struct Beneath<'a> {
    path: &'a Path,
    tree: OwnedFd,
    is_directory: bool,
}

/// Takes a bind at `/dev` out of the spec. `None` when there is none.
pub(super) fn take(spec: &mut Spec) -> Result<Option<DeviceDirectory>, String> {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    let at = mounts
        .iter()
        .position(|mount| mount.destination() == Path::new("/dev") && mount.typ().as_deref() == Some("bind"));
    let Some(at) = at else { return Ok(None) };
    let mount = mounts.remove(at);
    let source = mount.source().clone().unwrap_or_default();
    let options = mount.options().clone().unwrap_or_default();
    let has = |word: &str| options.iter().any(|option| option == word);
    if has("shared") || has("rshared") {
        return Err("/dev: a shared mount would carry the container's own mounts to the host".into());
    }
    let tree = idmap::detached(&source, has("rbind"))
        .map_err(|error| format!("/dev: mount {}: {error}", source.display()))?;
    let relative = mounts.iter().filter_map(|mount| mount.destination().strip_prefix("/dev").ok());
    let mut beneath: Vec<PathBuf> =
        relative.filter(|path| !path.as_os_str().is_empty()).map(Path::to_owned).collect();
    if spec.process().as_ref().and_then(oci_spec::runtime::Process::terminal) == Some(true) {
        beneath.push("console".into());
    }
    spec.set_mounts(Some(mounts));
    Ok(Some(DeviceDirectory { tree, options, beneath }))
}

impl DeviceDirectory {
    /// Puts it into the mount namespace of a container's init, which waits and is in `cgroup`.
    pub(super) fn place(&self, init: i32, cgroup: &str) -> Result<(), String> {
        let failed = |error: io::Error| format!("/dev: join the container: {error}");
        let pid = rustix::process::Pid::from_raw(init).ok_or("/dev: the container has no process")?;
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
        let pidfd = pidfd.map_err(|errno| failed(errno.into()))?;
        // It may have ended, and the number be somebody else's: the mounts of those are not touched.
        let groups = fs::read_to_string(format!("/proc/{init}/cgroup")).map_err(failed)?;
        if !groups.lines().any(|line| line.ends_with(cgroup)) {
            return Err("/dev: the container's process has ended".into());
        }
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|errno| failed(errno.into()))?;
        let mut write = File::from(write);
        let helper = sys::fork(CloneFlags::empty(), || {
            let Err(words) = self.replace(&pidfd) else { return 0 };
            let _ = write.write_all(words.as_bytes());
            1
        });
        let helper: Pid = helper.map_err(failed)?;
        drop(write);
        let mut words = String::new();
        let told = File::from(read).read_to_string(&mut words);
        let ended = nix::sys::wait::waitpid(helper, None);
        told.map_err(failed)?;
        match ended {
            Ok(nix::sys::wait::WaitStatus::Exited(_, 0)) => Ok(()),
            _ if words.is_empty() => Err("/dev: the process that mounts it was killed".into()),
            _ => Err(words),
        }
    }

    fn replace(&self, init: &OwnedFd) -> Result<(), String> {
        setns(init, CloneFlags::CLONE_NEWNS).map_err(failed("join the container's mounts"))?;
        let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let root = root.map_err(failed("open the container's root"))?;
        let old = look(&root, Path::new("dev")).map_err(failed("look up"))?;
        let found = self.collect(&old)?;
        let mut kept = Vec::new();
        for mount in found {
            if self.prepare(&mount)? {
                kept.push(mount);
            }
        }
        self.change()?;
        drop(old);
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        rustix::mount::unmount("/dev", flags).map_err(failed("unmount the one before"))?;
        let place = look(&root, Path::new("dev")).map_err(failed("look up"))?;
        attach(&self.tree, &place).map_err(failed("mount the directory"))?;
        let dev = look(&root, Path::new("dev")).map_err(failed("look up"))?;
        for mount in &kept {
            let place = look(&dev, mount.path).map_err(failed(mount.path.display()))?;
            attach(&mount.tree, &place).map_err(failed(mount.path.display()))?;
        }
        Ok(())
    }

    /// Copies of what is mounted beneath the `/dev` there is; what lies in one of them comes with it.
    fn collect(&self, old: &OwnedFd) -> Result<Vec<Beneath<'_>>, String> {
        let mut found: Vec<Beneath<'_>> = Vec::new();
        for path in &self.beneath {
            if found.iter().any(|outer| path.starts_with(outer.path)) {
                continue;
            }
            let place = look(old, path).map_err(failed(path.display()))?;
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE
                | OpenTreeFlags::AT_EMPTY_PATH;
            let tree = rustix::mount::open_tree(&place, "", flags).map_err(failed(path.display()))?;
            let is_directory = is_directory(&place).map_err(failed(path.display()))?;
            found.push(Beneath { path, tree, is_directory });
        }
        Ok(found)
    }

    /// Whether a mount has its place in the directory. It is made for those that the request names.
    fn prepare(&self, mount: &Beneath<'_>) -> Result<bool, String> {
        let own = OWN.iter().any(|own| mount.path == Path::new(own));
        match look(&self.tree, mount.path) {
            Ok(place) => {
                let fits = is_directory(&place).map_err(failed(mount.path.display()))? == mount.is_directory;
                match (fits, own) {
                    (true, _) => Ok(true),
                    (false, true) => Ok(false),
                    (false, false) => Err(failed(mount.path.display())(io::Error::other(
                        "the directory has something of another kind there; mount it elsewhere",
                    ))),
                }
            }
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) if own => Ok(false),
            Err(Errno::NOENT) => {
                self.make(mount).map_err(failed(format_args!("make {}", mount.path.display())))?;
                Ok(true)
            }
            Err(errno) => Err(failed(mount.path.display())(errno)),
        }
    }

    fn make(&self, mount: &Beneath<'_>) -> rustix::io::Result<()> {
        let name = mount.path.file_name().ok_or(Errno::INVAL)?;
        let mut above = self.tree.as_fd().try_clone_to_owned().map_err(|_| Errno::MFILE)?;
        for part in mount.path.parent().into_iter().flat_map(Path::components) {
            let part = Path::new(part.as_os_str());
            above = match look(&above, part) {
                Err(Errno::NOENT) => {
                    rustix::fs::mkdirat(&above, part, Mode::from_raw_mode(0o755))?;
                    look(&above, part)?
                }
                found => found?,
            };
        }
        if mount.is_directory {
            return rustix::fs::mkdirat(&above, name, Mode::from_raw_mode(0o755));
        }
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(&above, name, flags, Mode::from_raw_mode(0o644)).map(drop)
    }

    /// Gives the copy its propagation, then what its options say.
    fn change(&self) -> Result<(), String> {
        let has = |word: &str| self.options.iter().any(|option| option == word);
        let slave = has("slave") || has("rslave");
        let propagation = MountChange {
            propagation: if slave { libc::MS_SLAVE } else { libc::MS_PRIVATE },
            recursive: true,
            ..MountChange::default()
        };
        sys::change_mount(&self.tree, propagation).map_err(failed("keep it from the host"))?;
        let words = [
            ("ro", libc::MOUNT_ATTR_RDONLY),
            ("nosuid", libc::MOUNT_ATTR_NOSUID),
            ("nodev", libc::MOUNT_ATTR_NODEV),
            ("noexec", libc::MOUNT_ATTR_NOEXEC),
        ];
        let set = words.iter().filter(|(word, _)| has(word)).fold(0, |set, (_, attribute)| set | attribute);
        let plain = MountChange { set, ..MountChange::default() };
        sys::change_mount(&self.tree, plain).map_err(failed("set its options"))?;
        if has("rro") {
            let set = libc::MOUNT_ATTR_RDONLY;
            let all = MountChange { set, recursive: true, ..MountChange::default() };
            sys::change_mount(&self.tree, all).map_err(failed("make all of it read-only"))?;
        }
        Ok(())
    }
}

/// What lies at a path, without following a link.
fn look(directory: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(directory, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn is_directory(place: &OwnedFd) -> rustix::io::Result<bool> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(place)?.st_mode).is_dir())
}

fn attach(tree: &OwnedFd, place: &OwnedFd) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, "", place, "", flags)
}

fn failed<E: Into<io::Error>>(operation: impl std::fmt::Display) -> impl FnOnce(E) -> String {
    let operation = operation.to_string();
    move |error| format!("/dev: {operation}: {}", error.into())
}
