//! Header blocks: zlib over the whole connection, with the SPDY/3 dictionary and a sync flush per block.
//!
//! No inflate state is kept between blocks (it costs more than an idle session may): every block ends at an
//! octet, so each is inflated alone, with all octets before it as the dictionary. What we send is always the
//! empty block, stored, so no deflate state exists at all.

use flate2::{Decompress, FlushDecompress, Status};

use super::dictionary::{DICTIONARY, ID};

/// The longest block that is accepted, inflated.
pub(in crate::streaming) const BLOCK_LIMIT: usize = 16 * 1024;
/// Headers in one block.
const COUNT_LIMIT: usize = 64;
/// How far back deflate refers.
const WINDOW: usize = 32 * 1024;
/// How a sync flush ends.
const FLUSHED: [u8; 4] = [0, 0, 0xff, 0xff];
/// zlib's header: deflate, 32 KiB window, with a dictionary; a multiple of 31.
const ZLIB_HEADER: [u8; 2] = [0x78, 0x20];
/// No headers (a count of zero) as a stored block, and a sync flush.
const EMPTY_BLOCK: [u8; 14] = [0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// Why a block cannot be read. It ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::streaming) enum HeaderError {
    /// Not zlib, or with another dictionary.
    #[error("headers are not compressed by zlib with the SPDY/3 dictionary")]
    Zlib,
    /// It does not end with a sync flush.
    #[error("a header block does not end with a sync flush")]
    NotFlushed,
    /// Broken deflate data.
    #[error("a header block cannot be inflated")]
    Deflate,
    /// More than [`BLOCK_LIMIT`] octets or too many headers.
    #[error("a header block beyond {BLOCK_LIMIT} octets or {COUNT_LIMIT} headers")]
    TooLong,
    /// Lengths that do not add up, or names and values that are not UTF-8.
    #[error("a header block whose lengths or characters are wrong")]
    Malformed,
}

/// The headers of a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::streaming) struct Headers(pub(in crate::streaming) Vec<(String, String)>);

impl Headers {
    /// A header's first value; `name` in lower case.
    pub(in crate::streaming) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Reads a peer's header blocks, in the order they came.
#[derive(Default)]
pub(in crate::streaming) struct Reader {
    /// What the next block may refer to; empty before the first.
    history: Vec<u8>,
    begun: bool,
}

impl Reader {
    /// Inflates and reads one block.
    pub(in crate::streaming) fn read(&mut self, block: &[u8]) -> Result<Headers, HeaderError> {
        let block = if self.begun { block } else { self.begin(block)? };
        if !block.ends_with(&FLUSHED) {
            return Err(HeaderError::NotFlushed);
        }
        let inflated = inflate(&self.history, block)?;
        let headers = parse(&inflated)?;
        self.history.extend_from_slice(&inflated);
        if self.history.len() > WINDOW {
            self.history.drain(..self.history.len() - WINDOW);
        }
        Ok(headers)
    }

    fn begin<'a>(&mut self, block: &'a [u8]) -> Result<&'a [u8], HeaderError> {
        let (&[method, flags], rest) = block.split_first_chunk::<2>().ok_or(HeaderError::Zlib)?;
        if method & 0x0f != 8 || method >> 4 > 7 || u16::from_be_bytes([method, flags]) % 31 != 0 {
            return Err(HeaderError::Zlib);
        }
        self.begun = true;
        if flags & 0x20 == 0 {
            return Ok(rest);
        }
        let (id, rest) = rest.split_first_chunk::<4>().ok_or(HeaderError::Zlib)?;
        if u32::from_be_bytes(*id) != ID {
            return Err(HeaderError::Zlib);
        }
        self.history = DICTIONARY.clone();
        Ok(rest)
    }
}

/// The block without headers that a server's replies carry; its first one begins the zlib stream.
pub(in crate::streaming) fn empty_block(first: bool) -> Vec<u8> {
    if first { [&ZLIB_HEADER[..], &ID.to_be_bytes(), &EMPTY_BLOCK].concat() } else { EMPTY_BLOCK.to_vec() }
}

fn inflate(history: &[u8], block: &[u8]) -> Result<Vec<u8>, HeaderError> {
    let mut inflater = Decompress::new(false);
    if !history.is_empty() {
        inflater.set_dictionary(history).map_err(|_| HeaderError::Deflate)?;
    }
    let mut inflated = Vec::with_capacity(1024);
    loop {
        let before = (inflater.total_in(), inflater.total_out());
        let rest = block.get(before.0 as usize..).ok_or(HeaderError::Deflate)?;
        match inflater.decompress_vec(rest, &mut inflated, FlushDecompress::Sync) {
            Ok(Status::Ok | Status::BufError) => {}
            Ok(Status::StreamEnd) | Err(_) => return Err(HeaderError::Deflate),
        }
        if inflated.len() < inflated.capacity() {
            let all = inflater.total_in() == block.len() as u64;
            let stuck = before == (inflater.total_in(), inflater.total_out());
            match (all, stuck) {
                (true, _) => return Ok(inflated),
                (false, true) => return Err(HeaderError::Deflate),
                (false, false) => {}
            }
        } else if inflated.len() >= BLOCK_LIMIT {
            return Err(HeaderError::TooLong);
        } else {
            inflated.reserve_exact(BLOCK_LIMIT - inflated.len() + 1);
        }
    }
}

fn parse(block: &[u8]) -> Result<Headers, HeaderError> {
    let mut rest = block;
    let count = length(&mut rest)?;
    if count > COUNT_LIMIT {
        return Err(HeaderError::TooLong);
    }
    let mut headers = Vec::with_capacity(count);
    for _ in 0..count {
        let name = text(&mut rest)?.to_ascii_lowercase();
        let value = text(&mut rest)?;
        if name.is_empty() || headers.iter().any(|(known, _)| *known == name) {
            return Err(HeaderError::Malformed);
        }
        // Several values of one name are parted by NUL.
        let value = value.split('\0').next().unwrap_or_default().to_owned();
        headers.push((name, value));
    }
    if rest.is_empty() { Ok(Headers(headers)) } else { Err(HeaderError::Malformed) }
}

fn length(rest: &mut &[u8]) -> Result<usize, HeaderError> {
    let (length, after) = rest.split_first_chunk::<4>().ok_or(HeaderError::Malformed)?;
    *rest = after;
    Ok(u32::from_be_bytes(*length) as usize)
}

fn text<'a>(rest: &mut &'a [u8]) -> Result<&'a str, HeaderError> {
    let length = length(rest)?;
    let (text, after) = rest.split_at_checked(length).ok_or(HeaderError::Malformed)?;
    *rest = after;
    std::str::from_utf8(text).map_err(|_| HeaderError::Malformed)
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};

    use super::*;

    /// As Go's library writes them.
    pub(crate) struct Writer(Compress);

    impl Writer {
        fn new() -> Self {
            let mut compress = Compress::new(Compression::best(), true);
            compress.set_dictionary(&DICTIONARY).unwrap();
            Self(compress)
        }

        fn block(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
            let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
            for text in headers.iter().flat_map(|(name, value)| [name, value]) {
                plain.extend((text.len() as u32).to_be_bytes());
                plain.extend(text.as_bytes());
            }
            self.raw(&plain)
        }

        fn raw(&mut self, plain: &[u8]) -> Vec<u8> {
            let mut block = Vec::with_capacity(plain.len() + 256);
            self.0.compress_vec(plain, &mut block, FlushCompress::Sync).unwrap();
            block
        }
    }

    #[test]
    fn blocks_refer_to_all_before_them() {
        let mut writer = Writer::new();
        let mut reader = Reader::default();
        for id in 0..2000 {
            let id = id.to_string();
            let block =
                writer.block(&[("streamtype", "data"), ("port", "65535"), ("requestid", &id), ("host", "h")]);
            let headers = reader.read(&block).unwrap();
            assert_eq!(headers.get("streamtype"), Some("data"));
            assert_eq!(headers.get("requestid"), Some(id.as_str()));
        }
        assert!(reader.history.len() <= WINDOW);
    }

    #[test]
    fn hostile_blocks_are_refused_within_bounds() {
        let bomb = Writer::new().raw(&vec![0; 8 << 20]);
        assert_eq!(Reader::default().read(&bomb), Err(HeaderError::TooLong));
        let many = [&65u32.to_be_bytes()[..], &[0; 400]].concat();
        assert_eq!(Reader::default().read(&Writer::new().raw(&many)), Err(HeaderError::TooLong));
        let good = Writer::new().block(&[("streamtype", "error")]);
        for cut in 0..good.len() {
            assert!(Reader::default().read(&good[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..6 {
            let mut wrong = good.clone();
            wrong[at] ^= 0x41;
            assert!(Reader::default().read(&wrong).is_err(), "octet {at}");
        }
        let lies = [&1u32.to_be_bytes()[..], &u32::MAX.to_be_bytes(), b"name"].concat();
        assert_eq!(Reader::default().read(&Writer::new().raw(&lies)), Err(HeaderError::Malformed));
        let twice = Writer::new().block(&[("port", "1"), ("port", "2")]);
        assert_eq!(Reader::default().read(&twice), Err(HeaderError::Malformed));
    }

    #[test]
    fn empty_blocks_are_zlib() {
        let mut inflater = Decompress::new(true);
        let mut plain = Vec::with_capacity(64);
        let first = empty_block(true);
        let error = inflater.decompress_vec(&first, &mut plain, FlushDecompress::Sync).unwrap_err();
        assert_eq!(error.needs_dictionary(), Some(ID));
        inflater.set_dictionary(&DICTIONARY).unwrap();
        let rest = &first[inflater.total_in() as usize..];
        inflater.decompress_vec(rest, &mut plain, FlushDecompress::Sync).unwrap();
        inflater.decompress_vec(&empty_block(false), &mut plain, FlushDecompress::Sync).unwrap();
        assert_eq!(plain, [0; 8]);
    }
}
