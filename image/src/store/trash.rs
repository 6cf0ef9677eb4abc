//! Throwing trees away: out of sight at once, deleted after.
//!
//! Deletion needs one fd and no recursion however deep a container has nested its directories: each
//! directory found is first moved to the top.

use std::{
    fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::{
    fs::{AtFlags, CWD, Dir, Mode, OFlags},
    io::Errno,
};

/// A directory for what is to be deleted, on the file system of what it serves.
#[derive(Debug)]
pub(crate) struct Trash {
    dir: PathBuf,
    next: AtomicU64,
}

impl Trash {
    /// `dir` exists. What an earlier process left in it stays until somebody deletes its [`Trash::contents`].
    pub(crate) fn new(dir: PathBuf) -> io::Result<Self> {
        let numbers =
            fs::read_dir(&dir)?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u64>().ok());
        let next = AtomicU64::new(numbers.max().unwrap_or(0) + 1);
        Ok(Self { dir, next })
    }

    fn place(&self) -> PathBuf {
        self.dir.join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// Moves `path` into the trash; `None` when it does not exist.
    pub(crate) fn take(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        let place = self.place();
        match fs::rename(path, &place) {
            Ok(()) => Ok(Some(place)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Moves `path`, which is half made, into the trash while a store is opened. On a disk that takes no
    /// change it stays where it is until a later start: that must not keep what is whole from being used.
    pub(crate) fn take_if_writable(&self, path: &Path) -> io::Result<()> {
        match self.take(path) {
            Err(error) if unwritable(&error) => {
                tracing::warn!(path = %path.display(), %error, "half made; not thrown away");
                Ok(())
            }
            taken => taken.map(drop),
        }
    }

    /// Moves `path` into the trash and deletes it. Success when it does not exist.
    pub(crate) fn discard(&self, path: &Path) -> io::Result<()> {
        match self.take(path)? {
            Some(place) => self.delete(place),
            None => Ok(()),
        }
    }

    /// All that is in the trash now.
    pub(crate) fn contents(&self) -> io::Result<Vec<PathBuf>> {
        fs::read_dir(&self.dir)?.map(|entry| Ok(entry?.path())).collect()
    }

    /// Deletes something that is in the trash.
    pub(crate) fn delete(&self, place: PathBuf) -> io::Result<()> {
        let mut waiting = vec![place];
        while let Some(path) = waiting.pop() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let dir = match rustix::fs::openat(CWD, &path, flags, Mode::empty()) {
                Ok(dir) => dir,
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    fs::remove_file(&path)?;
                    continue;
                }
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error.into()),
            };
            for entry in Dir::read_from(&dir)? {
                let entry = entry?;
                let name = entry.file_name();
                if matches!(name.to_bytes(), b"." | b"..") {
                    continue;
                }
                let removed = match rustix::fs::unlinkat(dir.as_fd(), name, AtFlags::empty()) {
                    Err(Errno::ISDIR) => rustix::fs::unlinkat(dir.as_fd(), name, AtFlags::REMOVEDIR),
                    other => other,
                };
                match removed {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(Errno::NOTEMPTY) => {
                        let place = self.place();
                        rustix::fs::renameat(dir.as_fd(), name, CWD, &place)?;
                        waiting.push(place);
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            match fs::remove_dir(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Whether a disk that is read-only or full is the cause.
fn unwritable(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::StorageFull)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_nested_deeper_than_any_path_is_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let (trash, tree) = (dir.path().join("trash"), dir.path().join("tree"));
        fs::create_dir(&trash).unwrap();
        fs::create_dir(&tree).unwrap();
        let open = |at: &rustix::fd::OwnedFd, name: &str| {
            rustix::fs::openat(at, name, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()
        };
        let mut at = rustix::fs::openat(CWD, &tree, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, "nested", Mode::RWXU).unwrap();
            rustix::fs::symlinkat("/etc", &at, "link").unwrap();
            at = open(&at, "nested");
        }
        let trash = Trash::new(trash).unwrap();
        trash.discard(&tree).unwrap();
        trash.discard(&tree).unwrap();
        assert_eq!(fs::read_dir(&trash.dir).unwrap().count(), 0);
        assert!(Path::new("/etc/passwd").exists());
    }
}
