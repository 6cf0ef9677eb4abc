//! What the fuzz targets (`fuzz/`) reach of this crate. Not there in an ordinary build.

pub use crate::streaming::fuzzing as streams;

use crate::standalone::log_text::LogText;

/// The output that a log in the CRI format holds, when it is read in these pieces.
pub fn read_log<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let (mut log, mut text) = (LogText::new(String::new()), Vec::new());
    pieces.into_iter().for_each(|piece| log.take(piece, &mut text));
    text
}
