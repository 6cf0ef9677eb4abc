//! Archives of images: OCI image layouts and what `docker save` writes, in and out.
//!
//! ```text
//! bytes ─ decompress ─ `stage`: each file into a directory of its own name-free numbers, hashed
//!       ─ `layout` | `docker`: which images are in it, checked and bounded (`plan`)
//!       ─ `import`: layers unpacked as those of a pull are, then all images recorded, blobs kept
//! `export`: documents and layers from where they are kept, or again from their registry ─ `writer`: tar
//! ```
//! Invariants: a name in an archive is never a path here; of an archive that is refused nothing remains;
//! what is exported has the digests of what was pulled or imported, or nothing is.
//!
//! Does not choose where bytes come from or go to: callers bring a reader and a channel.

mod docker;
mod export;
mod form;
mod import;
mod layout;
mod plan;
mod stage;
mod writer;

use std::sync::Arc;

use tokio::sync::watch;

pub(crate) use export::export;
pub(crate) use import::{Made, import, make};
pub use writer::pack_directory;

use crate::{
    error::{ErrorKind, ImageError},
    pull::Progress,
    reference::Reference,
    store::Image,
};

/// How an archive is to be imported.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// What messages call the archive.
    pub origin: String,
    /// The tag to be given in place of the names in the archive, which must hold one image.
    pub tag: Option<Reference>,
    /// Who is told how far it is.
    pub progress: Option<watch::Sender<Progress>>,
}

/// What an import brought.
#[derive(Debug, Clone, Default)]
pub struct Imported {
    /// The images that are here now.
    pub images: Vec<Arc<Image>>,
    /// What was left out, and why: images and platforms that do not run here.
    pub skipped: Vec<String>,
}

/// Takes an archive apart and answers what images it holds: their ids, and their names.
#[cfg(fuzzing)]
pub(crate) fn look(
    archive: Vec<u8>,
    staging: crate::store::blobs::Staging,
    limits: &crate::unpack::Limits,
    platform: &crate::Platform,
) -> Result<Vec<(String, Vec<Reference>)>, ImageError> {
    let want = crate::unpack::Want::default();
    let input = Box::new(std::io::Cursor::new(archive));
    let mut staged = stage::stage(input, "fuzz", staging, limits, &want.watched())?;
    let plan = plan::plan(&mut staged, platform)?;
    Ok(plan.images.into_iter().map(|image| (image.id.to_string(), image.names)).collect())
}

/// An error about an archive.
fn refuse(origin: &str, kind: ErrorKind, reason: impl Into<String>) -> ImageError {
    ImageError::image(&format!("archive {origin}"), kind, reason)
}

/// An archive that is damaged or hostile.
fn corrupt(origin: &str, reason: impl Into<String>) -> ImageError {
    refuse(origin, ErrorKind::DataLoss, reason)
}
