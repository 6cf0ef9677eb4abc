//! Records on disk: small JSON files, written whole and synced, or not at all.

use std::{
    fs,
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
};

use rustix::fs::{FileType, Mode, OFlags};
use serde::{Serialize, de::DeserializeOwned};

use crate::error::ImageError;

/// Largest record read back, in bytes: a configuration with quotes escaped, and the rest.
const MAX_RECORD: u64 = 40 << 20;

/// Reads a record. The reason of failure is in words.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, String> {
    let mut bytes = Vec::new();
    let read = open(path)?.take(MAX_RECORD + 1).read_to_end(&mut bytes);
    read.map_err(|error| format!("its record cannot be read: {error}"))?;
    if bytes.len() as u64 > MAX_RECORD {
        return Err("its record is larger than any we write".to_owned());
    }
    serde_json::from_slice(&bytes).map_err(|error| format!("its record is damaged: {error}"))
}

/// Why a record of another build is not used.
pub(crate) fn another_version(version: u32) -> String {
    format!("its record has version {version}, this program knows 1")
}

fn open(path: &Path) -> Result<fs::File, String> {
    let place = look(path, FileType::RegularFile).map_err(|reason| format!("its record {reason}"))?;
    fs::File::open(format!("/proc/self/fd/{}", place.as_raw_fd()))
        .map_err(|error| format!("its record cannot be opened: {error}"))
}

/// Refuses what is not a directory that we own and nobody else may write; the reason in words.
pub(crate) fn check_directory(path: &Path) -> Result<(), String> {
    look(path, FileType::Directory).map(drop).map_err(|reason| format!("the directory {reason}"))
}

/// Finds a file without opening it, since opening a device does things, and refuses another kind than
/// `kind` and what somebody else owns or may write.
fn look(path: &Path, kind: FileType) -> Result<OwnedFd, String> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| format!("cannot be opened: {e}"))?;
    let found = rustix::fs::fstat(&place).map_err(|e| format!("cannot be looked at: {e}"))?;
    let (owner, mode) = (found.st_uid, found.st_mode & 0o7777);
    if FileType::from_raw_mode(found.st_mode) != kind {
        return Err(format!("is not what it must be ({kind:?})"));
    }
    if owner != rustix::process::geteuid().as_raw() {
        return Err(format!("belongs to user {owner}, not to podhold's"));
    }
    if mode & 0o022 != 0 {
        return Err(format!("may be written by others than its owner (mode {mode:04o})"));
    }
    Ok(place)
}

/// Writes a record so that after a power loss either the old or the new one is there.
pub(crate) fn write<T: Serialize>(path: &Path, record: &T) -> Result<(), ImageError> {
    let write = || {
        write_temporary(path, record)?.sync_all()?;
        fs::rename(temporary(path), path)?;
        sync_directory(path.parent().unwrap_or(Path::new("/")))
    };
    write().map_err(ImageError::io(format!("write {}", path.display())))
}

/// Writes a record whole, but not so that it outlives a power loss.
pub(crate) fn write_unsynced<T: Serialize>(path: &Path, record: &T) -> io::Result<()> {
    write_temporary(path, record)?;
    fs::rename(temporary(path), path)
}

fn temporary(path: &Path) -> PathBuf {
    path.with_extension("new")
}

fn write_temporary<T: Serialize>(path: &Path, record: &T) -> io::Result<fs::File> {
    match fs::remove_file(temporary(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(temporary(path))?;
    file.write_all(&serde_json::to_vec(record)?)?;
    Ok(file)
}

/// Deletes a record for good. Success when there is none.
pub(crate) fn delete(path: &Path) -> Result<(), ImageError> {
    let removed = fs::remove_file(path).or_else(|error| match error.kind() {
        io::ErrorKind::IsADirectory => fs::remove_dir_all(path),
        _ => Err(error),
    });
    let deleted = match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_directory(path.parent().unwrap_or(Path::new("/"))),
    };
    deleted.map_err(ImageError::io(format!("delete {}", path.display())))
}

/// Makes renames and deletions in a directory last.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

/// What is in a directory.
pub(crate) fn children(dir: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let list = || fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>();
    list().map_err(ImageError::io(format!("list {}", dir.display())))
}
