//! Follows a container's log file and prints its lines with the container's name. Waits on inotify.

use std::{
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use tokio::sync::watch;

use super::{super::log_text::LogText, Label, Screen};

/// How much of a log is read at once.
const PIECE: usize = 64 << 10;

/// Prints what is and will be in the log at `path` until `ended` turns true and all of it was printed.
pub(crate) async fn follow(
    path: PathBuf,
    label: Label,
    screen: Arc<Screen>,
    mut ended: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let inotify = Inotify::init()?;
    inotify.watches().add(path.parent().unwrap_or(Path::new("/")), WatchMask::MODIFY | WatchMask::CREATE)?;
    let mut changes = inotify.into_event_stream([0; 4096])?;
    let mut tail = Tail { path, file: None, text: LogText::new(screen.label(&label)), screen };
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
    text: LogText,
    screen: Arc<Screen>,
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
        let mut piece = vec![0; PIECE];
        let mut text = Vec::new();
        loop {
            let count = file.read(&mut piece)?;
            if count == 0 {
                return Ok(());
            }
            self.text.take(&piece[..count], &mut text);
            self.screen.output(&text)?;
            text.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_followed_until_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.log");
        let (tell, ended) = watch::channel(false);
        let followed = tokio::spawn(follow(path.clone(), Label::new("c", 0, 1), Screen::plain(), ended));
        std::fs::write(&path, "2026-01-01T00:00:00Z stdout F hello\n").unwrap();
        tell.send(true).unwrap();
        followed.await.unwrap().unwrap();
    }
}
