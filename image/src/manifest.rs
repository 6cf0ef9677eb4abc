//! Manifests, indexes and configurations: what a registry says an image consists of, checked. No I/O.
//!
//! Invariant: what comes out of here is consistent: as many layers as diff ids, known media types, well
//! formed digests, sizes that are not negative.

use oci_distribution::manifest::{self as media, OciDescriptor, OciImageIndex, OciImageManifest};
use oci_spec::image::ImageConfiguration;
use serde::de::IgnoredAny;

use crate::{
    digest::{ChainId, Digest},
    error::{ErrorKind, ImageError},
    platform::Platform,
    registry::Document,
};

/// Most layers an image may have: overlayfs stacks 500 lower directories (kernel, fs/overlayfs).
pub(crate) const MAX_LAYERS: usize = 500;

/// Layers we can unpack. The compression is told by the content.
const LAYERS: &[&str] = &[
    media::IMAGE_LAYER_MEDIA_TYPE,
    media::IMAGE_LAYER_GZIP_MEDIA_TYPE,
    "application/vnd.oci.image.layer.v1.tar+zstd",
    media::IMAGE_DOCKER_LAYER_TAR_MEDIA_TYPE,
    media::IMAGE_DOCKER_LAYER_GZIP_MEDIA_TYPE,
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// What a reference turned out to name.
pub(crate) enum Manifest {
    /// One image.
    Image(Layout),
    /// The manifests and indexes among which the platform's image is, the best first; and the platforms for
    /// which there is something.
    Index(Vec<Blob>, Vec<String>),
}

/// Configuration and layers of one image.
pub(crate) struct Layout {
    pub(crate) config: Blob,
    pub(crate) layers: Vec<Blob>,
}

/// A blob at the registry.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// The fields that tell the kinds of documents apart.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    schema_version: Option<u64>,
    media_type: Option<String>,
    manifests: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    config: Option<IgnoredAny>,
}

/// Reads a manifest or index.
pub(crate) fn read(
    reference: &impl ToString,
    document: &Document,
    platform: &Platform,
) -> Result<Manifest, ImageError> {
    let digest = &document.digest;
    let corrupt = |reason: String| {
        ImageError::image(reference, ErrorKind::DataLoss, format!("manifest {digest}: {reason}"))
    };
    let unusable = |reason: String| {
        ImageError::image(reference, ErrorKind::FailedPrecondition, format!("manifest {digest}: {reason}"))
    };
    let kind: Kind = serde_json::from_slice(&document.body).map_err(|error| {
        corrupt(format!("the registry sent no manifest: not the JSON it should be: {error}"))
    })?;
    if kind.schema_version.is_some_and(|version| version != 2) {
        return Err(unusable(
            "schema version 1 is long obsolete; push the image again with a current tool".to_owned(),
        ));
    }
    let media_type = kind.media_type.as_deref().or(document.media_type.as_deref()).unwrap_or_default();
    let is_index = kind.manifests.is_some();
    if is_index && (kind.layers.is_some() || kind.config.is_some()) {
        return Err(corrupt("it is an image and an index at once, which is not allowed".to_owned()));
    }
    let index_type =
        matches!(media_type, media::OCI_IMAGE_INDEX_MEDIA_TYPE | media::IMAGE_MANIFEST_LIST_MEDIA_TYPE);
    let image_type = matches!(media_type, media::OCI_IMAGE_MEDIA_TYPE | media::IMAGE_MANIFEST_MEDIA_TYPE);
    if (is_index && image_type) || (!is_index && index_type) {
        return Err(corrupt(format!("its content is not what its media type {media_type} says")));
    }
    if kind.media_type.is_some() && !index_type && !image_type {
        return Err(unusable(format!(
            "it is no container image: its media type is {}",
            printable(media_type)
        )));
    }
    if is_index {
        let index: OciImageIndex = serde_json::from_slice(&document.body)
            .map_err(|error| corrupt(format!("the index is damaged: {error}")))?;
        return choose(&index, platform).map_err(corrupt);
    }
    let manifest: OciImageManifest =
        serde_json::from_slice(&document.body).map_err(|error| corrupt(format!("it is damaged: {error}")))?;
    layout(&manifest)
        .map(Manifest::Image)
        .map_err(|(kind, reason)| ImageError::image(reference, kind, format!("manifest {digest}: {reason}")))
}

/// The entries of an index; `None` when `body` is none.
pub(crate) fn index(body: &[u8]) -> Option<OciImageIndex> {
    serde_json::from_slice(body).ok()
}

fn choose(index: &OciImageIndex, platform: &Platform) -> Result<Manifest, String> {
    let candidates = platform.candidates(&index.manifests);
    let candidates =
        candidates.iter().map(|entry| blob(&entry.digest, entry.size)).collect::<Result<_, _>>()?;
    let named = index.manifests.iter().filter_map(|entry| entry.platform.as_ref());
    let mut names: Vec<String> = named
        .map(|named| {
            let variant = named.variant.as_ref().map(|variant| format!("/{variant}")).unwrap_or_default();
            let features = named.os_features.as_ref().filter(|features| !features.is_empty());
            let features = features.map(|list| format!(" with {}", list.join(", "))).unwrap_or_default();
            printable(&format!("{}/{}{variant}{features}", named.os, named.architecture))
        })
        .take(30)
        .collect();
    names.dedup();
    Ok(Manifest::Index(candidates, names))
}

/// What a document points at.
fn blob(digest: &str, size: i64) -> Result<Blob, String> {
    let digest = Digest::parse(digest).map_err(|error| error.to_string())?;
    let size = u64::try_from(size).map_err(|_| format!("{digest} has a negative size"))?;
    Ok(Blob { digest, size })
}

/// Foreign text for a message.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

fn layout(manifest: &OciImageManifest) -> Result<Layout, (ErrorKind, String)> {
    let config_type = manifest.config.media_type.as_str();
    if !matches!(config_type, media::IMAGE_CONFIG_MEDIA_TYPE | media::IMAGE_DOCKER_CONFIG_MEDIA_TYPE) {
        let artifact = manifest.artifact_type.as_deref().map(|kind| format!(" and it is an artifact {kind}"));
        let artifact = printable(&artifact.unwrap_or_default());
        let config_type = printable(config_type);
        let reason =
            format!("it is no container image: its configuration has the media type {config_type}{artifact}");
        return Err((ErrorKind::FailedPrecondition, reason));
    }
    if manifest.layers.len() > MAX_LAYERS {
        let reason = format!("it has {} layers, more than {MAX_LAYERS}", manifest.layers.len());
        return Err((ErrorKind::FailedPrecondition, reason));
    }
    let blob = |descriptor: &OciDescriptor| {
        blob(&descriptor.digest, descriptor.size).map_err(|reason| (ErrorKind::DataLoss, reason))
    };
    for layer in &manifest.layers {
        if !LAYERS.contains(&layer.media_type.as_str()) {
            let reason = format!(
                "layer {} has the media type {}, which is not understood; layers are tar archives, plain or \
                 compressed by gzip or zstd ({}): push the image again as one of these",
                printable(&layer.digest),
                printable(&layer.media_type),
                LAYERS.join(", ")
            );
            return Err((ErrorKind::FailedPrecondition, reason));
        }
    }
    let layers = manifest.layers.iter().map(blob).collect::<Result<_, _>>()?;
    Ok(Layout { config: blob(&manifest.config)?, layers })
}

/// An image's configuration and what follows from it.
pub(crate) struct Configuration {
    pub(crate) parsed: ImageConfiguration,
    pub(crate) diff_ids: Vec<Digest>,
    pub(crate) chain: Vec<ChainId>,
}

/// Reads a configuration. The reasons of refusal are for a message that names the image.
pub(crate) fn configuration(raw: &[u8]) -> Result<Configuration, String> {
    let parsed: ImageConfiguration = serde_json::from_slice(raw)
        .map_err(|error| format!("the image configuration is damaged: {error}"))?;
    let diff_ids: Vec<Digest> = parsed
        .rootfs()
        .diff_ids()
        .iter()
        .map(|id| Digest::parse(id))
        .collect::<Result<_, _>>()
        .map_err(|error| format!("the image configuration: diff_ids: {error}"))?;
    let chain = ChainId::of_stack(&diff_ids);
    Ok(Configuration { parsed, diff_ids, chain })
}

/// Checks that configuration and manifest belong together and run here.
pub(crate) fn check(
    reference: &impl ToString,
    layout: &Layout,
    configuration: &Configuration,
    platform: &Platform,
) -> Result<(), ImageError> {
    let (layers, diff_ids) = (layout.layers.len(), configuration.diff_ids.len());
    if layers != diff_ids {
        let reason = format!("the manifest has {layers} layers, the image configuration {diff_ids} diff_ids");
        return Err(ImageError::image(reference, ErrorKind::DataLoss, reason));
    }
    let parsed = &configuration.parsed;
    let (os, arch, variant) = (parsed.os(), parsed.architecture(), parsed.variant().as_deref());
    if !platform.runs(os, arch, variant) {
        let variant = variant.map(|variant| format!("/{variant}")).unwrap_or_default();
        let made_for = printable(&format!("{os}/{arch}{variant}"));
        let reason = format!("the image is made for {made_for}; this machine is {platform}");
        return Err(ImageError::image(reference, ErrorKind::FailedPrecondition, reason));
    }
    Ok(())
}
