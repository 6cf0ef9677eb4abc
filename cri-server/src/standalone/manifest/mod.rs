//! Reads the manifest of one pod from a file: the Pod or a workload's template, and the ConfigMaps and Secrets
//! it uses. Decides nothing about running it.
//!
//! Invariant: what is no field of its kind, and what `podhold run` does not understand, is refused with its
//! path and place; nothing is ignored in silence.

mod data;
mod documents;
mod node;
mod read;
mod scalar;
mod typed;

use std::{
    fmt,
    io::Read,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::Pod;

pub(super) use self::{
    data::{Data, Kind, Object},
    node::{Node, Position, Value, join},
};

/// Largest manifest that is read, in bytes; what the Kubernetes API server takes.
const LARGEST: u64 = 3 << 20;
/// Problems that are told in one message.
const SHOWN: usize = 8;

/// A pod that was read and holds nothing that is not understood.
#[derive(Debug, Clone)]
pub struct Manifest {
    pub(super) pod: Pod,
    /// The ConfigMaps and Secrets beside it.
    pub(super) data: Data,
    /// How often its containers may fail and begin again, where it is a job's.
    pub(super) retries: Option<u32>,
    /// What is told to whoever runs it, such as fields without an effect.
    pub(super) notes: Vec<String>,
    file: String,
    document: Node,
    /// Where in its document the pod is: empty, or such as `spec.template`.
    within: String,
}

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    file: Option<String>,
    at: Option<Position>,
    /// The path of the field; empty for the whole.
    field: String,
    reason: String,
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

fn lines(problems: &[Problem]) -> String {
    let mut lines: Vec<String> = problems.iter().take(SHOWN).map(ToString::to_string).collect();
    if let Some(more) = problems.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        lines.push(format!("and {more} more"));
    }
    lines.join("\n")
}

/// Refuses a field of the pod.
pub(super) fn refuse<T>(field: impl Into<String>, reason: impl Into<String>) -> Result<T, ManifestError> {
    let problem = Problem { file: None, at: None, field: field.into(), reason: reason.into() };
    Err(ManifestError::Wrong(vec![problem]))
}

/// A name as Kubernetes has them: small letters, digits and `-` (in a pod's name also `.`).
pub(super) fn check_name(field: &str, name: &str, longest: usize) -> Result<(), ManifestError> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ends = name.bytes().next().is_some_and(inner) && name.bytes().last().is_some_and(inner);
    let plain = name.bytes().all(|b| inner(b) || b == b'-' || (b == b'.' && longest > 63));
    if ends && plain && name.len() <= longest {
        return Ok(());
    }
    if name.is_empty() {
        return refuse(field, "is missing; give it a name");
    }
    let reason = format!(
        "{name:?} is not a name: at most {longest} small letters, digits and '-', with a letter or digit at both ends"
    );
    refuse(field, reason)
}

impl Manifest {
    /// Reads a file; `-` is standard input.
    pub fn read(path: &Path) -> Result<Self, ManifestError> {
        let failed = |source| ManifestError::Read { path: path.to_owned(), source };
        let standard_input = path == Path::new("-");
        let mut source: Box<dyn Read> = if standard_input {
            Box::new(std::io::stdin())
        } else {
            Box::new(std::fs::File::open(path).map_err(failed)?)
        };
        let mut text = Vec::new();
        source.by_ref().take(LARGEST + 1).read_to_end(&mut text).map_err(failed)?;
        let name = if standard_input { "standard input".to_owned() } else { path.display().to_string() };
        let refuse = |reason: String| {
            let problem = Problem { file: Some(name.clone()), at: None, field: String::new(), reason };
            Err(ManifestError::Wrong(vec![problem]))
        };
        if text.len() as u64 > LARGEST {
            return refuse(format!("is larger than {LARGEST} bytes"));
        }
        match String::from_utf8(text) {
            Ok(text) => Self::parse(&name, &text),
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                refuse(format!("is not text in UTF-8: byte {at} is none of it"))
            }
        }
    }

    /// Reads the text of a manifest; `file` is what messages call it.
    pub fn parse(file: &str, text: &str) -> Result<Self, ManifestError> {
        documents::one_pod(text)
            .map(|found| Self {
                pod: found.pod,
                data: found.data,
                retries: found.aside.retries,
                notes: found.aside.notes,
                file: file.to_owned(),
                document: found.document,
                within: found.within,
            })
            .map_err(|mut problems| {
                problems.sort_by_key(|problem| problem.at);
                problems.dedup();
                for problem in &mut problems {
                    problem.file = Some(file.to_owned());
                }
                ManifestError::Wrong(problems)
            })
    }

    /// Adds to what [`refuse`] made of a field of the pod where that is in the file.
    pub(super) fn placed(&self, error: ManifestError) -> ManifestError {
        let ManifestError::Wrong(mut problems) = error else { return error };
        for problem in problems.iter_mut().filter(|problem| problem.file.is_none()) {
            if !self.within.is_empty() && !problem.field.is_empty() {
                problem.field = format!("{}.{}", self.within, problem.field);
            }
            problem.at = Some(self.document.locate(&problem.field));
            problem.file = Some(self.file.clone());
        }
        ManifestError::Wrong(problems)
    }
}

#[cfg(test)]
mod tests;
