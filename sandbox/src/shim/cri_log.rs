//! The CRI log format: `2016-10-06T00:17:09.669794202Z stdout F text`, one entry per line of output.
//! No I/O.
//!
//! A line longer than [`MAX_LINE`] becomes several entries with tag P (more follows) and a last one with
//! tag F. Output that ends without a newline gets an F entry too, so that every reader shows it.

use std::time::SystemTime;

use chrono::{DateTime, SecondsFormat, Utc};

/// The most bytes of output in one entry.
pub(crate) const MAX_LINE: usize = 16 << 10;

/// The streams, as entries name them.
pub(super) const STREAMS: [&str; 2] = ["stdout", "stderr"];

/// Cuts one stream into entries.
#[derive(Debug)]
pub(crate) struct Lines {
    stream: &'static str,
    rest: Vec<u8>,
    /// Entries of the present line have been given out with tag P.
    within: bool,
}

impl Lines {
    /// For `stdout` or `stderr`.
    pub(crate) fn new(stream: &'static str) -> Self {
        Self { stream, rest: Vec::new(), within: false }
    }

    /// Whether the entries given out end with a whole line.
    pub(crate) fn at_boundary(&self) -> bool {
        !self.within
    }

    /// Takes output that was read at `at` and appends the entries it completes to `to`.
    pub(crate) fn take(&mut self, mut bytes: &[u8], at: SystemTime, to: &mut Vec<u8>) {
        let stamp = timestamp(at);
        while !bytes.is_empty() {
            let room = MAX_LINE - self.rest.len();
            let window = &bytes[..bytes.len().min(room)];
            if let Some(newline) = window.iter().position(|b| *b == b'\n') {
                self.entry(&stamp, b'F', &bytes[..newline], to);
                bytes = &bytes[newline + 1..];
                self.within = false;
            } else if bytes.len() > room {
                // A newline right behind a full entry ends the line without an empty entry.
                let whole = bytes[room] == b'\n';
                self.entry(&stamp, if whole { b'F' } else { b'P' }, window, to);
                bytes = &bytes[room + usize::from(whole)..];
                self.within = !whole;
            } else {
                self.rest.extend_from_slice(bytes);
                return;
            }
        }
    }

    /// Gives out what has no newline yet.
    pub(crate) fn finish(&mut self, at: SystemTime, to: &mut Vec<u8>) {
        if !self.rest.is_empty() || self.within {
            self.entry(&timestamp(at), b'F', &[], to);
        }
        self.within = false;
        self.rest = Vec::new();
    }

    fn entry(&mut self, stamp: &str, tag: u8, bytes: &[u8], to: &mut Vec<u8>) {
        to.extend_from_slice(stamp.as_bytes());
        to.push(b' ');
        to.extend_from_slice(self.stream.as_bytes());
        to.extend_from_slice(&[b' ', tag, b' ']);
        to.append(&mut self.rest);
        to.extend_from_slice(bytes);
        to.push(b'\n');
    }
}

/// Whether more entries of the same line follow this one.
pub(super) fn is_part(entry: &[u8]) -> bool {
    entry.split(|byte| *byte == b' ').nth(2) == Some(b"P")
}

/// Appends an entry that is one line, or ends one.
pub(super) fn whole_entry(stream: &'static str, words: &[u8], at: SystemTime, to: &mut Vec<u8>) {
    Lines::new(stream).entry(&timestamp(at), b'F', words, to);
}

fn timestamp(at: SystemTime) -> String {
    DateTime::<Utc>::from(at).to_rfc3339_opts(SecondsFormat::Nanos, true)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn cut(pieces: &[&[u8]]) -> Vec<(char, usize)> {
        let (mut lines, mut log) = (Lines::new("stdout"), Vec::new());
        for piece in pieces {
            lines.take(piece, UNIX_EPOCH, &mut log);
        }
        lines.finish(UNIX_EPOCH, &mut log);
        let text = String::from_utf8(log).unwrap();
        let entry = |line: &str| {
            let rest = line.strip_prefix("1970-01-01T00:00:00.000000000Z stdout ").unwrap();
            (rest.chars().next().unwrap(), rest.len() - 2)
        };
        text.lines().map(entry).collect()
    }

    #[test]
    fn an_entry_is_as_kubernetes_reads_it() {
        let mut log = Vec::new();
        let at = UNIX_EPOCH + Duration::new(1_475_713_029, 669_794_202);
        Lines::new("stderr").take(b"The content\n", at, &mut log);
        assert_eq!(String::from_utf8(log).unwrap(), "2016-10-06T00:17:09.669794202Z stderr F The content\n");
    }

    #[test]
    fn lines_are_split_at_16_kib_and_joined_over_reads() {
        let x = [b'x'; MAX_LINE + 1];
        assert_eq!(cut(&[b"a\nbc\n"]), [('F', 1), ('F', 2)]);
        assert_eq!(cut(&[b"a", b"b\n"]), [('F', 2)]);
        assert_eq!(cut(&[b"\n\n"]), [('F', 0), ('F', 0)]);
        assert_eq!(cut(&[b"end"]), [('F', 3)]);
        assert_eq!(cut(&[]), []);
        assert_eq!(cut(&[&x, b"\n"]), [('P', MAX_LINE), ('F', 1)]);
        assert_eq!(cut(&[&x[1..], b"\n"]), [('F', MAX_LINE)]);
        assert_eq!(cut(&[&x[1..], b"y\n"]), [('P', MAX_LINE), ('F', 1)]);
        assert_eq!(cut(&[&[&x[1..], b"\n"].concat()]), [('F', MAX_LINE)]);
        assert_eq!(cut(&[&x, &x]), [('P', MAX_LINE), ('P', MAX_LINE), ('F', 2)]);
    }
}
