//! What a writable layer takes on disk, within bounds. Changes nothing.

use std::{
    collections::HashSet,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};

use crate::store::Usage;

/// Most entries looked at: some tenths of a second with the inodes in memory.
pub(super) const MOST: usize = 200_000;
/// Most bytes of names of directories still to be looked into.
const MOST_WAITING: usize = 16 << 20;

/// What a tree takes on disk: all of it, or what the first `most` entries take, since statistics are asked
/// for often and a container may make any number of files. Memory is bounded as well.
///
/// The tree may change meanwhile, by a container that means harm: each directory is opened beneath the root
/// without following links, and what cannot be opened is left out.
pub(super) fn measure(root: &Path, most: usize) -> Result<Usage, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, root, flags, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    let own = rustix::fs::fstat(&root)?;
    let mut usage = Usage { bytes: own.st_blocks as u64 * 512, inodes: 1 };
    let mut left = most;
    // At most one per entry looked at.
    let mut linked = HashSet::new();
    let (mut waiting, mut waiting_bytes) = (vec![PathBuf::from(".")], 1);
    while let Some(path) = waiting.pop() {
        waiting_bytes -= path.as_os_str().len();
        let Ok(dir) = rustix::fs::openat2(&root, &path, flags, Mode::empty(), resolve) else { continue };
        let Ok(entries) = Dir::read_from(&dir) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if left == 0 {
                tracing::debug!(most, "writable layer measured in part: it has more entries");
                return Ok(usage);
            }
            left -= 1;
            let Ok(found) = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            let is_directory = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
            if !is_directory && found.st_nlink > 1 && !linked.insert(found.st_ino) {
                continue;
            }
            usage.bytes += found.st_blocks as u64 * 512;
            usage.inodes += 1;
            if is_directory {
                let path = path.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
                let length = path.as_os_str().len();
                if waiting_bytes + length <= MOST_WAITING {
                    waiting_bytes += length;
                    waiting.push(path);
                }
            }
        }
    }
    Ok(usage)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn measuring_stops_after_so_many_entries() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..30 {
            fs::create_dir(dir.path().join(format!("d{n}"))).unwrap();
            fs::write(dir.path().join(format!("d{n}/file")), vec![b'x'; 5000]).unwrap();
            fs::hard_link(dir.path().join(format!("d{n}/file")), dir.path().join(format!("d{n}/same")))
                .unwrap();
        }
        let whole = measure(dir.path(), MOST).unwrap();
        assert_eq!(whole.inodes, 61, "links are counted once");
        assert!(whole.bytes >= 30 * 5000);
        assert_eq!(measure(dir.path(), 90).unwrap(), whole);
        let part = measure(dir.path(), 40).unwrap();
        assert!((31..=41).contains(&part.inodes), "{part:?}");
        assert!(part.bytes < whole.bytes);
        assert_eq!(measure(dir.path(), 0).unwrap().inodes, 1);
    }
}
