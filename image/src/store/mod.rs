//! The images on this machine: what they are called, what they consist of, how much room they take.
//!
//! ```text
//! DIR                      locked by the one process that may change anything here
//! DIR/images/HEX.json      one record per image, by id; an image counts once this is on disk
//! DIR/layers/N/…           complete layers           (see `layers`)
//! DIR/blobs/…              blobs of imported images  (see `blobs`)
//! DIR/snapshots/KEY/…      writable layers           (see `snapshot`)
//! ```
//! Invariants: an image's record is written after all its layers are complete, and deleted before any of
//! them is; a tag names at most one image; reads wait for no disk.

pub(crate) mod blobs;
mod image;
pub(crate) mod layers;
pub(crate) mod record;
mod state;
mod sync;
pub(crate) mod trash;
pub(crate) mod tree;

use std::{
    collections::{HashMap, HashSet},
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use rustix::fs::FlockOperation;

pub use self::image::Image;
pub(crate) use self::image::{Arrival, Contents};
use self::{
    blobs::{Blobs, Staging},
    image::ImageRecord,
    layers::Layers,
    state::{Entry, State},
    trash::Trash,
};
use crate::{
    digest::Digest,
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

/// What file systems round the sizes of files and directories up to.
pub(crate) const BLOCK: u64 = 4096;

/// All images of a directory.
pub(crate) struct Store {
    records: PathBuf,
    pinned: Vec<String>,
    pub(crate) layers: Arc<Layers>,
    pub(crate) blobs: Blobs,
    state: Mutex<State>,
    /// Held by whoever changes records. Only blocking threads take it.
    writer: Mutex<()>,
    damaged: Vec<(PathBuf, String)>,
    _lock: fs::File,
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
        let new = !dir.join("blobs").exists();
        for name in ["", "images", "layers", "blobs", "ingest", "trash", "snapshots", "empty"] {
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
        let blobs = Blobs::open(dir, Arc::clone(&trash))?;
        let pinned = pinned
            .iter()
            .map(|name| Reference::parse(name).map(|r| r.to_string()))
            .collect::<Result<_, _>>()?;
        let mut store = Self {
            records: dir.join("images"),
            pinned,
            layers,
            blobs,
            state: Mutex::default(),
            writer: Mutex::default(),
            damaged,
            _lock: lock,
        };
        store.load()?;
        if let Err(error) = store.collect_blobs() {
            tracing::warn!(%error, "blobs that no image wants are not deleted; the next start tries again");
        }
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
            let all = record.tags.len();
            record.tags.retain(|tag| newest.get(&tag.name) == Some(&tag.stamp));
            if record.tags.len() < all {
                self.keep_untagged(&record);
            }
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
        let room = serde_json::to_vec(&record).map_or(0, |json| json.len() as u64).next_multiple_of(BLOCK);
        record.config = String::new();
        let earlier = self.state().insert(Entry { record, image: Arc::clone(&image), room, _lease: lease });
        drop(earlier);
        Ok(image)
    }

    fn path(&self, id: &Digest) -> PathBuf {
        self.records.join(format!("{}.json", id.hex()))
    }

    /// Records an image, whose layers the caller holds. Its tags move here from the images that had them.
    /// Blocks.
    pub(crate) fn record(&self, arrival: &Arrival) -> Result<Arc<Image>, ImageError> {
        let _writer = self.writer.lock().expect("no panics under this lock");
        self.record_alone(arrival)
    }

    /// [`Store::record`] for who holds the writer lock.
    fn record_alone(&self, arrival: &Arrival) -> Result<Arc<Image>, ImageError> {
        self.blobs.keep(&arrival.keep)?;
        let (earlier, losers, stamp) = {
            let mut state = self.state();
            state.stamp += 1;
            let earlier = state.images.get(arrival.id.as_str()).map(|entry| entry.record.clone());
            let holders: HashSet<&String> =
                arrival.tags.iter().filter_map(|tag| state.names.get(tag)).collect();
            let losers = holders.into_iter().filter(|id| **id != arrival.id.as_str());
            let losers = losers.filter_map(|id| Some(state.images.get(id)?.record.clone()));
            (earlier, losers.collect::<Vec<_>>(), state.stamp)
        };
        let mut record = earlier.clone().unwrap_or_else(|| ImageRecord::new(arrival));
        record.take(arrival, stamp);
        let same = losers.is_empty() && earlier.as_ref() == Some(&record);
        if let Some(entry) = self.state().images.get(record.id.as_str()).filter(|_| same) {
            return Ok(Arc::clone(&entry.image));
        }
        record.config.clone_from(&arrival.config);
        self.complete(&mut record)?;
        record::write(&self.path(&record.id), &record)?;
        let image = self.publish(record).map_err(internal)?;
        for mut loser in losers {
            self.state().untag(loser.id.as_str(), &arrival.tags, &self.pinned);
            loser.tags.retain(|held| !arrival.tags.contains(&held.name));
            match self.complete(&mut loser) {
                Ok(()) => self.keep_untagged(&loser),
                Err(error) => {
                    tracing::warn!(image = %loser.id, %error, "the record that lost a tag is not to be read")
                }
            }
        }
        Ok(image)
    }

    /// Writes the record of an image that has lost a tag to another. Without that the other, being newer, has it all
    /// the same after a restart, until it is removed. Blocks.
    fn keep_untagged(&self, record: &ImageRecord) {
        if let Err(error) = record::write(&self.path(&record.id), record) {
            tracing::warn!(image = %record.id, %error, "it is not on disk that the image has lost a tag");
        }
    }

    /// Gives a record without its configuration that of the record on disk. Blocks.
    fn complete(&self, record: &mut ImageRecord) -> Result<(), ImageError> {
        if record.config.is_empty() {
            let lost = "it was removed meanwhile, or its record is damaged; remove it and pull it again";
            let config = self.config(&record.id);
            record.config =
                config.ok_or_else(|| ImageError::image(&record.id, ErrorKind::Unavailable, lost))?;
        }
        Ok(())
    }

    /// Gives an image that is here one more tag. `None` when there is no such image. Blocks.
    pub(crate) fn tag(&self, name: &str, tag: &Reference) -> Result<Option<Arc<Image>>, ImageError> {
        let _writer = self.writer.lock().expect("no panics under this lock");
        let Some(contents) = self.contents(name) else { return Ok(None) };
        let arrival = Arrival {
            tags: vec![tag.to_string()],
            digests: Vec::new(),
            id: contents.id,
            target: contents.target,
            manifests: Vec::new(),
            size: contents.image.size,
            // It is in the record.
            config: String::new(),
            layers: contents.image.layers.clone(),
            keep: Vec::new(),
        };
        self.record_alone(&arrival).map(Some)
    }

    /// What an image consists of, found as by [`Store::find`]. The index or manifest is the one that `name`
    /// was given to; of a bare id, the one that came last.
    pub(crate) fn contents(&self, name: &str) -> Option<Contents> {
        let image = self.find(name)?;
        let state = self.state();
        let record = &state.images.get(&image.id)?.record;
        let reference = Reference::parse(name).ok();
        let by_digest = reference.as_ref().and_then(|reference| reference.digest().cloned());
        let by_digest = by_digest.filter(|digest| record.manifests.contains(digest));
        let tag = reference.map(|reference| reference.to_string());
        let tag = tag.and_then(|name| record.tags.iter().find(|tag| tag.name == name));
        let of_names =
            record.digests.iter().rev().find_map(|name| Digest::parse(name.split_once('@')?.1).ok());
        let target = by_digest
            .or_else(|| tag?.target.clone())
            .or(of_names)
            .or_else(|| record.manifests.first().cloned())?;
        Some(Contents { image, id: record.id.clone(), target })
    }

    /// A directory for the files of an import. Blocks.
    pub(crate) fn stage(&self) -> Result<Staging, ImageError> {
        self.layers.stage()
    }

    /// What all images take on disk: their layers, the blobs that are kept, and their records.
    pub(crate) fn usage(&self) -> Usage {
        let (layers, blobs, records) = (self.layers.usage(), self.blobs.usage(), self.state().usage);
        Usage {
            bytes: layers.bytes + blobs.bytes + records.bytes,
            inodes: layers.inodes + blobs.inodes + records.inodes,
        }
    }

    /// Deletes blobs that no image wants; who calls it holds the writer lock. While a record cannot be read
    /// all stay: it may want them.
    fn collect_blobs(&self) -> Result<(), ImageError> {
        if !self.damaged.is_empty() {
            return Ok(());
        }
        let state = self.state();
        let wanted = state.images.values().flat_map(|entry| entry.record.kept.iter().cloned()).collect();
        drop(state);
        self.blobs.retain(&wanted)
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
        let blobs = self.collect_blobs();
        drop(writer);
        self.layers.collect().and(blobs)
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

/// How long the lock is waited for: a program that a killed process was just about to execute has it until it is
/// executed.
const EXECUTED: Duration = Duration::from_secs(2);

/// Locks the directory itself, in which nothing can be in the way of a lock. Blocks.
#[expect(clippy::disallowed_methods, reason = "a lock can be waited for, but not for a while")]
fn lock(dir: &Path) -> Result<fs::File, ImageError> {
    let file = fs::File::open(dir).map_err(ImageError::io(format!("open {}", dir.display())))?;
    let deadline = Instant::now() + EXECUTED;
    let mut locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
    while locked == Err(rustix::io::Errno::WOULDBLOCK) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
        locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
    }
    locked.map_err(|errno| {
        let operation = format!("lock {}: another process uses this image directory", dir.display());
        ImageError::io(operation)(errno.into())
    })?;
    Ok(file)
}
