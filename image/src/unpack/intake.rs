//! The way of a blob's bytes to the decompressor: what an earlier pull kept, then what arrives; counted, hashed,
//! kept for a later pull, and handed on. A thread of its own, so that hashing and keeping cost the unpacker no time.
//!
//! Invariant: it ends well only when the blob has the size and the digest it must have. No files of the layer.

use std::{
    io,
    sync::mpsc::SyncSender,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::mpsc::Receiver;

use super::Expected;
use crate::{
    digest::Hasher,
    error::{Promise, UnpackError},
};

/// Pieces between this thread and the decompressor: the network has its own.
pub(super) const AHEAD: usize = 1;
/// Bytes of what was kept that are read at once.
const REPLAY: usize = 256 << 10;

/// A part of a blob on its way from the network to the unpacker.
#[derive(Debug)]
pub(crate) enum Piece {
    /// The next bytes.
    Data(Bytes),
    /// The blob is complete. A channel that closes without this was given up.
    End,
}

/// What is kept of a blob while it arrives, so that a later pull need not fetch it again.
pub(crate) trait Kept: Send {
    /// Reads what an earlier pull kept, from its beginning; 0 at its end.
    fn replay(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
    /// Keeps the next bytes, for which the network was waited for so long, if there is room. Trouble with it is no
    /// trouble of the pull.
    fn keep(&mut self, bytes: &Bytes, waited: Duration);
}

/// Keeps nothing.
#[derive(Debug)]
pub(crate) struct KeepNothing;

impl Kept for KeepNothing {
    fn replay(&mut self, _buffer: &mut [u8]) -> io::Result<usize> {
        Ok(0)
    }

    fn keep(&mut self, _bytes: &Bytes, _waited: Duration) {}
}

/// How the intake ended.
pub(super) enum Ending {
    /// The blob is whole and what it must be.
    Verified,
    /// The unpacker takes no more, and knows why.
    NotTaken,
}

/// Moves a blob. Blocks; ends when `pieces` does, or when the unpacker is gone.
pub(super) fn take_in(
    mut pieces: Receiver<Piece>,
    kept: &mut dyn Kept,
    onward: &SyncSender<Bytes>,
    expected: &Expected,
) -> Result<Ending, UnpackError> {
    let mut intake = Intake { onward, expected, received: 0, hasher: Hasher::like(&expected.digest) };
    loop {
        let mut buffer = vec![0; REPLAY];
        // A fault of what was kept, as a wrong byte in it would be: it is thrown away, and fetched anew.
        let got = kept.replay(&mut buffer).map_err(|error| {
            UnpackError::Stream(format!("what an earlier pull kept of the blob cannot be read: {error}"))
        })?;
        if got == 0 {
            break;
        }
        buffer.truncate(got);
        if !intake.pass(buffer.into())? {
            return Ok(Ending::NotTaken);
        }
    }
    let mut begun = false;
    loop {
        let since = Instant::now();
        match pieces.blocking_recv() {
            Some(Piece::Data(data)) if data.is_empty() => {}
            Some(Piece::Data(data)) => {
                // Up to the first byte it is the host that is waited for: its tokens, its redirects.
                let waited = if begun { since.elapsed() } else { Duration::ZERO };
                begun = true;
                kept.keep(&data, waited);
                if !intake.pass(data)? {
                    return Ok(Ending::NotTaken);
                }
            }
            Some(Piece::End) => return intake.finish().map(|()| Ending::Verified),
            None => return Err(UnpackError::Abandoned),
        }
    }
}

struct Intake<'a> {
    onward: &'a SyncSender<Bytes>,
    expected: &'a Expected,
    received: u64,
    hasher: Hasher,
}

impl Intake<'_> {
    /// Counts, hashes and hands on; false when nobody takes it.
    fn pass(&mut self, data: Bytes) -> Result<bool, UnpackError> {
        self.received += data.len() as u64;
        if self.received > self.expected.size {
            let size = self.expected.size;
            let message = format!("the blob is longer than the {size} bytes its manifest promises");
            return Err(UnpackError::Stream(message));
        }
        // Handed on first: the unpacker works while this thread hashes.
        let taken = self.onward.send(data.clone()).is_ok();
        self.hasher.update(&data);
        Ok(taken)
    }

    fn finish(self) -> Result<(), UnpackError> {
        let (received, size) = (self.received, self.expected.size);
        if received != size {
            let message = format!("the blob ends after {received} of the {size} bytes its manifest promises");
            return Err(UnpackError::Stream(message));
        }
        let (actual, expected) = (self.hasher.finish(), self.expected.digest.clone());
        if actual != expected {
            return Err(UnpackError::Digest { promise: Promise::Manifest, expected, actual });
        }
        Ok(())
    }
}
