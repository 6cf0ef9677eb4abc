//! Blobs that are kept as they came, compressed: those of images that no registry may have.
//!
//! ```text
//! ingest/N/M            a file of an archive that is being imported; thrown away at start
//! blobs/ALGORITHM-HEX   kept: synced before the record of the image that names it
//! ```
//! Invariants: a kept blob was found to have the content its name says; it is deleted only when no image's
//! record names it. Whoever keeps or deletes blobs holds the store's writer lock.

use std::{
    collections::{HashMap, HashSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use rustix::fs::{CWD, Mode, OFlags};

use super::{Usage, record, trash::Trash};
use crate::{digest::Digest, error::ImageError};

/// All blobs that are kept.
pub(crate) struct Blobs {
    dir: PathBuf,
    trash: Arc<Trash>,
    index: Mutex<HashMap<Digest, Kept>>,
}

#[derive(Clone, Copy)]
struct Kept {
    size: u64,
    /// Bytes it takes on disk.
    room: u64,
}

impl Blobs {
    /// Reads what is in `dir/blobs`. What has no blob's name is thrown away.
    pub(super) fn open(dir: &Path, trash: Arc<Trash>) -> Result<Self, ImageError> {
        let dir = dir.join("blobs");
        let mut index = HashMap::new();
        for path in record::children(&dir)? {
            let name = path.file_name().and_then(|name| name.to_str()?.split_once('-'));
            let digest = name.and_then(|(algorithm, hex)| Digest::parse(&format!("{algorithm}:{hex}")).ok());
            let found =
                fs::symlink_metadata(&path).map_err(ImageError::io(format!("look at {}", path.display())))?;
            match digest.filter(|_| found.is_file()) {
                Some(digest) => drop(index.insert(digest, Kept::of(&found))),
                None => trash
                    .take_if_writable(&path)
                    .map_err(ImageError::io(format!("throw away {}", path.display())))?,
            }
        }
        Ok(Self { dir, trash, index: Mutex::new(index) })
    }

    fn index(&self) -> MutexGuard<'_, HashMap<Digest, Kept>> {
        self.index.lock().expect("no panics under this lock")
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.as_str().replacen(':', "-", 1))
    }

    /// A blob and its size. `None` when it is not kept.
    pub(crate) fn get(&self, digest: &Digest) -> Option<(fs::File, u64)> {
        let size = self.index().get(digest)?.size;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(CWD, self.path(digest), flags, Mode::empty()).ok()?;
        Some((file.into(), size))
    }

    /// What all kept blobs take on disk.
    pub(super) fn usage(&self) -> Usage {
        let index = self.index();
        Usage { bytes: index.values().map(|kept| kept.room).sum(), inodes: index.len() as u64 }
    }

    /// Keeps files that are whole and verified, for good. They are moved away from where they are. A blob
    /// without a file must be here. Blocks.
    pub(super) fn keep(&self, files: &[(Digest, Option<PathBuf>)]) -> Result<(), ImageError> {
        for (digest, path) in files {
            let Some(path) = path else {
                if self.get(digest).is_none() {
                    return Err(gone(digest));
                }
                continue;
            };
            // Two images of an archive may have it in common: it was moved with the first.
            if self.get(digest).is_some() {
                continue;
            }
            let place = self.path(digest);
            let keep = || {
                fs::File::open(path)?.sync_all()?;
                fs::rename(path, &place)?;
                fs::symlink_metadata(&place)
            };
            let found = keep().map_err(ImageError::io(format!("keep {}", place.display())))?;
            self.index().insert(digest.clone(), Kept::of(&found));
        }
        match files.is_empty() {
            true => Ok(()),
            false => record::sync_directory(&self.dir)
                .map_err(ImageError::io(format!("sync {}", self.dir.display()))),
        }
    }

    /// Deletes every blob that is not in `wanted`. Blocks.
    pub(super) fn retain(&self, wanted: &HashSet<Digest>) -> Result<(), ImageError> {
        let unwanted: Vec<Digest> =
            self.index().keys().filter(|digest| !wanted.contains(*digest)).cloned().collect();
        let mut first_error = Ok(());
        for digest in unwanted {
            let path = self.path(&digest);
            let deleted =
                self.trash.discard(&path).map_err(ImageError::io(format!("delete {}", path.display())));
            if deleted.is_ok() {
                self.index().remove(&digest);
            }
            first_error = first_error.and(deleted);
        }
        first_error
    }
}

fn gone(digest: &Digest) -> ImageError {
    let reason = format!("blob {digest} was removed meanwhile; import the archive again");
    ImageError::io("keep a blob")(std::io::Error::other(reason))
}

impl Kept {
    fn of(found: &fs::Metadata) -> Self {
        Self { size: found.len(), room: found.blocks() * 512 }
    }
}

/// A directory for the files of one import. Dropped, nothing of it remains: on a thread that may block.
pub(crate) struct Staging {
    path: PathBuf,
    trash: Arc<Trash>,
    files: u64,
}

impl Staging {
    pub(super) fn new(path: PathBuf, trash: Arc<Trash>) -> Self {
        Self { path, trash, files: 0 }
    }

    /// A new, empty file.
    pub(crate) fn file(&mut self) -> Result<(fs::File, PathBuf), ImageError> {
        use std::os::unix::fs::OpenOptionsExt;
        self.files += 1;
        let path = self.path.join(self.files.to_string());
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        Ok((file.map_err(ImageError::io(format!("make {}", path.display())))?, path))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = self.trash.discard(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "half-made import not deleted; the next start will");
        }
    }
}
