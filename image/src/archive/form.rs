//! Whether what was given is a tar archive at all, and what it seems to be where it is none. No I/O but reading.

use std::io::{self, Cursor, Read};

/// What can be imported.
pub(super) const UNDERSTOOD: &str = "plain tar, gzip and zstd are understood; podhold image export, docker save and \
                                     skopeo copy make such archives";
/// A block of a tar archive, in bytes.
const BLOCK: usize = 512;
/// Where the checksum is in the first one.
const CHECKSUM: std::ops::Range<usize> = 148..156;

/// Why something is not taken.
#[derive(Debug)]
pub(super) enum Refusal {
    Unread(io::Error),
    /// What it is, and what is understood.
    Other(String),
}

/// The same bytes, when they begin as those of a tar archive do; `form` is the compression they were behind.
pub(super) fn tar(mut input: Box<dyn Read>, form: Option<&str>) -> Result<Box<dyn Read>, Refusal> {
    let mut start = Vec::with_capacity(BLOCK);
    Read::by_ref(&mut input).take(BLOCK as u64).read_to_end(&mut start).map_err(Refusal::Unread)?;
    if is_tar(&start) {
        return Ok(Box::new(Cursor::new(start).chain(input)));
    }
    let what = match (start.as_slice(), form) {
        ([], None) => "it is empty".to_owned(),
        ([], Some(form)) => format!("it is compressed as {form}, and there is nothing in it"),
        (start, None) => format!("it is no tar archive{}", likeness(start)),
        (start, Some(form)) => {
            format!("it is compressed as {form}, and what is in it is no tar archive{}", likeness(start))
        }
    };
    Err(Refusal::Other(format!("{what}; {UNDERSTOOD}")))
}

/// Whether a file begins with the header of an entry, or with a tar archive's end: the header has the sum of its
/// own bytes, with blanks in place of the sum.
fn is_tar(start: &[u8]) -> bool {
    if start.len() < BLOCK {
        return false;
    }
    if start.iter().all(|byte| *byte == 0) {
        return true;
    }
    let digits = start[CHECKSUM].iter().skip_while(|byte| **byte == b' ');
    let noted = digits.map_while(|byte| char::from(*byte).to_digit(8)).fold(0, |sum, digit| sum * 8 + digit);
    let blank = |at: usize| CHECKSUM.contains(&at);
    let bytes = || start.iter().enumerate().map(|(at, byte)| if blank(at) { b' ' } else { *byte });
    // Some writers of old have taken the bytes for signed ones.
    let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
    bytes().map(u32::from).sum::<u32>() == noted || signed == i64::from(noted)
}

/// What it is rather, where that can be told.
fn likeness(start: &[u8]) -> &'static str {
    // The last character may be cut.
    let text = match std::str::from_utf8(start) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&start[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => "",
    };
    match start {
        [0x7f, b'E', b'L', b'F', ..] => " but a program",
        [b'h', b's', b'q', b's', ..] => " but a squashfs file system",
        _ if text.trim_start().starts_with('{') => " but JSON",
        _ if !text.is_empty() && !text.contains(|c: char| c.is_control() && !c.is_whitespace()) => {
            " but text"
        }
        _ => "",
    }
}
