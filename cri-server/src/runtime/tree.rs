//! Removal of our own directories. Blocks.
//!
//! Invariant: never goes through a mount, beneath which other people's files are: one that is met keeps
//! everything.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Dir, Mode, OFlags, ResolveFlags},
    io::Errno,
};

use crate::error::{Error, Result};

/// Removes a directory or file of ours with all that is in it. Success when it is not there.
pub(super) fn remove_tree(path: &Path) -> Result<()> {
    nothing_mounted(path)?;
    delete(path)
}

/// Removes the directory of a record, the record last: who dies in between has an object that can be removed.
pub(super) fn remove_recorded(record: &Path) -> Result<()> {
    let dir = record.parent().expect("a record has a directory");
    nothing_mounted(dir)?;
    for name in super::recover::names(dir)? {
        let path = dir.join(name);
        if path != record {
            delete(&path)?;
        }
    }
    delete(dir)
}

fn nothing_mounted(path: &Path) -> Result<()> {
    let looking = || format!("looking through {}", path.display());
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::failed(looking(), &Errno::INVAL));
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mount = match rustix::fs::open(parent, flags, Mode::empty()) {
        Ok(parent) => first_mount(parent.as_fd(), Path::new(name)).map_err(Error::doing(looking()))?,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(Error::failed(looking(), &error)),
    };
    match mount {
        None => Ok(()),
        Some(mount) => {
            let mount = parent.join(mount);
            let (path, mount) = (path.display(), mount.display());
            Err(Error::Precondition(format!("{path} cannot be removed: {mount} is still mounted")))
        }
    }
}

/// A mount point at `name` in `parent` or beneath it. Found by walking our few directories: the table of
/// mounts grows with every pod.
fn first_mount(parent: BorrowedFd<'_>, name: &Path) -> std::result::Result<Option<PathBuf>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    let here = match rustix::fs::openat2(parent, name, flags, Mode::empty(), inside) {
        Ok(here) => here,
        Err(Errno::XDEV) => return Ok(Some(name.to_owned())),
        // Nothing is beneath a file or a link.
        Err(Errno::NOTDIR | Errno::LOOP | Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    for entry in Dir::read_from(&here)? {
        let entry = entry?;
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        let child = Path::new(OsStr::from_bytes(entry.file_name().to_bytes()));
        if let Some(mount) = first_mount(here.as_fd(), child)? {
            return Ok(Some(name.join(mount)));
        }
    }
    Ok(None)
}

/// Deletes a file or a directory in which nothing is mounted.
fn delete(path: &Path) -> Result<()> {
    let deleted = match path.symlink_metadata() {
        Ok(metadata) if !metadata.is_dir() => std::fs::remove_file(path),
        _ => std::fs::remove_dir_all(path),
    };
    match deleted {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::failed(format!("removing {}", path.display()), &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_with_a_mount_is_kept_whole_and_one_without_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        std::fs::write(tree.join("a/file"), "x").unwrap();
        std::os::unix::fs::symlink("/proc", tree.join("a/link")).unwrap();
        remove_tree(&tree.join("missing/tree")).unwrap();
        if rustix::process::geteuid().is_root() {
            let at = tree.join("a/b");
            let none = rustix::mount::MountFlags::empty();
            rustix::mount::mount("tmpfs", &at, "tmpfs", none, None).unwrap();
            std::fs::write(at.join("foreign"), "x").unwrap();
            let refused = remove_tree(&tree).map_err(|error| error.to_string());
            let whole = at.join("foreign").exists() && tree.join("a/file").exists();
            let beneath = remove_tree(&at);
            rustix::mount::unmount(&at, rustix::mount::UnmountFlags::DETACH).unwrap();
            assert!(refused.is_err_and(|why| why.contains(&format!("{} is still mounted", at.display()))));
            assert!(whole && beneath.is_err());
        } else {
            println!("SKIPPED: mounting needs root");
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }
}
