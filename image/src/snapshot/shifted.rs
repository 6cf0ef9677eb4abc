//! Overlays above layers that show their owners shifted for a user namespace.
//!
//! Overlayfs itself cannot be shifted (EINVAL), its layers can: each is given to it as an idmapped copy of
//! the mount it lies in. What is made here is detached; whoever has it may attach it.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    thread,
};

use rustix::{
    fs::CWD,
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    },
};

use super::{IdMap, SnapshotError, overlay::Stack};
use crate::sys;

/// The stack as a detached overlay whose layers, but for the writable one, show their owners shifted.
pub(super) fn overlay(stack: &Stack<'_>, ids: &IdMap) -> Result<OwnedFd, SnapshotError> {
    let key = stack.key;
    let lowers = shift_all(key, stack.lowers, ids)?;
    let made = match of_detached(stack, &lowers) {
        Err(Errno::INVAL) => of_attached(stack, &lowers).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL | libc::ENOSYS) => {
                let reason = "the kernel's overlayfs does not take layers with shifted owners, which needs \
                              Linux 6.8; run the pod without a user namespace";
                SnapshotError::Unsupported { key: key.to_owned(), reason: reason.to_owned() }
            }
            _ => SnapshotError::io(format!("make the overlay of snapshot {key}"))(error),
        })?,
        made => made.map_err(SnapshotError::io(format!("make the overlay of snapshot {key}")))?,
    };
    Ok(made)
}

/// The layers as detached mounts that show their owners shifted.
fn shift_all(key: &str, lowers: &[&Path], ids: &IdMap) -> Result<Vec<OwnedFd>, SnapshotError> {
    let shift = |lower: &&Path| {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let mount = rustix::mount::open_tree(CWD, *lower, flags)
            .map_err(SnapshotError::io(format!("copy the mount of layer {}", lower.display())))?;
        match sys::map_ids(&mount, &ids.namespace) {
            Ok(()) => Ok(mount),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => {
                let reason = format!(
                    "its layers at {} cannot be shown with the owners of a user namespace: the kernel or \
                     that file system has no idmapped mounts; put state_dir on ext4, xfs or btrfs, or run \
                     the pod without a user namespace",
                    lower.display()
                );
                Err(SnapshotError::Unsupported { key: key.to_owned(), reason })
            }
            Err(error) => Err(SnapshotError::io(format!("shift the owners of {}", lower.display()))(error)),
        }
    };
    lowers.iter().map(shift).collect()
}

/// Since Linux 6.15 overlayfs takes mounts that are attached nowhere.
fn of_detached(stack: &Stack<'_>, lowers: &[OwnedFd]) -> Result<OwnedFd, Errno> {
    let name = |fd: &OwnedFd| PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let names: Vec<PathBuf> = lowers.iter().map(name).collect();
    stack.detached(&names.iter().map(PathBuf::as_path).collect::<Vec<_>>())
}

/// Before, they must be attached in the mount namespace of who asks: one of a thread's own, which ends
/// with it. Overlayfs keeps copies.
fn of_attached(stack: &Stack<'_>, lowers: &[OwnedFd]) -> io::Result<OwnedFd> {
    thread::scope(|scope| {
        let work = || -> io::Result<OwnedFd> {
            sys::own_mount_namespace()?;
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            rustix::mount::mount_change("/", private)?;
            // Over the directory that overlayfs is not told of, so that it is there again afterwards.
            let place = stack.own.join("lowers");
            match std::fs::create_dir(&place) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            attach_tmpfs(&place)?;
            let mut names = Vec::new();
            for (number, lower) in lowers.iter().enumerate() {
                let name = place.join(number.to_string());
                std::fs::create_dir(&name)?;
                let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
                rustix::mount::move_mount(lower.as_fd(), "", CWD, &name, flags)?;
                names.push(name);
            }
            Ok(stack.detached(&names.iter().map(PathBuf::as_path).collect::<Vec<_>>())?)
        };
        let thread = thread::Builder::new().name("layers".to_owned()).spawn_scoped(scope, work)?;
        thread.join().map_err(|_| io::Error::other("the thread that mounts has panicked"))?
    })
}

fn attach_tmpfs(place: &Path) -> Result<(), Errno> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    let mount = rustix::mount::fsmount(context.as_fd(), flags, MountAttrFlags::empty())?;
    rustix::mount::move_mount(mount.as_fd(), "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt};

    use super::*;

    /// The way of older kernels, on whatever kernel this is.
    #[test]
    fn layers_that_must_be_attached_are_nowhere_to_be_seen() {
        if !rustix::process::geteuid().is_root() {
            return println!("SKIPPED: needs root");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["one", "two", "own", "own/fs", "own/work", "target"] {
            fs::create_dir(path(name)).unwrap();
        }
        fs::write(path("one").join("a"), "a").unwrap();
        fs::write(path("two").join("b"), "b").unwrap();
        let mut holder = std::process::Command::new("unshare")
            .args(["--user", "sh", "-c", "echo; exec sleep 1000"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        io::Read::read_exact(&mut holder.stdout.take().unwrap(), &mut [0]).unwrap();
        for file in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{}/{file}", holder.id()), "0 300000 1000").unwrap();
        }
        let namespace = fs::File::open(format!("/proc/{}/ns/user", holder.id())).unwrap().into();
        let ids = IdMap { namespace, uids: Vec::new(), gids: Vec::new() };
        let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
        let before = mounts();
        let lowers = shift_all("k", &[&path("one"), &path("two")], &ids).unwrap();
        let own = path("own");
        let stack = Stack { key: "k", lowers: &[], own: &own, writable: true };
        let overlay = of_attached(&stack, &lowers).unwrap();
        assert_eq!(mounts(), before);
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(overlay.as_fd(), "", CWD, path("target"), flags).unwrap();
        let owners = ["a", "b"].map(|name| fs::metadata(path("target").join(name)).map(|m| m.uid()));
        rustix::mount::unmount(path("target"), rustix::mount::UnmountFlags::DETACH).unwrap();
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert_eq!(owners.map(Result::unwrap), [300_000; 2]);
    }
}
