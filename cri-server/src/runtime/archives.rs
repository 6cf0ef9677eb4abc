//! Images from archives and into them, tags, images that nobody uses, and whether images are as they were.

use std::{collections::HashSet, io::Read, sync::Arc};

use bytes::Bytes;
use podhold_image::{Finding, Image, ImportOptions, Imported, Progress, Reference, Verified};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::Runtime;
use crate::{
    descriptors,
    error::{Error, Result},
};

/// What was done with images that no container uses.
#[derive(Debug, Default)]
pub struct Pruned {
    /// Removed ones.
    pub removed: Vec<Arc<Image>>,
    /// Those that stay, and why.
    pub kept: Vec<String>,
}

impl Runtime {
    /// Gives an image one more tag.
    pub async fn tag_image(&self, name: &str, tag: &str) -> Result<Arc<Image>> {
        let tag = Reference::parse(tag).map_err(|error| Error::invalid("tag", error.to_string()))?;
        self.images.tag(name, &tag).await.map_err(|error| Error::image("tag", &error))
    }

    /// Imports the images of an archive. The import ends when the returned future is dropped.
    pub async fn import_images(
        &self,
        input: Box<dyn Read + Send>,
        options: ImportOptions,
    ) -> Result<Imported> {
        descriptors::has_room().map_err(Error::doing("import"))?;
        let (begun, origin) = (std::time::Instant::now(), options.origin.clone());
        let imported = self.images.import(input, options).await;
        let imported = imported.map_err(|error| Error::image("import", &error))?;
        for image in &imported.images {
            let names = image.tags.join(" ");
            info!(archive = origin, names, id = %image.id, ms = begun.elapsed().as_millis(), "image imported");
        }
        for left_out in &imported.skipped {
            info!(archive = origin, left_out, "part of an archive not imported");
        }
        Ok(imported)
    }

    /// Writes images as an archive, which is whole only after success.
    pub async fn export_images(
        &self,
        names: &[String],
        out: mpsc::Sender<Bytes>,
        progress: Option<watch::Sender<Progress>>,
    ) -> Result<()> {
        if names.is_empty() {
            return Err(Error::invalid("names", "is empty; name an image"));
        }
        self.images.export(names, out, progress).await.map_err(|error| Error::image("export", &error))
    }

    /// Removes the images that no container uses. Pinned ones stay.
    pub async fn prune_images(&self) -> Result<Pruned> {
        let mut used = HashSet::new();
        for container in self.store.containers() {
            used.insert(container.record.image_id.clone());
            used.extend(container.record.volumes.values().cloned());
        }
        let mut pruned = Pruned::default();
        for image in self.images.list() {
            if used.contains(&image.id) {
                continue;
            }
            if image.pinned {
                let name = image.tags.first().or(image.digests.first()).unwrap_or(&image.id);
                pruned.kept.push(format!("{name}: pinned by the configuration (image.pinned)"));
                continue;
            }
            self.remove_image(&image.id).await?;
            pruned.removed.push(image);
        }
        Ok(pruned)
    }

    /// Compares the layers of images (all when no names are given) with what was unpacked; with `repair` makes those
    /// that differ again. Ends when the returned future is dropped.
    pub async fn verify_images(
        &self,
        names: &[String],
        repair: bool,
        progress: Option<watch::Sender<Progress>>,
    ) -> Result<Vec<Verified>> {
        let verified = self.images.verify(names, repair, progress).await;
        let verified = verified.map_err(|error| Error::image("verify", &error))?;
        for layer in &verified {
            if let Finding::Wrong { differences, count } = &layer.finding {
                let path = differences.first().map(|first| first.path.as_str());
                let repaired = matches!(layer.repair, Some(Ok(())));
                warn!(layer = %layer.chain, count, path, repaired, "layer is not as it was unpacked");
            }
        }
        Ok(verified)
    }
}
