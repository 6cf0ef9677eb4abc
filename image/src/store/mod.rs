//! The images on this machine: what they are called, what they consist of, how much room they take.
//!
//! ```text
//! DIR                      locked by the one process that may change anything here
//! DIR/images/HEX.json      one record per image, by id; an image counts once this is on disk
//! DIR/layers/N/…           complete layers           (see `layers`)
//! DIR/snapshots/KEY/…      writable layers           (see `snapshot`)
//! ```
//! Invariants: an image's record is written after all its layers are complete, and deleted before any of
//! them is; a tag names at most one image; reads wait for no disk.

pub(crate) mod layers;
pub(crate) mod record;
mod sync;
pub(crate) mod trash;
pub(crate) mod tree;

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use oci_spec::image::ImageConfiguration;
use rustix::fs::FlockOperation;

use self::{
    layers::{Layers, Lease},
    trash::Trash,
};
use crate::{
    digest::{ChainId, Digest},
    error::{ErrorKind, ImageError},
    manifest,
    reference::Reference,
};

/// Room taken on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

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
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
struct ImageRecord {
    version: u32,
    id: Digest,
    tags: Vec<Tag>,
    digests: Vec<String>,
    /// Digests of the index and manifest it came from.
    manifests: Vec<Digest>,
    size: u64,
    /// The configuration, byte for byte: the id is its digest.
    config: String,
    layers: Vec<ChainId>,
}

/// A tag, and when it was given: if a power loss leaves it with two images, the later one has it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Tag {
    name: String,
    stamp: u64,
}

/// A pulled image, ready to be recorded.
pub(crate) struct NewImage {
    pub(crate) reference: Reference,
    pub(crate) id: Digest,
    /// Digest of what the reference names: index or manifest.
    pub(crate) target: Digest,
    pub(crate) manifests: Vec<Digest>,
    pub(crate) size: u64,
    pub(crate) config: String,
    pub(crate) layers: Vec<ChainId>,
}

/// All images of a directory.
pub(crate) struct Store {
    records: PathBuf,
    pinned: Vec<String>,
    pub(crate) layers: Arc<Layers>,
    state: Mutex<State>,
    /// Held by whoever changes records. Only blocking threads take it.
    writer: Mutex<()>,
    damaged: Vec<(PathBuf, String)>,
    _lock: fs::File,
}

#[derive(Default)]
struct State {
    images: HashMap<String, Entry>,
    /// Tags and names by digest, to ids.
    names: HashMap<String, String>,
    /// Digests of indexes and manifests, to ids.
    manifests: HashMap<Digest, String>,
    stamp: u64,
}

/// The configuration as it was is on disk alone.
struct Entry {
    record: ImageRecord,
    image: Arc<Image>,
    _lease: Lease,
}

impl State {
    /// Makes an image visible; answers its earlier entry.
    fn insert(&mut self, entry: Entry) -> Option<Entry> {
        let id = entry.image.id.clone();
        let earlier = self.remove(&id);
        for name in entry.image.tags.iter().chain(&entry.image.digests) {
            self.names.insert(name.clone(), id.clone());
        }
        for digest in &entry.record.manifests {
            self.manifests.insert(digest.clone(), id.clone());
        }
        self.images.insert(id, entry);
        earlier
    }

    fn remove(&mut self, id: &str) -> Option<Entry> {
        let entry = self.images.remove(id)?;
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

impl Store {
    /// Reads everything in `dir`, which is made when missing. Blocks.
    pub(crate) fn open(dir: &Path, pinned: &[String]) -> Result<(Self, Arc<Trash>), ImageError> {
        let make = |path: &Path| {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
            made.map_err(ImageError::io(format!("make {}", path.display())))
        };
        make(dir)?;
        let lock = lock(dir)?;
        let new = !dir.join("images").exists();
        for name in ["", "images", "layers", "ingest", "trash", "snapshots", "empty"] {
            let path = dir.join(name);
            make(&path)?;
            record::check_directory(&path).map_err(|reason| {
                let source = std::io::Error::new(std::io::ErrorKind::PermissionDenied, reason);
                ImageError::io(format!("use {}", path.display()))(source)
            })?;
        }
        if new {
            // What is put into them is synced together with them alone.
            for path in [dir, dir.parent().unwrap_or(dir)] {
                let synced = record::sync_directory(path);
                synced.map_err(ImageError::io(format!("sync {}", path.display())))?;
            }
        }
        let trash =
            Trash::new(dir.join("trash")).map_err(ImageError::io(format!("list {}/trash", dir.display())))?;
        let trash = Arc::new(trash);
        let mut damaged = Vec::new();
        let layers = Arc::new(Layers::open(dir, Arc::clone(&trash), &mut damaged)?);
        let pinned = pinned
            .iter()
            .map(|name| Reference::parse(name).map(|r| r.to_string()))
            .collect::<Result<_, _>>()?;
        let mut store = Self {
            records: dir.join("images"),
            pinned,
            layers,
            state: Mutex::default(),
            writer: Mutex::default(),
            damaged,
            _lock: lock,
        };
        store.load()?;
        Ok((store, trash))
    }

    fn load(&mut self) -> Result<(), ImageError> {
        let mut records: Vec<ImageRecord> = Vec::new();
        for path in record::children(&self.records)? {
            if path.extension().is_none_or(|extension| extension != "json") {
                if let Err(error) = record::delete(&path) {
                    tracing::warn!(path = %path.display(), %error, "half-written record not deleted");
                }
                continue;
            }
            match record::read::<ImageRecord>(&path).and_then(|record| self.check(&path, record)) {
                Ok(record) => records.push(record),
                Err(reason) => self.damaged.push((path, reason)),
            }
        }
        // The newest holder of a tag keeps it.
        let mut newest: HashMap<String, u64> = HashMap::new();
        for tag in records.iter().flat_map(|record| &record.tags) {
            let stamp = newest.entry(tag.name.clone()).or_default();
            *stamp = (*stamp).max(tag.stamp);
        }
        for mut record in records {
            record.tags.retain(|tag| newest.get(&tag.name) == Some(&tag.stamp));
            let highest = record.tags.iter().map(|tag| tag.stamp).max().unwrap_or(0);
            let mut state = self.state();
            state.stamp = state.stamp.max(highest);
            drop(state);
            if let Err(reason) = self.publish(record) {
                self.damaged.push((self.records.clone(), reason));
            }
        }
        Ok(())
    }

    fn check(&self, path: &Path, record: ImageRecord) -> Result<ImageRecord, String> {
        if record.version != 1 {
            return Err(self::record::another_version(record.version));
        }
        if !record.id.matches(record.config.as_bytes()) || path.file_stem() != Some(record.id.hex().as_ref())
        {
            return Err(
                "its configuration does not have the digest that is its id; pull the image again".to_owned()
            );
        }
        match record.layers.iter().find(|chain| self.layers.get(chain).is_none()) {
            Some(missing) => Err(format!("layer {missing} is missing; pull the image again")),
            None => Ok(record),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panics under this lock")
    }

    /// Makes a record visible, in place of the image's earlier one.
    fn publish(&self, mut record: ImageRecord) -> Result<Arc<Image>, String> {
        let config = manifest::configuration(record.config.as_bytes())?.parsed;
        let tags: Vec<String> = record.tags.iter().map(|tag| tag.name.clone()).collect();
        let pinned = tags.iter().chain(&record.digests).any(|name| self.pinned.contains(name));
        let image = Arc::new(Image {
            id: record.id.to_string(),
            tags,
            digests: record.digests.clone(),
            size: record.size,
            config,
            layers: record.layers.clone(),
            pinned,
        });
        let lease = self.layers.lease(record.layers.clone());
        record.config = String::new();
        let entry = Entry { record, image: Arc::clone(&image), _lease: lease };
        let earlier = self.state().insert(entry);
        drop(earlier);
        Ok(image)
    }

    fn path(&self, id: &Digest) -> PathBuf {
        self.records.join(format!("{}.json", id.hex()))
    }

    /// Records a pulled image, whose layers the caller holds. A tag moves here from the image that had
    /// it. Blocks.
    pub(crate) fn commit(&self, new: NewImage) -> Result<Arc<Image>, ImageError> {
        let _writer = self.writer.lock().expect("no panics under this lock");
        let by_digest = format!("{}@{}", new.reference.name(), new.target);
        let tag = match (new.reference.tag(), new.reference.digest()) {
            (Some(tag), None) => Some(format!("{}:{tag}", new.reference.name())),
            _ => None,
        };
        let (earlier, loser, stamp) = {
            let mut state = self.state();
            state.stamp += 1;
            let earlier = state.images.get(new.id.as_str()).map(|entry| entry.record.clone());
            let holder = tag.as_ref().and_then(|tag| state.names.get(tag));
            let loser = holder.filter(|id| *id != new.id.as_str()).and_then(|id| state.images.get(id));
            (earlier.clone(), loser.map(|entry| entry.record.clone()), state.stamp)
        };
        let unchanged = earlier.clone();
        let mut record = earlier.unwrap_or_else(|| ImageRecord {
            version: 1,
            id: new.id.clone(),
            tags: Vec::new(),
            digests: Vec::new(),
            manifests: Vec::new(),
            size: new.size,
            config: new.config,
            layers: new.layers,
        });
        if let Some(name) = tag.clone().filter(|name| !record.tags.iter().any(|tag| tag.name == *name)) {
            record.tags.push(Tag { name, stamp });
        }
        if !record.digests.contains(&by_digest) {
            record.digests.push(by_digest);
        }
        for digest in new.manifests {
            if !record.manifests.contains(&digest) {
                record.manifests.push(digest);
            }
        }
        let same = unchanged.is_some_and(|old| {
            (&old.tags, &old.digests, &old.manifests) == (&record.tags, &record.digests, &record.manifests)
        });
        if let Some(image) = self.state().images.get(record.id.as_str()).filter(|_| same) {
            return Ok(Arc::clone(&image.image));
        }
        self.complete(&mut record)
            .map_err(|reason| ImageError::image(&new.reference, ErrorKind::Unavailable, reason))?;
        record::write(&self.path(&record.id), &record)?;
        if let Some(mut loser) = loser {
            loser.tags.retain(|held| Some(&held.name) != tag.as_ref());
            self.complete(&mut loser).map_err(internal)?;
            record::write(&self.path(&loser.id), &loser)?;
            self.publish(loser).map_err(internal)?;
        }
        self.publish(record).map_err(internal)
    }

    /// Gives a record that is in memory its configuration again. Blocks.
    fn complete(&self, record: &mut ImageRecord) -> Result<(), String> {
        if record.config.is_empty() {
            record.config = self.config(&record.id).ok_or_else(|| {
                let id = &record.id;
                format!("{id} was removed meanwhile, or its record is damaged; remove it and pull it again")
            })?;
        }
        Ok(())
    }

    /// The image of a manifest or index that was pulled before, if all its layers are whole.
    pub(crate) fn known(&self, manifest: &Digest) -> Option<Arc<Image>> {
        let state = self.state();
        let image = &state.images.get(state.manifests.get(manifest)?)?.image;
        image.layers.iter().all(|chain| self.layers.is_whole(chain)).then(|| Arc::clone(image))
    }

    /// The configuration of an image that is here, as it was pulled. Blocks.
    pub(crate) fn config(&self, id: &Digest) -> Option<String> {
        if !self.state().images.contains_key(id.as_str()) {
            return None;
        }
        let config = record::read::<ImageRecord>(&self.path(id)).ok()?.config;
        id.matches(config.as_bytes()).then_some(config)
    }

    /// Finds an image by tag, digest, id or the unique beginning (4 digits or more) of an id.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Image>> {
        let by_name = Reference::parse(name).ok().map(|reference| match reference.digest() {
            Some(digest) => format!("{}@{digest}", reference.name()),
            None => reference.to_string(),
        });
        let state = self.state();
        let get = |id: &str| state.images.get(id).map(|entry| Arc::clone(&entry.image));
        if let Some(id) = by_name.and_then(|name| state.names.get(&name)) {
            return get(id);
        }
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        if let Some(image) = get(&format!("sha256:{hex}")).or_else(|| get(name)) {
            return Some(image);
        }
        if hex.len() < 4 || hex.len() > 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let mut matching = state.images.values().filter(|entry| entry.record.id.hex().starts_with(hex));
        matching.next().filter(|_| matching.next().is_none()).map(|entry| Arc::clone(&entry.image))
    }

    pub(crate) fn list(&self) -> Vec<Arc<Image>> {
        self.state().images.values().map(|entry| Arc::clone(&entry.image)).collect()
    }

    /// Removes an image with all its names, and the layers nobody else needs. Blocks.
    pub(crate) fn remove(&self, name: &str) -> Result<(), ImageError> {
        let writer = self.writer.lock().expect("no panics under this lock");
        let Some(image) = self.find(name) else { return Ok(()) };
        let id = self.state().images.get(&image.id).map(|entry| entry.record.id.clone());
        if let Some(id) = id {
            record::delete(&self.path(&id))?;
        }
        let removed = self.state().remove(&image.id);
        drop(removed);
        drop(writer);
        self.layers.collect()
    }

    pub(crate) fn damaged(&self) -> Vec<(PathBuf, String)> {
        self.damaged.clone()
    }
}

fn internal(reason: String) -> ImageError {
    ImageError::Io {
        operation: "record the image".to_owned(),
        source: Arc::new(std::io::Error::other(reason)),
    }
}

/// Locks the directory itself, in which nothing can be in the way of a lock.
fn lock(dir: &Path) -> Result<fs::File, ImageError> {
    let file = fs::File::open(dir).map_err(ImageError::io(format!("open {}", dir.display())))?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|errno| {
        let operation = format!("lock {}: another process uses this image directory", dir.display());
        ImageError::io(operation)(errno.into())
    })?;
    Ok(file)
}
