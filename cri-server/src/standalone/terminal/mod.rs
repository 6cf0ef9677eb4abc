//! What is shown of a pod: its containers' lines, what happens to it, and how it ended.
//!
//! Invariant: one [`Screen`] writes at a time, so that the line of the live view is never torn apart. A line that
//! cannot be written, to a full disk for one, is lost; a container's output that cannot is an error.

mod follow;
mod json;
mod junit;
mod live;
mod plain;

use std::{
    io::{self, IsTerminal, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

pub(crate) use self::{follow::follow, plain::Label};
use self::{live::Live, plain::Colour};
use super::life::{Outcome, Role};
use crate::output::printable;

/// Where everything of one run is shown.
#[derive(Debug)]
pub(crate) struct Screen {
    inner: Mutex<Inner>,
    colour: Colour,
    /// Containers' lines go to standard error: standard output is for a program to read.
    aside: bool,
}

#[derive(Debug)]
struct Inner {
    /// The live view, where standard error is a terminal.
    live: Option<Live>,
    /// Standard output is a terminal too, most likely the same one.
    shared: bool,
    /// The pod in words, as last shown.
    words: String,
    /// The pod's name.
    name: String,
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
        let inner = Inner { live, shared, words: String::new(), name: name.to_owned() };
        Arc::new(Self { inner: Mutex::new(inner), colour, aside })
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

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What stands before each line of a container.
    fn label(&self, label: &Label) -> String {
        label.text(self.colour)
    }

    /// Tells something, in a line of its own.
    pub(super) fn say(&self, text: &str) {
        let mut inner = self.lock();
        let line = format!("podhold: {}\n", printable(text));
        let _unsaid = inner.around(true, |inner| inner.stderr(line.as_bytes()));
    }

    /// Shows how the pod is now.
    pub(super) fn show(&self, words: &str) {
        let mut inner = self.lock();
        if inner.words == words {
            return;
        }
        words.clone_into(&mut inner.words);
        let _unsaid = match inner.live.is_some() {
            true => inner.around(true, |_| Ok(())),
            false => {
                let line = format!("podhold: {}: {}\n", printable(&inner.name), printable(words));
                inner.stderr(line.as_bytes())
            }
        };
    }

    /// Prints lines of a container.
    fn output(&self, text: &[u8]) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let aside = self.aside;
        let mut inner = self.lock();
        let over = inner.shared;
        inner.around(over, |inner| {
            if let Some(live) = &mut inner.live {
                live.within_line = over && !text.ends_with(b"\n");
            }
            if aside {
                return inner.stderr(text);
            }
            let mut out = io::stdout().lock();
            out.write_all(text)?;
            out.flush()
        })
    }

    /// Takes the live view away for good.
    pub(super) fn close(&self) {
        let mut inner = self.lock();
        if let Some(live) = inner.live.take() {
            let _unsaid = inner.stderr(live.erase().as_bytes());
        }
    }
}

impl Inner {
    fn stderr(&mut self, text: &[u8]) -> io::Result<()> {
        io::stderr().lock().write_all(text)
    }

    /// Writes something above the live view, or beside it where that is on another terminal.
    fn around(&mut self, over: bool, write: impl FnOnce(&mut Self) -> io::Result<()>) -> io::Result<()> {
        if !over {
            return write(self);
        }
        let erase = self.live.as_ref().map(Live::erase).unwrap_or_default();
        self.stderr(erase.as_bytes())?;
        write(self)?;
        let words = format!("podhold: {}: {}", printable(&self.name), printable(&self.words));
        let line = match &mut self.live {
            Some(live) if !self.words.is_empty() => live.line(&words),
            _ => String::new(),
        };
        self.stderr(line.as_bytes())
    }
}

/// How a pod ended, as one JSON document.
pub(super) fn json(subject: &Subject, outcome: &Outcome, code: u8) -> String {
    format!("{:#}\n", json::of(subject, outcome, code))
}

/// How a pod ended, as JUnit has it: a test case for each container.
pub(super) fn junit(subject: &Subject, outcome: &Outcome) -> String {
    junit::of(subject, outcome)
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
