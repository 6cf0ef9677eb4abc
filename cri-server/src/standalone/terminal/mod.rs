//! What is shown of a pod: its containers' lines, what happens to it, and how it ended.
//!
//! Invariant: one thread writes to a terminal, so that the line of the live view is never torn apart; whoever has
//! something to say waits for no reader ([`writer`]). A line of ours that cannot be written, to a full disk for one, is
//! lost; that a container's cannot is told by [`Screen::lost`].

mod follow;
mod json;
mod junit;
mod live;
mod plain;
mod writer;

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

pub(crate) use self::{follow::follow, plain::Label};
use self::{
    live::Live,
    plain::Colour,
    writer::{Page, Writer},
};
use super::life::{Outcome, Role};
use crate::error::Error;

/// Where everything of one run is shown.
#[derive(Debug)]
pub(crate) struct Screen {
    /// Writes words; and lines, where they go to the same terminal.
    words: Writer,
    lines: Writer,
    /// How the pod is, as last shown.
    shown: Mutex<String>,
    colour: Colour,
    /// How many logs are being shown.
    followed: watch::Sender<usize>,
}

/// A log that is shown, until this is dropped.
struct Followed(Arc<Screen>);

impl Drop for Followed {
    fn drop(&mut self) {
        self.0.followed.send_modify(|count| *count -= 1);
    }
}

/// Which pod was run, for reports.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) uid: String,
    pub(super) addresses: Vec<String>,
}

impl Screen {
    /// For the pod `name`; with `aside` standard output is left alone.
    pub(super) fn new(name: &str, aside: bool) -> Arc<Self> {
        let environment = |name: &str| std::env::var(name).unwrap_or_default();
        let dumb = environment("TERM") == "dumb";
        let of_lines = if aside { io::stderr().is_terminal() } else { io::stdout().is_terminal() };
        let live = (io::stderr().is_terminal() && !dumb).then(Live::default);
        Self::with(name, live, aside, Colour::of(of_lines && !dumb, &environment("NO_COLOR")))
    }

    fn with(name: &str, live: Option<Live>, aside: bool, colour: Colour) -> Arc<Self> {
        let shared = live.is_some() && (aside || io::stdout().is_terminal());
        let words = Writer::start(Page { live, shared, aside, name: name.to_owned(), ..Page::default() });
        // A reader of standard output that is slow holds up nothing that is said elsewhere.
        let lines = if shared || aside { words.clone() } else { Writer::start(Page::default()) };
        Arc::new(Self { words, lines, shown: Mutex::default(), colour, followed: watch::Sender::new(0) })
    }

    /// For containers' lines alone.
    pub(crate) fn lines() -> Arc<Self> {
        let colour = Colour::of(io::stdout().is_terminal(), &std::env::var("NO_COLOR").unwrap_or_default());
        Self::with("", None, false, colour)
    }

    /// Without a terminal.
    #[cfg(test)]
    fn plain() -> Arc<Self> {
        Self::with("p", None, false, Colour::of(false, ""))
    }

    /// What stands before each line of a container.
    fn label(&self, label: &Label) -> String {
        label.text(self.colour)
    }

    /// Tells something, in a line of its own.
    pub(super) fn say(&self, text: &str) {
        self.words.say(text);
    }

    /// Shows how the pod is now.
    pub(super) fn show(&self, words: &str) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if *shown != words {
            words.clone_into(&mut shown);
            self.words.show(words);
        }
    }

    /// Prints lines of a container; `false` when they are not printed any more.
    async fn output(&self, text: Vec<u8>) -> bool {
        text.is_empty() || self.lines.lines(text).await
    }

    /// Shows a container's log as [`follow`] does, and says so when it cannot be read.
    pub(super) fn show_log(
        self: &Arc<Self>,
        path: PathBuf,
        label: Label,
        ended: watch::Receiver<bool>,
    ) -> impl Future<Output = ()> + Send + use<> {
        self.followed.send_modify(|count| *count += 1);
        let followed = Followed(Arc::clone(self));
        async move {
            let shown = path.display().to_string();
            if let Err(error) = follow(path, label, Arc::clone(&followed.0), ended).await {
                followed.0.say(&format!("{shown}: cannot be shown any more: {error}"));
            }
        }
    }

    /// Why standard output takes no more, if so.
    pub(crate) fn failure(&self) -> Option<Arc<io::Error>> {
        self.lines.failure()
    }

    /// Waits until standard output takes no more; answers why.
    pub(crate) async fn lost(&self) -> Arc<io::Error> {
        self.lines.lost().await
    }

    /// Waits until all output is written, and takes the live view away for good.
    pub(crate) async fn close(&self) {
        let mut followed = self.followed.subscribe();
        // It is held here, so it does not end.
        drop(followed.wait_for(|count| *count == 0).await);
        self.lines.close().await;
        self.words.close().await;
    }
}

/// How a pod ended, as one JSON document.
pub(super) fn json(subject: &Subject, outcome: &Outcome, code: u8, failure: Option<&Error>) -> String {
    format!("{:#}\n", json::of(subject, outcome, code, failure))
}

/// How a pod ended, as JUnit has it: a test case for each container.
pub(super) fn junit(subject: &Subject, outcome: &Outcome, failure: Option<&Error>) -> String {
    junit::of(subject, outcome, failure)
}

/// The word for a role.
fn kind(role: Role) -> &'static str {
    match role {
        Role::Init => "init",
        Role::Sidecar => "sidecar",
        Role::App => "app",
    }
}

/// A moment as RFC 3339 has it.
fn time(time: std::time::SystemTime) -> String {
    chrono::DateTime::<chrono::Utc>::from(time).to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}
