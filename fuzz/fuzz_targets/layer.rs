//! Layers of images: `podhold_image`'s unpacking. Needs root, as unpacking does; without, all are refused.
#![no_main]

use std::{
    fs,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::Path,
};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use podhold_image::fuzzing::unpack_layer;

#[derive(Debug, Arbitrary)]
enum Input<'a> {
    /// Any bytes as a blob.
    Blob(&'a [u8]),
    /// An archive whose headers are right, and whose entries are not.
    Entries(Vec<Entry<'a>>),
}

#[derive(Debug, Arbitrary)]
struct Entry<'a> {
    kind: Kind,
    name: Vec<Part>,
    target: Vec<Part>,
    mode: u16,
    owner: u32,
    device: (u8, u8),
    content: &'a [u8],
}

#[derive(Debug, Arbitrary)]
enum Kind {
    File,
    Directory,
    Symlink,
    Link,
    Char,
    Block,
    Fifo,
    Other(u8),
}

/// Few names, so that entries meet.
#[derive(Debug, Arbitrary)]
enum Part {
    Slash,
    Up,
    Here,
    A,
    B,
    Outside,
    Canary,
    Whiteout,
    WhiteoutUp,
    Opaque,
    Odd(u8),
}

/// The bytes of a path of at most 100 bytes.
fn path(parts: &[Part]) -> Vec<u8> {
    let mut path = Vec::new();
    for part in parts {
        match part {
            Part::Slash => path.extend(b"/"),
            Part::Up => path.extend(b"../"),
            Part::Here => path.extend(b"./"),
            Part::A => path.extend(b"a"),
            Part::B => path.extend(b"b/"),
            Part::Outside => path.extend(b"outside/"),
            Part::Canary => path.extend(b"canary"),
            Part::Whiteout => path.extend(b".wh."),
            Part::WhiteoutUp => path.extend(b".wh..."),
            Part::Opaque => path.extend(b".wh..wh..opq"),
            Part::Odd(byte) => path.push(*byte),
        }
    }
    path.truncate(100);
    path
}

fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut archive = Vec::new();
    for entry in entries.iter().take(32) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(match entry.kind {
            Kind::File => tar::EntryType::Regular,
            Kind::Directory => tar::EntryType::Directory,
            Kind::Symlink => tar::EntryType::Symlink,
            Kind::Link => tar::EntryType::Link,
            Kind::Char => tar::EntryType::Char,
            Kind::Block => tar::EntryType::Block,
            Kind::Fifo => tar::EntryType::Fifo,
            Kind::Other(byte) => tar::EntryType::new(byte),
        });
        header.set_mode(entry.mode.into());
        header.set_uid(entry.owner.into());
        header.set_gid(entry.owner.into());
        header.set_size(entry.content.len() as u64);
        let _ = header.set_device_major(entry.device.0.into());
        let _ = header.set_device_minor(entry.device.1.into());
        let raw = header.as_old_mut();
        for (field, parts) in [(&mut raw.name, &entry.name), (&mut raw.linkname, &entry.target)] {
            let text = path(parts);
            field[..text.len()].copy_from_slice(&text);
        }
        header.set_cksum();
        archive.extend_from_slice(header.as_bytes());
        archive.extend_from_slice(entry.content);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}

/// Everything of what lies beside the root that an archive could have changed.
fn state(outside: &Path) -> Vec<String> {
    let look = |path: &Path| {
        let found = fs::symlink_metadata(path).expect("what is outside stays");
        let changes =
            (found.mode(), found.uid(), found.gid(), found.nlink(), found.size(), found.mtime_nsec());
        format!("{} {changes:?}", path.display())
    };
    let mut state = vec![look(outside)];
    let inside = fs::read_dir(outside).expect("what is outside stays");
    state.extend(inside.map(|entry| look(&entry.expect("what is outside can be listed").path())));
    state.sort();
    state
}

fuzz_target!(|input: Input<'_>| {
    // Memory, where there is such a place.
    let place = if Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" };
    let directory = tempfile::tempdir_in(place).expect("a directory can be made");
    let (root, outside) = (directory.path().join("root"), directory.path().join("outside"));
    for path in [&root, &outside] {
        fs::create_dir(path).expect("a directory can be made");
    }
    fs::write(outside.join("canary"), "alive").expect("a file can be written");
    let before = state(&outside);
    let root = OwnedFd::from(fs::File::open(&root).expect("it was just made"));
    match input {
        Input::Blob(blob) => unpack_layer(blob, blob, root),
        Input::Entries(entries) => {
            let archive = archive(&entries);
            unpack_layer(&archive, &archive, root)
        }
    };
    assert_eq!(state(&outside), before, "a layer has changed what is outside of it");
    let beside = fs::read_dir(directory.path()).expect("it was just made").count();
    assert_eq!(beside, 2, "a layer has made something outside of it");
});
