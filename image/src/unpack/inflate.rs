//! The archive in a blob, decompressed: a thread of its own, so that files are made meanwhile.
//!
//! The compression is told by the first bytes, as containerd does: media types are often wrong, and the
//! digests decide about the content anyway.
//!
//! Invariant: when its pieces end without an error, all of the blob was taken. Counts and hashes nothing.

use std::{
    io::{self, BufRead, Read},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
};

use bytes::{Bytes, BytesMut};
use flate2::bufread::MultiGzDecoder;

use crate::error::UnpackError;

/// Bytes of the archive in one piece.
const PIECE: usize = 256 << 10;
/// Pieces between the decompressor and who reads the archive.
const AHEAD: usize = 4;
/// Largest zstd window, as a power of two: what `zstd --ultra -22` needs.
const ZSTD_WINDOW_LOG: u32 = 27;

/// A piece of the archive.
#[derive(Default)]
pub(super) struct Piece {
    buffer: Vec<u8>,
    length: usize,
}

impl Piece {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

/// Where pieces of the archive come out.
pub(super) struct Inflated {
    pieces: Receiver<Result<Piece, UnpackError>>,
    emptied: SyncSender<Vec<u8>>,
}

impl Inflated {
    /// The next piece, in place of `last`, whose memory is used again; an empty one at the end. Blocks.
    pub(super) fn next(&mut self, last: &mut Piece) -> Result<(), UnpackError> {
        let last_one = std::mem::take(last);
        if !last_one.buffer.is_empty() {
            let _ = self.emptied.try_send(last_one.buffer);
        }
        *last = self.pieces.recv().unwrap_or(Ok(Piece::default()))?;
        Ok(())
    }
}

/// Decompresses one blob.
pub(super) struct Inflater {
    pieces: SyncSender<Result<Piece, UnpackError>>,
    emptied: Receiver<Vec<u8>>,
}

/// A decompressor, and where its pieces come out.
pub(super) fn inflater() -> (Inflater, Inflated) {
    let (sender, pieces) = sync_channel(AHEAD);
    let (back, emptied) = sync_channel(AHEAD);
    (Inflater { pieces: sender, emptied }, Inflated { pieces, emptied: back })
}

impl Inflater {
    /// Decompresses the blob that arrives; ends when it does, or when nobody takes its pieces. Blocks.
    pub(super) fn run(self, arriving: Receiver<Bytes>) {
        if let Err(error) = self.inflate(arriving) {
            let _ = self.pieces.send(Err(UnpackError::Stream(error)));
        }
    }

    fn inflate(&self, arriving: Receiver<Bytes>) -> Result<(), String> {
        let mut decoder = Decoder::new(Blob::new(arriving)).map_err(|error| error.to_string())?;
        loop {
            let mut buffer = self.emptied.try_recv().unwrap_or_else(|_| vec![0; PIECE]);
            let length = decoder.fill(&mut buffer)?;
            if length == 0 {
                break;
            }
            if self.pieces.send(Ok(Piece { buffer, length })).is_err() {
                return Ok(());
            }
        }
        decoder.into_blob().drain();
        Ok(())
    }
}

/// The compressed blob, as the intake hands it on. Its end may be that of a download that broke off: the intake
/// tells.
struct Blob {
    pieces: Receiver<Bytes>,
    current: Bytes,
}

impl Blob {
    fn new(pieces: Receiver<Bytes>) -> Self {
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
        [b'B', b'Z', b'h', b'1'..=b'9'] => "bzip2",
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

impl Decoder {
    /// Reads until the buffer is full or the archive ends.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, String> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(got) => filled += got,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(format!("the {} ends too early: it is truncated", self.name()));
                }
                Err(error) => return Err(format!("the {} is damaged: {error}", self.name())),
            }
        }
        Ok(filled)
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
