//! An image with everything that a root filesystem can hold and a tool can get wrong, over three layers: but for
//! GNU sparse files, which umoci refuses ("unknown typeflag"), and hard links to files of layers below, which
//! builders do not write and we refuse.
//!
//! Directories are listed in every layer that changes something in them, as image builders do it: what time
//! a directory has that a layer changes without naming it is said nowhere.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path};

use tar::{Builder, EntryType, Header};

use super::{Compression, Image, ImageBuilder, LayerBuilder};

/// Writing into memory fails only when there is none.
const IN_MEMORY: &str = "a short archive is written into memory";

/// `cap_net_raw` effective and permitted, as the kernel keeps it (`struct vfs_cap_data`, revision 2).
const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// The image.
pub fn image() -> Image {
    let empty = LayerBuilder::new().finish(Compression::Gzip);
    let layers = [lower().layer(Compression::Gzip), empty, middle().layer(Compression::None)];
    let layers = layers.into_iter().chain([upper().layer(Compression::Gzip)]);
    let image = layers.fold(ImageBuilder::new(), ImageBuilder::layer);
    image.config("Cmd", vec!["/nothing"]).finish()
}

fn lower() -> Archive {
    Archive::new()
        .directory("etc", 0o755)
        .file("etc/hidden", 0o644, b"must not be seen\n")
        .file("etc/kept", 0o640, b"kept\n")
        .directory("links", 0o755)
        .file("links/one", 0o600, b"one file of three names\n")
        .link(EntryType::Link, "links/two", "links/one")
        .link(EntryType::Link, "links/three", "links/two")
        .link(EntryType::Symlink, "links/absolute", "/etc/kept")
        .link(EntryType::Symlink, "links/out", "../../../../etc/passwd")
        .link(EntryType::Symlink, "links/dangling", "nowhere/at all")
        .directory("special", 0o755)
        .device(EntryType::Char, "special/null", (1, 3))
        .device(EntryType::Block, "special/loop", (7, 0))
        .device(EntryType::Fifo, "special/fifo", (0, 0))
        .directory("modes", 0o1777)
        .file("modes/set-uid", 0o4755, b"u")
        .file("modes/set-gid", 0o2755, b"g")
        .file("modes/nothing", 0o000, b"n")
        .directory("modes/group", 0o2775)
        .directory("opaque", 0o755)
        .file("opaque/hidden", 0o644, b"must not be seen\n")
        .directory("opaque/below", 0o755)
        .file("opaque/below/hidden", 0o644, b"must not be seen\n")
        .directory("gone", 0o755)
        .file("gone/file", 0o644, b"must not be seen\n")
        .file("becomes-directory", 0o644, b"a file\n")
        .directory("becomes-file", 0o755)
        .file("becomes-file/inside", 0o644, b"must not be seen\n")
}

fn middle() -> Archive {
    let long = format!("long/{}/{}", "d".repeat(120), "f".repeat(180));
    Archive::new()
        .directory("etc", 0o750)
        .file("etc/.wh.hidden", 0o644, b"")
        .directory("opaque", 0o700)
        .file("opaque/.wh..wh..opq", 0o644, b"")
        .file("opaque/new", 0o644, b"new\n")
        .file(".wh.gone", 0o644, b"")
        .directory("owners", 0o755)
        .owned("owners/beyond-16-bits", (70_000, 80_000))
        .owned("owners/beyond-octal", (3_000_000, 2_999_999))
        .directory("long", 0o755)
        .directory(&format!("long/{}", "d".repeat(120)), 0o755)
        .file(&long, 0o644, b"long\n")
        .directory("names", 0o755)
        .bytes_named(b"names/not-utf-8-\xff\xfe")
        .file("names/with space, \"quotes\" and \n newline", 0o644, b"x")
        .file("names/\u{43f}\u{440}\u{438}\u{432}\u{435}\u{442}", 0o644, b"x")
}

fn upper() -> Archive {
    Archive::new()
        .directory("times", 0o755)
        .extended("times/nanoseconds", &[("mtime", b"1234567890.123456789")])
        .extended("times/before-1970", &[("mtime", b"-86400.5")])
        .extended("times/far", &[("mtime", b"4102444800")])
        .directory("attributes", 0o755)
        .extended("attributes/capability", &[("SCHILY.xattr.security.capability", CAPABILITY)])
        .extended(
            "attributes/user",
            &[("SCHILY.xattr.user.note", b"a \xff note"), ("SCHILY.xattr.user.b", b"1")],
        )
        .directory("becomes-directory", 0o711)
        .file("becomes-directory/inside", 0o644, b"inside\n")
        .file("becomes-file", 0o644, b"a file now\n")
}

struct Archive(Builder<Vec<u8>>);

impl Archive {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn layer(self, compression: Compression) -> super::Layer {
        LayerBuilder::of_archive(self.0).finish(compression)
    }

    fn directory(mut self, path: &str, mode: u32) -> Self {
        let mut header = header(EntryType::Directory, mode, 0);
        self.0.append_data(&mut header, path, &[][..]).expect(IN_MEMORY);
        self
    }

    fn file(mut self, path: &str, mode: u32, content: &[u8]) -> Self {
        let mut header = header(EntryType::Regular, mode, content.len());
        self.0.append_data(&mut header, path, content).expect(IN_MEMORY);
        self
    }

    fn bytes_named(mut self, path: &[u8]) -> Self {
        let mut header = header(EntryType::Regular, 0o644, 1);
        self.0.append_data(&mut header, Path::new(OsStr::from_bytes(path)), &b"x"[..]).expect(IN_MEMORY);
        self
    }

    fn owned(mut self, path: &str, (uid, gid): (u64, u64)) -> Self {
        let mut header = header(EntryType::Regular, 0o640, 1);
        header.set_uid(uid);
        header.set_gid(gid);
        self.0.append_data(&mut header, path, &b"x"[..]).expect(IN_MEMORY);
        self
    }

    fn link(mut self, kind: EntryType, path: &str, target: &str) -> Self {
        self.0.append_link(&mut header(kind, 0o777, 0), path, target).expect(IN_MEMORY);
        self
    }

    fn device(mut self, kind: EntryType, path: &str, (major, minor): (u32, u32)) -> Self {
        let mut header = header(kind, 0o660, 0);
        header.set_device_major(major).expect(IN_MEMORY);
        header.set_device_minor(minor).expect(IN_MEMORY);
        self.0.append_data(&mut header, path, &[][..]).expect(IN_MEMORY);
        self
    }

    /// A file with records of a PAX header.
    fn extended(mut self, path: &str, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).expect(IN_MEMORY);
        self.file(path, 0o644, b"x")
    }
}

/// Every entry has a time of its own kind, which no tool gives by chance.
fn header(kind: EntryType, mode: u32, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(7);
    header.set_gid(9);
    header.set_mtime(1_000_000_000 + u64::from(mode));
    header.set_size(size as u64);
    header
}
