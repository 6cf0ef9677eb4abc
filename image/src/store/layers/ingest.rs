//! A layer being made: unpacked, completed, sealed, and only then committed.
//!
//! Invariant: what is in its place among the layers was whole on disk before it came there.

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Layer, LayerRecord, Layers, open_directory};
use crate::{
    digest::ChainId,
    error::{ImageError, UnpackError},
    store::{record, sync::Writing, tree},
    unpack::{self, Unpacked},
};

/// A layer being made. Dropped before [`Sealed::commit`], nothing of it remains.
pub(crate) struct Ingest {
    pub(super) layers: Arc<Layers>,
    pub(super) number: u64,
    pub(super) writing: Writing,
    /// Where it is made.
    pub(super) path: Option<PathBuf>,
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
        mut record: LayerRecord,
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
        let noted = tree::write(&self.root()?, &unpacked.contents, &path.join("tree"));
        let tree = fs::symlink_metadata(path.join("tree")).map_or(0, |found| found.len());
        record.count_notes(tree);
        record.tree = Some(noted.map_err(ImageError::io(format!("note the tree of {}", path.display())))?);
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
        layers.count(Layer { fs: place.join("fs"), record })
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
