//! What an archive turned out to hold: images that run here, each with its files found and its documents
//! checked. No unpacking.

use super::{
    corrupt, docker, layout,
    stage::{File, Staged},
};
use crate::{
    digest::{ChainId, Digest},
    error::{ErrorKind, ImageError},
    manifest::Configuration,
    platform::Platform,
    reference::Reference,
};

/// Most images of an archive.
pub(super) const MAX_IMAGES: usize = 1000;
/// Most layers of all of them together, those they share counted for each.
const MAX_LAYERS: usize = 50_000;

/// What is to be done with an archive.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) images: Vec<Planned>,
    pub(super) skipped: Vec<String>,
    layers: usize,
}

/// An image of an archive.
pub(super) struct Planned {
    pub(super) names: Vec<Reference>,
    pub(super) id: Digest,
    /// The index or manifest that the names are given to.
    pub(super) target: Digest,
    /// Whether a registry has the target too: not that of `docker save`, which keeps none.
    pub(super) published: bool,
    /// Index and manifest.
    pub(super) documents: Vec<File>,
    pub(super) size: u64,
    /// The configuration; its content is read again when the image is recorded, so that those of a thousand images
    /// are not held at once.
    pub(super) config: File,
    pub(super) stack: Stack,
    /// The lowest first.
    pub(super) layers: Vec<File>,
}

/// What the configuration says of the layers, the lowest first.
pub(super) struct Stack {
    pub(super) diff_ids: Vec<Digest>,
    pub(super) chain: Vec<ChainId>,
}

impl From<Configuration> for Stack {
    fn from(Configuration { diff_ids, chain, .. }: Configuration) -> Self {
        Self { diff_ids, chain }
    }
}

/// Reads what the archive says it holds: an image layout, also where it is a `docker save` archive as well.
pub(super) fn plan(staged: &mut Staged, platform: &Platform) -> Result<Plan, ImageError> {
    let plan = if staged.file(layout::INDEX).is_some() {
        layout::plan(staged, platform)?
    } else if staged.file(docker::MANIFEST).is_some() {
        docker::plan(staged, platform)?
    } else {
        let reason = "it is no archive of images: it has neither index.json (OCI image layout) nor manifest.json (docker save)";
        return Err(corrupt(staged.origin(), reason));
    };
    if plan.images.is_empty() {
        let skipped = plan.skipped.join("; ");
        let reason = match skipped.is_empty() {
            true => "there is no image in it".to_owned(),
            false => format!("no image in it runs here: {skipped}"),
        };
        return Err(super::refuse(staged.origin(), ErrorKind::FailedPrecondition, reason));
    }
    Ok(plan)
}

impl Plan {
    /// Adds an image, within bounds.
    pub(super) fn add(&mut self, origin: &str, image: Planned) -> Result<(), ImageError> {
        self.layers += image.layers.len();
        if self.layers > MAX_LAYERS {
            let reason = format!("its images have more than {MAX_LAYERS} layers in all; split it");
            return Err(super::refuse(origin, ErrorKind::ResourceExhausted, reason));
        }
        self.images.push(image);
        Ok(())
    }
}

impl Plan {
    /// Gives the one image its tag, in place of the names it came with.
    pub(super) fn rename(&mut self, origin: &str, tag: &Reference) -> Result<(), ImageError> {
        if tag.digest().is_some() || tag.tag().is_none() {
            let reason = format!("{tag} is no tag; name it REPOSITORY:TAG");
            return Err(super::refuse(origin, ErrorKind::InvalidArgument, reason));
        }
        match &mut self.images[..] {
            [image] => {
                image.names = vec![tag.clone()];
                Ok(())
            }
            images => {
                let reason = format!("a tag can be given to one image; the archive has {}", images.len());
                Err(super::refuse(origin, ErrorKind::InvalidArgument, reason))
            }
        }
    }
}
