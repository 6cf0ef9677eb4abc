//! What `docker save` writes: `manifest.json`, configurations, and layers as plain archives. No I/O but the
//! staged files.
//!
//! Such an archive keeps no manifest, so the image's digest at its registry is not known. A manifest is made
//! of what is there, the same one each time, so that the image can be exported again.

use std::{fs, io::Read};

use serde_json::json;

use super::{
    corrupt,
    plan::{MAX_IMAGES, Plan, Planned},
    stage::{File, Staged},
};
use crate::{
    digest::Digest,
    error::ImageError,
    manifest::{self, Configuration, MAX_LAYERS},
    platform::Platform,
    reference::Reference,
    registry::{MAX_CONFIG, MAX_MANIFEST},
};

/// Where such an archive says what it holds.
pub(super) const MANIFEST: &str = "manifest.json";

/// An image in it.
#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

fn entries(staged: &Staged) -> Result<Vec<Entry>, ImageError> {
    let body = staged.read(staged.file_named(MANIFEST)?, MANIFEST, MAX_MANIFEST)?;
    let entries: Vec<Entry> = serde_json::from_slice(&body).map_err(|error| {
        corrupt(staged.origin(), format!("{MANIFEST} is not the JSON it should be: {error}"))
    })?;
    if entries.len() > MAX_IMAGES {
        return Err(corrupt(staged.origin(), format!("{MANIFEST} names more than {MAX_IMAGES} images")));
    }
    Ok(entries)
}

fn references(tags: &[String]) -> Vec<Reference> {
    tags.iter().filter_map(|tag| Reference::parse(tag).ok()).collect()
}

/// The names that a `manifest.json` beside an image layout gives to an image.
pub(super) fn names(staged: &Staged, id: &Digest) -> Result<Vec<Reference>, ImageError> {
    if staged.file(MANIFEST).is_none() {
        return Ok(Vec::new());
    }
    let entries = entries(staged)?;
    let same =
        entries.iter().filter(|entry| staged.file_named(&entry.config).is_ok_and(|file| file.digest == *id));
    Ok(same.flat_map(|entry| references(entry.repo_tags.as_deref().unwrap_or_default())).collect())
}

pub(super) fn plan(staged: &mut Staged, platform: &Platform) -> Result<Plan, ImageError> {
    let mut plan = Plan::default();
    for entry in entries(staged)? {
        if let Some(image) = image(staged, platform, &entry, &mut plan.skipped)? {
            let origin = staged.origin().to_owned();
            plan.add(&origin, image)?;
        }
    }
    Ok(plan)
}

fn image(
    staged: &mut Staged,
    platform: &Platform,
    entry: &Entry,
    skipped: &mut Vec<String>,
) -> Result<Option<Planned>, ImageError> {
    let origin = staged.origin().to_owned();
    let label = entry.config.clone();
    let config = staged.file_named(&label)?.clone();
    let claimed = label.rsplit('/').next().unwrap_or(&label).trim_end_matches(".json");
    if Digest::parse(&format!("sha256:{claimed}")).is_ok_and(|claimed| claimed != config.digest) {
        let reason = format!("entry {label:?} refused: its content has the digest {}", config.digest);
        return Err(corrupt(&origin, reason));
    }
    let raw = staged.read(&config, "the image configuration", MAX_CONFIG)?;
    let configuration = self::configuration(&origin, &label, raw)?;
    let (os, arch) = (configuration.parsed.os(), configuration.parsed.architecture());
    if !platform.runs(os, arch, configuration.parsed.variant().as_deref()) {
        skipped.push(format!("{label}: made for {os}/{arch}, this machine is {platform}"));
        return Ok(None);
    }
    let names = entry.layers.as_deref().unwrap_or_default();
    if names.len() > MAX_LAYERS {
        let reason = format!("{label}: it has {} layers, more than {MAX_LAYERS}", names.len());
        return Err(corrupt(&origin, reason));
    }
    if names.len() != configuration.diff_ids.len() {
        let (layers, diff_ids) = (names.len(), configuration.diff_ids.len());
        let reason =
            format!("{label}: {MANIFEST} has {layers} layers, the image configuration {diff_ids} diff_ids");
        return Err(corrupt(&origin, reason));
    }
    let layers = names.iter().map(|name| staged.file_named(name).cloned()).collect::<Result<Vec<_>, _>>()?;
    let manifest = staged.add(&made_up(&config, &layers)?)?;
    let blobs = layers.iter().map(|file| file.size).fold(0, u64::saturating_add);
    Ok(Some(Planned {
        names: references(entry.repo_tags.as_deref().unwrap_or_default()),
        id: config.digest.clone(),
        target: manifest.digest.clone(),
        published: false,
        size: blobs.saturating_add(config.size).saturating_add(manifest.size),
        documents: vec![manifest],
        config,
        stack: configuration.into(),
        layers,
    }))
}

/// Reads an image configuration.
pub(super) fn configuration(origin: &str, label: &str, raw: Vec<u8>) -> Result<Configuration, ImageError> {
    let text = String::from_utf8(raw)
        .map_err(|_| corrupt(origin, format!("{label}: the image configuration is not UTF-8 text")))?;
    manifest::configuration(text.as_bytes()).map_err(|reason| corrupt(origin, format!("{label}: {reason}")))
}

/// The manifest of an image that came without one.
fn made_up(config: &File, layers: &[File]) -> Result<Vec<u8>, ImageError> {
    let mut descriptors = Vec::new();
    for layer in layers {
        let media_type = format!("application/vnd.oci.image.layer.v1.tar{}", compression(layer)?);
        descriptors.push(json!({"mediaType": media_type, "digest": layer.digest, "size": layer.size}));
    }
    let config = json!({
        "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.digest, "size": config.size,
    });
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest =
        json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": descriptors});
    Ok(manifest.to_string().into_bytes())
}

/// What a media type says of a layer's compression.
fn compression(layer: &File) -> Result<&'static str, ImageError> {
    let look = || {
        let mut start = Vec::new();
        fs::File::open(&layer.path)?.take(4).read_to_end(&mut start)?;
        Ok(start)
    };
    let start: Vec<u8> = look().map_err(ImageError::io(format!("read {}", layer.path.display())))?;
    Ok(match start[..] {
        [0x1f, 0x8b, ..] => "+gzip",
        [0x28, 0xb5, 0x2f, 0xfd] => "+zstd",
        _ => "",
    })
}
