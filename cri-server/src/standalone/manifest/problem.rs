//! What is wrong with a manifest. Pure.

use std::{collections::HashSet, fmt, path::PathBuf};

use super::Position;

/// Why a manifest cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The file cannot be read.
    #[error("{path}: cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// What is wrong in it, each on a line of its own; never empty.
    #[error("{}", lines(.0))]
    Wrong(Vec<Problem>),
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Problem {
    pub(super) file: Option<String>,
    pub(super) at: Option<Position>,
    /// The path of the field; empty for the whole.
    pub(super) field: String,
    pub(super) reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, at, field, reason } = self;
        if let Some(file) = file {
            write!(f, "{file}:")?;
        }
        if let Some(at) = at {
            write!(f, "{at}:")?;
        }
        let space = if file.is_some() || at.is_some() { " " } else { "" };
        match field.as_str() {
            "" => write!(f, "{space}{reason}"),
            field => write!(f, "{space}{field}: {reason}"),
        }
    }
}

/// Problems that are told in one message.
const SHOWN: usize = 20;
/// Problems of one thing that are kept: a file of a few megabytes can have a million.
const MOST: usize = 500;

fn lines(problems: &[Problem]) -> String {
    let mut lines: Vec<String> = problems.iter().take(SHOWN).map(ToString::to_string).collect();
    if let Some(more) = problems.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        let least = if problems.len() < MOST { "" } else { "at least " };
        lines.push(format!("and {least}{more} more"));
    }
    lines.join("\n")
}

/// Refuses a field of the pod.
pub(in crate::standalone) fn refuse<T>(
    field: impl Into<String>,
    reason: impl Into<String>,
) -> Result<T, ManifestError> {
    let problem = Problem { file: None, at: None, field: field.into(), reason: reason.into() };
    Err(ManifestError::Wrong(vec![problem]))
}

/// Problems of a file in the order of its lines.
pub(super) fn sorted(file: &str, mut problems: Vec<Problem>) -> ManifestError {
    problems.sort_by_key(|problem| problem.at);
    problems.dedup();
    for problem in &mut problems {
        problem.file = Some(file.to_owned());
    }
    ManifestError::Wrong(problems)
}

/// What is wrong with the parts of something: all of it is told, as far as anybody can read that, and not the first
/// alone.
#[derive(Debug, Default)]
pub(in crate::standalone) struct Findings {
    problems: Vec<Problem>,
    known: HashSet<Problem>,
}

impl Findings {
    /// A part, unless it is wrong.
    pub(in crate::standalone) fn part<T>(&mut self, part: Result<T, ManifestError>) -> Option<T> {
        match part {
            Ok(part) => return Some(part),
            Err(ManifestError::Wrong(problems)) => problems.into_iter().for_each(|problem| self.add(problem)),
            Err(error @ ManifestError::Read { .. }) => {
                let reason = error.to_string();
                self.add(Problem { file: None, at: None, field: String::new(), reason });
            }
        }
        None
    }

    fn add(&mut self, problem: Problem) {
        if self.problems.len() < MOST && self.known.insert(problem.clone()) {
            self.problems.push(problem);
        }
    }

    /// The whole, unless a part of it was wrong.
    pub(in crate::standalone) fn whole<T>(self, whole: T) -> Result<T, ManifestError> {
        if self.problems.is_empty() { Ok(whole) } else { Err(ManifestError::Wrong(self.problems)) }
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }
}
