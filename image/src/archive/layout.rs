//! OCI image layouts (OCI image-spec, image-layout.md). No I/O but the staged files.

use oci_distribution::manifest::ImageIndexEntry;

use super::{
    corrupt, docker,
    plan::{MAX_IMAGES, Plan, Planned},
    stage::{File, Staged},
};
use crate::{
    digest::Digest,
    error::{ErrorKind, ImageError},
    manifest::{self, Blob, Layout, Manifest},
    platform::Platform,
    reference::Reference,
    registry::{Document, MAX_CONFIG, MAX_MANIFEST},
};

/// Where a layout says what it holds.
pub(super) const INDEX: &str = "index.json";

/// The annotation with the whole name, which containerd and Docker write.
const FULL_NAME: &str = "io.containerd.image.name";
/// The annotation with the name or, as skopeo and Docker write it, the tag alone.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

pub(super) fn plan(staged: &mut Staged, platform: &Platform) -> Result<Plan, ImageError> {
    let origin = staged.origin().to_owned();
    let index = staged.file_named(INDEX)?;
    let body = staged.read(index, INDEX, MAX_MANIFEST)?;
    let index = manifest::index(&body)
        .ok_or_else(|| corrupt(&origin, format!("{INDEX} is not the JSON of an image index")))?;
    if index.manifests.len() > MAX_IMAGES {
        return Err(corrupt(&origin, format!("{INDEX} names more than {MAX_IMAGES} images")));
    }
    let mut plan = Plan::default();
    for entry in &index.manifests {
        if let Some(other) = entry
            .platform
            .as_ref()
            .filter(|other| !platform.runs(&other.os, &other.architecture, other.variant.as_deref()))
        {
            plan.skipped.push(format!(
                "{}: made for {}/{}, this machine is {platform}",
                entry.digest, other.os, other.architecture
            ));
            continue;
        }
        let image = Reading { staged, platform, origin: &origin, skipped: &mut plan.skipped }.image(entry)?;
        let Some(mut image) = image else { continue };
        if image.names.is_empty() {
            image.names = docker::names(staged, &image.id)?;
        }
        plan.add(&origin, image)?;
    }
    Ok(plan)
}

/// The names an entry of the index has.
fn names(entry: &ImageIndexEntry) -> Vec<Reference> {
    let annotation = |key: &str| entry.annotations.as_ref().and_then(|all| all.get(key));
    // Without a repository it is a tag, which names nothing by itself.
    let ref_name = annotation(REF_NAME).filter(|name| name.contains(['/', ':', '@']));
    let name = annotation(FULL_NAME).or(ref_name);
    name.and_then(|name| Reference::parse(name).ok()).into_iter().collect()
}

struct Reading<'a> {
    staged: &'a Staged,
    platform: &'a Platform,
    origin: &'a str,
    skipped: &'a mut Vec<String>,
}

impl Reading<'_> {
    /// `None` when the image does not run here.
    fn image(&mut self, entry: &ImageIndexEntry) -> Result<Option<Planned>, ImageError> {
        let names = names(entry);
        let label = names.first().map_or_else(|| entry.digest.clone(), ToString::to_string);
        let what = format!("archive {}: {label}", self.origin);
        let target = self.digest(&entry.digest)?;
        let Some((file, body)) = self.document(&target)? else {
            return Err(corrupt(
                self.origin,
                format!("{label}: the manifest {target} is not in the archive"),
            ));
        };
        let media_type = Some(entry.media_type.clone());
        let mut document = Document { digest: target.clone(), media_type, body };
        let mut documents = vec![file];
        if let Some(index) = manifest::index(&document.body).filter(|index| !index.manifests.is_empty()) {
            self.tell_platforms(&label, &index.manifests);
            if self.platform.candidates(&index.manifests).is_empty() {
                self.skipped.push(format!("{label}: there is no image for {}", self.platform));
                return Ok(None);
            }
        }
        let layout = match manifest::read(&what, &document, self.platform)? {
            Manifest::Image(layout) => layout,
            Manifest::Index(candidates, _) => {
                let Some(Blob { digest, .. }) = candidates.into_iter().next() else {
                    self.skipped.push(format!("{label}: there is no image for {}", self.platform));
                    return Ok(None);
                };
                let Some((file, body)) = self.document(&digest)? else {
                    let reason = format!("the image for {} ({digest}) is not in the archive", self.platform);
                    self.skipped.push(format!("{label}: {reason}"));
                    return Ok(None);
                };
                documents.push(file);
                document = Document { digest, media_type: None, body };
                match manifest::read(&what, &document, self.platform)? {
                    Manifest::Image(layout) => layout,
                    Manifest::Index(..) => {
                        return Err(corrupt(self.origin, "an index within an index is not supported"));
                    }
                }
            }
        };
        let found = self.planned(&what, &label, &layout, documents)?;
        Ok(found.map(|image| Planned { names, target, ..image }))
    }

    /// The image of a manifest, as yet without names.
    fn planned(
        &mut self,
        what: &String,
        label: &str,
        layout: &Layout,
        documents: Vec<File>,
    ) -> Result<Option<Planned>, ImageError> {
        let config = self.blob(label, &layout.config.digest, Some(layout.config.size))?;
        let raw = self.staged.read(&config, "the image configuration", MAX_CONFIG)?;
        let configuration = docker::configuration(self.origin, label, raw)?;
        let (os, arch) = (configuration.parsed.os(), configuration.parsed.architecture());
        if !self.platform.runs(os, arch, configuration.parsed.variant().as_deref()) {
            self.skipped.push(format!("{label}: made for {os}/{arch}, this machine is {}", self.platform));
            return Ok(None);
        }
        manifest::check(what, layout, &configuration, self.platform)?;
        let layers = layout.layers.iter().map(|layer| self.blob(label, &layer.digest, Some(layer.size)));
        let layers = layers.collect::<Result<Vec<_>, _>>()?;
        let manifest = documents.last().map_or(0, |file| file.size);
        let blobs = layers.iter().map(|file| file.size).fold(0, u64::saturating_add);
        let size = blobs.saturating_add(layout.config.size).saturating_add(manifest);
        let id = layout.config.digest.clone();
        let (names, target) = (Vec::new(), id.clone());
        Ok(Some(Planned {
            names,
            id,
            target,
            published: true,
            documents,
            size,
            config,
            stack: configuration.into(),
            layers,
        }))
    }

    fn digest(&self, text: &str) -> Result<Digest, ImageError> {
        Digest::parse(text).map_err(|error| corrupt(self.origin, format!("{INDEX}: {error}")))
    }

    /// A manifest or index. `None` when it is not in the archive.
    fn document(&self, digest: &Digest) -> Result<Option<(File, Vec<u8>)>, ImageError> {
        let Some(file) = self.staged.blob(digest)? else { return Ok(None) };
        let body = self.staged.read(file, &format!("manifest {digest}"), MAX_MANIFEST)?;
        Ok(Some((file.clone(), body)))
    }

    fn blob(&self, label: &str, digest: &Digest, size: Option<u64>) -> Result<File, ImageError> {
        let Some(file) = self.staged.blob(digest)? else {
            return Err(corrupt(self.origin, format!("{label}: the blob {digest} is not in the archive")));
        };
        match size.filter(|size| *size != file.size) {
            None => Ok(file.clone()),
            Some(size) => {
                let reason = format!(
                    "{label}: the blob {digest} has {} bytes, its manifest promises {size}",
                    file.size
                );
                Err(super::refuse(self.origin, ErrorKind::DataLoss, reason))
            }
        }
    }

    /// Says which platforms of an index are left out.
    fn tell_platforms(&mut self, label: &str, entries: &[ImageIndexEntry]) {
        let chosen = self.platform.candidates(entries).first().map(|entry| &entry.digest);
        for entry in entries.iter().filter(|entry| Some(&entry.digest) != chosen) {
            let Some(other) = &entry.platform else { continue };
            let there = Digest::parse(&entry.digest)
                .is_ok_and(|digest| matches!(self.staged.blob(&digest), Ok(Some(_))));
            let why = if there { "not for this machine" } else { "absent from the archive" };
            self.skipped.push(format!("{label}: {}/{}: {why}", other.os, other.architecture));
        }
    }
}
