//! Reads a Pod of the Kubernetes core v1 API from a file. Decides nothing about running it.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;

use super::supported;

/// Largest manifest that is read, in bytes; what the Kubernetes API server takes.
const LARGEST: u64 = 3 << 20;

/// Deepest nesting of brackets that is parsed.
const DEEPEST: usize = 500;
/// Fields that are not understood and named in one message.
const SHOWN: usize = 8;

/// A pod that was read and holds nothing that is not understood.
#[derive(Debug, Clone)]
pub struct Manifest {
    pub(super) pod: Pod,
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
    /// It is not YAML or JSON, or not one Pod.
    #[error("{path}: {reason}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What and where.
        reason: String,
    },
    /// A field cannot be used.
    #[error("{field}: {reason}")]
    Field {
        /// Its path.
        field: String,
        /// What is wrong and the mend.
        reason: String,
    },
}

/// Refuses a field.
pub(super) fn refuse<T>(field: impl Into<String>, reason: impl Into<String>) -> Result<T, ManifestError> {
    Err(ManifestError::Field { field: field.into(), reason: reason.into() })
}

/// A name as Kubernetes has them: small letters, digits and `-` (in a pod's name also `.`).
pub(super) fn check_name(field: &str, name: &str, longest: usize) -> Result<(), ManifestError> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ends = name.bytes().next().is_some_and(inner) && name.bytes().last().is_some_and(inner);
    let plain = name.bytes().all(|b| inner(b) || b == b'-' || (b == b'.' && longest > 63));
    if ends && plain && name.len() <= longest {
        return Ok(());
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
        let mut text = String::new();
        let mut source: Box<dyn Read> = if path == Path::new("-") {
            Box::new(std::io::stdin())
        } else {
            Box::new(std::fs::File::open(path).map_err(failed)?)
        };
        source.by_ref().take(LARGEST + 1).read_to_string(&mut text).map_err(failed)?;
        let refuse = |reason: String| ManifestError::Parse { path: path.to_owned(), reason };
        if text.len() as u64 > LARGEST {
            return Err(refuse(format!("is larger than {LARGEST} bytes")));
        }
        Self::parse(&text).map_err(|error| match error {
            ManifestError::Parse { reason, .. } => refuse(reason),
            other => other,
        })
    }

    /// Reads the text of a manifest.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let refuse = |reason: String| ManifestError::Parse { path: PathBuf::new(), reason };
        check_nesting(text).map_err(refuse)?;
        let mut documents = Vec::new();
        for document in serde_yaml_ng::Deserializer::from_str(text) {
            let value =
                serde_json::Value::deserialize(document).map_err(|error| refuse(error.to_string()))?;
            if !value.is_null() {
                documents.push(value);
            }
        }
        let value = match documents.len() {
            1 => documents.remove(0),
            0 => return Err(refuse("is empty; it must hold one Pod".to_owned())),
            n => return Err(refuse(format!("holds {n} documents; only one Pod can be run yet"))),
        };
        let word = |name: &str| value.get(name).and_then(serde_json::Value::as_str).unwrap_or_default();
        if (word("apiVersion"), word("kind")) != ("v1", "Pod") {
            let (version, kind) = (word("apiVersion"), word("kind"));
            return Err(refuse(format!("holds apiVersion {version:?}, kind {kind:?}; it must be v1, Pod")));
        }
        let unknown = supported::unknown(&value);
        if !unknown.is_empty() {
            let more = unknown.len().saturating_sub(SHOWN);
            let mut field = unknown.into_iter().take(SHOWN).collect::<Vec<_>>().join(", ");
            if more > 0 {
                field = format!("{field} and {more} more");
            }
            let reason = "no field of a Pod, or not supported by `podhold run` yet; leave it out".to_owned();
            return Err(ManifestError::Field { field, reason });
        }
        let pod = serde_path_to_error::deserialize(value).map_err(|error| ManifestError::Field {
            field: error.path().to_string(),
            reason: error.into_inner().to_string(),
        })?;
        Ok(Self { pod })
    }
}

/// Refuses what is nested deeper than any pod, before the parser spends time that grows with its square.
/// Counts brackets in plain text too, which is why the bound is far above what a pod needs.
fn check_nesting(text: &str) -> Result<(), String> {
    let mut depth = 0_usize;
    for (index, line) in text.lines().enumerate() {
        for byte in line.bytes() {
            match byte {
                b'[' | b'{' => depth += 1,
                b']' | b'}' => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
        if depth > DEEPEST {
            return Err(format!("is nested deeper than {DEEPEST} levels at line {}", index + 1));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_pod_is_a_manifest() {
        let pod =
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: i}]}\n";
        assert!(Manifest::parse(pod).is_ok());
        for (text, word) in [
            ("", "empty"),
            ("a: [", "did not find"),
            ("apiVersion: v1\nkind: Service\n", "Service"),
            (&format!("{pod}---\n{pod}"), "2 documents"),
            (&pod.replace("image: i", "image: 7"), "spec.containers[0].image: invalid type"),
            (&pod.replace("image: i", "imag: i"), "spec.containers[0].imag: no field of a Pod"),
            (&"[".repeat(100_000), "nested deeper"),
        ] {
            let message = Manifest::parse(text).unwrap_err().to_string();
            assert!(message.contains(word), "{text:?}: {message}");
        }
    }
}
