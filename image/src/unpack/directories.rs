//! How a layer's directories are to look: kept until everything in them is in place, then set.
//!
//! Invariant: what is kept is bounded, however many directories and attributes the archive has.

use std::collections::HashMap;

use rustix::fs::{Gid, Uid, XattrFlags};

use super::{
    beneath::Tree,
    entry::Attributes,
    refusal::{Refusal, step},
};
use crate::error::UnpackError;

/// Most bytes of names and attributes kept for one layer.
const MAX_KEPT: u64 = 64 << 20;
/// What an attribute takes in memory besides its name and value, in bytes.
const XATTR: usize = 64;

/// Attributes by directory.
#[derive(Default)]
pub(super) struct Directories {
    attributes: HashMap<Vec<u8>, Attributes>,
    bytes: u64,
}

impl Directories {
    /// Keeps what the archive says about a directory; the last word counts.
    pub(super) fn insert(&mut self, name: Vec<u8>, attributes: Attributes) -> Result<(), Refusal> {
        let length = name.len();
        self.bytes += weight(length, &attributes);
        if let Some(before) = self.attributes.insert(name, attributes) {
            self.bytes -= weight(length, &before);
        }
        self.make_room(0)
    }

    /// Refuses when what is kept here, and `others` bytes of names kept elsewhere, are too much.
    pub(super) fn make_room(&self, others: u64) -> Result<(), Refusal> {
        if self.bytes + others > MAX_KEPT {
            let message =
                format!("with it the names and attributes of directories take more than {MAX_KEPT} bytes");
            return Err(Refusal::TooLarge(message));
        }
        Ok(())
    }

    pub(super) fn contains(&self, name: &[u8]) -> bool {
        self.attributes.contains_key(name)
    }

    /// Sets what was kept, now that nothing more is put into the directories.
    pub(super) fn finish(&self, tree: &Tree) -> Result<(), UnpackError> {
        for (name, attributes) in &self.attributes {
            set_directory(tree, name, attributes).map_err(|refusal| refusal.at(name))?;
        }
        Ok(())
    }
}

fn weight(name: usize, attributes: &Attributes) -> u64 {
    let xattrs: usize = attributes.xattrs.iter().map(|(key, value)| XATTR + key.len() + value.len()).sum();
    (name + xattrs) as u64
}

fn set_directory(tree: &Tree, name: &[u8], attributes: &Attributes) -> Result<(), Refusal> {
    let fd = tree.open(name).map_err(step("open the directory again"))?;
    let owner = (Some(Uid::from_raw(attributes.uid)), Some(Gid::from_raw(attributes.gid)));
    rustix::fs::fchown(&fd, owner.0, owner.1).map_err(step("set its owner"))?;
    rustix::fs::fchmod(&fd, attributes.mode).map_err(step("set its mode"))?;
    for (name, value) in &attributes.xattrs {
        rustix::fs::fsetxattr(&fd, name.as_str(), value, XattrFlags::empty())
            .map_err(step("set its extended attributes"))?;
    }
    rustix::fs::futimens(&fd, &attributes.times).map_err(step("set its times"))
}
