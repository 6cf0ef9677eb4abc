//! Follows a container's log file and prints its lines with the container's name. Waits on inotify.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};
use tokio::{
    sync::watch,
    time::{Interval, interval},
};

use super::{super::log_text::LogText, Label, Screen};

/// How much of a log is read at once.
const PIECE: usize = 64 << 10;
/// How often a log is looked at when this host has no inotify instance or watch left.
const INTERVAL: Duration = Duration::from_millis(200);

/// Prints what is and will be in the log at `path` until `ended` turns true and all of it was printed, or until
/// nothing is printed any more.
pub(crate) async fn follow(
    path: PathBuf,
    label: Label,
    screen: Arc<Screen>,
    mut ended: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut changes = Changes::of(path.parent().unwrap_or(Path::new("/")));
    let mut tail = Tail { path, file: None, text: LogText::new(screen.label(&label)), screen: &screen };
    let followed = loop {
        let over = *ended.borrow_and_update();
        match tail.print_new().await {
            Ok(true) if !over => {}
            done => break done.map(drop),
        }
        tokio::select! {
            changed = changes.next() => if changed.is_err() { break changed },
            changed = ended.changed() => if changed.is_err() { break Ok(()) },
        }
    };
    changes.let_go();
    followed
}

/// When a log may have more.
enum Changes {
    Told(Box<EventStream<[u8; 4096]>>),
    LookedFor(Interval),
}

impl Changes {
    fn of(directory: &Path) -> Self {
        let told = || -> io::Result<_> {
            let inotify = Inotify::init()?;
            inotify.watches().add(directory, WatchMask::MODIFY | WatchMask::CREATE)?;
            inotify.into_event_stream([0; 4096]).map(Box::new)
        };
        told().map_or_else(|_| Self::LookedFor(interval(INTERVAL)), Self::Told)
    }

    /// The kernel closes an inotify instance only when nobody can be telling it anything any more, which takes it
    /// 20 ms: nobody waits for that.
    fn let_go(self) {
        if let Self::Told(events) = self {
            drop(tokio::task::spawn_blocking(move || drop(events)));
        }
    }

    /// Only that something changed counts; what changed is read from the file.
    async fn next(&mut self) -> io::Result<()> {
        match self {
            Self::Told(events) => events.next().await.transpose().map(drop),
            Self::LookedFor(ticks) => {
                ticks.tick().await;
                Ok(())
            }
        }
    }
}

struct Tail<'a> {
    path: PathBuf,
    file: Option<std::fs::File>,
    text: LogText,
    screen: &'a Screen,
}

impl Tail<'_> {
    /// Prints what is new; `false` when nothing is printed any more.
    async fn print_new(&mut self) -> io::Result<bool> {
        if self.file.is_none() {
            match std::fs::File::open(&self.path) {
                Ok(file) => self.file = Some(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        let Some(file) = &mut self.file else { return Ok(true) };
        let mut piece = vec![0; PIECE];
        loop {
            let count = file.read(&mut piece)?;
            if count == 0 {
                return Ok(true);
            }
            let mut text = Vec::new();
            self.text.take(&piece[..count], &mut text);
            if !self.screen.output(text).await {
                return Ok(false);
            }
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
        let screen = Screen::plain();
        let followed = tokio::spawn(follow(path.clone(), Label::new("c", 0, 1), Arc::clone(&screen), ended));
        std::fs::write(&path, "2026-01-01T00:00:00Z stdout F hello\n").unwrap();
        tell.send(true).unwrap();
        followed.await.unwrap().unwrap();
        screen.close().await;
    }

    #[tokio::test]
    async fn a_log_that_nobody_tells_of_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        // Watching what is not there fails as every watch does where none is left.
        let mut changes = Changes::of(&dir.path().join("missing"));
        assert!(matches!(changes, Changes::LookedFor(_)));
        changes.next().await.unwrap();
    }
}
