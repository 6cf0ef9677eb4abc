//! Root filesystems for containers: an image's layers below, a writable layer of the container's own on
//! top.

mod measure;
mod overlay;
mod shifted;

use std::{io, os::fd::OwnedFd, path::Path};

pub(crate) use overlay::Overlay;

use crate::store::{Image, Usage};

/// Makes, mounts and removes writable snapshots of images.
///
/// Contract, which [`crate::Images::snapshots`]'s implementations keep and one test suite checks:
/// - A snapshot is named by its key: 1 to 128 letters, digits, `-`, `_` and `.`, beginning with a letter
///   or digit. What a container writes is in its own snapshot and nowhere else.
/// - `mount` makes the snapshot when it is new; mounting again, also after an unmount or a restart of the
///   daemon, shows what was written before. Repeating any call that has succeeded succeeds.
/// - The layers of the image stay on disk while a snapshot of it exists, also when the image is removed.
/// - `view` is `mount` without a writable layer: nothing can be changed through it.
/// - `remove` deletes the writable layer; the caller has unmounted it before.
/// - Calls block (they mount and delete) and may run side by side, except that calls for one key must not.
pub trait Snapshots: Send + Sync {
    /// Makes the snapshot `key` of `image` if it is new, and mounts it at the existing directory
    /// `target`. `ids` asks for a root filesystem whose owners are shifted for a user namespace; it must
    /// be given, and be the same, at every mount of this snapshot.
    fn mount(
        &self,
        key: &str,
        image: &Image,
        target: &Path,
        ids: Option<&IdMap>,
    ) -> Result<(), SnapshotError>;

    /// Mounts `image` read-only at the existing directory `target`: an image volume. Its snapshot, made
    /// when it is new, holds the layers like any other and has nothing a container could write to.
    fn view(&self, key: &str, image: &Image, target: &Path, ids: Option<&IdMap>)
    -> Result<(), SnapshotError>;

    /// Whether root filesystems with these `ids` can be mounted here, found out by making one that nobody
    /// sees.
    fn check_ids(&self, ids: &IdMap) -> Result<(), SnapshotError>;

    /// Unmounts `target`; lazily when it is in use. Success when nothing is mounted there.
    fn unmount(&self, target: &Path) -> Result<(), SnapshotError>;

    /// Deletes the snapshot. Success when there is none.
    fn remove(&self, key: &str) -> Result<(), SnapshotError>;

    /// What the snapshot's writable layer takes on disk, measured now. A layer with more than 200,000 files is
    /// measured in part: the answer then is a lower bound.
    fn usage(&self, key: &str) -> Result<Usage, SnapshotError>;

    /// All snapshots there are.
    fn keys(&self) -> Vec<String>;

    /// The directory snapshots and layers lie in.
    fn root(&self) -> &Path;
}

/// How ids in a user namespace map to ids on the host.
#[derive(Debug)]
pub struct IdMap {
    /// The user namespace, which has this mapping.
    pub namespace: OwnedFd,
    /// User ids.
    pub uids: Vec<IdRange>,
    /// Group ids.
    pub gids: Vec<IdRange>,
}

impl IdMap {
    /// The ids on the host that a user and a group of the namespace stand for; `None` when one of them
    /// is not mapped.
    pub fn on_host(&self, uid: u32, gid: u32) -> Option<(u32, u32)> {
        let shift = |ranges: &[IdRange], id: u32| {
            ranges.iter().find_map(|range| {
                let distance = id.checked_sub(range.container).filter(|distance| *distance < range.length)?;
                range.host.checked_add(distance)
            })
        };
        Some((shift(&self.uids, uid)?, shift(&self.gids, gid)?))
    }
}

/// A range of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// First id in the container.
    pub container: u32,
    /// First id on the host.
    pub host: u32,
    /// How many.
    pub length: u32,
}

/// Why an operation on a snapshot failed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The key cannot name a snapshot.
    #[error(
        "{0:?} cannot name a snapshot: 1 to 128 letters, digits, '-', '_' and '.', the first a letter or digit"
    )]
    InvalidKey(String),
    /// There is no such snapshot.
    #[error("there is no snapshot {0}")]
    NotFound(String),
    /// A layer of the image is not on disk.
    #[error("snapshot {key}: layer {layer} of image {image} is not here; pull the image again")]
    MissingLayer {
        /// The snapshot.
        key: String,
        /// The image's id.
        image: String,
        /// The layer's chain id.
        layer: String,
    },
    /// Something else is mounted where the snapshot should go.
    #[error("snapshot {key}: something else is mounted at {target}; unmount it first")]
    Occupied {
        /// The snapshot.
        key: String,
        /// The mount point.
        target: String,
    },
    /// This implementation cannot do what was asked for.
    #[error("snapshot {key}: {reason}")]
    Unsupported {
        /// The snapshot.
        key: String,
        /// What, and the mend.
        reason: String,
    },
    /// The kernel refused an operation.
    #[error("{operation}: {source}")]
    Io {
        /// What was attempted, with its object.
        operation: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl SnapshotError {
    fn io<E: Into<io::Error>>(operation: impl Into<String>) -> impl FnOnce(E) -> Self {
        let operation = operation.into();
        move |source| Self::Io { operation, source: source.into() }
    }
}

/// Whether `key` can name a snapshot, and thereby a file.
fn check_key(key: &str) -> Result<(), SnapshotError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let first = key.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if first && key.len() <= 128 && key.bytes().all(plain) {
        Ok(())
    } else {
        Err(SnapshotError::InvalidKey(key.chars().take(200).collect()))
    }
}
