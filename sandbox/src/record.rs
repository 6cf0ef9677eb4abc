//! Small records on disk: written whole or not at all, read with bounds.
//!
//! Invariant: a file at a record's path is a complete record in an envelope that names its version,
//! `{"version":1,"data":…}`. Nothing is synced: a record survives the death of every process, not the
//! loss of power.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The largest record that is read.
pub const MAX_SIZE: u64 = 4 << 20;

const VERSION: u32 = 1;

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A file operation failed.
    #[error("record {}: {operation}: {source}", path.display())]
    Io {
        /// The record.
        path: PathBuf,
        /// What was attempted.
        operation: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The file is not a record, or one of another version.
    #[error("record {}: {reason}", path.display())]
    Invalid {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl RecordError {
    /// Whether there is no such record.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    version: u32,
    data: T,
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

/// Writes a record with mode 0600 in place of what was there. The directory must exist, and one writer
/// at a time writes a path.
pub fn write(path: &Path, data: &impl Serialize) -> Result<(), RecordError> {
    let bytes = serde_json::to_vec(&Envelope { version: VERSION, data })
        .map_err(|error| RecordError::Invalid { path: path.to_owned(), reason: error.to_string() })?;
    let failed = |operation| move |source| RecordError::Io { path: path.to_owned(), operation, source };
    let temporary = temporary_of(path)?;
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("clear")(error)),
        _ => {}
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(failed("create"))?;
    let written = file.write_all(&bytes).map_err(failed("write"));
    let renamed = written.and_then(|()| fs::rename(&temporary, path).map_err(failed("rename")));
    if renamed.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    renamed
}

/// Reads a record. A symbolic link, a device or a file over [`MAX_SIZE`] is refused.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, RecordError> {
    let failed = |operation| move |source| RecordError::Io { path: path.to_owned(), operation, source };
    let invalid = |reason: String| RecordError::Invalid { path: path.to_owned(), reason };
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .map_err(failed("open"))?;
    if !file.metadata().map_err(failed("stat"))?.is_file() {
        return Err(invalid("it is not a regular file".into()));
    }
    let mut bytes = Vec::new();
    file.take(MAX_SIZE + 1).read_to_end(&mut bytes).map_err(failed("read"))?;
    if bytes.len() as u64 > MAX_SIZE {
        return Err(invalid(format!("it is larger than {MAX_SIZE} bytes")));
    }
    let unreadable = |error: serde_json::Error| invalid(format!("it cannot be understood: {error}"));
    let VersionOnly { version } = serde_json::from_slice(&bytes).map_err(unreadable)?;
    if version != VERSION {
        return Err(invalid(format!("its version is {version}, this build reads version {VERSION}")));
    }
    let envelope: Envelope<T> = serde_json::from_slice(&bytes).map_err(unreadable)?;
    Ok(envelope.data)
}

/// Removes a record; success when there is none.
pub fn remove(path: &Path) -> Result<(), RecordError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(RecordError::Io { path: path.to_owned(), operation: "remove", source })
        }
        _ => Ok(()),
    }
}

/// Where [`write`] puts a record before it gets its name; left there by a writer that was killed.
pub fn temporary_of(path: &Path) -> Result<PathBuf, RecordError> {
    let Some(name) = path.file_name() else {
        return Err(RecordError::Invalid { path: path.to_owned(), reason: "it has no file name".into() });
    };
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(".new");
    Ok(path.with_file_name(temporary))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written_and_only_the_owner_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write(&path, &vec![1, 2]).unwrap();
        write(&path, &vec![3]).unwrap();
        assert_eq!(read::<Vec<i32>>(&path).unwrap(), [3]);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(read::<Vec<i32>>(&path).unwrap_err().is_missing());
    }

    #[test]
    fn a_bad_record_is_refused_with_its_path_and_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bad.json");
        for (content, reason) in [
            ("", "cannot be understood"),
            ("{\"version\":1,\"da", "cannot be understood"),
            ("{\"version\":7,\"data\":[1]}", "version is 7"),
            ("{\"version\":1,\"data\":\"x\"}", "cannot be understood"),
        ] {
            fs::write(&path, content).unwrap();
            let error = read::<Vec<i32>>(&path).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("bad.json"), "{error}");
        }
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(read::<Vec<i32>>(&path).is_err(), "a link is not followed");
    }
}
