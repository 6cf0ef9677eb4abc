//! Parts of volumes. A container may have put links into the volume and may change it at any time, so the part
//! is looked up once, beneath the volume, and what was found is mounted at a place of our own. Blocks.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use podhold_proto::cri::MountPropagation;
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
    mount::{MoveMountFlags, OpenTreeFlags},
};

use super::mounted;
use crate::{
    error::{Error, Result},
    sys,
};

/// The part to show, and where it is put for the container's mount.
#[derive(Debug)]
pub(in crate::standalone) struct Sub<'a> {
    /// The volume.
    pub(in crate::standalone) root: &'a Path,
    /// Relative to it.
    pub(in crate::standalone) path: &'a str,
    /// Whether a directory is made where there is nothing.
    pub(in crate::standalone) make: bool,
    /// What of mounts on it goes from the host to the container, and back.
    pub(in crate::standalone) propagation: MountPropagation,
    /// Where it is put.
    pub(in crate::standalone) at: PathBuf,
    /// The field of the manifest.
    pub(in crate::standalone) field: &'a str,
}

/// Mounts a part of a volume at its place, in place of what an earlier start has left there.
pub(in crate::standalone) fn settle(sub: &Sub<'_>) -> Result<()> {
    let refused = |reason: String| Error::Precondition(format!("{}: {:?} {reason}", sub.field, sub.path));
    let part = look_up(sub).map_err(|error| match error {
        Errno::XDEV | Errno::LOOP => refused("leads out of its volume by a link".to_owned()),
        Errno::NOENT => refused("is not in the volume".to_owned()),
        Errno::NOTDIR => refused("leads through a file".to_owned()),
        other => refused(format!("cannot be looked up ({other})")),
    })?;
    let doing = || Error::doing(format!("{}: mounting {:?}", sub.field, sub.path));
    place(&part, &sub.at, sub.propagation).map_err(doing())
}

fn look_up(sub: &Sub<'_>) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::open(sub.root, flags | OFlags::DIRECTORY, Mode::empty())?;
    match beneath(&root, Path::new(sub.path)) {
        Err(Errno::NOENT) if sub.make => {}
        found => return found,
    }
    // What is made looks like the volume itself.
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&root)?.st_mode & 0o777);
    let mut above = PathBuf::from(".");
    for part in Path::new(sub.path).components() {
        let parent = beneath(&root, &above)?;
        match rustix::fs::mkdirat(&parent, part.as_os_str(), mode) {
            Ok(()) => {
                let made = rustix::fs::openat(
                    &parent,
                    part.as_os_str(),
                    OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                    Mode::empty(),
                )?;
                // The mask of this process took some of it.
                rustix::fs::fchmod(
                    &made,
                    Mode::from_raw_mode(rustix::fs::fstat(&made)?.st_mode & 0o7000) | mode,
                )?;
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        above.push(part);
    }
    beneath(&root, Path::new(sub.path))
}

fn beneath(root: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn place(part: &OwnedFd, at: &Path, propagation: MountPropagation) -> io::Result<()> {
    mounted::detach(at)?;
    if let Some(parent) = at.parent() {
        fs::create_dir_all(parent)?;
    }
    let is_directory = FileType::from_raw_mode(rustix::fs::fstat(part)?.st_mode) == FileType::Directory;
    match fs::symlink_metadata(at) {
        Ok(there) if there.is_dir() && !is_directory => fs::remove_dir(at)?,
        Ok(there) if !there.is_dir() && is_directory => fs::remove_file(at)?,
        _ => {}
    }
    if is_directory {
        fs::create_dir_all(at)?;
    } else {
        fs::OpenOptions::new().append(true).create(true).open(at)?;
    }
    let tree = part_of_host(part, propagation)?;
    rustix::mount::move_mount(tree.as_fd(), "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

/// A copy of what is mounted there, which is nowhere yet.
fn part_of_host(part: &OwnedFd, propagation: MountPropagation) -> io::Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    // A copy of a shared mount is its peer: what is unmounted beneath the one is so beneath the other. Only a
    // container that asks for it gets one, and that without what is mounted on it, as a kubelet does it.
    let kind = match propagation {
        MountPropagation::PropagationBidirectional => {
            return Ok(rustix::mount::open_tree(part.as_fd(), "", flags)?);
        }
        MountPropagation::PropagationHostToContainer => libc::MS_SLAVE,
        MountPropagation::PropagationPrivate => libc::MS_PRIVATE,
    };
    let tree = rustix::mount::open_tree(part.as_fd(), "", flags | OpenTreeFlags::AT_RECURSIVE)?;
    sys::set_propagation(tree.as_fd(), kind)?;
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_part_stays_in_its_volume_whatever_its_links_say() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("volume");
        fs::create_dir_all(root.join("data/deep")).unwrap();
        fs::create_dir(place.path().join("outside")).unwrap();
        fs::write(root.join("file"), "").unwrap();
        for (name, to) in [("in", "data"), ("up", "../outside"), ("absolute", "/etc"), ("loop", "loop")] {
            symlink(to, root.join(name)).unwrap();
        }
        let look = |path: &str, make| {
            let sub = Sub {
                root: &root,
                path,
                make,
                propagation: MountPropagation::PropagationPrivate,
                at: PathBuf::new(),
                field: "f",
            };
            look_up(&sub).map(drop)
        };
        for good in ["data/deep", "in/deep", "file", "in/new/deeper"] {
            assert_eq!(look(good, true), Ok(()), "{good}");
        }
        assert!(root.join("data/new/deeper").is_dir());
        for (bad, error) in [
            ("up", Errno::XDEV),
            ("up/new", Errno::XDEV),
            ("absolute", Errno::XDEV),
            ("absolute/new", Errno::XDEV),
            ("loop", Errno::LOOP),
            ("file/x", Errno::NOTDIR),
        ] {
            assert_eq!(look(bad, true), Err(error), "{bad}");
        }
        assert_eq!(look("nothing", false), Err(Errno::NOENT));
        assert_eq!(
            fs::read_dir(place.path().join("outside")).unwrap().count(),
            0,
            "something was made outside"
        );
    }

    #[test]
    fn what_is_made_has_the_mode_of_the_volume() {
        let place = tempfile::tempdir().unwrap();
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let sub = Sub {
            root: place.path(),
            path: "a/b",
            make: true,
            propagation: MountPropagation::PropagationPrivate,
            at: PathBuf::new(),
            field: "f",
        };
        look_up(&sub).unwrap();
        let mode = fs::metadata(place.path().join("a/b")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o777);
    }
}
