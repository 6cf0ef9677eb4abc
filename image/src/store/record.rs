//! Records on disk: small JSON files, written whole and synced, or not at all.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

use crate::error::ImageError;

/// Largest record read back, in bytes: a configuration with quotes escaped, and the rest.
const MAX_RECORD: u64 = 40 << 20;

/// Reads a record. The reason of failure is in words.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, String> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(|error| format!("its record cannot be opened: {error}"))?;
    let read = file.take(MAX_RECORD + 1).read_to_end(&mut bytes);
    read.map_err(|error| format!("its record cannot be read: {error}"))?;
    if bytes.len() as u64 > MAX_RECORD {
        return Err("its record is larger than any we write".to_owned());
    }
    serde_json::from_slice(&bytes).map_err(|error| format!("its record is damaged: {error}"))
}

/// Writes a record so that after a power loss either the old or the new one is there.
pub(crate) fn write<T: Serialize>(path: &Path, record: &T) -> Result<(), ImageError> {
    let write = || {
        write_temporary(path, record)?.sync_all()?;
        fs::rename(temporary(path), path)?;
        sync_directory(path.parent().unwrap_or(Path::new("/")))
    };
    let written = write().inspect_err(|_| drop(fs::remove_file(temporary(path))));
    written.map_err(ImageError::io(format!("write {}", path.display())))
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
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(temporary(path))?;
    file.write_all(&serde_json::to_vec(record)?)?;
    Ok(file)
}

/// Deletes a record for good. Success when there is none.
pub(crate) fn delete(path: &Path) -> Result<(), ImageError> {
    let deleted = match fs::remove_file(path) {
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
