//! One image: as it is shown, as it is kept, and as it arrives. No I/O.

use std::{path::PathBuf, sync::Arc};

use oci_spec::image::ImageConfiguration;

use crate::digest::{ChainId, Digest};

/// An image that is complete on this machine. A snapshot of what is known: names may change later.
#[derive(Debug, Clone)]
pub struct Image {
    /// `sha256:` and the digest of its configuration.
    pub id: String,
    /// Its tags, canonical, such as `docker.io/library/busybox:latest`.
    pub tags: Vec<String>,
    /// Its names by digest, such as `docker.io/library/busybox@sha256:…`.
    pub digests: Vec<String>,
    /// Size of its blobs (compressed), in bytes.
    pub size: u64,
    /// Its configuration.
    pub config: ImageConfiguration,
    /// Its layers, the lowest first.
    pub layers: Vec<ChainId>,
    /// Whether the configuration forbids to collect it.
    pub pinned: bool,
}

/// What is kept of an image on disk.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct ImageRecord {
    pub(super) version: u32,
    pub(super) id: Digest,
    pub(super) tags: Vec<Tag>,
    pub(super) digests: Vec<String>,
    /// Digests of the index and manifest it came from.
    pub(super) manifests: Vec<Digest>,
    pub(super) size: u64,
    /// The configuration, byte for byte: the id is its digest.
    pub(super) config: String,
    pub(super) layers: Vec<ChainId>,
    /// Blobs that are kept for it: documents and layers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) kept: Vec<Digest>,
}

/// A tag, and when it was given: if a power loss leaves it with two images, the later one has it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Tag {
    pub(super) name: String,
    pub(super) stamp: u64,
    /// The index or manifest the name was given to; unknown in records of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) target: Option<Digest>,
}

/// An image that came by any way, ready to be recorded.
pub(crate) struct Arrival {
    /// Names to be given: `NAME:TAG`, canonical. They move here from the images that had them.
    pub(crate) tags: Vec<String>,
    /// Names by digest: `NAME@DIGEST`.
    pub(crate) digests: Vec<String>,
    pub(crate) id: Digest,
    /// Digest of what the tags name: index or manifest.
    pub(crate) target: Digest,
    pub(crate) manifests: Vec<Digest>,
    pub(crate) size: u64,
    /// Empty when the image is here already: it is in its record.
    pub(crate) config: String,
    pub(crate) layers: Vec<ChainId>,
    /// Blobs to be kept: files, whole and verified, which are moved into the store; without one it is there.
    pub(crate) keep: Vec<(Digest, Option<PathBuf>)>,
}

/// What an image consists of, as far as an export needs to know.
pub(crate) struct Contents {
    pub(crate) image: Arc<Image>,
    pub(crate) id: Digest,
    /// The index or manifest that is asked for.
    pub(crate) target: Digest,
}

impl ImageRecord {
    pub(super) fn new(arrival: &Arrival) -> Self {
        Self {
            version: 1,
            id: arrival.id.clone(),
            tags: Vec::new(),
            digests: Vec::new(),
            manifests: Vec::new(),
            size: arrival.size,
            config: arrival.config.clone(),
            layers: arrival.layers.clone(),
            kept: Vec::new(),
        }
    }

    /// Adds what the image came with, as far as it is news.
    pub(super) fn take(&mut self, arrival: &Arrival, stamp: u64) {
        for name in &arrival.tags {
            let target = Some(arrival.target.clone());
            match self.tags.iter_mut().find(|tag| tag.name == *name) {
                Some(tag) => tag.target = target,
                None => self.tags.push(Tag { name: name.clone(), stamp, target }),
            }
        }
        add(&mut self.digests, arrival.digests.iter());
        add(&mut self.manifests, arrival.manifests.iter());
        add(&mut self.kept, arrival.keep.iter().map(|(digest, _)| digest));
    }
}

/// Adds what is not there yet.
fn add<'a, T: Clone + PartialEq + 'a>(list: &mut Vec<T>, more: impl Iterator<Item = &'a T>) {
    for item in more {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}
