//! Why a verb failed, and the one place where that becomes a gRPC code.

use std::{error::Error as StdError, sync::Arc};

use podhold_cgroups::{CgroupError, InvalidCgroupPath};
use podhold_image::{ErrorKind, ImageError, SnapshotError};
use podhold_sandbox::{
    launch::LaunchError,
    network::{NetworkError, bridge::BridgeError, cni::CniError},
};
use tonic::{Code, Status};

use crate::exhausted;

/// The longest message that is answered, in characters.
const LONGEST_MESSAGE: usize = 800;

/// The result of a verb.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a verb failed. Cloned to everybody who waits for it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// No such pod, container or image.
    #[error("{object} {id:?} is not known")]
    NotFound {
        /// Pod, container, image.
        object: &'static str,
        /// What was asked for.
        id: String,
    },
    /// A field of the request cannot be used.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field, as a path in the request.
        field: String,
        /// What is wrong and the mend.
        reason: String,
    },
    /// The name is taken by an object that was asked for differently.
    #[error(
        "{object} {id} exists with this name and another configuration: {field} differs; remove it first"
    )]
    Exists {
        /// Pod or container.
        object: &'static str,
        /// The one that exists.
        id: String,
        /// The first field that differs.
        field: String,
    },
    /// The object is not in a state that allows this.
    #[error("{0}")]
    Precondition(String),
    /// Its time was over.
    #[error("{0}")]
    Deadline(String),
    /// A part of the host or of another service did not do what it had to.
    #[error("{operation}: {cause}")]
    Failed {
        /// What was attempted, with its object.
        operation: String,
        /// gRPC code.
        code: Code,
        /// Why, with its own causes in words.
        cause: Arc<str>,
    },
}

impl Error {
    /// An object that is not known.
    pub fn not_found(object: &'static str, id: impl Into<String>) -> Self {
        Self::NotFound { object, id: id.into() }
    }

    /// A field that cannot be used.
    pub fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), reason: reason.into() }
    }

    /// A field that cannot be used; or can, once the host has what it lacks now.
    pub fn unusable(field: impl Into<String>, reason: impl Into<String>) -> Self {
        let (field, reason) = (field.into(), reason.into());
        match exhausted::of(&reason) {
            Some(_) => Self::of_cause(field, Code::Internal, &reason),
            None => Self::Invalid { field, reason },
        }
    }

    /// An operation that failed, with the whole chain of its causes.
    pub fn failed(operation: impl Into<String>, source: &(dyn StdError + 'static)) -> Self {
        Self::of_cause(operation, Code::Internal, &chain(source))
    }

    /// An operation that failed; what is used up decides over the code, and its mend is told.
    fn of_cause(operation: impl Into<String>, code: Code, cause: &str) -> Self {
        let operation = operation.into();
        match exhausted::of(cause) {
            Some(lack) => Self::Failed {
                operation,
                code: lack.code,
                cause: format!("{cause}; {mend}", mend = lack.mend).into(),
            },
            None => Self::Failed { operation, code, cause: cause.into() },
        }
    }

    /// A function that adds the operation to an error, for `map_err`.
    pub fn doing<E: StdError + 'static>(operation: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |source| Self::failed(operation, &source)
    }

    /// An image operation that failed.
    pub fn image(operation: impl Into<String>, source: &ImageError) -> Self {
        let code = match source.kind() {
            ErrorKind::InvalidArgument => Code::InvalidArgument,
            ErrorKind::NotFound => Code::NotFound,
            ErrorKind::Unauthenticated => Code::Unauthenticated,
            ErrorKind::PermissionDenied => Code::PermissionDenied,
            ErrorKind::Unavailable => Code::Unavailable,
            ErrorKind::DataLoss => Code::DataLoss,
            ErrorKind::ResourceExhausted => Code::ResourceExhausted,
            ErrorKind::FailedPrecondition => Code::FailedPrecondition,
            _ => Code::Internal,
        };
        Self::of_cause(operation, code, &chain(source))
    }

    /// A root filesystem that could not be made.
    pub fn snapshot(what: &str, source: SnapshotError) -> Self {
        match source {
            SnapshotError::Unsupported { .. } => Self::Precondition(format!("{what}: {source}")),
            other => Self::failed(what, &other),
        }
    }

    /// The gRPC code the caller sees.
    pub fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } => Code::NotFound,
            Self::Invalid { .. } => Code::InvalidArgument,
            Self::Exists { .. } => Code::AlreadyExists,
            Self::Precondition(_) => Code::FailedPrecondition,
            Self::Deadline(_) => Code::DeadlineExceeded,
            Self::Failed { code, .. } => *code,
        }
    }
}

/// An error with its causes, in one line.
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        next = cause.source();
    }
    text
}

/// A message without control characters, and without the middle of what is too long: it travels in a
/// header, and one that does not fit ends the connection with every call on it.
fn readable(message: String) -> String {
    let plain: String = message.chars().filter(|c| !c.is_control() || *c == '\n').collect();
    let count = plain.chars().count();
    if count <= LONGEST_MESSAGE {
        return plain;
    }
    let begin: String = plain.chars().take(LONGEST_MESSAGE / 2).collect();
    let end: String = plain.chars().skip(count - LONGEST_MESSAGE / 4).collect();
    format!("{begin} [...] {end}")
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Status::new(error.code(), readable(error.to_string()))
    }
}

impl From<LaunchError> for Error {
    fn from(error: LaunchError) -> Self {
        match &error {
            LaunchError::Silent { .. } | LaunchError::Lost { .. } => Self::Deadline(error.to_string()),
            LaunchError::Io { operation, source } if source.kind() == std::io::ErrorKind::TimedOut => {
                Self::Deadline(format!("{operation}: not done in time; call again"))
            }
            LaunchError::Gone { .. }
            | LaunchError::NotRunning { .. }
            | LaunchError::Refused(_)
            | LaunchError::TooOld { .. }
            | LaunchError::Foreign { .. } => {
                let words = chain(&error);
                match exhausted::of(&words) {
                    Some(_) => Self::of_cause("shim", Code::FailedPrecondition, &words),
                    None => Self::Precondition(words),
                }
            }
            _ => Self::failed("shim", &error),
        }
    }
}

impl From<CgroupError> for Error {
    fn from(error: CgroupError) -> Self {
        let code = match &error {
            CgroupError::Invalid { .. } | CgroupError::Refused { .. } | CgroupError::Library { .. } => {
                Code::InvalidArgument
            }
            CgroupError::NoController { .. } | CgroupError::Missing(_) => Code::FailedPrecondition,
            CgroupError::Busy { .. } => Code::DeadlineExceeded,
            _ => Code::Internal,
        };
        let operation = match &error {
            CgroupError::Invalid { field, .. }
            | CgroupError::Refused { field, .. }
            | CgroupError::NoController { field, .. } => limit(field),
            _ => "cgroup".into(),
        };
        Self::of_cause(operation, code, &chain(&error))
    }
}

/// The field of the CRI that an OCI limit comes from.
fn limit(field: &str) -> String {
    let name = match field {
        "memory" | "memory.limit" => "memory_limit_in_bytes",
        "memory.swap" => "memory_swap_limit_in_bytes",
        "cpu.shares" => "cpu_shares",
        "cpu.quota" => "cpu_quota",
        "cpu.period" => "cpu_period",
        "cpu.cpus" => "cpuset_cpus",
        "cpu.mems" => "cpuset_mems",
        other if other.starts_with("hugepage") => "hugepage_limits",
        other if other.starts_with("unified") => "unified",
        other => other,
    };
    format!("linux.resources.{name}")
}

impl From<CniError> for Error {
    fn from(error: CniError) -> Self {
        let code = match &error {
            CniError::TimedOut { .. } => Code::DeadlineExceeded,
            CniError::NoNetwork { .. } | CniError::PluginMissing { .. } => Code::FailedPrecondition,
            CniError::BadRequest { .. } => Code::InvalidArgument,
            _ => Code::Internal,
        };
        Self::of_cause("pod network", code, &chain(&error))
    }
}

impl From<BridgeError> for Error {
    fn from(error: BridgeError) -> Self {
        let code = match &error {
            BridgeError::BadRequest { .. } => Code::InvalidArgument,
            BridgeError::PortTaken { .. } | BridgeError::Foreign { .. } | BridgeError::NoPool { .. } => {
                Code::FailedPrecondition
            }
            BridgeError::Full { .. } => Code::ResourceExhausted,
            _ => Code::Internal,
        };
        Self::of_cause("pod network", code, &chain(&error))
    }
}

impl From<NetworkError> for Error {
    fn from(error: NetworkError) -> Self {
        match error {
            NetworkError::Cni(error) => error.into(),
            NetworkError::Bridge(error) => error.into(),
        }
    }
}

impl From<InvalidCgroupPath> for Error {
    fn from(error: InvalidCgroupPath) -> Self {
        Self::invalid("linux.cgroup_parent", format!("{:?}: {}", error.path, error.reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_fits_into_a_header_and_keeps_its_ends() {
        let long = Error::invalid("metadata.name", format!("{:?} is not a name", "ä\0".repeat(70_000)));
        let status = Status::from(long);
        assert!(status.message().len() < 4096);
        assert!(
            status.message().starts_with("metadata.name: ") && status.message().ends_with("is not a name")
        );
        assert_eq!(Status::from(Error::not_found("pod", "x")).message(), "pod \"x\" is not known");
    }
}
