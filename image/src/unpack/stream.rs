//! The archive in a blob: hashed, counted and bounded while the tar crate reads it. No files.

use std::{
    cell::{Cell, RefCell},
    io::{self, Read},
    rc::Rc,
};

use super::{
    Expected, Wanted,
    inflate::{Inflated, Piece},
};
use crate::{
    digest::Hasher,
    error::{Promise, UnpackError},
};

/// Where an error waits while a foreign reader passes on its paraphrase.
pub(super) type Failure = Rc<RefCell<Option<UnpackError>>>;

/// Most bytes of headers (long names, PAX records) before one entry.
const MAX_HEADERS: u64 = 4 << 20;
/// From here on the expansion limit counts.
pub(super) const EXPANSION_FLOOR: u64 = 1 << 30;

/// The decompressed archive.
pub(super) struct Archive {
    inflated: Inflated,
    piece: Piece,
    /// Bytes of the piece that were read.
    read: usize,
    hasher: Hasher,
    total: u64,
    limit: u64,
    /// Size of the blob.
    size: u64,
    /// How much may still be read as headers; shared with [`HeaderBudget`].
    headers: Rc<Cell<u64>>,
    wanted: Wanted,
    failure: Failure,
}

/// Bounds what the tar crate may read while it looks for the next entry.
pub(super) struct HeaderBudget(Rc<Cell<u64>>);

impl HeaderBudget {
    /// The next reads are headers.
    pub(super) fn headers(&self) {
        self.0.set(MAX_HEADERS);
    }

    /// The next reads are content, which other limits bound.
    pub(super) fn content(&self) {
        self.0.set(u64::MAX);
    }
}

impl Archive {
    pub(super) fn new(inflated: Inflated, expected: &Expected, wanted: Wanted, failure: Failure) -> Self {
        let expansion = expected.size.saturating_mul(expected.limits.expansion).max(EXPANSION_FLOOR);
        Self {
            inflated,
            piece: Piece::default(),
            read: 0,
            hasher: Hasher::like(&expected.diff_id),
            total: 0,
            limit: expected.limits.bytes.min(expansion),
            size: expected.size,
            headers: Rc::new(Cell::new(u64::MAX)),
            wanted,
            failure,
        }
    }

    pub(super) fn header_budget(&self) -> HeaderBudget {
        HeaderBudget(Rc::clone(&self.headers))
    }

    fn fail(&self, error: UnpackError) -> io::Error {
        let paraphrase = io::Error::other(error.to_string());
        self.failure.borrow_mut().get_or_insert(error);
        paraphrase
    }

    fn fill(&mut self) -> io::Result<()> {
        if !self.wanted.still() {
            return Err(self.fail(UnpackError::Abandoned));
        }
        self.read = 0;
        if let Err(error) = self.inflated.next(&mut self.piece) {
            return Err(self.fail(error));
        }
        self.hasher.update(self.piece.bytes());
        self.total += self.piece.bytes().len() as u64;
        if self.total > self.limit {
            let (limit, size) = (self.limit, self.size);
            let message = format!(
                "it unpacks to more than {limit} bytes from {size}; raise the image limits if that is right"
            );
            return Err(self.fail(UnpackError::TooLarge(message)));
        }
        Ok(())
    }

    /// Reads what follows the last entry and the archive itself, and compares the archive's digest.
    pub(super) fn finish(mut self, expected: &Expected) -> Result<(), UnpackError> {
        self.headers.set(u64::MAX);
        loop {
            self.fill().map_err(|error| UnpackError::Stream(error.to_string()))?;
            if self.piece.bytes().is_empty() {
                break;
            }
        }
        let actual = self.hasher.finish();
        if actual != expected.diff_id {
            let (promise, expected) = (Promise::Configuration, expected.diff_id.clone());
            return Err(UnpackError::Digest { promise, expected, actual });
        }
        Ok(())
    }
}

impl Read for Archive {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.read == self.piece.bytes().len() {
            self.fill()?;
        }
        let unread = &self.piece.bytes()[self.read..];
        let taken = unread.len().min(out.len());
        let headers = self.headers.get();
        if taken as u64 > headers {
            let message = format!("an entry has more than {MAX_HEADERS} bytes of headers");
            return Err(self.fail(UnpackError::TooLarge(message)));
        }
        if headers != u64::MAX {
            self.headers.set(headers - taken as u64);
        }
        out[..taken].copy_from_slice(&unread[..taken]);
        self.read += taken;
        Ok(taken)
    }
}
