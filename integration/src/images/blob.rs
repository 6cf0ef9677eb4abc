//! Bytes with their digest: what an image consists of. No I/O.

use sha2::{Digest, Sha256};

/// Media types of the OCI image specification that our images use.
pub mod media {
    /// An index of manifests, one for each platform.
    pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// An image manifest.
    pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// An image configuration.
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// A layer as plain tar.
    pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    /// A layer as tar in gzip.
    pub const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    /// A layer as tar in zstd.
    pub const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
}

/// One piece of an image: a layer, a configuration, a manifest or an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// What it is, one of [`media`].
    pub media_type: &'static str,
    /// The content.
    pub bytes: Vec<u8>,
}

impl Blob {
    /// Serialises `value` without spaces and with sorted keys, so that equal values have equal digests.
    pub fn json(media_type: &'static str, value: &serde_json::Value) -> Self {
        Self { media_type, bytes: value.to_string().into_bytes() }
    }

    /// The digest in the form `sha256:HEX`.
    pub fn digest(&self) -> String {
        digest(&self.bytes)
    }

    /// The descriptor by which another blob refers to this one.
    pub fn descriptor(&self) -> serde_json::Value {
        serde_json::json!({
            "mediaType": self.media_type, "digest": self.digest(), "size": self.bytes.len(),
        })
    }
}

/// The SHA-256 of `bytes` in the form `sha256:HEX`.
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
