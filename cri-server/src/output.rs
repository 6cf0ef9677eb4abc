//! What commands write for whoever started them: results to standard output, the rest to standard error.
//!
//! Invariant: nothing written here ends the process by a panic. What standard output does not take is an error of the
//! command ([`Unwritten`]); what standard error does not take is lost, since nothing can be said of it. No text of a
//! stranger that is quoted here moves the cursor or changes the terminal.

use std::{
    fmt,
    io::{self, Write as _},
};

/// Standard output took no more.
#[derive(Debug)]
pub(crate) struct Unwritten(pub(crate) io::Error);

/// Writes a line to standard output, now.
pub(crate) fn line(text: fmt::Arguments<'_>) -> Result<(), Unwritten> {
    this(format_args!("{text}\n"))
}

/// Writes to standard output, now.
pub(crate) fn this(text: fmt::Arguments<'_>) -> Result<(), Unwritten> {
    let mut out = io::stdout().lock();
    let written = out.write_all(printable(&text.to_string()).as_bytes());
    written.and_then(|()| out.flush()).map_err(Unwritten)
}

/// Writes `podhold: TEXT` to standard error.
pub(crate) fn note(text: fmt::Arguments<'_>) {
    let text = printable(&format!("podhold: {text}\n"));
    let _lost = io::stderr().lock().write_all(text.as_bytes());
}

/// Text that may quote a stranger, as a terminal may have it.
pub(crate) fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c };
    text.chars().map(shown).collect()
}
