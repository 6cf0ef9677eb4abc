//! Unpacked layers: one directory each, found by chain id, kept while somebody holds them.
//!
//! ```text
//! ingest/N/{fs,layer.json}   being made; thrown away at start
//! layers/N/{fs,layer.json}   complete: synced before the rename that put it here
//! trash/M                    being deleted
//! ```
//! Numbers are never used twice while the process lives, so a layer being deleted and the same layer
//! pulled anew cannot meet.
//!
//! Invariant: a layer in the index is complete, and is not deleted while a [`Lease`] names it.

use std::{
    collections::HashMap,
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::fs::{CWD, Mode, OFlags};

use super::{
    Usage,
    blobs::Staging,
    record,
    sync::{GroupSync, Writing},
    trash::Trash,
};
use crate::{
    digest::{ChainId, Digest},
    error::{ImageError, UnpackError},
    unpack::{self, Unpacked},
};

/// What is known about a complete layer; also its record on disk.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(crate) struct LayerRecord {
    version: u32,
    chain: ChainId,
    diff_id: Digest,
    /// Digest and size of the blob it came in.
    digest: Digest,
    size: u64,
    bytes: u64,
    inodes: u64,
    /// Whether the layer says how the root directory looks.
    pub(crate) root_entry: bool,
}

impl LayerRecord {
    pub(crate) fn new(chain: ChainId, diff_id: Digest, blob: (Digest, u64), unpacked: &Unpacked) -> Self {
        let Unpacked { bytes, inodes, root_entry, .. } = *unpacked;
        Self { version: 1, chain, diff_id, digest: blob.0, size: blob.1, bytes, inodes, root_entry }
    }

    fn checked(self) -> Result<Self, String> {
        if self.version == 1 { Ok(self) } else { Err(record::another_version(self.version)) }
    }
}

/// A complete layer.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(crate) fs: PathBuf,
    pub(crate) record: LayerRecord,
}

/// All layers of a store.
pub(crate) struct Layers {
    dir: PathBuf,
    ingest: PathBuf,
    trash: Arc<Trash>,
    sync: GroupSync,
    next: AtomicU64,
    unreadable: Vec<PathBuf>,
    index: Mutex<Index>,
}

#[derive(Default)]
struct Index {
    layers: HashMap<ChainId, Layer>,
    holders: HashMap<ChainId, usize>,
    usage: Usage,
}

/// Keeps layers from being deleted, present or to come.
pub(crate) struct Lease {
    layers: Arc<Layers>,
    chain: Vec<ChainId>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut index = self.layers.index();
        for chain in &self.chain {
            if let Some(count) = index.holders.get_mut(chain) {
                *count -= 1;
                if *count == 0 {
                    index.holders.remove(chain);
                }
            }
        }
    }
}

impl Layers {
    /// Reads what is in `dir/layers`. A layer without a readable record goes into `damaged`, and stays until
    /// [`Layers::discard_unreadable`]: a container may have it mounted.
    pub(crate) fn open(
        dir: &Path,
        trash: Arc<Trash>,
        damaged: &mut Vec<(PathBuf, String)>,
    ) -> Result<Self, ImageError> {
        let (layers, ingest) = (dir.join("layers"), dir.join("ingest"));
        let mut index = Index::default();
        let (mut highest, mut unreadable) = (0, Vec::new());
        for path in record::children(&ingest)? {
            // Should it have to stay, its number is not used again.
            let number = path.file_name().and_then(|name| name.to_str()?.parse::<u64>().ok());
            highest = highest.max(number.unwrap_or(0));
            trash
                .take_if_writable(&path)
                .map_err(ImageError::io(format!("throw away {}", path.display())))?;
        }
        for path in record::children(&layers)? {
            let number = path.file_name().and_then(|name| name.to_str()?.parse::<u64>().ok());
            let read = record::check_directory(&path)
                .and_then(|()| record::read::<LayerRecord>(&path.join("layer.json")))
                .and_then(LayerRecord::checked);
            match (number, read) {
                (Some(number), Ok(record)) if !index.layers.contains_key(&record.chain) => {
                    highest = highest.max(number);
                    index.insert(Layer { fs: path.join("fs"), record });
                }
                (_, read) => {
                    let reason = read.err().unwrap_or_else(|| "the same layer is there twice".to_owned());
                    highest = highest.max(number.unwrap_or(0));
                    unreadable.push(path.clone());
                    damaged.push((path, format!("layer not used: {reason}; pull its images again")));
                }
            }
        }
        let next = AtomicU64::new(highest + 1);
        // Open for as long as layers are made: a write that fails meanwhile is reported by its next sync.
        let file_system = open_directory(&layers)?;
        let sync = GroupSync::new(Box::new(move || rustix::fs::syncfs(&file_system)));
        Ok(Self { dir: layers, ingest, trash, sync, next, unreadable, index: Mutex::new(index) })
    }

    /// Throws away the layers whose records could not be read. Not while there is a snapshot that misses
    /// one of its layers: it may be that one.
    pub(crate) fn discard_unreadable(&self) -> Result<(), ImageError> {
        for path in &self.unreadable {
            self.trash.take(path).map_err(ImageError::io(format!("throw away {}", path.display())))?;
        }
        Ok(())
    }

    /// All layers that are here.
    pub(crate) fn all(&self) -> Vec<ChainId> {
        self.index().layers.keys().cloned().collect()
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().expect("no panics under this lock")
    }

    /// What all layers take on disk.
    pub(crate) fn usage(&self) -> Usage {
        self.index().usage
    }

    pub(crate) fn get(&self, chain: &ChainId) -> Option<Layer> {
        self.index().layers.get(chain).cloned()
    }

    /// Keeps layers until the lease is dropped; they need not be there yet.
    pub(crate) fn lease(self: &Arc<Self>, chain: Vec<ChainId>) -> Lease {
        let mut index = self.index();
        for id in &chain {
            *index.holders.entry(id.clone()).or_default() += 1;
        }
        drop(index);
        Lease { layers: Arc::clone(self), chain }
    }

    /// A directory for the files of an import. Blocks.
    pub(super) fn stage(&self) -> Result<Staging, ImageError> {
        let path = self.ingest.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        let made = fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(ImageError::io(format!("make {}", path.display())))?;
        Ok(Staging::new(path, Arc::clone(&self.trash)))
    }

    /// Starts a new layer. Blocks.
    pub(crate) fn begin(self: &Arc<Self>) -> Result<Ingest, ImageError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.ingest.join(number.to_string());
        let make = |path: &Path| {
            fs::DirBuilder::new()
                .mode(0o700)
                .create(path)
                .map_err(ImageError::io(format!("make {}", path.display())))
        };
        make(&path)?;
        let writing = self.sync.writing();
        let ingest = Ingest { layers: Arc::clone(self), number, writing, path: Some(path.clone()) };
        make(&path.join("fs"))?;
        Ok(ingest)
    }

    /// Deletes every layer that nobody holds. Blocks.
    pub(crate) fn collect(&self) -> Result<(), ImageError> {
        self.collect_among(|_| true)
    }

    /// Deletes every layer that nobody holds and that is `meant`. Blocks.
    pub(crate) fn collect_among(&self, meant: impl Fn(&ChainId) -> bool) -> Result<(), ImageError> {
        let mut index = self.index();
        let unused = |chain: &&ChainId| !index.holders.contains_key(*chain) && meant(chain);
        let unused: Vec<ChainId> = index.layers.keys().filter(unused).cloned().collect();
        let removed: Vec<Layer> = unused.iter().filter_map(|chain| index.remove(chain)).collect();
        drop(index);
        let mut first_error = Ok(());
        for layer in removed {
            let path = layer.fs.parent().unwrap_or(&layer.fs);
            tracing::debug!(chain = %layer.record.chain, "layer deleted");
            let deleted =
                self.trash.discard(path).map_err(ImageError::io(format!("delete {}", path.display())));
            first_error = first_error.and(deleted);
        }
        first_error
    }
}

impl Index {
    fn insert(&mut self, layer: Layer) {
        self.usage.bytes += layer.record.bytes;
        self.usage.inodes += layer.record.inodes;
        self.layers.insert(layer.record.chain.clone(), layer);
    }

    fn remove(&mut self, chain: &ChainId) -> Option<Layer> {
        let layer = self.layers.remove(chain)?;
        self.usage.bytes -= layer.record.bytes;
        self.usage.inodes -= layer.record.inodes;
        Some(layer)
    }
}

/// A layer being made. Dropped before [`Sealed::commit`], nothing of it remains.
pub(crate) struct Ingest {
    layers: Arc<Layers>,
    number: u64,
    writing: Writing,
    path: Option<PathBuf>,
}

impl Ingest {
    fn path(&self) -> &Path {
        self.path.as_deref().expect("the path is there until commit or discard consume the value")
    }

    /// The directory the layer is unpacked into.
    pub(crate) fn root(&self) -> Result<OwnedFd, ImageError> {
        open_directory(&self.path().join("fs"))
    }

    /// Makes the hard links that `unpacked` has to files of the layers below (`lowers`, nearest first), which are
    /// complete. Blocks.
    pub(crate) fn borrow(
        &self,
        unpacked: &mut Unpacked,
        lowers: &[ChainId],
        budget: &mut unpack::Budget<'_>,
    ) -> Result<(), UnpackError> {
        if unpacked.links.is_empty() {
            return Ok(());
        }
        let failed = |error: ImageError| UnpackError::Io {
            operation: "look into the layers below".to_owned(),
            source: io::Error::other(error),
        };
        let below = lowers.iter().filter_map(|chain| self.layers.get(chain));
        let below: Result<Vec<_>, _> = below.map(|layer| open_directory(&layer.fs)).collect();
        unpack::borrow_files(&self.root().map_err(failed)?, &below.map_err(failed)?, unpacked, budget)
    }

    /// Deletes what was made. Blocks.
    pub(crate) fn discard(mut self) {
        let Some(path) = self.path.take() else { return };
        if let Err(error) = self.layers.trash.discard(&path) {
            tracing::warn!(path = %path.display(), %error, "half-made layer not deleted; the next start will");
        }
    }

    /// Makes the layer whole on disk: completes its directories from the layers below (`lowers`, nearest
    /// first; they must be complete when the layer leaves out any), writes its record and syncs the file
    /// system, together with the other layers that are ready. Nothing is written to it after. Blocks.
    pub(crate) fn seal(
        self,
        record: LayerRecord,
        unpacked: &Unpacked,
        lowers: &[ChainId],
    ) -> Result<Sealed, ImageError> {
        let path = self.path();
        if !unpacked.implicit.is_empty() {
            let root = self.root()?;
            let below: Vec<Layer> = lowers.iter().filter_map(|chain| self.layers.get(chain)).collect();
            let below = below.iter().map(|layer| open_directory(&layer.fs)).collect::<Result<Vec<_>, _>>()?;
            unpack::inherit_directories(&root, &unpacked.implicit, &below).map_err(|errno| {
                ImageError::io(format!("complete the directories of {}", path.display()))(errno.into())
            })?;
        }
        let name = path.join("layer.json");
        let json = serde_json::to_vec(&record)
            .map_err(|error| ImageError::io("write a layer record")(error.into()))?;
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&name);
        let written = file.and_then(|mut file| io::Write::write_all(&mut file, &json));
        written.map_err(ImageError::io(format!("write {}", name.display())))?;
        let synced = self.layers.sync.sync(self.writing);
        synced.map_err(ImageError::io(format!("sync {}", path.display())))?;
        Ok(Sealed { ingest: self, record })
    }
}

/// A layer that is whole on disk and does not count yet. Dropped, nothing of it remains.
pub(crate) struct Sealed {
    ingest: Ingest,
    record: LayerRecord,
}

impl Sealed {
    /// Makes the layer count: moves it to its place, for good. Blocks.
    pub(crate) fn commit(self) -> Result<(), ImageError> {
        let Self { mut ingest, record } = self;
        let path = ingest.path().to_owned();
        let layers = Arc::clone(&ingest.layers);
        let place = layers.dir.join(ingest.number.to_string());
        let moved = fs::rename(&path, &place).and_then(|()| record::sync_directory(&layers.dir));
        moved.map_err(ImageError::io(format!("move {} to {}", path.display(), place.display())))?;
        ingest.path = None;
        let mut index = layers.index();
        if !index.layers.contains_key(&record.chain) {
            index.insert(Layer { fs: place.join("fs"), record });
            return Ok(());
        }
        drop(index);
        // A pull and an import have made the same layer at the same time: the first one counts.
        let discarded = layers.trash.discard(&place);
        discarded.map_err(ImageError::io(format!("throw away {}", place.display())))
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        // Reached when the pull was cancelled: perhaps on a thread that must not block.
        let Some(path) = self.path.take() else { return };
        let trash = Arc::clone(&self.layers.trash);
        let place = path.clone();
        let work = move || {
            if let Err(error) = trash.discard(&path) {
                tracing::warn!(path = %path.display(), %error, "half-made layer not deleted; the next start will");
            }
        };
        if let Err(error) = std::thread::Builder::new().name("discard".to_owned()).spawn(work) {
            let path = place.display();
            tracing::warn!(%path, %error, "no thread to delete a half-made layer; the next start will");
        }
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd, ImageError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map_err(|errno| ImageError::io(format!("open {}", path.display()))(io::Error::from(errno)))
}
