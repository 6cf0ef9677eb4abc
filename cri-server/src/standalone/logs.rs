//! Follows a container's log file and prints its lines with the container's name. Waits on inotify.

use std::{
    io::{IsTerminal, Read, Write},
    path::{Path, PathBuf},
};

use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use tokio::sync::watch;

/// Colours of the containers' names, in turn.
const COLOURS: [u8; 6] = [36, 33, 32, 35, 34, 31];

/// How a container's lines are marked.
#[derive(Debug, Clone)]
pub(super) struct Label(String);

impl Label {
    /// The label of the container `name`, the `index`th of its pod, padded to `width`.
    pub(super) fn new(name: &str, index: usize, width: usize) -> Self {
        if std::io::stdout().is_terminal() {
            let colour = COLOURS[index % COLOURS.len()];
            Self(format!("\x1b[{colour}m{name:<width$}\x1b[0m | "))
        } else {
            Self(format!("{name:<width$} | "))
        }
    }
}

/// Prints what is and will be in the log at `path` until `ended` turns true and all of it was printed.
pub(super) async fn follow(
    path: PathBuf,
    label: Label,
    mut ended: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let inotify = Inotify::init()?;
    inotify.watches().add(path.parent().unwrap_or(Path::new("/")), WatchMask::MODIFY | WatchMask::CREATE)?;
    let mut changes = inotify.into_event_stream([0; 4096])?;
    let mut tail = Tail { path, file: None, partial: Vec::new(), within_line: false, label };
    loop {
        let over = *ended.borrow_and_update();
        tail.print_new()?;
        if over {
            return Ok(());
        }
        tokio::select! {
            // Only that something changed counts; what changed is read from the file.
            event = changes.next() => drop(event.transpose()?),
            changed = ended.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}

struct Tail {
    path: PathBuf,
    file: Option<std::fs::File>,
    /// The beginning of a log line whose end is not written yet.
    partial: Vec<u8>,
    /// Whether the last log line held only the beginning of a line of output (tag `P`).
    within_line: bool,
    label: Label,
}

impl Tail {
    fn print_new(&mut self) -> std::io::Result<()> {
        if self.file.is_none() {
            match std::fs::File::open(&self.path) {
                Ok(file) => self.file = Some(file),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        file.read_to_end(&mut self.partial)?;
        let whole = self.partial.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let lines: Vec<u8> = self.partial.drain(..whole).collect();
        let mut out = std::io::stdout().lock();
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            if !self.within_line {
                out.write_all(self.label.0.as_bytes())?;
            }
            let (text, partial) = content(line);
            out.write_all(if partial { text.strip_suffix(b"\n").unwrap_or(text) } else { text })?;
            self.within_line = partial;
        }
        out.flush()
    }
}

/// The text of a line in the CRI log format (what comes after time, stream and tag), and whether the
/// line of output goes on in the next one.
fn content(line: &[u8]) -> (&[u8], bool) {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(_), Some(_), Some(tag), Some(text)) => (text, tag == b"P"),
        _ => (line, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_text_of_a_log_line_is_shown() {
        assert_eq!(content(b"2026-01-01T00:00:00Z stdout F two words\n"), (&b"two words\n"[..], false));
        assert_eq!(content(b"2026-01-01T00:00:00Z stderr P half\n"), (&b"half\n"[..], true));
        assert_eq!(content(b"odd\n"), (&b"odd\n"[..], false));
    }

    #[tokio::test]
    async fn lines_are_followed_until_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.log");
        let (tell, ended) = watch::channel(false);
        let followed = tokio::spawn(follow(path.clone(), Label::new("c", 0, 1), ended));
        std::fs::write(&path, "2026-01-01T00:00:00Z stdout F hello\n").unwrap();
        tell.send(true).unwrap();
        followed.await.unwrap().unwrap();
    }
}
