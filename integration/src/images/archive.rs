//! Writes images as OCI image layouts and as archives of such layouts (OCI image specification,
//! "Image Layout").

use std::{fs, io, path::Path};

use serde_json::json;

use super::{Image, blob::Blob};

const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// The files of an image layout that holds `image` under `tag`: path within the layout, and content.
fn files(image: &Image, tag: &str) -> Vec<(String, Vec<u8>)> {
    let mut top = image.top.descriptor();
    top["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
    let index = json!({"schemaVersion": 2, "manifests": [top]});
    let path = |blob: &Blob| format!("blobs/{}", blob.digest().replace(':', "/"));
    let mut files = vec![
        ("oci-layout".to_owned(), LAYOUT.as_bytes().to_vec()),
        ("index.json".to_owned(), index.to_string().into_bytes()),
    ];
    files.extend(image.blobs.iter().chain([&image.top]).map(|blob| (path(blob), blob.bytes.clone())));
    files
}

/// Writes an image layout into the directory `into`, which may exist.
pub fn write_layout(image: &Image, tag: &str, into: &Path) -> io::Result<()> {
    fs::create_dir_all(into.join("blobs/sha256"))?;
    files(image, tag).into_iter().try_for_each(|(path, content)| fs::write(into.join(path), content))
}

/// An image layout as one tar archive, as `podhold image import` takes it.
pub fn archive(image: &Image, tag: &str) -> Vec<u8> {
    let mut layer = super::LayerBuilder::new();
    let mut seen = std::collections::BTreeSet::new();
    for (path, content) in files(image, tag) {
        if seen.insert(path.clone()) {
            layer = layer.file(&path, 0o644, content);
        }
    }
    layer.finish(super::Compression::None).blob.bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::{Compression, ImageBuilder, LayerBuilder};

    #[test]
    fn every_blob_of_a_layout_is_named_by_its_digest() {
        let layer = LayerBuilder::new().file("/a", 0o644, "a").finish(Compression::Gzip);
        let image = ImageBuilder::new().layer(layer).config("Cmd", vec!["/a"]).finish();
        let directory = tempfile::tempdir().unwrap();
        write_layout(&image, "v1", directory.path()).unwrap();
        for entry in fs::read_dir(directory.path().join("blobs/sha256")).unwrap() {
            let entry = entry.unwrap();
            let digest = super::super::blob::digest(&fs::read(entry.path()).unwrap());
            assert_eq!(digest, format!("sha256:{}", entry.file_name().to_string_lossy()));
        }
        assert!(!archive(&image, "v1").is_empty());
    }
}
