//! Why a verb failed, and the one place where that becomes a gRPC code.

use std::{error::Error as StdError, sync::Arc};

use podhold_cgroups::{CgroupError, InvalidCgroupPath};
use podhold_image::{ErrorKind, ImageError};
use podhold_sandbox::{launch::LaunchError, network::cni::CniError};
use tonic::{Code, Status};

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

    /// An operation that failed, with the whole chain of its causes.
    pub fn failed(operation: impl Into<String>, source: &(dyn StdError + 'static)) -> Self {
        Self::Failed { operation: operation.into(), code: Code::Internal, cause: chain(source).into() }
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
        Self::Failed { operation: operation.into(), code, cause: chain(source).into() }
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

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Status::new(error.code(), error.to_string())
    }
}

impl From<LaunchError> for Error {
    fn from(error: LaunchError) -> Self {
        match &error {
            LaunchError::Gone { .. } | LaunchError::NotRunning { .. } => Self::Precondition(chain(&error)),
            LaunchError::Refused(_) => Self::Failed {
                operation: "the shim refused".into(),
                code: Code::Unknown,
                cause: chain(&error).into(),
            },
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
            _ => Code::Internal,
        };
        Self::Failed { operation: "cgroup".into(), code, cause: chain(&error).into() }
    }
}

impl From<CniError> for Error {
    fn from(error: CniError) -> Self {
        let code = match &error {
            CniError::TimedOut { .. } => Code::DeadlineExceeded,
            CniError::NoNetwork { .. } | CniError::PluginMissing { .. } => Code::FailedPrecondition,
            CniError::BadRequest { .. } => Code::InvalidArgument,
            _ => Code::Internal,
        };
        Self::Failed { operation: "pod network".into(), code, cause: chain(&error).into() }
    }
}

impl From<InvalidCgroupPath> for Error {
    fn from(error: InvalidCgroupPath) -> Self {
        Self::invalid("linux.cgroup_parent", format!("{:?}: {}", error.path, error.reason))
    }
}
