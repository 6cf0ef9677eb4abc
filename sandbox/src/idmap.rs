//! Mounts whose owners are shifted for a user namespace (idmapped mounts, Linux 5.12).
//!
//! Everything here works on detached copies of mounts: nothing becomes visible in any mount namespace, and
//! what is dropped is gone. Overlayfs cannot be shifted, its layers can.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::mount::OpenTreeFlags;

use crate::sys;

/// A detached copy of the mount that `source` lies in, with `source` as its root; with all mounts
/// beneath it if `recursive`.
pub(crate) fn detached(source: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    Ok(rustix::mount::open_tree(rustix::fs::CWD, source, flags)?)
}

/// Whether the file system `source` lies on can be shown with the owners of user namespace `namespace`.
/// Blocks as long as that file system does not answer.
pub fn check(source: &Path, namespace: impl AsFd) -> io::Result<()> {
    sys::map_ids(detached(source, false)?, namespace)
}
