//! Reads the kernel's small statistics files. A file that is not there is `None`, never an error:
//! kernels and controllers differ in what they offer.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use crate::{CgroupError, handle::gone};

/// More than any of these files holds.
const LARGEST: u64 = 256 << 10;

/// The file's text.
pub(crate) fn text(file: &Path) -> Result<Option<String>, CgroupError> {
    let mut content = String::new();
    match File::open(file).and_then(|opened| opened.take(LARGEST).read_to_string(&mut content)) {
        Ok(_) => Ok(Some(content)),
        Err(error) if gone(&error) || error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => Ok(None),
        Err(error) => Err(CgroupError::io("read", file)(error)),
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
