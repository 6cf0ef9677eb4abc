//! The threads that write to this process's streams, so that nobody else ever waits for a reader.
//!
//! Invariant: what was told first is written first, on each stream. Words wait for nobody: while [`WORDS`] of them
//! are not written yet, more are lost. A container's output waits for room instead, and with it whoever reads its
//! log; nothing of it is lost until standard output takes no more.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::live::Live;
use crate::output::printable;

/// Words that may wait to be written.
const WORDS: usize = 1024;
/// Pieces of containers' output that may.
const PIECES: usize = 4;

/// What is to be written.
enum Task {
    /// A line of our own.
    Say(String),
    /// How the pod is now.
    Show(String),
    /// Lines of a container.
    Lines(Vec<u8>, OwnedSemaphorePermit),
    /// The live view is taken away for good; everything before has been written.
    Close(oneshot::Sender<()>),
}

/// What one thread writes, and how.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// The live view, where standard error is a terminal.
    pub(super) live: Option<Live>,
    /// Containers' lines go to the terminal of the live view, too.
    pub(super) shared: bool,
    /// They go to standard error.
    pub(super) aside: bool,
    /// The pod's name.
    pub(super) name: String,
    /// The pod in words, as last shown.
    pub(super) words: String,
}

/// By which one thread is told.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    tell: mpsc::Sender<Task>,
    waiting: Arc<AtomicUsize>,
    room: Arc<Semaphore>,
    /// Why standard output takes no more.
    lost: watch::Receiver<Option<Arc<io::Error>>>,
}

impl Writer {
    /// Starts a thread, which ends with this process.
    pub(super) fn start(mut page: Page) -> Self {
        let (tell, told) = mpsc::channel();
        let (lose, lost) = watch::channel(None);
        let waiting = Arc::new(AtomicUsize::new(0));
        let written = Arc::clone(&waiting);
        let write = {
            let lose = lose.clone();
            move || {
                for task in told {
                    if matches!(task, Task::Say(_) | Task::Show(_)) {
                        written.fetch_sub(1, Ordering::Relaxed);
                    }
                    page.carry_out(task, &lose);
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("writer".to_owned()).spawn(write) {
            lose.send_replace(Some(Arc::new(error)));
        }
        Self { tell, waiting, room: Arc::new(Semaphore::new(PIECES)), lost }
    }

    pub(super) fn say(&self, text: &str) {
        self.words(Task::Say(printable(text)));
    }

    pub(super) fn show(&self, words: &str) {
        self.words(Task::Show(printable(words)));
    }

    fn words(&self, task: Task) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) < WORDS {
            // Nobody takes it when there is no thread.
            let _told = self.tell.send(task);
        } else {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Takes lines of a container, as soon as there is room; `false` when they are not written any more.
    pub(super) async fn lines(&self, text: Vec<u8>) -> bool {
        if self.failure().is_some() {
            return false;
        }
        let mut lost = self.lost.clone();
        let room = tokio::select! {
            room = Arc::clone(&self.room).acquire_owned() => room,
            _ = lost.wait_for(Option::is_some) => return false,
        };
        room.is_ok_and(|room| self.tell.send(Task::Lines(text, room)).is_ok())
    }

    /// Why standard output takes no more, if so.
    pub(super) fn failure(&self) -> Option<Arc<io::Error>> {
        self.lost.borrow().clone()
    }

    /// Waits until standard output takes no more.
    pub(super) async fn lost(&self) -> Arc<io::Error> {
        let mut lost = self.lost.clone();
        let found = lost.wait_for(Option::is_some).await.ok().and_then(|error| error.clone());
        match found {
            Some(error) => error,
            None => std::future::pending().await,
        }
    }

    /// Waits until everything is written that was told before.
    pub(super) async fn close(&self) {
        let (done, written) = oneshot::channel();
        if self.tell.send(Task::Close(done)).is_ok() {
            let _without_a_thread = written.await;
        }
    }
}

impl Page {
    fn carry_out(&mut self, task: Task, lose: &watch::Sender<Option<Arc<io::Error>>>) {
        match task {
            Task::Say(text) => {
                let line = format!("podhold: {text}\n");
                let _unsaid = self.around(true, |_| stderr(line.as_bytes()));
            }
            Task::Show(words) => {
                let line = format!("podhold: {}: {words}\n", printable(&self.name));
                self.words = words;
                let _unsaid = match self.live.is_some() {
                    true => self.around(true, |_| Ok(())),
                    false => stderr(line.as_bytes()),
                };
            }
            Task::Lines(text, _room) if lose.borrow().is_none() => {
                if let Err(error) = self.lines(&text)
                    && !self.aside
                {
                    lose.send_replace(Some(Arc::new(error)));
                }
            }
            Task::Lines(..) => {}
            Task::Close(done) => {
                if let Some(live) = self.live.take() {
                    let _unsaid = stderr(live.erase().as_bytes());
                }
                // Nobody may wait any more.
                let _told = done.send(());
            }
        }
    }

    fn lines(&mut self, text: &[u8]) -> io::Result<()> {
        let (over, aside) = (self.shared, self.aside);
        self.around(over, |page| {
            if let Some(live) = &mut page.live {
                live.within_line = over && !text.ends_with(b"\n");
            }
            if aside {
                return stderr(text);
            }
            let mut out = io::stdout().lock();
            out.write_all(text)?;
            out.flush()
        })
    }

    /// Writes something above the live view, or beside it where that is on another terminal.
    fn around(&mut self, over: bool, write: impl FnOnce(&mut Self) -> io::Result<()>) -> io::Result<()> {
        if !over {
            return write(self);
        }
        // What standard error does not take is lost, and never what goes to standard output with it.
        let _unsaid = stderr(self.live.as_ref().map(Live::erase).unwrap_or_default().as_bytes());
        write(self)?;
        let words = format!("podhold: {}: {}", printable(&self.name), self.words);
        let line = match &mut self.live {
            Some(live) if !self.words.is_empty() => live.line(&words),
            _ => String::new(),
        };
        let _unsaid = stderr(line.as_bytes());
        Ok(())
    }
}

fn stderr(text: &[u8]) -> io::Result<()> {
    io::stderr().lock().write_all(text)
}
