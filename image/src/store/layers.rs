//! Unpacked layers: one directory each, found by chain id, kept while somebody holds them.
//!
//! ```text
//! ingest/N/{fs,tree,layer.json}   being made; thrown away at start
//! layers/N/{fs,tree,layer.json}   complete: synced before the rename that put it here
//! trash/M                         being deleted
//! ```
//! `tree` says what is in `fs` (see [`super::tree`]).
//!
//! Numbers are never used twice while the process lives, so a layer being deleted and the same layer
//! pulled anew cannot meet.
//!
//! A layer whose content was found wrong (*suspect*) stays in use until a new pull has made it again. Then the one
//! of the higher number counts; the other stays where it is while a snapshot may have it mounted.
//!
//! Invariant: a layer in the index is complete, and is not deleted while a [`Lease`] names it.

mod ingest;

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use rustix::fs::{CWD, Mode, OFlags};

pub(crate) use self::ingest::Ingest;
use super::{BLOCK, Usage, blobs::Staging, record, sync::GroupSync, trash::Trash};
use crate::{
    digest::{ChainId, Digest},
    error::ImageError,
    unpack::Unpacked,
};

/// Bytes of blobs after which what was unpacked of them is written back: unpacked, some three times as many.
const WRITE_BACK: u64 = 48 << 20;

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
    /// The hash of the file `tree`; missing in layers of an earlier build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tree: Option<String>,
}

impl LayerRecord {
    /// Counts what stands beside the layer's files: its directory, this record, and the file `tree` of this length.
    fn count_notes(&mut self, tree: u64) {
        self.bytes += 2 * BLOCK + tree.next_multiple_of(BLOCK);
        self.inodes += 3;
    }

    pub(crate) fn new(chain: ChainId, diff_id: Digest, blob: (Digest, u64), unpacked: &Unpacked) -> Self {
        let Unpacked { bytes, inodes, root_entry, .. } = *unpacked;
        Self {
            version: 1,
            chain,
            diff_id,
            digest: blob.0,
            size: blob.1,
            bytes,
            inodes,
            root_entry,
            tree: None,
        }
    }

    /// The digest of the blob it came in.
    pub(crate) fn blob(&self) -> &Digest {
        &self.digest
    }

    /// The size of that blob, in bytes.
    pub(crate) fn blob_size(&self) -> u64 {
        self.size
    }

    /// The digest of its archive.
    pub(crate) fn diff_id(&self) -> &Digest {
        &self.diff_id
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
    /// Bytes of blobs that have arrived since what lay in memory was written back, and whether that is under way.
    arrived: AtomicU64,
    writing_back: AtomicBool,
    next: AtomicU64,
    unreadable: Vec<PathBuf>,
    index: Mutex<Index>,
}

#[derive(Default)]
struct Index {
    layers: HashMap<ChainId, Layer>,
    holders: HashMap<ChainId, usize>,
    /// Of the holders those that may have it mounted.
    mounted: HashMap<ChainId, usize>,
    /// Layers that nobody holds.
    idle: HashSet<ChainId>,
    suspect: HashSet<ChainId>,
    /// Layers that another directory has taken the place of.
    replaced: Vec<(ChainId, PathBuf)>,
    usage: Usage,
}

/// Keeps layers from being deleted, present or to come.
pub(crate) struct Lease {
    layers: Arc<Layers>,
    chain: Vec<ChainId>,
    mounted: bool,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut index = self.layers.index();
        let index = &mut *index;
        for chain in &self.chain {
            if self.mounted {
                let_go(&mut index.mounted, chain);
            }
            if let_go(&mut index.holders, chain) && index.layers.contains_key(chain) {
                index.idle.insert(chain.clone());
            }
        }
    }
}

/// Counts one holder less; whether that was the last.
fn let_go(holders: &mut HashMap<ChainId, usize>, chain: &ChainId) -> bool {
    let Some(count) = holders.get_mut(chain) else { return false };
    *count -= 1;
    let last = *count == 0;
    if last {
        holders.remove(chain);
    }
    last
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
        let numbered = |path: PathBuf| {
            let number = path.file_name().and_then(|name| name.to_str()?.parse::<u64>().ok());
            (number, path)
        };
        let mut children: Vec<_> = record::children(&layers)?.into_iter().map(numbered).collect();
        // Of two directories of one layer the later was made because the earlier was wrong.
        children.sort_unstable_by(|left, right| right.cmp(left));
        for (number, path) in children {
            let read = record::check_directory(&path)
                .and_then(|()| record::read::<LayerRecord>(&path.join("layer.json")))
                .and_then(LayerRecord::checked);
            match (number, read) {
                (Some(number), Ok(record)) if !index.layers.contains_key(&record.chain) => {
                    highest = highest.max(number);
                    index.insert(Layer { fs: path.join("fs"), record });
                }
                (Some(_), Ok(record)) => index.replaced.push((record.chain, path)),
                (_, read) => {
                    let reason = read.err().unwrap_or_else(|| "its name is not a number".to_owned());
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
        let (arrived, writing_back) = (AtomicU64::new(0), AtomicBool::new(false));
        let index = Mutex::new(index);
        Ok(Self { dir: layers, ingest, trash, sync, arrived, writing_back, next, unreadable, index })
    }

    /// Throws away the layers whose records could not be read. Not while there is a snapshot that misses
    /// one of its layers: it may be that one.
    pub(crate) fn discard_unreadable(&self) -> Result<(), ImageError> {
        self.discard_replaced()?;
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

    /// Whether a layer is here and not suspect: a pull need not make it.
    pub(crate) fn is_whole(&self, chain: &ChainId) -> bool {
        let index = self.index();
        index.layers.contains_key(chain) && !index.suspect.contains(chain)
    }

    /// Has the next pull make a layer anew, or not, which is here and held.
    pub(crate) fn suspect(&self, chain: &ChainId, suspect: bool) {
        let mut index = self.index();
        match suspect {
            true => index.suspect.insert(chain.clone()),
            false => index.suspect.remove(chain),
        };
    }

    /// Keeps layers until the lease is dropped; they need not be there yet.
    pub(crate) fn lease(self: &Arc<Self>, chain: Vec<ChainId>) -> Lease {
        self.hold(chain, false)
    }

    /// The same for layers that may be mounted meanwhile.
    pub(crate) fn lease_mounted(self: &Arc<Self>, chain: Vec<ChainId>) -> Lease {
        self.hold(chain, true)
    }

    fn hold(self: &Arc<Self>, chain: Vec<ChainId>, mounted: bool) -> Lease {
        let mut index = self.index();
        for id in &chain {
            *index.holders.entry(id.clone()).or_default() += 1;
            if mounted {
                *index.mounted.entry(id.clone()).or_default() += 1;
            }
            index.idle.remove(id);
        }
        drop(index);
        Lease { layers: Arc::clone(self), chain, mounted }
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

    /// Notes that bytes of blobs have arrived, which are being unpacked. From time to time what lies in memory is
    /// written back meanwhile, so that the sync at the end has little left to do.
    pub(crate) fn arrived(self: &Arc<Self>, bytes: u64) {
        let waiting = self.arrived.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if waiting < WRITE_BACK || self.writing_back.swap(true, Ordering::AcqRel) {
            return;
        }
        self.arrived.store(0, Ordering::Relaxed);
        let layers = Arc::clone(self);
        let work = move || {
            // A failure is told to all who are writing, by their own sync.
            let _ = layers.sync.sync(layers.sync.writing());
            layers.writing_back.store(false, Ordering::Release);
        };
        if std::thread::Builder::new().name("write-back".to_owned()).spawn(work).is_err() {
            self.writing_back.store(false, Ordering::Release);
        }
    }

    /// Makes a layer count that is in its place. Blocks.
    fn count(&self, layer: Layer) -> Result<(), ImageError> {
        let directory = |layer: &Layer| layer.fs.parent().unwrap_or(&layer.fs).to_owned();
        let mut index = self.index();
        let chain = layer.record.chain.clone();
        if index.suspect.contains(&chain)
            && let Some(wrong) = index.remove(&chain)
        {
            index.replaced.push((chain.clone(), directory(&wrong)));
        }
        if index.layers.contains_key(&chain) {
            // A pull and an import have made the same layer at the same time: the first one counts.
            drop(index);
            return self.delete(std::iter::once(directory(&layer).as_path()));
        }
        index.insert(layer);
        drop(index);
        self.discard_replaced()
    }

    /// Deletes every layer that nobody holds. Blocks.
    pub(crate) fn collect(&self) -> Result<(), ImageError> {
        self.collect_among(|_| true)
    }

    /// Deletes every layer that nobody holds and that is `meant`. Blocks.
    pub(crate) fn collect_among(&self, meant: impl Fn(&ChainId) -> bool) -> Result<(), ImageError> {
        let mut index = self.index();
        let idle: Vec<ChainId> = index.idle.iter().filter(|chain| meant(chain)).cloned().collect();
        let removed: Vec<Layer> = idle.iter().filter_map(|chain| index.remove(chain)).collect();
        drop(index);
        for layer in &removed {
            tracing::debug!(chain = %layer.record.chain, "layer deleted");
        }
        let deleted = self.delete(removed.iter().map(|layer| layer.fs.parent().unwrap_or(&layer.fs)));
        deleted.and(self.discard_replaced())
    }

    /// Deletes layers that others have taken the place of, except where a snapshot may have them mounted.
    fn discard_replaced(&self) -> Result<(), ImageError> {
        let mut index = self.index();
        let replaced = std::mem::take(&mut index.replaced);
        let (kept, free) = replaced.into_iter().partition(|(chain, _)| index.mounted.contains_key(chain));
        index.replaced = kept;
        drop(index);
        let free: Vec<(ChainId, PathBuf)> = free;
        self.delete(free.iter().map(|(_, path)| path.as_path()))
    }

    /// Deletes directories: out of sight for good first, so that after a power loss none is there in part.
    fn delete<'a>(&self, paths: impl Iterator<Item = &'a Path>) -> Result<(), ImageError> {
        let (mut taken, mut first_error) = (Vec::new(), Ok(()));
        for path in paths {
            let failed = ImageError::io(format!("delete {}", path.display()));
            match self.trash.take(path) {
                Ok(place) => taken.extend(place),
                Err(error) => first_error = first_error.and(Err(failed(error))),
            }
        }
        if taken.is_empty() {
            return first_error;
        }
        let gone = record::sync_directory(&self.dir);
        gone.map_err(ImageError::io(format!("sync {}", self.dir.display())))?;
        for place in taken {
            let failed = ImageError::io(format!("delete {}", place.display()));
            first_error = first_error.and(self.trash.delete(place).map_err(failed));
        }
        first_error
    }
}

impl Index {
    fn insert(&mut self, layer: Layer) {
        self.usage.bytes += layer.record.bytes;
        self.usage.inodes += layer.record.inodes;
        if !self.holders.contains_key(&layer.record.chain) {
            self.idle.insert(layer.record.chain.clone());
        }
        self.layers.insert(layer.record.chain.clone(), layer);
    }

    fn remove(&mut self, chain: &ChainId) -> Option<Layer> {
        let layer = self.layers.remove(chain)?;
        self.idle.remove(chain);
        self.suspect.remove(chain);
        self.usage.bytes -= layer.record.bytes;
        self.usage.inodes -= layer.record.inodes;
        Some(layer)
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd, ImageError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map_err(|errno| ImageError::io(format!("open {}", path.display()))(io::Error::from(errno)))
}
