//! Reads small files that an administrator wrote: configuration, certificates, credentials.
//!
//! Invariant: only regular files are read, within a bound, and opening one never waits (a FIFO in its place
//! would make a pull hang).

use std::{
    fs::{File, Metadata, OpenOptions},
    io::{Error, Read, Result},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Largest file that is read, in bytes.
const MAX: u64 = 1 << 20;

/// The file's content.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    Ok(read_with_metadata(path)?.0)
}

/// The file's content, and what the kernel says about the very file that was read.
pub(crate) fn read_with_metadata(path: &Path) -> Result<(Vec<u8>, Metadata)> {
    let file: File = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX {
        return Err(Error::other("it is larger than 1 MiB"));
    }
    Ok((bytes, metadata))
}
