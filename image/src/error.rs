//! What can go wrong with images, told so that a user can mend it. No I/O.
//!
//! Invariant: every message names its object (reference and host, layer and entry, or file), and
//! [`ImageError::kind`] is enough for a caller to choose a status code.

use std::{fmt, io, path::PathBuf, sync::Arc};

use crate::{digest::Digest, reference::InvalidReference};

/// The class of an error; each has one gRPC code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ErrorKind {
    /// The request itself is wrong.
    InvalidArgument,
    /// The registry or the store has no such thing.
    NotFound,
    /// The registry wants credentials, or other ones.
    Unauthenticated,
    /// The registry knows the caller and refuses.
    PermissionDenied,
    /// The registry cannot be reached or is in trouble; trying again later may help.
    Unavailable,
    /// What arrived is not what was promised: wrong digest, damaged stream, hostile layer.
    DataLoss,
    /// A limit was reached: disk space, sizes, rate limits.
    ResourceExhausted,
    /// The image exists and cannot be used here: platform, media type, configuration.
    FailedPrecondition,
    /// A fault of this machine or of ours.
    Internal,
}

impl ErrorKind {
    /// The class of what several hosts, none of which decides alone, have answered: what may pass, then what the
    /// caller can mend, then what is wrong; "it is not here" is the least, as a mirror may well say so.
    pub(crate) fn of_all(kinds: &[Self]) -> Self {
        let telling = [
            Self::Unavailable,
            Self::ResourceExhausted,
            Self::Unauthenticated,
            Self::PermissionDenied,
            Self::DataLoss,
        ];
        let first = telling.into_iter().find(|kind| kinds.contains(kind));
        first.or(kinds.last().copied()).unwrap_or(Self::Internal)
    }
}

/// Why an operation on images failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ImageError {
    /// The name cannot be understood.
    #[error(transparent)]
    InvalidReference(#[from] InvalidReference),
    /// A registry configuration file cannot be used.
    #[error("{path}: {reason}")]
    Hosts {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and the mend.
        reason: String,
    },
    /// A registry did not give what was asked for.
    #[error("{reference}: {host}: {reason}")]
    Registry {
        /// What was being pulled.
        reference: String,
        /// The host that was asked.
        host: String,
        /// What happened, and the mend.
        reason: String,
        /// The class.
        kind: ErrorKind,
    },
    /// The image's manifest, index or configuration cannot be used.
    #[error("{reference}: {reason}")]
    Image {
        /// What was being pulled.
        reference: String,
        /// What is wrong with it.
        reason: String,
        /// The class.
        kind: ErrorKind,
    },
    /// A layer could not be unpacked.
    #[error("{reference}: layer {layer}: {source}")]
    Layer {
        /// What was being pulled.
        reference: String,
        /// The layer's digest.
        layer: Digest,
        /// Why.
        source: Arc<UnpackError>,
    },
    /// No host gave a layer as it must be.
    #[error("{reference}: layer {layer}: {reasons}")]
    LayerNowhere {
        /// What was being pulled.
        reference: String,
        /// The layer's digest.
        layer: Digest,
        /// Each host that was asked, and what was wrong with what it gave.
        reasons: String,
        /// The class of it all.
        kind: ErrorKind,
    },
    /// A file operation of the store failed.
    #[error("{operation}: {source}")]
    Io {
        /// What was attempted, with its object.
        operation: String,
        /// The kernel's answer.
        source: Arc<io::Error>,
    },
    /// The work was given up because nobody waits for it any more.
    #[error("{0}: the pull was cancelled")]
    Cancelled(String),
}

impl ImageError {
    /// The class of the error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidReference(_) => ErrorKind::InvalidArgument,
            Self::Hosts { .. } => ErrorKind::FailedPrecondition,
            Self::Registry { kind, .. } | Self::Image { kind, .. } | Self::LayerNowhere { kind, .. } => *kind,
            Self::Layer { source, .. } => source.kind(),
            Self::Io { source, .. } => kind_of_io(source),
            Self::Cancelled(_) => ErrorKind::Unavailable,
        }
    }

    pub(crate) fn io(operation: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let operation = operation.into();
        move |source| Self::Io { operation, source: Arc::new(source) }
    }

    pub(crate) fn image(reference: &impl ToString, kind: ErrorKind, reason: impl Into<String>) -> Self {
        Self::Image { reference: reference.to_string(), reason: reason.into(), kind }
    }
}

impl From<rustix::io::Errno> for UnpackError {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Io { operation: "unpack".to_owned(), source: errno.into() }
    }
}

/// Where a digest stands that a layer must have. The blob's own is looked at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// That of the blob, in the manifest.
    Manifest,
    /// That of the unpacked archive, in the image's configuration: of a blob that is what the manifest promises.
    Configuration,
}

impl Promise {
    fn mend(self) -> &'static str {
        match self {
            Self::Manifest => "the registry or a proxy serves damaged content",
            Self::Configuration => "the image was built wrong: build and push it again",
        }
    }
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Manifest => "the blob's digest is wrong: the manifest",
            Self::Configuration => {
                "the unpacked archive's digest is wrong: the image configuration (rootfs.diff_ids)"
            }
        })
    }
}

/// Why a layer was refused.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// One entry of the archive is not acceptable.
    #[error("entry {entry:?} refused: {reason}")]
    Entry {
        /// The entry's name.
        entry: String,
        /// Why it is not accepted.
        reason: String,
    },
    /// The content is not what its digest promises.
    #[error("{promise} promises {expected}, and it is {actual}; {}", promise.mend())]
    Digest {
        /// Which digest, and where it stands.
        promise: Promise,
        /// The promise.
        expected: Digest,
        /// What the content has.
        actual: Digest,
    },
    /// The stream ends early, is longer than promised, or cannot be decompressed.
    #[error("{0}")]
    Stream(String),
    /// The layer is larger than the limits allow.
    #[error("{0}")]
    TooLarge(String),
    /// The download ended before the layer did; the download's own error tells why.
    #[error("the download was given up")]
    Abandoned,
    /// A file operation failed.
    #[error("{operation}: {source}")]
    Io {
        /// What was attempted, with its object.
        operation: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl UnpackError {
    /// The class of the error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Entry { .. } | Self::Digest { .. } | Self::Stream(_) => ErrorKind::DataLoss,
            Self::TooLarge(_) => ErrorKind::ResourceExhausted,
            Self::Abandoned => ErrorKind::Unavailable,
            Self::Io { source, .. } => kind_of_io(source),
        }
    }
}

/// The class of a kernel error: a full disk is the user's to mend, the rest is not.
fn kind_of_io(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::StorageFull
        | io::ErrorKind::QuotaExceeded
        | io::ErrorKind::FileTooLarge
        | io::ErrorKind::OutOfMemory => ErrorKind::ResourceExhausted,
        io::ErrorKind::ReadOnlyFilesystem => ErrorKind::FailedPrecondition,
        _ => ErrorKind::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::ErrorKind::{self, DataLoss, NotFound, PermissionDenied, Unauthenticated, Unavailable};

    #[test]
    fn of_several_answers_what_may_pass_and_what_can_be_mended_counts_before_what_is_missing() {
        for (kinds, of_all) in [
            (&[NotFound, NotFound][..], NotFound),
            (&[DataLoss, NotFound], DataLoss),
            (&[Unavailable, NotFound], Unavailable),
            (&[NotFound, DataLoss, Unavailable], Unavailable),
            (&[PermissionDenied, Unauthenticated, DataLoss], Unauthenticated),
            (&[], ErrorKind::Internal),
        ] {
            assert_eq!(ErrorKind::of_all(kinds), of_all, "{kinds:?}");
        }
    }
}
