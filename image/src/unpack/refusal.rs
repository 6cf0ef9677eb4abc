//! Why an entry is not applied, and how that is told. No I/O.

use rustix::io::Errno;

use crate::error::UnpackError;

/// Why an entry was not applied.
pub(super) enum Refusal {
    Policy(String),
    Stream(std::io::Error),
    Kernel(&'static str, Errno),
    TooLarge(String),
    /// Nobody waits for the layer any more.
    Abandoned,
}

impl Refusal {
    /// The refusal with the name of its entry.
    pub(super) fn at(self, raw: &[u8]) -> UnpackError {
        let entry: String = String::from_utf8_lossy(raw).chars().take(300).collect();
        match self {
            Self::Policy(reason) => UnpackError::Entry { entry, reason },
            Self::Stream(error) => damaged(error),
            Self::TooLarge(reason) => UnpackError::TooLarge(format!("entry {entry:?}: {reason}")),
            Self::Abandoned => UnpackError::Abandoned,
            Self::Kernel("enter its directory", Errno::LOOP | Errno::NOTDIR) => {
                let reason = "its path leads through a symbolic link or a file of the same layer".to_owned();
                UnpackError::Entry { entry, reason }
            }
            Self::Kernel(step, Errno::NAMETOOLONG) => {
                UnpackError::Entry { entry, reason: format!("cannot {step}: a part of its name is too long") }
            }
            Self::Kernel(step, errno) => {
                UnpackError::Io { operation: format!("entry {entry:?}: cannot {step}"), source: errno.into() }
            }
        }
    }
}

impl From<&str> for Refusal {
    fn from(reason: &str) -> Self {
        Self::Policy(reason.to_owned())
    }
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Self::Policy(reason)
    }
}

/// Names the step that the kernel refused.
pub(super) fn step(step: &'static str) -> impl Fn(Errno) -> Refusal {
    move |errno| Refusal::Kernel(step, errno)
}

/// An archive that cannot be read.
pub(super) fn damaged(error: std::io::Error) -> UnpackError {
    UnpackError::Stream(format!("the tar archive is damaged: {error}"))
}
