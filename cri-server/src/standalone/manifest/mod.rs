//! Reads the manifest of one pod from a file: the Pod or a workload's template, and the ConfigMaps and Secrets
//! it uses. Decides nothing about running it.
//!
//! Invariant: what is no field of its kind, and what `podhold run` does not understand, is refused with its
//! path and place; nothing is ignored in silence.

mod data;
mod documents;
mod draft;
mod flaws;
mod node;
mod problem;
mod read;
mod scalar;
mod typed;

use std::{io::Read, path::Path};

use k8s_openapi::api::core::v1::Pod;

pub use self::problem::ManifestError;
pub(super) use self::{
    data::{Data, Kind, Object},
    node::{Node, Position, Value, join},
    problem::{Findings, refuse},
};
use self::{flaws::Flaws, problem::Problem};

/// Largest manifest that is read, in bytes; what the Kubernetes API server takes.
const LARGEST: u64 = 3 << 20;

/// A pod as far as it could be read. Nothing is made of it while it has flaws: [`Manifest::told`] has them.
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
    /// What is wrong in the pod's document.
    flaws: Flaws,
    /// What is wrong in the other ones.
    flaws_beside: Vec<Problem>,
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
    /// Reads a file, as far as that goes; `-` is standard input.
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
            Ok(text) => Self::draft(&name, &text),
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                refuse(format!("is not text in UTF-8: byte {at} is none of it"))
            }
        }
    }

    /// Reads the text of a manifest without a flaw; `file` is what messages call it.
    pub fn parse(file: &str, text: &str) -> Result<Self, ManifestError> {
        let manifest = Self::draft(file, text)?;
        manifest.told(Findings::default(), Some(()))?;
        Ok(manifest)
    }

    /// Reads the text of a manifest as far as that goes. An error is what leaves no pod at all.
    pub(super) fn draft(file: &str, text: &str) -> Result<Self, ManifestError> {
        match documents::one_pod(text) {
            Ok(found) => Ok(Self {
                pod: found.pod,
                data: found.data,
                retries: found.aside.retries,
                notes: found.aside.notes,
                file: file.to_owned(),
                document: found.document,
                within: found.within,
                flaws: Flaws::of(found.flaws),
                flaws_beside: found.flaws_beside,
            }),
            Err(problems) => Err(problem::sorted(file, problems)),
        }
    }

    /// What is made of it, or all that is wrong with it: its flaws, and what was found in the pod beside them.
    pub(super) fn told<T>(&self, found: Findings, made: Option<T>) -> Result<T, ManifestError> {
        let placed = found.into_problems().into_iter().map(|mut problem| {
            problem.field = self.path(&problem.field);
            problem.at = Some(self.document.locate(&problem.field));
            problem
        });
        let mut problems: Vec<Problem> =
            placed.filter(|problem| !self.flaws.hide(&problem.field, &self.document)).collect();
        problems.extend(self.flaws.problems().iter().chain(&self.flaws_beside).cloned());
        match made {
            Some(made) if problems.is_empty() => Ok(made),
            _ => Err(problem::sorted(&self.file, problems)),
        }
    }

    /// Whether a field of the pod does not say all that was meant: it is wrong, or a wrong one was meant for it.
    pub(super) fn is_flawed(&self, field: &str) -> bool {
        self.flaws.are_at(&self.path(field), &self.document)
    }

    /// The path in its document of a field of the pod.
    fn path(&self, field: &str) -> String {
        match (self.within.as_str(), field) {
            ("", field) | (field, "") => field.to_owned(),
            (within, field) => format!("{within}.{field}"),
        }
    }
}

#[cfg(test)]
mod tests;
