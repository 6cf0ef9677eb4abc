//! Puts layers and a configuration together to an image, and images to an index. No I/O.

use serde_json::{Value, json};

use super::{
    blob::{Blob, media},
    layer::Layer,
};

/// Everything a registry needs to hold for one reference.
#[derive(Debug, Clone)]
pub struct Image {
    /// Layers, configurations and, below an index, manifests. A blob comes before what refers to it.
    pub blobs: Vec<Blob>,
    /// What a tag points at: a manifest or an index.
    pub top: Blob,
}

/// An image in the making, for `linux/amd64` unless said otherwise.
#[derive(Debug)]
pub struct ImageBuilder {
    architecture: &'static str,
    config: serde_json::Map<String, Value>,
    layers: Vec<Layer>,
}

impl Default for ImageBuilder {
    fn default() -> Self {
        Self { architecture: "amd64", config: serde_json::Map::new(), layers: Vec::new() }
    }
}

impl ImageBuilder {
    /// An image without layers and with an empty configuration.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a layer above those already there.
    #[must_use]
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// Sets a field of the configuration's `config` object, such as `Entrypoint` or `User`.
    #[must_use]
    pub fn config(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.config.insert(field.to_owned(), value.into());
        self
    }

    /// Says for which architecture (in Go's words) the image is.
    #[must_use]
    pub fn architecture(mut self, architecture: &'static str) -> Self {
        self.architecture = architecture;
        self
    }

    /// Puts it together.
    pub fn finish(self) -> Image {
        let diff_ids: Vec<&str> = self.layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let config = json!({
            "architecture": self.architecture,
            "os": "linux",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = Blob::json(media::CONFIG, &config);
        let layers: Vec<Value> = self.layers.iter().map(|layer| layer.blob.descriptor()).collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media::MANIFEST,
            "config": config.descriptor(),
            "layers": layers,
        });
        let mut blobs: Vec<Blob> = self.layers.into_iter().map(|layer| layer.blob).collect();
        blobs.push(config);
        Image { blobs, top: Blob::json(media::MANIFEST, &manifest) }
    }
}

impl Image {
    /// The image id as the CRI has it: the digest of the configuration. `None` for an index.
    pub fn id(&self) -> Option<String> {
        let manifest: Value = serde_json::from_slice(&self.top.bytes).ok()?;
        manifest["config"]["digest"].as_str().map(str::to_owned)
    }
}

/// An index that lists `images`, each with its architecture, in this order.
pub fn index(images: impl IntoIterator<Item = (&'static str, Image)>) -> Image {
    let (mut blobs, mut manifests) = (Vec::new(), Vec::new());
    for (architecture, image) in images {
        let mut descriptor = image.top.descriptor();
        descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
        manifests.push(descriptor);
        blobs.extend(image.blobs);
        blobs.push(image.top);
    }
    let index = json!({"schemaVersion": 2, "mediaType": media::INDEX, "manifests": manifests});
    Image { blobs, top: Blob::json(media::INDEX, &index) }
}
