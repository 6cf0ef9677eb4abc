//! The archive in a blob: decompressed, hashed and counted. No files.
//!
//! The compression is told by the first bytes, as containerd does: media types are often wrong, and the
//! digests decide about the content anyway.

use std::{
    cell::{Cell, RefCell},
    io::{self, BufRead, Read},
    rc::Rc,
    sync::mpsc::Receiver,
};

use bytes::{Bytes, BytesMut};
use flate2::bufread::MultiGzDecoder;

use super::{Expected, Wanted};
use crate::{digest::Hasher, error::UnpackError};

/// Where an error waits while a foreign reader passes on its paraphrase.
pub(super) type Failure = Rc<RefCell<Option<UnpackError>>>;

/// Bytes of the decompressed archive held at once.
const BUFFER: usize = 256 << 10;
/// Most bytes of headers (long names, PAX records) before one entry.
const MAX_HEADERS: u64 = 4 << 20;
/// From here on the expansion limit counts.
pub(super) const EXPANSION_FLOOR: u64 = 1 << 30;
/// Largest zstd window, as a power of two: what `zstd --ultra -22` needs.
const ZSTD_WINDOW_LOG: u32 = 27;

/// The compressed blob, as the intake hands it on. Its end may be that of a download that broke off: the intake
/// tells.
pub(super) struct Blob {
    pieces: Receiver<Bytes>,
    current: Bytes,
}

impl Blob {
    pub(super) fn new(pieces: Receiver<Bytes>) -> Self {
        Self { pieces, current: Bytes::new() }
    }

    /// The next bytes; empty at the end.
    fn next(&mut self) -> Bytes {
        self.pieces.recv().unwrap_or_default()
    }

    /// The first four bytes (fewer only when the blob is shorter), without consuming them.
    fn magic(&mut self) -> [u8; 4] {
        let mut start = BytesMut::new();
        while start.len() < 4 {
            let next = self.next();
            if next.is_empty() {
                break;
            }
            start.extend_from_slice(&next);
        }
        self.current = start.freeze();
        let mut magic = [0; 4];
        let known = self.current.len().min(4);
        magic[..known].copy_from_slice(&self.current[..known]);
        magic
    }

    /// Takes what the archive did not need, so that all of it is counted and hashed.
    fn drain(mut self) {
        while !self.next().is_empty() {}
    }
}

impl BufRead for Blob {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.current.is_empty() {
            self.current = self.next();
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        bytes::Buf::advance(&mut self.current, amount);
    }
}

impl Read for Blob {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let taken = available.len().min(out.len());
        out[..taken].copy_from_slice(&available[..taken]);
        self.consume(taken);
        Ok(taken)
    }
}

/// What a blob or an archive is, by its first bytes, that cannot be read. No tar archive begins so.
pub(crate) fn not_understood(start: [u8; 4]) -> Option<&'static str> {
    Some(match start {
        [0xfd, b'7', b'z', b'X'] => "xz",
        [b'P', b'K', 3, 4] => "zip",
        [0x04, 0x22, 0x4d, 0x18] => "lz4",
        [b'7', b'z', 0xbc, 0xaf] => "7z",
        _ => return None,
    })
}

/// The blob, decompressed.
enum Decoder {
    Plain(Box<Blob>),
    Gzip(Box<MultiGzDecoder<Blob>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, Blob>>),
}

impl Decoder {
    fn new(mut blob: Blob) -> io::Result<Self> {
        let start = blob.magic();
        if let Some(name) = not_understood(start) {
            return Err(io::Error::other(format!(
                "it is compressed as {name}, which is not understood; plain tar, gzip and zstd are: make the image \
                 again with one of these"
            )));
        }
        Ok(match start {
            [0x1f, 0x8b, ..] => Self::Gzip(Box::new(MultiGzDecoder::new(blob))),
            // A zstd frame, or a skippable frame before one.
            [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(blob)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Self::Zstd(Box::new(decoder))
            }
            _ => Self::Plain(Box::new(blob)),
        })
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Plain(_) => "tar stream",
            Self::Gzip(_) => "gzip stream",
            Self::Zstd(_) => "zstd stream",
        }
    }

    fn into_blob(self) -> Blob {
        match self {
            Self::Plain(blob) => *blob,
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Zstd(decoder) => decoder.finish(),
        }
    }
}

impl Read for Decoder {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(blob) => blob.read(out),
            Self::Gzip(decoder) => decoder.read(out),
            Self::Zstd(decoder) => decoder.read(out),
        }
    }
}

/// The decompressed archive.
pub(super) struct Archive {
    decoder: Decoder,
    buffer: Box<[u8]>,
    unread: std::ops::Range<usize>,
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
    pub(super) fn new(
        blob: Blob,
        expected: &Expected,
        wanted: Wanted,
        failure: Failure,
    ) -> Result<Self, UnpackError> {
        let decoder = Decoder::new(blob).map_err(|error| UnpackError::Stream(error.to_string()))?;
        let expansion = expected.size.saturating_mul(expected.limits.expansion).max(EXPANSION_FLOOR);
        Ok(Self {
            decoder,
            buffer: vec![0; BUFFER].into_boxed_slice(),
            unread: 0..0,
            hasher: Hasher::like(&expected.diff_id),
            total: 0,
            limit: expected.limits.bytes.min(expansion),
            size: expected.size,
            headers: Rc::new(Cell::new(u64::MAX)),
            wanted,
            failure,
        })
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
        let got = match self.decoder.read(&mut self.buffer) {
            Ok(got) => got,
            Err(error) => {
                let error = match error.kind() {
                    io::ErrorKind::UnexpectedEof => {
                        format!("the {} ends too early: it is truncated", self.decoder.name())
                    }
                    _ => format!("the {} is damaged: {error}", self.decoder.name()),
                };
                return Err(self.fail(UnpackError::Stream(error)));
            }
        };
        self.hasher.update(&self.buffer[..got]);
        self.unread = 0..got;
        self.total += got as u64;
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
            if self.unread.is_empty() {
                break;
            }
        }
        self.decoder.into_blob().drain();
        let actual = self.hasher.finish();
        if actual != expected.diff_id {
            let (what, promised_by) = ("the unpacked archive's digest", "image configuration (diff_ids)");
            return Err(UnpackError::Digest {
                what,
                promised_by,
                expected: expected.diff_id.clone(),
                actual,
            });
        }
        Ok(())
    }
}

impl Read for Archive {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.unread.is_empty() {
            self.fill()?;
        }
        let taken = self.unread.len().min(out.len());
        let headers = self.headers.get();
        if taken as u64 > headers {
            let message = format!("an entry has more than {MAX_HEADERS} bytes of headers");
            return Err(self.fail(UnpackError::TooLarge(message)));
        }
        if headers != u64::MAX {
            self.headers.set(headers - taken as u64);
        }
        let start = self.unread.start;
        out[..taken].copy_from_slice(&self.buffer[start..start + taken]);
        self.unread.start += taken;
        Ok(taken)
    }
}
