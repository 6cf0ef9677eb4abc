//! What became of a pod: its exit code, and what is told of each container. Reads last words; decides nothing
//! about the pod's life.

use std::{
    io::{Read, Seek, SeekFrom},
    path::Path,
    time::SystemTime,
};

use super::{
    super::log_text::LogText,
    member::RunEnd,
    order::{Order, Stage, Why},
    plan::Role,
};
use crate::error::Error;

/// Exit code of a pod whose time was over, as timeout(1) has it.
const TIME_OVER: u8 = 124;
/// Exit code when nobody reads, as a shell has it: 128 and SIGPIPE.
pub(in crate::standalone) const UNREAD: u8 = 141;
/// Most bytes of a container's last words, and of its log in their place; what Kubernetes takes.
const WORDS: u64 = 4096;
const LOG_BYTES: usize = 2048;
const LOG_LINES: usize = 80;

/// What became of one container.
#[derive(Debug, Clone)]
pub(in crate::standalone) struct Report {
    pub(in crate::standalone) name: String,
    pub(in crate::standalone) role: Role,
    pub(in crate::standalone) image: String,
    pub(in crate::standalone) restarts: u32,
    /// How many of its runs were killed for their memory limit.
    pub(in crate::standalone) oom: u32,
    /// Its last run; `None` when it never began.
    pub(in crate::standalone) last: Option<RunEnd>,
}

/// What became of a pod.
#[derive(Debug)]
pub(in crate::standalone) struct Outcome {
    pub(in crate::standalone) why: Why,
    pub(in crate::standalone) containers: Vec<Report>,
    pub(in crate::standalone) started: Option<SystemTime>,
    pub(in crate::standalone) finished: SystemTime,
    /// What of the host failed.
    pub(in crate::standalone) error: Option<Error>,
}

impl Report {
    /// Its exit code, where it counts: a sidecar's does not.
    pub(in crate::standalone) fn failure(&self) -> Option<i32> {
        let code = self.last.as_ref().map_or(0, |run| run.ended.code);
        (self.role != Role::Sidecar && code != 0).then_some(code)
    }
}

impl Outcome {
    /// A pod that ended before anything of it began.
    pub(in crate::standalone) fn nothing(why: Why, error: Option<Error>) -> Self {
        Self { why, containers: Vec::new(), started: None, finished: SystemTime::now(), error }
    }

    /// The exit code of the command; `None` when the host has failed, which the command line has a code for.
    pub(in crate::standalone) fn code(&self) -> Option<u8> {
        code(self.why, self.containers.iter().filter_map(Report::failure))
    }

    /// Kubernetes' word for it, when it is not that of the containers.
    pub(in crate::standalone) fn reason(&self) -> Option<&'static str> {
        match self.why {
            Why::Done => None,
            Why::Signal(_) => Some("Interrupted"),
            Why::Timeout => Some("Timeout"),
            Why::Deadline => Some("DeadlineExceeded"),
            Why::Stopped => Some("Stopped"),
            Why::Unread => Some("Unread"),
            Why::GivenUp(_) => Some("BackoffLimitExceeded"),
            Why::Broken => Some("HostFailure"),
        }
    }
}

/// A container's exit code as this process can have it.
fn failed(code: i32) -> u8 {
    u8::try_from(code).unwrap_or(1).max(1)
}

/// The exit code of a pod whose containers failed with these, in the order of the manifest.
fn code(why: Why, mut failures: impl Iterator<Item = i32>) -> Option<u8> {
    match why {
        Why::Signal(signal) => Some(128 + signal),
        Why::Timeout | Why::Deadline => Some(TIME_OVER),
        Why::Unread => Some(UNREAD),
        Why::Done => Some(failures.next().map_or(0, failed)),
        // One that was killed for a probe may have ended with 0, and those that were stopped for it with anything.
        Why::GivenUp(code) => Some(failed(code)),
        // Containers that have ended well, or not begun, because they were told to end, have not succeeded.
        Why::Stopped => failures.next().map(failed),
        Why::Broken => None,
    }
}

/// What a container has left as its last words.
pub(super) fn last_words(file: &Path, log: &Path, log_speaks: bool, code: i32) -> String {
    let mut words = Vec::new();
    if let Ok(file) = std::fs::File::open(file) {
        // What cannot be read was not said.
        let _read = file.take(WORDS).read_to_end(&mut words);
    }
    if words.is_empty() && log_speaks && code != 0 {
        words = end_of_log(log, LOG_BYTES, LOG_LINES);
    }
    String::from_utf8_lossy(&words).into_owned()
}

/// The last lines of a log, without what the CRI puts before them.
pub(in crate::standalone) fn end_of_log(log: &Path, bytes: usize, lines: usize) -> Vec<u8> {
    // Every entry has some 45 bytes of its own.
    let reach = bytes as u64 + 64 * lines as u64 + 4096;
    let mut text = Vec::new();
    if let Ok(mut file) = std::fs::File::open(log) {
        let size = file.metadata().map_or(0, |metadata| metadata.len());
        let from = size.saturating_sub(reach);
        let mut entries = Vec::new();
        if file.seek(SeekFrom::Start(from)).is_ok() && file.take(reach).read_to_end(&mut entries).is_ok() {
            // In the middle of an entry there is no sense.
            let begin = if from == 0 {
                0
            } else {
                entries.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1)
            };
            LogText::new(String::new()).take(&entries[begin..], &mut text);
        }
    }
    let newlines = text.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    let begin = newlines.skip(1).nth(lines.saturating_sub(1)).unwrap_or(0);
    let begin = begin.max(text.len().saturating_sub(bytes));
    text.split_off(begin)
}

/// What is told while the pod runs: `init 1/2`, `running, ready 1/2, 3 restarts`.
pub(super) fn words(order: &Order) -> String {
    use super::order::Phase;
    let of = |apps: bool| order.members.iter().filter(move |state| (state.role == Role::App) == apps);
    let restarts: u32 = order.members.iter().map(|state| state.restarts).sum();
    let waiting =
        order.members.iter().filter(|state| matches!(state.stage, Stage::BackingOff { .. })).count();
    let mut text = match order.phase {
        Phase::Setup => {
            let begun = of(false).filter(|state| state.stage != Stage::Waiting).count();
            format!("init {begun}/{}", of(false).count())
        }
        Phase::Running => {
            let ready = of(true).filter(|state| matches!(state.stage, Stage::Running { ready: true, .. }));
            format!("running, ready {}/{}", ready.count(), of(true).count())
        }
        Phase::Ending(_) => "stopping".to_owned(),
        Phase::Over(_) => "ended".to_owned(),
    };
    if restarts > 0 {
        text.push_str(&format!(", {restarts} restart{}", if restarts == 1 { "" } else { "s" }));
    }
    if waiting > 0 {
        text.push_str(&format!(", {waiting} waiting to begin again"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_the_first_failure_unless_the_pod_was_ended() {
        for (why, failures, expected) in [
            (Why::Done, vec![], Some(0)),
            (Why::Done, vec![7, 9], Some(7)),
            (Why::Done, vec![256, 1], Some(1)),
            (Why::Stopped, vec![143], Some(143)),
            (Why::Stopped, vec![], None),
            (Why::Unread, vec![9], Some(141)),
            (Why::GivenUp(9), vec![143, 9], Some(9)),
            (Why::GivenUp(0), vec![], Some(1)),
            (Why::Signal(2), vec![1], Some(130)),
            (Why::Signal(15), vec![], Some(143)),
            (Why::Timeout, vec![9], Some(124)),
            (Why::Deadline, vec![], Some(124)),
            (Why::Broken, vec![9], None),
        ] {
            assert_eq!(code(why, failures.into_iter()), expected, "{why:?}");
        }
    }

    #[test]
    fn last_words_are_the_file_or_the_end_of_a_failures_log() {
        let dir = tempfile::tempdir().unwrap();
        let (file, log) = (dir.path().join("words"), dir.path().join("log"));
        let entry = |n: u32| format!("2026-01-01T00:00:00Z stdout F line {n}\n");
        std::fs::write(&log, (1..=100).map(entry).collect::<String>()).unwrap();
        let words = |log_speaks, code| last_words(&file, &log, log_speaks, code);
        assert!(words(true, 0).is_empty());
        let said = words(true, 1);
        assert!(said.starts_with("line 21\n") && said.ends_with("line 100\n"), "{said}");
        assert!(words(false, 1).is_empty());
        std::fs::write(&file, "why").unwrap();
        assert_eq!(words(true, 1), "why");
    }
}
