//! The content of regular files: from the archive to an open file, within what a layer may hold.
//!
//! Invariant: the logical sizes of all files together stay within the limit. The tar crate makes the holes
//! of a GNU sparse file out of nothing, so the length of the archive does not bound them.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
};

use rustix::io::Errno;
use tar::{Entry, EntryType};
use twox_hash::XxHash3_128;

use super::{
    Wanted,
    refusal::{Refusal, step},
    sparse::Sparse,
};

/// Bytes copied into a file at once.
const COPY: usize = 256 << 10;
static ZEROS: [u8; COPY] = [0; COPY];

/// Copies contents and counts them.
pub(super) struct Content {
    buffer: Box<[u8]>,
    /// Logical bytes that files may still have.
    left: u64,
    limit: u64,
    wanted: Wanted,
}

impl Content {
    /// `limit`: most bytes of all files together, holes included.
    pub(super) fn new(limit: u64, wanted: Wanted) -> Self {
        Self { buffer: vec![0; COPY].into_boxed_slice(), left: limit, limit, wanted }
    }

    /// Counts an entry's size, which for a sparse file includes its holes, before anything is made of it.
    pub(super) fn admit(&mut self, size: u64) -> Result<(), Refusal> {
        let Some(left) = self.left.checked_sub(size) else {
            return Err(Refusal::TooLarge(format!(
                "with it the layer's files have more than {} bytes, holes included; raise the image limits if \
                 that is right",
                self.limit
            )));
        };
        self.left = left;
        Ok(())
    }

    /// Copies what an admitted file has between its holes. Returns the bytes written.
    pub(super) fn copy_parts<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        (sparse, file): (&mut Sparse, &mut File),
    ) -> Result<u64, Refusal> {
        let mut written = 0;
        for (offset, length) in sparse.parts(entry)? {
            file.seek(SeekFrom::Start(offset)).map_err(kernel)?;
            let mut left = length;
            while left > 0 {
                if !self.wanted.still() {
                    return Err(Refusal::Abandoned);
                }
                let most = usize::try_from(left).unwrap_or(COPY).min(COPY);
                let got = entry.read(&mut self.buffer[..most]).map_err(Refusal::Stream)?;
                if got == 0 {
                    return Err("its content is shorter than its map of holes says".into());
                }
                file.write_all(&self.buffer[..got]).map_err(kernel)?;
                left -= got as u64;
            }
            written += length;
        }
        rustix::fs::ftruncate(&*file, sparse.size).map_err(step("set its size"))?;
        Ok(written)
    }

    /// Copies an admitted entry's content. In sparse files blocks of zeros become holes. Returns the bytes
    /// written, and the hash of the whole content.
    pub(super) fn copy<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        file: &mut File,
    ) -> Result<(u64, u128), Refusal> {
        let sparse = entry.header().entry_type() == EntryType::GNUSparse;
        let promised = entry.size();
        let (mut seen, mut written, mut hash) = (0, 0, XxHash3_128::new());
        loop {
            // A hole brings no bytes over the network, so the end of the download is not noticed in it.
            if !self.wanted.still() {
                return Err(Refusal::Abandoned);
            }
            let got = entry.read(&mut self.buffer).map_err(Refusal::Stream)?;
            if got == 0 {
                break;
            }
            seen += got as u64;
            hash.write(&self.buffer[..got]);
            if sparse && self.buffer[..got] == ZEROS[..got] {
                file.seek(SeekFrom::Current(got as i64)).map_err(kernel)?;
            } else {
                file.write_all(&self.buffer[..got]).map_err(kernel)?;
                written += got as u64;
            }
        }
        if !sparse && seen != promised {
            return Err(Refusal::Stream(std::io::Error::other("an entry is shorter than its header says")));
        }
        if sparse {
            rustix::fs::ftruncate(&*file, seen).map_err(step("set its size"))?;
        }
        Ok((written, hash.finish_128()))
    }
}

fn kernel(error: std::io::Error) -> Refusal {
    Refusal::Kernel("write it", Errno::from_io_error(&error).unwrap_or(Errno::IO))
}
