//! Hard links to files of the layers below: the file is copied up, as overlayfs does, and then linked to.
//!
//! Each layer is unpacked by itself, perhaps before the layers below it are there, so this is done when the layer
//! is about to count.

use std::{
    ffi::OsStr,
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags},
    io::Errno,
};

use super::{
    Limits, Unpacked, Wanted,
    beneath::{self, Tree},
    refusal::{Refusal, step},
    stream::EXPANSION_FLOOR,
};
use crate::error::UnpackError;

/// Bytes copied at once.
const COPY: usize = 256 << 10;
/// What file systems round sizes up to.
const BLOCK: u64 = 4096;

/// A hard link whose target was not in the layer when its entry came. Both names are clean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(super) name: Vec<u8>,
    pub(super) target: Vec<u8>,
}

impl Link {
    /// Bytes of memory it takes.
    pub(super) fn weight(&self) -> u64 {
        (self.name.len() + self.target.len() + size_of::<Self>()) as u64
    }
}

/// How much may still be copied, and for whom.
pub(crate) struct Budget<'a> {
    left: u64,
    wanted: &'a Wanted,
}

impl<'a> Budget<'a> {
    /// For a layer whose blob has `size` bytes: as much as its archive may expand to.
    pub(crate) fn new(limits: &Limits, size: u64, wanted: &'a Wanted) -> Self {
        Self { left: limits.bytes.min(limits.expansion.saturating_mul(size).max(EXPANSION_FLOOR)), wanted }
    }

    fn take(&mut self, bytes: u64) -> Result<(), Refusal> {
        if !self.wanted.still() {
            return Err(Refusal::Abandoned);
        }
        let left = self.left.checked_sub(bytes);
        self.left = left.ok_or_else(|| {
            Refusal::from(
                "its hard links copy more of the layers below than a layer of its size may take".to_owned(),
            )
        })?;
        Ok(())
    }
}

/// Makes the hard links of `unpacked` in `layer` whose targets are files of `lowers` (the nearest layer first),
/// and counts what that takes. Blocks.
pub(crate) fn borrow_files(
    layer: &OwnedFd,
    lowers: &[OwnedFd],
    unpacked: &mut Unpacked,
    budget: &mut Budget<'_>,
) -> Result<(), UnpackError> {
    let kernel =
        |error: std::io::Error| UnpackError::Io { operation: "complete the layer".into(), source: error };
    let mut tree = Tree::new(layer.try_clone().map_err(kernel)?);
    for link in std::mem::take(&mut unpacked.links) {
        make((layer, lowers), &mut tree, (&link, unpacked), budget)
            .map_err(|refusal| refusal.at(&link.name))?;
    }
    unpacked.inodes += tree.implicit.len() as u64;
    unpacked.bytes += tree.implicit.len() as u64 * BLOCK;
    unpacked.implicit.append(&mut tree.implicit);
    Ok(())
}

fn make(
    (layer, lowers): (&OwnedFd, &[OwnedFd]),
    tree: &mut Tree,
    (link, unpacked): (&Link, &mut Unpacked),
    budget: &mut Budget<'_>,
) -> Result<(), Refusal> {
    let (dir, name) = split(&link.target);
    let found = find(layer, lowers, &link.target).map_err(step("look for the target of its hard link"))?;
    let Some((place, parent)) = found else { return Err(no_target(&link.target).into()) };
    if place > 0 {
        let upper = tree.directory(dir).map_err(step("enter the directory of its hard link's target"))?;
        let bytes = copy_up(parent.as_fd(), upper, name, budget)?;
        unpacked.inodes += 1;
        unpacked.bytes += bytes.next_multiple_of(BLOCK);
    }
    link_in(tree, link)
}

/// Makes a hard link whose target is in the layer.
pub(super) fn link_in(tree: &mut Tree, link: &Link) -> Result<(), Refusal> {
    let ((dir, name), (target_dir, target)) = (split(&link.name), split(&link.target));
    let from = tree.look_into(target_dir).map_err(step("enter the directory of its hard link's target"))?;
    let into = tree.directory(dir).map_err(step("enter its directory"))?;
    let (target, name) = (OsStr::from_bytes(target), OsStr::from_bytes(name));
    match rustix::fs::linkat(&from, target, into, name, AtFlags::empty()) {
        Err(Errno::EXIST) => Err(super::extract::TWO_ENTRIES.into()),
        other => other.map_err(step("create it")),
    }
}

/// Why there is no link.
pub(super) fn no_target(target: &[u8]) -> String {
    let shown = String::from_utf8_lossy(&target[..target.len().min(300)]).into_owned();
    format!("the target of its hard link, {shown:?}, is no file of this layer or of those below it")
}

/// Directory and last part of a clean path.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// The file that overlayfs would show as `path`: its place (0 is the layer itself) and its directory. `None` when it
/// would show nothing, or something else than a file.
fn find(layer: &OwnedFd, lowers: &[OwnedFd], path: &[u8]) -> Result<Option<(usize, OwnedFd)>, Errno> {
    let (dir, name) = split(path);
    'layers: for (place, layer) in std::iter::once(layer).chain(lowers).enumerate() {
        let mut at = beneath::open_directory(layer.as_fd(), b"", OFlags::RDONLY)?;
        let mut hides_lower = beneath::is_opaque(at.as_fd());
        for part in dir.split(|b| *b == b'/').filter(|part| !part.is_empty()) {
            match beneath::lookup(at.as_fd(), part) {
                Ok(found) if beneath::is_directory(&found) => {}
                Ok(_) => return Ok(None),
                Err(Errno::NOENT) if hides_lower => return Ok(None),
                Err(Errno::NOENT) => continue 'layers,
                Err(error) => return Err(error),
            }
            at = beneath::open_directory(at.as_fd(), part, OFlags::RDONLY)?;
            hides_lower |= beneath::is_opaque(at.as_fd());
        }
        match beneath::lookup(at.as_fd(), name) {
            Ok(found) if is_file(&found) => return Ok(Some((place, at))),
            Ok(_) => return Ok(None),
            Err(Errno::NOENT) if hides_lower => return Ok(None),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// Copies a file with everything it has; its holes stay holes. Answers the bytes it takes.
fn copy_up(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &[u8],
    budget: &mut Budget<'_>,
) -> Result<u64, Refusal> {
    let name = OsStr::from_bytes(name);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let source = rustix::fs::openat(from, name, flags, Mode::empty()).map_err(step("open its target"))?;
    let stat = rustix::fs::fstat(&source).map_err(step("look at its target"))?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let copy = rustix::fs::openat(to, name, flags, Mode::RUSR).map_err(step("copy its target"))?;
    let (mut source, mut copy) = (File::from(source), File::from(copy));
    let bytes = copy_content(&mut source, &mut copy, stat.st_size.cast_unsigned(), budget)?;
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    let finish = || -> Result<(), Errno> {
        rustix::fs::fchown(&copy, Some(uid), Some(gid))?;
        rustix::fs::fchmod(&copy, Mode::from_raw_mode(stat.st_mode))?;
        copy_attributes(&source, &copy)?;
        let last_access = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
        let last_modification = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ };
        rustix::fs::futimens(&copy, &Timestamps { last_access, last_modification })
    };
    finish().map_err(step("copy its target's attributes"))?;
    Ok(bytes)
}

fn copy_content(
    source: &mut File,
    copy: &mut File,
    size: u64,
    budget: &mut Budget<'_>,
) -> Result<u64, Refusal> {
    let failed = |error: std::io::Error| {
        Refusal::Kernel("copy its target", Errno::from_io_error(&error).unwrap_or(Errno::IO))
    };
    copy.set_len(size).map_err(failed)?;
    let mut buffer = vec![0; COPY];
    let (mut at, mut copied) = (0, 0);
    loop {
        let data = match rustix::fs::seek(&*source, rustix::fs::SeekFrom::Data(at)) {
            Err(Errno::NXIO) => return Ok(copied),
            other => other.map_err(step("copy its target"))?,
        };
        at = rustix::fs::seek(&*source, rustix::fs::SeekFrom::Hole(data)).map_err(step("copy its target"))?;
        source.seek(SeekFrom::Start(data)).map_err(failed)?;
        copy.seek(SeekFrom::Start(data)).map_err(failed)?;
        let mut left = at - data;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(COPY).min(COPY);
            budget.take(most as u64)?;
            source.read_exact(&mut buffer[..most]).map_err(failed)?;
            copy.write_all(&buffer[..most]).map_err(failed)?;
            left -= most as u64;
            copied += most as u64;
        }
    }
}

/// The layers below were unpacked by us, so they have no attributes that an image may not have.
fn copy_attributes(source: &File, copy: &File) -> Result<(), Errno> {
    let mut names = vec![0; 64 << 10];
    let length = rustix::fs::flistxattr(source, &mut names[..])?;
    let mut value = vec![0; 64 << 10];
    for name in names[..length].split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let length = rustix::fs::fgetxattr(source, name, &mut value[..])?;
        rustix::fs::fsetxattr(copy, name, &value[..length], XattrFlags::empty())?;
    }
    Ok(())
}
