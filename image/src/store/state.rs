//! What is known of images in memory, with indices by name and manifest. No I/O.

use std::{collections::HashMap, sync::Arc};

use super::{
    Usage,
    image::{Image, ImageRecord},
    layers::Lease,
};
use crate::digest::Digest;

#[derive(Default)]
pub(super) struct State {
    pub(super) images: HashMap<String, Entry>,
    /// Tags and names by digest, to ids.
    pub(super) names: HashMap<String, String>,
    /// Digests of indexes and manifests, to ids.
    pub(super) manifests: HashMap<Digest, String>,
    pub(super) stamp: u64,
    /// What the records take on disk.
    pub(super) usage: Usage,
}

/// An image. The configuration as it was is on disk alone: the record's is empty here.
pub(super) struct Entry {
    pub(super) record: ImageRecord,
    pub(super) image: Arc<Image>,
    /// Bytes its record takes on disk.
    pub(super) room: u64,
    pub(super) _lease: Lease,
}

impl State {
    /// Makes an image visible; answers its earlier entry.
    pub(super) fn insert(&mut self, entry: Entry) -> Option<Entry> {
        let id = entry.image.id.clone();
        let earlier = self.remove(&id);
        for name in entry.image.tags.iter().chain(&entry.image.digests) {
            self.names.insert(name.clone(), id.clone());
        }
        for digest in &entry.record.manifests {
            self.manifests.insert(digest.clone(), id.clone());
        }
        self.usage.bytes += entry.room;
        self.usage.inodes += 1;
        self.images.insert(id, entry);
        earlier
    }

    /// Takes tags from an image, which another has by now.
    pub(super) fn untag(&mut self, id: &str, tags: &[String], pinned: &[String]) {
        let Some(entry) = self.images.get_mut(id) else { return };
        entry.record.tags.retain(|held| !tags.contains(&held.name));
        let mut image = Image::clone(&entry.image);
        image.tags.retain(|held| !tags.contains(held));
        image.pinned = image.tags.iter().chain(&image.digests).any(|name| pinned.contains(name));
        entry.image = Arc::new(image);
        for tag in tags {
            if self.names.get(tag).is_some_and(|holder| holder == id) {
                self.names.remove(tag);
            }
        }
    }

    pub(super) fn remove(&mut self, id: &str) -> Option<Entry> {
        let entry = self.images.remove(id)?;
        self.usage.bytes -= entry.room;
        self.usage.inodes -= 1;
        // A tag may be another's by now.
        for name in entry.image.tags.iter().chain(&entry.image.digests) {
            if self.names.get(name).is_some_and(|holder| holder == id) {
                self.names.remove(name);
            }
        }
        for digest in &entry.record.manifests {
            if self.manifests.get(digest).is_some_and(|holder| holder == id) {
                self.manifests.remove(digest);
            }
        }
        Some(entry)
    }
}
