//! Reads the CRI log format back: what a container wrote, with a label before each of its lines. No I/O.
//!
//! Invariant: what is kept between two pieces is bounded, and how a log is cut into pieces changes nothing.

/// The longest entry. Ours have 16 KiB of output at most; what is longer is cut.
const LONGEST: usize = 64 << 10;

/// A log that is read piece by piece.
#[derive(Debug)]
pub(crate) struct LogText {
    label: String,
    /// The beginning of an entry whose end is not there yet.
    rest: Vec<u8>,
    /// Whether the last entry held only the beginning of a line (tag `P`).
    within_line: bool,
}

impl LogText {
    /// For a container whose lines are marked with `label`.
    pub(crate) fn new(label: String) -> Self {
        Self { label, rest: Vec::new(), within_line: false }
    }

    /// Takes the next piece of the log and appends the text of the entries it completes to `to`.
    pub(crate) fn take(&mut self, mut piece: &[u8], to: &mut Vec<u8>) {
        while !piece.is_empty() {
            let window = &piece[..piece.len().min(LONGEST - self.rest.len())];
            let end = window.iter().position(|byte| *byte == b'\n').map_or(window.len(), |end| end + 1);
            self.rest.extend_from_slice(&window[..end]);
            piece = &piece[end..];
            if self.rest.ends_with(b"\n") || self.rest.len() == LONGEST {
                let entry = std::mem::take(&mut self.rest);
                self.entry(&entry, to);
            }
        }
    }

    fn entry(&mut self, entry: &[u8], to: &mut Vec<u8>) {
        if !self.within_line {
            to.extend_from_slice(self.label.as_bytes());
        }
        let (text, partial) = content(entry);
        to.extend_from_slice(if partial { text.strip_suffix(b"\n").unwrap_or(text) } else { text });
        self.within_line = partial || !text.ends_with(b"\n");
    }
}

/// The text of an entry (what comes after time, stream and tag), and whether its line goes on in the next.
fn content(entry: &[u8]) -> (&[u8], bool) {
    let mut parts = entry.splitn(4, |byte| *byte == b' ');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(_), Some(_), Some(tag), Some(text)) => (text, tag == b"P"),
        _ => (entry, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(pieces: &[&str]) -> String {
        let (mut log, mut text) = (LogText::new("c | ".into()), Vec::new());
        pieces.iter().for_each(|piece| log.take(piece.as_bytes(), &mut text));
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn only_the_text_of_an_entry_is_shown() {
        assert_eq!(shown(&["2026-01-01T00:00:00Z stdout F two words\n"]), "c | two words\n");
        assert_eq!(shown(&["odd\n"]), "c | odd\n");
        let halves = ["2026-01-01T00:00:00Z stderr P ha", "lf\n2026-01-01T00:00:00Z stderr F  more\nnot yet"];
        assert_eq!(shown(&halves), "c | half more\n");
    }

    #[test]
    fn an_entry_without_end_is_shown_in_parts() {
        let long = "x".repeat(LONGEST);
        assert_eq!(shown(&[&long, "y\n"]), format!("c | {long}y\n"));
    }
}
