//! Builds layers: tar archives that are the same bytes whenever they are built from the same input.
//! No I/O.

use std::io::Write;

use flate2::{Compression as Level, GzBuilder};
use tar::{EntryType, Header};

use super::blob::{Blob, digest, media};

/// How a layer is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Plain tar.
    None,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

/// A layer ready to be stored.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The archive as it is stored.
    pub blob: Blob,
    /// The digest of the archive before compression.
    pub diff_id: String,
}

/// A layer in the making. All entries belong to root and have the time 0 unless said otherwise.
pub struct LayerBuilder {
    tar: tar::Builder<Vec<u8>>,
}

impl Default for LayerBuilder {
    fn default() -> Self {
        Self { tar: tar::Builder::new(Vec::new()) }
    }
}

/// Writing into memory fails only when there is none.
const IN_MEMORY: &str = "a short name is written into memory";

impl LayerBuilder {
    /// An empty layer.
    pub fn new() -> Self {
        Self::default()
    }

    /// A layer of entries that were written elsewhere.
    pub(super) fn of_archive(tar: tar::Builder<Vec<u8>>) -> Self {
        Self { tar }
    }

    /// Adds a directory.
    #[must_use]
    pub fn directory(self, path: &str, mode: u32) -> Self {
        self.entry(EntryType::Directory, path, mode, &[])
    }

    /// Adds a file.
    #[must_use]
    pub fn file(self, path: &str, mode: u32, content: impl AsRef<[u8]>) -> Self {
        self.entry(EntryType::Regular, path, mode, content.as_ref())
    }

    /// Adds a file that belongs to `owner` (user and group).
    #[must_use]
    pub fn owned_file(mut self, path: &str, mode: u32, owner: (u64, u64), content: &[u8]) -> Self {
        let mut header = header(EntryType::Regular, mode, content.len());
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        self.tar.append_data(&mut header, path, content).expect(IN_MEMORY);
        self
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.link(EntryType::Symlink, path, target)
    }

    /// Adds a further name for a file that this layer or one below holds.
    #[must_use]
    pub fn hard_link(self, path: &str, existing: &str) -> Self {
        self.link(EntryType::Link, path, existing)
    }

    /// Hides what lower layers have under `path` (OCI image specification, "Whiteouts").
    #[must_use]
    pub fn whiteout(self, path: &str) -> Self {
        let (directory, name) = path.rsplit_once('/').map_or(("", path), |(d, n)| (d, n));
        self.file(&format!("{directory}/.wh.{name}"), 0o644, "")
    }

    /// Hides everything that lower layers have in the directory `path`.
    #[must_use]
    pub fn opaque(self, path: &str) -> Self {
        self.file(&format!("{path}/.wh..wh..opq"), 0o644, "")
    }

    /// Ends the layer and compresses it.
    pub fn finish(self, compression: Compression) -> Layer {
        let plain = self.tar.into_inner().expect(IN_MEMORY);
        let diff_id = digest(&plain);
        let (media_type, bytes) = match compression {
            Compression::None => (media::LAYER, plain),
            Compression::Gzip => (media::LAYER_GZIP, gzip(&plain)),
            Compression::Zstd => (media::LAYER_ZSTD, zstd(&plain)),
        };
        Layer { blob: Blob { media_type, bytes }, diff_id }
    }

    fn entry(mut self, kind: EntryType, path: &str, mode: u32, content: &[u8]) -> Self {
        let path = path.trim_start_matches('/');
        self.tar.append_data(&mut header(kind, mode, content.len()), path, content).expect(IN_MEMORY);
        self
    }

    fn link(mut self, kind: EntryType, path: &str, target: &str) -> Self {
        let path = path.trim_start_matches('/');
        self.tar.append_link(&mut header(kind, 0o777, 0), path, target).expect(IN_MEMORY);
        self
    }
}

fn header(kind: EntryType, mode: u32, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size as u64);
    header
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Level::fast());
    encoder.write_all(plain).expect(IN_MEMORY);
    encoder.finish().expect(IN_MEMORY)
}

fn zstd(plain: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(plain, ruzstd::encoding::CompressionLevel::Fastest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(compression: Compression) -> Layer {
        LayerBuilder::new()
            .directory("/etc", 0o755)
            .file("/etc/a", 0o644, "text")
            .hard_link("/etc/b", "etc/a")
            .whiteout("/etc/c")
            .finish(compression)
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            assert_eq!(layer(compression).blob, layer(compression).blob, "{compression:?}");
            assert_eq!(layer(compression).diff_id, layer(Compression::None).blob.digest());
        }
    }

    #[test]
    fn a_zstd_layer_unpacks_to_the_plain_one() {
        let packed = layer(Compression::Zstd).blob.bytes;
        let mut plain = Vec::new();
        let mut decoder = ruzstd::decoding::StreamingDecoder::new(packed.as_slice()).unwrap();
        std::io::Read::read_to_end(&mut decoder, &mut plain).unwrap();
        assert_eq!(plain, layer(Compression::None).blob.bytes);
    }

    #[test]
    fn whiteouts_lie_beside_what_they_hide() {
        let blob = layer(Compression::None).blob;
        let mut archive = tar::Archive::new(blob.bytes.as_slice());
        let paths: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(paths, ["etc", "etc/a", "etc/b", "etc/.wh.c"]);
    }
}
