//! One layer, from the bytes of its blob to a directory that overlayfs can stack, in a single pass.
//!
//! ```text
//! chunks from the network ─ hash blob, keep ─│─ decompress ─│─ hash archive ─ tar entries ─ files beneath a root fd
//!                                  intake    │   inflater   │  unpacker                        (a thread each)
//! ```
//!
//! Invariants: nothing is written outside the given directory whatever the archive says; a layer is only
//! reported as unpacked after its blob digest, its size and its diff id were found right.
//!
//! Does not download, does not sync, does not decide whether the layer counts: the store does.

mod beneath;
mod borrow;
mod content;
mod directories;
mod entry;
mod extract;
mod inflate;
mod inherit;
mod intake;
mod refusal;
mod sparse;
mod stream;
#[cfg(test)]
mod tests;

use std::{
    cell::RefCell,
    os::fd::OwnedFd,
    rc::Rc,
    sync::{Arc, Weak},
};

pub(crate) use borrow::{Budget, borrow_files};
pub(crate) use inflate::not_understood;
pub(crate) use inherit::inherit_directories;
use intake::Ending;
pub(crate) use intake::{KeepNothing, Kept, Piece};
use tokio::sync::mpsc::Receiver;

use crate::{digest::Digest, error::UnpackError, store::tree::Contents};

/// Bounds on one unpacked layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Most entries in a layer's archive; directories it leaves out although it has entries in them count too.
    pub entries: u64,
    /// Largest unpacked archive, in bytes; also the largest sum of its files' sizes, holes included.
    pub bytes: u64,
    /// Largest unpacked archive relative to its compressed size, once it is over 1 GiB.
    pub expansion: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 2_000_000, bytes: 256 << 30, expansion: 200 }
    }
}

/// What a layer must turn out to be.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    /// Digest of the blob.
    pub(crate) digest: Digest,
    /// Size of the blob, in bytes.
    pub(crate) size: u64,
    /// Digest of the decompressed archive.
    pub(crate) diff_id: Digest,
    pub(crate) limits: Limits,
}

/// Keeps the unpacking of a layer going; when it is dropped, the unpacking ends soon.
#[derive(Debug, Default)]
pub(crate) struct Want(Arc<()>);

impl Want {
    /// What the unpacker looks at.
    pub(crate) fn watched(&self) -> Wanted {
        Wanted(Arc::downgrade(&self.0))
    }
}

/// Tells whether the layer is still wanted.
#[derive(Debug, Clone)]
pub(crate) struct Wanted(Weak<()>);

impl Wanted {
    pub(crate) fn still(&self) -> bool {
        self.0.strong_count() > 0
    }
}

/// What a layer turned out to be.
#[derive(Debug, Default)]
pub(crate) struct Unpacked {
    /// Bytes its files take on disk, as far as their sizes tell.
    pub(crate) bytes: u64,
    /// Inodes it takes.
    pub(crate) inodes: u64,
    /// Whether the archive says how the root directory itself looks.
    pub(crate) root_entry: bool,
    /// Directories the archive leaves out although it has entries in them, parents first.
    pub(crate) implicit: Vec<Vec<u8>>,
    /// Hard links that are not made yet: their targets are not in this layer. See [`borrow_files`].
    pub(crate) links: Vec<borrow::Link>,
    /// Hashes of its files' contents, except of those with holes or from layers below.
    pub(crate) contents: Contents,
}

impl Unpacked {
    /// Whether it is completed from the layers below.
    pub(crate) fn looks_below(&self) -> bool {
        !(self.links.is_empty() && self.implicit.is_empty())
    }

    /// Bytes of memory that its names take.
    pub(crate) fn weight(&self) -> u64 {
        let links = self.links.iter().map(borrow::Link::weight).sum::<u64>();
        links + self.implicit.iter().map(|name| (name.len() + size_of::<Vec<u8>>()) as u64).sum::<u64>()
    }
}

/// A blob that arrives.
pub(crate) struct Arriving<'a> {
    /// What comes from the network, after what was kept.
    pub(crate) pieces: Receiver<Piece>,
    /// What an earlier pull kept of it, and where this one keeps the rest.
    pub(crate) kept: &'a mut dyn Kept,
}

/// Unpacks the layer that arrives into the empty directory `root`. Blocks.
///
/// Ends with [`UnpackError::Abandoned`] soon after nobody wants the layer any more, also when all pieces have
/// arrived. On error the directory holds whatever was written so far; the caller throws it away.
pub(crate) fn unpack(
    arriving: Arriving<'_>,
    root: OwnedFd,
    expected: &Expected,
    wanted: &Wanted,
) -> Result<Unpacked, UnpackError> {
    let (onward, blob) = std::sync::mpsc::sync_channel(intake::AHEAD);
    let Arriving { pieces, kept } = arriving;
    std::thread::scope(|scope| {
        let thread = || std::thread::Builder::new().name("layer".to_owned());
        let started =
            |source| UnpackError::Io { operation: "start a thread for the layer".to_owned(), source };
        // Each owns its ends of the channels: it sees the end when who feeds it, or who takes from it, has ended.
        let taking = thread().spawn_scoped(scope, move || intake::take_in(pieces, kept, &onward, expected));
        let taking = taking.map_err(started)?;
        let (inflater, inflated) = inflate::inflater();
        thread().spawn_scoped(scope, move || inflater.run(blob)).map_err(started)?;
        let failure = Rc::new(RefCell::new(None));
        let unpacked = run(inflated, root, (expected, wanted), &failure)
            .map_err(|error| failure.borrow_mut().take().unwrap_or(error));
        let taken = taking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // A blob that is not what it must be explains whatever the unpacker met; it itself stops for a reason.
        match (taken?, unpacked) {
            (_, Err(error)) => Err(error),
            (Ending::Verified, Ok(unpacked)) => Ok(unpacked),
            (Ending::NotTaken, Ok(_)) => {
                Err(UnpackError::Stream("the blob was not read to its end".to_owned()))
            }
        }
    })
}

/// Errors met inside readers pass through the tar crate, which rewraps them: the original is kept aside
/// in `failure`.
fn run(
    inflated: inflate::Inflated,
    root: OwnedFd,
    (expected, wanted): (&Expected, &Wanted),
    failure: &stream::Failure,
) -> Result<Unpacked, UnpackError> {
    let mut archive = stream::Archive::new(inflated, expected, wanted.clone(), Rc::clone(failure));
    let unpacked = extract::extract(&mut archive, root, &expected.limits, wanted)?;
    archive.finish(expected)?;
    Ok(unpacked)
}
