//! Reads the kernel's small statistics files. A file that is not there is `None`, never an error:
//! kernels and controllers differ in what they offer.

use std::path::{Path, PathBuf};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

use crate::{CgroupError, handle::gone};

/// More than any of these files holds.
const LARGEST: usize = 256 << 10;
/// More than the statistics of a cgroup take; the kernel gives them in one piece.
const USUAL: usize = 8 << 10;

/// The text of a file that the kernel writes as one record, such as `memory.stat`: three system calls.
pub(crate) fn text(file: &Path) -> Result<Option<String>, CgroupError> {
    read(file, false)
}

/// The text of a file with any number of records, such as `cgroup.procs`.
pub(crate) fn records(file: &Path) -> Result<Option<String>, CgroupError> {
    read(file, true)
}

fn read(file: &Path, records: bool) -> Result<Option<String>, CgroupError> {
    let mut content = Vec::new();
    let mut read = || {
        let opened = rustix::fs::open(file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut buffer = [0; USUAL];
        loop {
            let length = rustix::io::read(&opened, &mut buffer)?;
            content.extend_from_slice(&buffer[..length]);
            // A short piece is the end of one record; records may come in pieces.
            if length == 0 || (length < USUAL && !records) || content.len() > LARGEST {
                return Ok(());
            }
        }
    };
    match read() {
        Ok(()) => Ok(Some(String::from_utf8_lossy(&content).into_owned())),
        Err(Errno::OPNOTSUPP) => Ok(None),
        Err(error) => match std::io::Error::from(error) {
            error if gone(&error) => Ok(None),
            error => Err(CgroupError::io("read", file)(error)),
        },
    }
}

/// A file with one number; `max` is `None`.
pub(crate) fn number(file: PathBuf) -> Result<Option<u64>, CgroupError> {
    let Some(text) = text(&file)? else { return Ok(None) };
    match text.trim() {
        "max" => Ok(None),
        number => number.parse().map(Some).map_err(|_| CgroupError::malformed(&file, number)),
    }
}

/// A file with lines of a key and a number.
#[derive(Debug, Default)]
pub(crate) struct Table(String);

impl Table {
    pub(crate) fn read(file: &Path) -> Result<Option<Self>, CgroupError> {
        Ok(text(file)?.map(Self))
    }

    pub(crate) fn get(&self, key: &str) -> Option<u64> {
        let mut lines = self.0.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(name, _)| *name == key).and_then(|(_, value)| value.trim().parse().ok())
    }
}
