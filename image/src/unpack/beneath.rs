//! Directories beneath a root that no name can leave: every path is opened once, from a directory fd,
//! and never through a symbolic link.
//!
//! Names are relative, with single slashes and without `.` and `..` (see [`super::entry::clean`]); the
//! empty name is the root itself.

use std::{
    ffi::{OsStr, OsString},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, XattrFlags},
    io::Errno,
};

/// Most directories kept open at once.
const KEPT: usize = 24;

/// What overlayfs takes for "nothing from below shows here" (kernel, Documentation/filesystems/overlayfs.rst).
const OPAQUE: &str = "trusted.overlay.opaque";

/// A directory tree that is being filled.
pub(super) struct Tree {
    root: OwnedFd,
    /// Directories on the way to the one used last, each beneath the one before it: archives list
    /// directories in tree order, so the next entry's directory is nearly always here or one step away.
    kept: Vec<(Vec<u8>, OwnedFd)>,
    /// Directories made because an entry lies in them, parents first.
    pub(super) implicit: Vec<Vec<u8>>,
    /// Length of their names.
    pub(super) implicit_bytes: u64,
}

impl Tree {
    pub(super) fn new(root: OwnedFd) -> Self {
        Self { root, kept: Vec::new(), implicit: Vec::new(), implicit_bytes: 0 }
    }

    /// The directory `name`, made with its parents when missing. ELOOP and ENOTDIR mean that a part of
    /// `name` is no directory.
    pub(super) fn directory(&mut self, name: &[u8]) -> Result<BorrowedFd<'_>, Errno> {
        while self.kept.last().is_some_and(|(kept, _)| !is_within(name, kept)) {
            self.kept.pop();
        }
        let have = self.kept.last().map_or(0, |(kept, _)| kept.len());
        if name.len() > have {
            let rest = if have == 0 { name } else { &name[have + 1..] };
            let base = self.kept.last().map_or(self.root.as_fd(), |(_, fd)| fd.as_fd());
            let fd = match open_directory(base, rest, OFlags::PATH) {
                Err(Errno::NOENT | Errno::NOTDIR) => self.make_directories(name, have)?,
                other => other?,
            };
            if self.kept.len() >= KEPT {
                self.kept.clear();
            }
            self.kept.push((name.to_vec(), fd));
        }
        Ok(self.kept.last().map_or(self.root.as_fd(), |(_, fd)| fd.as_fd()))
    }

    /// Makes what is missing of `name`, whose first `have` bytes are the last kept directory.
    fn make_directories(&mut self, name: &[u8], have: usize) -> Result<OwnedFd, Errno> {
        let mut at = match self.kept.last() {
            Some((_, fd)) => fd.try_clone(),
            None => self.root.try_clone(),
        }
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::MFILE))?;
        let mut end = have;
        let rest = if have == 0 { name } else { &name[have + 1..] };
        for part in rest.split(|b| *b == b'/') {
            end += part.len() + usize::from(end > 0);
            if make_directory(at.as_fd(), part)? {
                self.implicit.push(name[..end].to_vec());
                self.implicit_bytes += end as u64;
            }
            at = open_directory(at.as_fd(), part, OFlags::PATH)?;
        }
        Ok(at)
    }

    /// Opens an existing directory of the tree for changing its attributes.
    pub(super) fn open(&self, name: &[u8]) -> Result<OwnedFd, Errno> {
        open_directory(self.root.as_fd(), name, OFlags::RDONLY)
    }

    /// Opens an existing directory of the tree for looking up names in it.
    pub(super) fn look_into(&self, name: &[u8]) -> Result<OwnedFd, Errno> {
        open_directory(self.root.as_fd(), name, OFlags::PATH)
    }
}

/// Whether `name` is `dir` or lies in it.
fn is_within(name: &[u8], dir: &[u8]) -> bool {
    name.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// Opens a directory beneath `base` without following any link.
pub(super) fn open_directory(base: BorrowedFd<'_>, name: &[u8], access: OFlags) -> Result<OwnedFd, Errno> {
    let name = if name.is_empty() { b"." } else { name };
    let flags = access | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(base, OsStr::from_bytes(name), flags, Mode::empty(), resolve)
}

/// Makes `name` a directory of `parent`; true when it is new. A whiteout of the same layer gives way: the
/// directory then is opaque, because what lies below was removed.
pub(super) fn make_directory(parent: BorrowedFd<'_>, name: &[u8]) -> Result<bool, Errno> {
    let os_name = OsStr::from_bytes(name);
    match rustix::fs::mkdirat(parent, os_name, Mode::RWXU) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => {
            let found = lookup(parent, name)?;
            if is_directory(&found) {
                return Ok(false);
            }
            if !is_whiteout(&found) {
                return Err(Errno::NOTDIR);
            }
            rustix::fs::unlinkat(parent, os_name, AtFlags::empty())?;
            rustix::fs::mkdirat(parent, os_name, Mode::RWXU)?;
            make_opaque(parent, name)?;
            Ok(true)
        }
        Err(error) => Err(error),
    }
}

/// Hides what lower layers have in the directory `name` of `parent`.
pub(super) fn make_opaque(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let directory = open_directory(parent, name, OFlags::RDONLY)?;
    rustix::fs::fsetxattr(directory, OPAQUE, b"y", XattrFlags::empty())
}

/// Whether a directory hides what lower layers have in it.
pub(super) fn is_opaque(directory: BorrowedFd<'_>) -> bool {
    let mut value = [0; 4];
    rustix::fs::fgetxattr(directory, OPAQUE, &mut value[..]).is_ok_and(|length| value[..length] == *b"y")
}

/// Hides what lower layers have as `name` in `parent`. What this layer itself has there stays.
pub(super) fn make_whiteout(parent: BorrowedFd<'_>, name: &[u8]) -> Result<bool, Errno> {
    match rustix::fs::mknodat(parent, OsStr::from_bytes(name), FileType::CharacterDevice, Mode::empty(), 0) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) if is_directory(&lookup(parent, name)?) => {
            make_opaque(parent, name).map(|()| false)
        }
        Err(Errno::EXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Takes a whiteout out of the way of an entry of the same layer; false when something else is there.
pub(super) fn clear_whiteout(parent: BorrowedFd<'_>, name: &[u8]) -> Result<bool, Errno> {
    if !is_whiteout(&lookup(parent, name)?) {
        return Ok(false);
    }
    rustix::fs::unlinkat(parent, OsStr::from_bytes(name), AtFlags::empty())?;
    Ok(true)
}

/// What `name` in `parent` is; links are not followed.
pub(super) fn lookup(parent: BorrowedFd<'_>, name: &[u8]) -> Result<Stat, Errno> {
    rustix::fs::statat(parent, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW)
}

pub(super) fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

pub(super) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// A path of a file that can only be named, not opened (a link, a device), for calls that want a path.
/// Valid while `parent` is open.
pub(super) fn proc_path(parent: BorrowedFd<'_>, name: &[u8]) -> OsString {
    use std::os::fd::AsRawFd;
    let mut path = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    OsString::from_vec(path)
}
