//! Archives that are right, wrong and hostile, unpacked for real. Needs root.

use std::{
    fs,
    io::Write,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::Path,
};

use tar::EntryType;
use tokio::sync::mpsc;

use super::*;
use crate::error::ErrorKind;

mod forms;
mod limits;

struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn entry(
        mut self,
        kind: EntryType,
        (name, link): (&str, &str),
        change: impl FnOnce(&mut tar::Header),
        data: &[u8],
    ) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000);
        header.set_size(data.len() as u64);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.name[..name.len()].copy_from_slice(name.as_bytes());
        gnu.linkname[..link.len()].copy_from_slice(link.as_bytes());
        change(&mut header);
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(EntryType::Regular, (name, ""), |_| {}, data)
    }

    fn dir(self, name: &str, mode: u32) -> Self {
        self.entry(EntryType::Directory, (name, ""), |h| h.set_mode(mode), b"")
    }

    fn link(self, kind: EntryType, name: &str, target: &str) -> Self {
        self.entry(kind, (name, target), |_| {}, b"")
    }

    fn device(self, kind: EntryType, name: &str, major: u32, minor: u32) -> Self {
        let set = |h: &mut tar::Header| {
            h.set_device_major(major).unwrap();
            h.set_device_minor(minor).unwrap();
        };
        self.entry(kind, (name, ""), set, b"")
    }

    fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    fn build(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn expected(blob: &[u8], tar: &[u8]) -> Expected {
    let limits = Limits { entries: 10_000, bytes: 64 << 20, expansion: 100 };
    Expected { digest: Digest::of(blob), size: blob.len() as u64, diff_id: Digest::of(tar), limits }
}

/// Feeds `blob` in pieces of `step` bytes.
fn feed(blob: &[u8], step: usize, expected: &Expected, root: &Path) -> Result<Unpacked, UnpackError> {
    let (sender, receiver) = mpsc::channel(2);
    let blob = bytes::Bytes::copy_from_slice(blob);
    let feeder = std::thread::spawn(move || {
        let mut rest = blob;
        while !rest.is_empty() {
            let piece = rest.split_to(step.min(rest.len()));
            if sender.blocking_send(Piece::Data(piece)).is_err() {
                return;
            }
        }
        let _ = sender.blocking_send(Piece::End);
    });
    let want = Want::default();
    let root = OwnedFd::from(fs::File::open(root).unwrap());
    let arriving = Arriving { pieces: receiver, kept: &mut KeepNothing };
    let result = unpack(arriving, root, expected, &want.watched());
    feeder.join().unwrap();
    result
}

/// Unpacks the archive as the lowest layer.
fn try_tar(tar: &[u8], root: &Path) -> Result<Unpacked, UnpackError> {
    let mut unpacked = feed(tar, 1000, &expected(tar, tar), root)?;
    borrow(&open(root), &[], &mut unpacked, u64::MAX)?;
    Ok(unpacked)
}

/// Makes the hard links, copying at most `bytes`.
fn borrow(
    layer: &OwnedFd,
    lowers: &[OwnedFd],
    unpacked: &mut Unpacked,
    bytes: u64,
) -> Result<(), UnpackError> {
    let (want, limits) = (Want::default(), Limits { bytes, ..Limits::default() });
    borrow_files(layer, lowers, unpacked, &mut Budget::new(&limits, 1, &want.watched()))
}

fn open(path: &Path) -> OwnedFd {
    OwnedFd::from(fs::File::open(path).unwrap())
}

fn root() -> Option<tempfile::TempDir> {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: unpacking sets owners and makes devices: this needs root");
        return None;
    }
    Some(tempfile::tempdir().unwrap())
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

fn names(root: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn everything_arrives_as_the_archive_says() {
    let Some(dir) = root() else { return };
    let owner = |h: &mut tar::Header| {
        h.set_uid(3_000_000);
        h.set_gid(70_000);
        h.set_mode(0o6755);
    };
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(140));
    let mut tar = Tar::new()
        .dir("./", 0o711)
        .dir("bin/", 0o1777)
        .entry(EntryType::Regular, ("bin/tool", ""), owner, b"tool")
        .link(EntryType::Link, "bin/same", "bin/tool")
        .link(EntryType::Symlink, "bin/soft", "/etc/passwd")
        .pax(&[
            ("SCHILY.xattr.user.note", b"hello\0x"),
            ("SCHILY.xattr.security.capability", CAPABILITY),
            ("mtime", b"12.25"),
        ])
        .file("bin/ping", b"ping")
        .device(EntryType::Char, "null", 1, 3)
        .device(EntryType::Block, "disk", 8, 1)
        .device(EntryType::Fifo, "pipe", 0, 0);
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o600);
    tar.0.append_data(&mut header, &long, &b"x"[..]).unwrap();
    let tar = tar.build();
    let unpacked = try_tar(&tar, dir.path()).unwrap();
    assert!(unpacked.root_entry);
    assert_eq!(unpacked.implicit, ["d".repeat(120).into_bytes()]);
    let at = |name: &str| fs::symlink_metadata(dir.path().join(name)).unwrap();
    assert_eq!(at(".").mode() & 0o7777, 0o711);
    assert_eq!(at("bin").mode() & 0o7777, 0o1777);
    assert_eq!((at("bin").mtime(), at(".").mtime()), (1_000_000, 1_000_000));
    let tool = at("bin/tool");
    assert_eq!((tool.uid(), tool.gid(), tool.mode() & 0o7777, tool.nlink()), (3_000_000, 70_000, 0o6755, 2));
    assert_eq!(at("bin/same").ino(), tool.ino());
    assert_eq!(fs::read_link(dir.path().join("bin/soft")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!((at("bin/ping").mtime(), at("bin/ping").mtime_nsec()), (12, 250_000_000));
    assert_eq!(xattr(&dir.path().join("bin/ping"), "user.note").unwrap(), b"hello\0x");
    assert_eq!(xattr(&dir.path().join("bin/ping"), "security.capability").unwrap(), CAPABILITY);
    assert!(at("null").file_type().is_char_device() && at("null").rdev() == rustix::fs::makedev(1, 3));
    assert!(at("disk").file_type().is_block_device() && at("pipe").file_type().is_fifo());
    assert_eq!(fs::read(dir.path().join(long)).unwrap(), b"x");
    assert_eq!(at(&"d".repeat(120)).permissions().mode() & 0o7777, 0o755);
    assert_eq!(unpacked.inodes, 10);
}

/// cap_net_raw, permitted and effective (linux/capability.h, revision 2).
const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn removals_become_overlays_marks() {
    let Some(dir) = root() else { return };
    let tar = Tar::new()
        .file("a/.wh.gone", b"")
        .file("b/.wh..wh..opq", b"")
        .file("b/kept", b"k")
        .file(".wh.again", b"")
        .file("again/new", b"n")
        .file("back", b"b")
        .file(".wh.back", b"")
        .file(".wh.first", b"")
        .file("first", b"f")
        .file(".wh..wh.plnk/1.2", b"")
        .build();
    // A directory with the name of bookkeeping is no place for files.
    assert!(try_tar(&tar, dir.path()).unwrap_err().to_string().contains("whiteout"));
    let tar = Tar::new()
        .file("a/.wh.gone", b"")
        .file("b/.wh..wh..opq", b"")
        .file("b/kept", b"k")
        .file(".wh.again", b"")
        .file("again/new", b"n")
        .file("back", b"b")
        .file(".wh.back", b"")
        .file(".wh.first", b"")
        .file("first", b"f")
        .file(".wh..wh.aufs", b"")
        .build();
    let dir = tempfile::tempdir().unwrap();
    try_tar(&tar, dir.path()).unwrap();
    let gone = fs::symlink_metadata(dir.path().join("a/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    let opaque = |name: &str| xattr(&dir.path().join(name), "trusted.overlay.opaque");
    assert_eq!(opaque("b").as_deref(), Some(&b"y"[..]));
    assert_eq!(opaque("again").as_deref(), Some(&b"y"[..]), "what was removed and made anew hides the old");
    assert_eq!(opaque("a"), None);
    assert_eq!(fs::read(dir.path().join("back")).unwrap(), b"b");
    assert_eq!(fs::read(dir.path().join("first")).unwrap(), b"f");
    assert_eq!(names(dir.path()), ["a", "again", "b", "back", "first"]);
}

#[test]
fn hostile_entries_are_refused_by_name_and_write_nothing_outside() {
    let Some(dir) = root() else { return };
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("victim"), b"safe").unwrap();
    let there = outside.to_str().unwrap();
    let sym = EntryType::Symlink;
    let long = "x".repeat(90);
    let cases: Vec<(&str, Tar, &str)> = vec![
        ("../outside/victim", Tar::new().file("../outside/victim", b"bad"), "'..'"),
        ("a/../../outside/victim", Tar::new().file("a/../../outside/victim", b"bad"), "'..'"),
        ("/tmp/x", Tar::new().file("/tmp/x", b"bad"), "absolute"),
        ("d/victim", Tar::new().link(sym, "d", there).file("d/victim", b"bad"), "symbolic link"),
        ("d", Tar::new().dir("d/", 0o755).link(sym, "d", there), "two entries"),
        (
            "d/e/victim",
            Tar::new().dir("d/", 0o755).link(sym, "d/e", there).file("d/e/victim", b"bad"),
            "symbolic link",
        ),
        ("d", Tar::new().link(sym, "d", there).dir("d/", 0o777), "already has a file or link"),
        ("d", Tar::new().link(sym, "d", "../outside/victim").file("d", b"bad"), "two entries"),
        ("h", Tar::new().link(EntryType::Link, "h", "../outside/victim"), "'..'"),
        ("h", Tar::new().link(EntryType::Link, "h", "/outside/victim"), "no file of this layer"),
        (
            "h",
            Tar::new().link(sym, "d", there).link(EntryType::Link, "h", "d/victim"),
            "no file of this layer",
        ),
        ("h", Tar::new().dir("x/", 0o755).link(EntryType::Link, "h", "x"), "no file of this layer"),
        ("d/.wh.victim", Tar::new().link(sym, "d", there).file("d/.wh.victim", b""), "symbolic link"),
        ("d/.wh..wh..opq", Tar::new().link(sym, "d", there).file("d/.wh..wh..opq", b""), "symbolic link"),
        ("f", Tar::new().file("f", b"1").file("f", b"2"), "two entries"),
        ("f/x", Tar::new().file("f", b"1").file("f/x", b"2"), "symbolic link or a file"),
        ("n", Tar::new().device(EntryType::Char, "n", 0, 0), "0:0"),
        (
            "x",
            Tar::new().pax(&[("SCHILY.xattr.trusted.overlay.redirect", b"/etc")]).file("x", b""),
            "overlayfs",
        ),
        ("./", Tar::new().link(sym, "./", there), "no directory"),
        ("q", Tar::new().entry(EntryType::new(b'Q'), ("q", ""), |_| {}, b""), "not known"),
        (
            &long,
            Tar::new().entry(EntryType::Regular, (&long, ""), |h| h.set_uid(u64::from(u32::MAX)), b""),
            "too large",
        ),
    ];
    for (index, (name, tar, reason)) in cases.into_iter().enumerate() {
        let root = dir.path().join(format!("root{index}"));
        fs::create_dir(&root).unwrap();
        let error = try_tar(&tar.build(), &root).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(name.trim_end_matches('/')) && text.contains(reason), "{name}: {text}");
        assert_eq!(error.kind(), ErrorKind::DataLoss, "{text}");
        assert_eq!(fs::read(outside.join("victim")).unwrap(), b"safe", "{name}");
        assert_eq!(names(&outside), ["victim"], "{name}");
        assert_eq!(xattr(&outside, "trusted.overlay.opaque"), None);
    }
}

#[test]
fn damaged_streams_are_told_apart() {
    let Some(dir) = root() else { return };
    let tar = Tar::new().file("data", &[7; 100_000]).build();
    let blob = gzip(&tar);
    let good = expected(&blob, &tar);
    let other = Digest::of(b"other");
    let truncated = &blob[..blob.len() / 2];
    let mut flipped = blob.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x55;
    let garbage = b"<html>not a layer</html>".repeat(100);
    let zstd = zstd::encode_all(&tar[..], 1).unwrap();
    let table: Vec<(&str, &[u8], Expected, &str)> = vec![
        ("truncated in transfer", truncated, good.clone(), "of the"),
        ("truncated before it was pushed", truncated, expected(truncated, &tar), "truncated"),
        (
            "wrong blob digest",
            &blob,
            Expected { digest: other.clone(), ..good.clone() },
            "the blob's digest is",
        ),
        ("wrong diff id", &blob, Expected { diff_id: other.clone(), ..good.clone() }, "diff_ids"),
        ("flipped bits", &flipped, good.clone(), ""),
        ("longer than promised", &blob, Expected { size: 10, ..good.clone() }, "longer than the 10 bytes"),
        ("garbage", &garbage, expected(&garbage, &garbage), "tar archive is damaged"),
        ("truncated zstd", &zstd[..zstd.len() - 3], expected(&zstd[..zstd.len() - 3], &tar), "zstd stream"),
        (
            "too large",
            &blob,
            Expected { limits: Limits { bytes: 50_000, ..good.limits.clone() }, ..good.clone() },
            "raise the image limits",
        ),
        (
            "too many",
            &blob,
            Expected { limits: Limits { entries: 0, ..good.limits.clone() }, ..good.clone() },
            "entries",
        ),
    ];
    for (index, (name, bytes, expected, reason)) in table.into_iter().enumerate() {
        for step in [1, 700] {
            let root = dir.path().join(format!("{index}-{step}"));
            fs::create_dir(&root).unwrap();
            let text = feed(bytes, step, &expected, &root).unwrap_err().to_string();
            assert!(text.contains(reason), "{name}: {text}");
        }
    }
    let root = dir.path().join("good");
    fs::create_dir(&root).unwrap();
    feed(&blob, 1, &good, &root).unwrap();
    assert_eq!(fs::read(root.join("data")).unwrap().len(), 100_000);
}

#[test]
fn endless_headers_are_refused() {
    let Some(dir) = root() else { return };
    let mut tar = Tar::new();
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(20 << 20);
    header.set_cksum();
    tar.0.append(&header, &vec![b'x'; 20 << 20][..]).unwrap();
    let tar = tar.file("f", b"").build();
    let text = feed(&tar, 1 << 16, &expected(&tar, &tar), dir.path()).unwrap_err().to_string();
    assert!(text.contains("bytes of headers"), "{text}");
}

#[test]
fn a_download_that_is_given_up_ends_the_unpacking() {
    let Some(dir) = root() else { return };
    let tar = Tar::new().file("data", &[7; 100_000]).build();
    let (sender, receiver) = mpsc::channel(2);
    sender.blocking_send(Piece::Data(bytes::Bytes::copy_from_slice(&tar[..1000]))).unwrap();
    drop(sender);
    let (root, want) = (OwnedFd::from(fs::File::open(dir.path()).unwrap()), Want::default());
    let arriving = Arriving { pieces: receiver, kept: &mut KeepNothing };
    let result = unpack(arriving, root, &expected(&tar, &tar), &want.watched());
    assert!(matches!(result, Err(UnpackError::Abandoned)), "{result:?}");
}

#[test]
fn directories_left_out_look_as_below() {
    let Some(dir) = root() else { return };
    let owner = |h: &mut tar::Header| {
        h.set_uid(42);
        h.set_mode(0o1770);
    };
    let base =
        Tar::new().dir("var/", 0o755).entry(EntryType::Directory, ("var/spool/", ""), owner, b"").build();
    let upper = Tar::new().file("var/spool/new/mail", b"m").build();
    let (low, high) = (dir.path().join("low"), dir.path().join("high"));
    fs::create_dir(&low).unwrap();
    fs::create_dir(&high).unwrap();
    try_tar(&base, &low).unwrap();
    let unpacked = try_tar(&upper, &high).unwrap();
    inherit_directories(&open(&high), &unpacked.implicit, &[open(&low)]).unwrap();
    let spool = fs::metadata(high.join("var/spool")).unwrap();
    assert_eq!((spool.uid(), spool.mode() & 0o7777, spool.mtime()), (42, 0o1770, 1_000_000));
    assert_eq!(fs::metadata(high.join("var/spool/new")).unwrap().mode() & 0o7777, 0o755);
}
