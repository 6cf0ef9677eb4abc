//! Images: from a reference to a root filesystem.
//!
//! A pull resolves a [`Reference`] at its registry or a mirror, fetches what is missing, and unpacks each
//! layer in one pass while it arrives; [`Snapshots`] stack an image's layers and a writable one into a
//! root filesystem.
//!
//! Invariants: an image that [`Images::find`] shows is complete and its content was verified; nothing an
//! image, a registry or a record says makes us write outside the image directory; a damaged record harms
//! one image.
//!
//! Does not know pods, containers or CRI types.

mod archive;
mod credentials;
mod digest;
mod documents;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod hosts;
mod manifest;
mod platform;
mod pull;
mod reference;
mod registry;
mod small_file;
mod snapshot;
mod store;
mod sys;
mod unpack;
mod verify;

use std::{io::Read, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

pub use crate::{
    archive::{ImportOptions, Imported, pack_directory},
    credentials::{CredentialSources, Credentials, Forms, is_server_of},
    digest::{ChainId, Digest, InvalidDigest},
    error::{ErrorKind, ImageError, UnpackError},
    platform::Platform,
    pull::{Activity, LayerProgress, LayerStage, Progress},
    reference::{InvalidReference, Reference},
    snapshot::{IdMap, IdRange, SnapshotError, Snapshots},
    store::{Image, Usage, tree::Difference},
    unpack::Limits,
    verify::{Finding, Verified},
};
use crate::{
    credentials::{Finder, Marks},
    pull::{Counters, Partials, Underway},
    registry::Registry,
    snapshot::Overlay,
    store::Store,
};

/// Where images live and how they are fetched.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory of images, layers and snapshots; on one file system that can be overlayfs's upper layer.
    pub dir: PathBuf,
    /// Directories of `hosts.toml` directories, in containerd's format; the first that has something for a
    /// registry counts.
    pub hosts_dirs: Vec<PathBuf>,
    /// Credentials of this machine, for pulls that bring none and for mirrors.
    pub credentials: CredentialSources,
    /// Layers downloaded and unpacked at once, over all pulls.
    pub parallel_layers: usize,
    /// What images must run on.
    pub platform: Platform,
    /// References that are never collected and are reported as pinned.
    pub pinned: Vec<String>,
    /// How long a registry may be silent; a download must also bring 64 KiB in each such span.
    pub stall_timeout: Duration,
    /// Bounds on one unpacked layer.
    pub limits: Limits,
    /// Most bytes kept of layers whose pull ended early, for the next one to go on with; 0 keeps nothing.
    pub resume_bytes: u64,
    /// A layer whose download is expected to take less time is not kept while it arrives: it is soon fetched again.
    pub resume_worth: Duration,
    /// Whether the blobs of imported images are kept, so that they can be exported without a registry.
    pub keep_imported: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            dir: "/var/lib/podhold/images".into(),
            hosts_dirs: vec!["/etc/podhold/certs.d".into()],
            credentials: CredentialSources::default(),
            parallel_layers: 3,
            platform: Platform::default(),
            pinned: Vec::new(),
            stall_timeout: Duration::from_secs(30),
            limits: Limits::default(),
            resume_bytes: 8 << 30,
            resume_worth: Duration::from_secs(2),
            keep_imported: true,
        }
    }
}

/// The images of this machine. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Images {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    platform: Platform,
    registry: Registry,
    store: Store,
    underway: Underway,
    counters: Arc<Counters>,
    snapshots: Arc<Overlay>,
    damaged: Vec<(PathBuf, String)>,
    keep_imported: bool,
}

impl Images {
    /// Opens the image directory, made when missing (mode 0700). Half-made layers of an earlier process
    /// are thrown away; records that cannot be read are reported by [`Images::damaged`].
    ///
    /// Fails when another process has the directory open, or when it cannot be read at all.
    pub async fn open(config: Config) -> Result<Self, ImageError> {
        let open = tokio::task::spawn_blocking(move || {
            let (store, trash) = Store::open(&config.dir, &config.pinned)?;
            let (snapshots, damaged_snapshots) =
                Overlay::open(&config.dir, Arc::clone(&store.layers), Arc::clone(&trash))?;
            let mut damaged = store.damaged();
            damaged.extend(damaged_snapshots);
            // What an earlier process threw away may be much: nobody waits for it.
            let leftovers = trash.contents().map_err(ImageError::io("list the trash"))?;
            let empty = move || {
                for place in leftovers {
                    if let Err(error) = trash.delete(place) {
                        tracing::warn!(%error, "image store: trash not emptied");
                    }
                }
            };
            if let Err(error) = std::thread::Builder::new().name("trash".to_owned()).spawn(empty) {
                tracing::warn!(%error, "image store: no thread to empty the trash; the next start will");
            }
            let partials = Partials::open(&config.dir, config.resume_bytes, config.resume_worth)?;
            let counters = Arc::new(Counters::default());
            let inner = Inner {
                platform: config.platform,
                registry: Registry::new(
                    config.hosts_dirs,
                    Finder::new(config.credentials, Marks::open(&config.dir)),
                    config.stall_timeout,
                    Arc::clone(&counters),
                ),
                store,
                underway: Underway::new(config.parallel_layers, config.limits, partials),
                counters,
                snapshots: Arc::new(snapshots),
                damaged,
                keep_imported: config.keep_imported,
            };
            Ok(Self { inner: Arc::new(inner) })
        });
        open.await.unwrap_or_else(|_| Err(ImageError::Cancelled("open the image directory".to_owned())))
    }

    /// What could not be read when the directory was opened: the path and the reason.
    pub fn damaged(&self) -> Vec<(PathBuf, String)> {
        self.inner.damaged.clone()
    }

    /// Brings the image that `reference` names here and gives it that name.
    ///
    /// Dropping the future cancels the pull; layers that are complete by then, and what has arrived of larger
    /// ones, stay and serve the next pull, also one after a restart. Pulls that want the same layer at the same time share its download.
    pub async fn pull(
        &self,
        reference: &Reference,
        credentials: Option<Credentials>,
        progress: Option<watch::Sender<Progress>>,
    ) -> Result<Arc<Image>, ImageError> {
        pull::pull(&self.inner, reference, credentials, progress).await
    }

    /// Finds an image by tag or digest (made canonical), by id with or without `sha256:`, or by the
    /// unique beginning of an id (at least 4 digits).
    pub fn find(&self, name: &str) -> Option<Arc<Image>> {
        self.inner.store.find(name)
    }

    /// All images, in no particular order.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.inner.store.list()
    }

    /// Removes an image, found as by [`Images::find`], with all its names, and the layers that no other
    /// image and no snapshot needs. Success when there is none. Goes on when the future is dropped.
    pub async fn remove(&self, name: &str) -> Result<(), ImageError> {
        let (inner, owned) = (Arc::clone(&self.inner), name.to_owned());
        let remove = tokio::task::spawn_blocking(move || inner.store.remove(&owned));
        remove.await.unwrap_or_else(|_| Err(ImageError::Cancelled(name.to_owned())))
    }

    /// Compares the layers of the images of these names (all when there is none), found as by [`Images::find`], with
    /// what was noted when they were unpacked, reading every file. With `repair` makes those again that differ, and
    /// no others: from kept blobs, or fetched by the digests of their images. Answers what was found of each layer.
    ///
    /// Containers go on with what they have; new ones get the new layer.
    pub async fn verify(
        &self,
        names: &[String],
        repair: bool,
        progress: Option<watch::Sender<Progress>>,
    ) -> Result<Vec<Verified>, ImageError> {
        verify::verify(&self.inner, verify::choose(&self.inner, names)?, repair, progress).await
    }

    /// Gives an image, found as by [`Images::find`], one more tag, which moves here from the image that had
    /// it. Goes on when the future is dropped.
    pub async fn tag(&self, name: &str, tag: &Reference) -> Result<Arc<Image>, ImageError> {
        if tag.digest().is_some() || tag.tag().is_none() {
            let reason = "it is no tag; name it REPOSITORY:TAG";
            return Err(ImageError::image(tag, ErrorKind::InvalidArgument, reason));
        }
        let (inner, owned, tag) = (Arc::clone(&self.inner), name.to_owned(), tag.clone());
        let work = tokio::task::spawn_blocking(move || inner.store.tag(&owned, &tag));
        let tagged = work.await.unwrap_or_else(|_| Err(ImageError::Cancelled(name.to_owned())))?;
        tagged.ok_or_else(|| ImageError::image(&name, ErrorKind::NotFound, "the image is not here"))
    }

    /// Imports all images of an archive that run here: an OCI image layout or what `docker save` writes, plain
    /// or compressed (gzip, zstd). All of them are taken or, on any error, none, and nothing of it remains (a tag
    /// that one of them had taken from another image by then is gone).
    ///
    /// Dropping the future cancels the import as soon as `input` gives its next bytes.
    pub async fn import(
        &self,
        input: Box<dyn Read + Send>,
        options: ImportOptions,
    ) -> Result<Imported, ImageError> {
        archive::import(&self.inner, input, options).await
    }

    /// Writes images, found as by [`Images::find`], as one archive with the digests they came with. Blobs that
    /// are not kept here are fetched again from the registry.
    ///
    /// Only after success is what went into `out` a whole archive.
    pub async fn export(
        &self,
        names: &[String],
        out: mpsc::Sender<Bytes>,
        progress: Option<watch::Sender<Progress>>,
    ) -> Result<(), ImageError> {
        archive::export(&self.inner, names, out, progress).await
    }

    /// What all images, and what is kept of unfinished layers, take on disk. Known without looking.
    pub fn usage(&self) -> Usage {
        let (images, partials) = (self.inner.store.usage(), self.inner.underway.partials.usage());
        Usage { bytes: images.bytes + partials.bytes, inodes: images.inodes + partials.inodes }
    }

    /// What pulls have done since the store was opened.
    pub fn activity(&self) -> Activity {
        self.inner.counters.read()
    }

    /// The snapshots of these images.
    pub fn snapshots(&self) -> Arc<dyn Snapshots> {
        Arc::clone(&self.inner.snapshots) as Arc<dyn Snapshots>
    }
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Images").finish_non_exhaustive()
    }
}
