//! Small records on disk: written whole or not at all, read with bounds and with suspicion.
//!
//! Invariant: a file at a record's path is a complete record in an envelope that names its version,
//! `{"version":1,"data":…}`, that its writer owns and nobody else may write. A record survives the death of every process; the loss of
//! power only when it was written by [`write_synced`].

use std::{
    cmp::Ordering,
    fs::{self, File},
    io::{self, Read, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
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
    put(path, data, |_| Ok(()))
}

/// The same for a record that a loss of power must leave whole: the earlier one, or this once it is written.
pub fn write_synced(path: &Path, data: &impl Serialize) -> Result<(), RecordError> {
    put(path, data, File::sync_all)?;
    let directory = File::open(path.parent().unwrap_or(path)).and_then(|directory| directory.sync_all());
    directory.map_err(|source| RecordError::Io {
        path: path.to_owned(),
        operation: "sync its directory",
        source,
    })
}

fn put(
    path: &Path,
    data: &impl Serialize,
    sync: impl Fn(&File) -> io::Result<()>,
) -> Result<(), RecordError> {
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
    let written = written.and_then(|()| sync(&file).map_err(failed("sync")));
    let renamed = written.and_then(|()| fs::rename(&temporary, path).map_err(failed("rename")));
    if renamed.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    renamed
}

/// Reads a record, under the conditions of [`open`].
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, RecordError> {
    let invalid = |reason: String| RecordError::Invalid { path: path.to_owned(), reason };
    let bytes = read_bytes(path, MAX_SIZE)?;
    let unreadable = |error: serde_json::Error| invalid(format!("it cannot be understood: {error}"));
    let VersionOnly { version } = serde_json::from_slice(&bytes).map_err(unreadable)?;
    // There has been one version so far. A later build that changes what a record holds turns the
    // older ones into its own here.
    match version.cmp(&VERSION) {
        Ordering::Equal => {}
        Ordering::Less => {
            return Err(invalid(format!("its version is {version}; none is older than {VERSION}")));
        }
        Ordering::Greater => {
            let reason = format!(
                "its version is {version}, a newer podhold has written it; this build reads version {VERSION}"
            );
            return Err(invalid(reason));
        }
    }
    let envelope: Envelope<T> = serde_json::from_slice(&bytes).map_err(unreadable)?;
    Ok(envelope.data)
}

/// Reads a whole file of ours, under the conditions of [`open`]. One over `most` bytes is refused.
pub fn read_bytes(path: &Path, most: u64) -> Result<Vec<u8>, RecordError> {
    let mut bytes = Vec::new();
    let read = open(path)?.take(most + 1).read_to_end(&mut bytes);
    read.map_err(|source| RecordError::Io { path: path.to_owned(), operation: "read", source })?;
    if bytes.len() as u64 > most {
        let reason = format!("it is larger than {most} bytes");
        return Err(RecordError::Invalid { path: path.to_owned(), reason });
    }
    Ok(bytes)
}

/// Opens a file of ours to read it. What is not a regular file (a link, a FIFO, a device, a directory) is
/// refused without being opened, and so is what somebody else owns or may write.
pub fn open(path: &Path) -> Result<File, RecordError> {
    let failed = |operation| move |source| RecordError::Io { path: path.to_owned(), operation, source };
    let place = look(path, "it is not a regular file", fs::Metadata::is_file)?;
    File::open(format!("/proc/self/fd/{}", place.as_raw_fd())).map_err(failed("open"))
}

/// Refuses what is not a directory that we own and nobody else may write. A missing one is an error.
pub fn check_directory(path: &Path) -> Result<(), RecordError> {
    look(path, "it is not a directory", fs::Metadata::is_dir).map(drop)
}

/// Finds a file without opening it, since opening a device does things, and checks what it is.
fn look(path: &Path, other: &str, kind: impl Fn(&fs::Metadata) -> bool) -> Result<File, RecordError> {
    let failed = |operation| move |source| RecordError::Io { path: path.to_owned(), operation, source };
    let invalid = |reason: String| RecordError::Invalid { path: path.to_owned(), reason };
    let place = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
        .open(path)
        .map_err(failed("open"))?;
    let found = place.metadata().map_err(failed("stat"))?;
    let (owner, us) = (found.uid(), rustix::process::geteuid().as_raw());
    if !kind(&found) {
        return Err(invalid(other.to_owned()));
    }
    if owner != us {
        return Err(invalid(format!("it belongs to user {owner}, not to user {us} as what podhold writes")));
    }
    if found.mode() & 0o022 != 0 {
        let mode = found.mode() & 0o7777;
        return Err(invalid(format!("others than its owner may write it (mode {mode:04o})")));
    }
    Ok(place)
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
            ("{\"version\":7,\"data\":[1]}", "a newer podhold"),
            ("{\"version\":0,\"data\":[1]}", "none is older"),
            ("\0\0\0\0", "cannot be understood"),
            ("{\"version\":1,\"data\":\"x\"}", "cannot be understood"),
        ] {
            fs::write(&path, content).unwrap();
            let error = read::<Vec<i32>>(&path).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("bad.json"), "{error}");
        }
        let deep = format!("{{\"version\":1,\"data\":{}", "[".repeat(1 << 20));
        fs::write(&path, deep).unwrap();
        assert!(read::<Vec<i32>>(&path).unwrap_err().to_string().contains("cannot be understood"));
        fs::File::options().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(read::<Vec<i32>>(&path).unwrap_err().to_string().contains("larger than"));
    }

    #[test]
    fn what_somebody_else_may_have_written_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        let refused = |reason: &str| {
            let error = read::<Vec<i32>>(&path).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("a.json"), "{error}");
        };
        for mode in [0o620, 0o602, 0o666] {
            write(&path, &[1]).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            refused("may write it");
        }
        if rustix::process::geteuid().is_root() {
            write(&path, &[1]).unwrap();
            std::os::unix::fs::chown(&path, Some(1000), None).unwrap();
            refused("belongs to user 1000");
            std::os::unix::fs::chown(dir.path(), Some(1000), None).unwrap();
            assert!(check_directory(dir.path()).is_err());
        } else {
            println!("SKIPPED: the part with another owner needs root");
        }
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        refused("not a regular file");
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        refused("not a regular file");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        refused("not a regular file");
        check_directory(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o770)).unwrap();
        assert!(check_directory(&path).unwrap_err().to_string().contains("mode 0770"));
    }
}
