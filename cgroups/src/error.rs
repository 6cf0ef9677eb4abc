//! Why an operation on a cgroup failed. No I/O.

use std::{io, path::PathBuf};

use crate::{BusError, CgroupPath, InvalidCgroupPath};

/// Why an operation on a cgroup failed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The machine has no usable cgroup file system.
    #[error("no cgroup file system is mounted: mount cgroup2 at /sys/fs/cgroup")]
    NotMounted,
    /// The driver cannot work here.
    #[error("the systemd cgroup driver cannot be used: {reason}; set the driver to cgroupfs")]
    DriverUnavailable {
        /// What is missing.
        reason: String,
    },
    /// systemd has not done its part.
    #[error("{unit}: cannot {operation}")]
    Systemd {
        /// The unit.
        unit: String,
        /// What was attempted.
        operation: &'static str,
        /// Why not.
        #[source]
        source: BusError,
    },
    /// A limit that makes no sense, found before anything was written.
    #[error("{field} = {value}: {reason}")]
    Invalid {
        /// The OCI field, such as `memory.limit`.
        field: String,
        /// Its value.
        value: String,
        /// What is wrong with it, and the mend.
        reason: String,
    },
    /// A limit needs a controller that this machine does not have.
    #[error("{field} cannot be limited: the {controller} cgroup controller is not available")]
    NoController {
        /// The OCI field.
        field: String,
        /// The controller it needs.
        controller: &'static str,
    },
    /// The kernel refused a limit.
    #[error("{field}: the kernel refused {value:?} for {}{hint}", file.display())]
    Refused {
        /// The OCI field.
        field: String,
        /// What was written.
        value: String,
        /// Where it was written.
        file: PathBuf,
        /// What would be allowed, in parentheses; may be empty.
        hint: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// libcgroups could not apply a setting, for a reason other than the kernel's refusal of a value.
    #[error("cgroup {path}: cannot {operation}: {reason}")]
    Library {
        /// The cgroup.
        path: CgroupPath,
        /// What was attempted.
        operation: &'static str,
        /// The library's words.
        reason: String,
    },
    /// A controller could not be switched on for the children of a cgroup.
    #[error(
        "cannot enable controllers {controllers:?} beneath {}: {source}; a cgroup with children must hold no \
         processes of its own, move them to a leaf", dir.display()
    )]
    Delegation {
        /// The ancestor.
        dir: PathBuf,
        /// What was to be enabled.
        controllers: Vec<String>,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The cgroup does not exist.
    #[error("cgroup {0} does not exist")]
    Missing(CgroupPath),
    /// Processes are left that should have ended.
    #[error("cgroup {path} still holds processes {pids:?} after {waited_ms} ms")]
    Busy {
        /// The cgroup.
        path: CgroupPath,
        /// Some of them.
        pids: Vec<u32>,
        /// How long was waited.
        waited_ms: u128,
    },
    /// A name does not name a cgroup.
    #[error(transparent)]
    Path(#[from] InvalidCgroupPath),
    /// A file operation failed.
    #[error("cannot {operation} {}", file.display())]
    Io {
        /// What was attempted, such as `read`.
        operation: &'static str,
        /// The file.
        file: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A file of the kernel's holds something unexpected.
    #[error("{} holds {content:?}, which is not understood", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What it holds, shortened.
        content: String,
    },
}

impl CgroupError {
    pub(crate) fn io(operation: &'static str, file: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let file = file.into();
        move |source| Self::Io { operation, file, source }
    }

    pub(crate) fn malformed(file: impl Into<PathBuf>, content: &str) -> Self {
        Self::Malformed { file: file.into(), content: content.chars().take(200).collect() }
    }

    /// Whether the cgroup is not there (any more), which most callers take as "it has ended".
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Missing(_))
    }
}

/// An error with all that led to it.
pub(crate) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}
