//! Small archives that ask for much.

use super::*;

impl Tar {
    /// A GNU sparse file that ends with `data` after a hole of `hole` bytes.
    pub(super) fn sparse(self, name: &str, hole: u64, data: &[u8]) -> Self {
        // GNU's binary form of a number, which reaches further than octal digits.
        let number = |value: u64| {
            let mut field = [0; 12];
            field[0] = 0x80;
            field[4..].copy_from_slice(&value.to_be_bytes());
            field
        };
        let set = |header: &mut tar::Header| {
            let gnu = header.as_gnu_mut().unwrap();
            gnu.sparse[0].offset = number(hole);
            gnu.sparse[0].numbytes = number(data.len() as u64);
            gnu.realsize = number(hole + data.len() as u64);
        };
        self.entry(EntryType::GNUSparse, (name, ""), set, data)
    }
}

fn refused_as_too_large(tar: &[u8], limits: Limits, part: &str) {
    let dir = tempfile::tempdir().unwrap();
    let Err(error) = feed(tar, 1 << 16, &Expected { limits, ..expected(tar, tar) }, dir.path()) else {
        panic!("unpacked, although it is too large: {part}");
    };
    assert!(matches!(error, UnpackError::TooLarge(_)), "{error}");
    assert!(error.to_string().contains(part), "{error}");
}

fn limits() -> Limits {
    Limits { entries: 10_000, bytes: 64 << 20, expansion: 100 }
}

#[test]
fn holes_count_against_the_limit_of_bytes() {
    let Some(dir) = root() else { return };
    let within = Tar::new().sparse("a", 40 << 20, b"end").sparse("b", 20 << 20, b"end").build();
    try_tar(&within, dir.path()).unwrap();
    let found = fs::metadata(dir.path().join("a")).unwrap();
    assert_eq!(found.len(), (40 << 20) + 3);
    assert!(found.blocks() * 512 < 1 << 20, "{} blocks", found.blocks());
    for tar in [
        Tar::new().sparse("large", 128 << 20, b"end"),
        Tar::new().sparse("a", 40 << 20, b"end").sparse("large", 40 << 20, b"end"),
        Tar::new().sparse("large", 1 << 62, b"end"),
        Tar::new().file("a", &[7; 4096]).sparse("large", u64::MAX - 3, b"end"),
    ] {
        refused_as_too_large(&tar.build(), limits(), "\"large\"");
    }
}

#[test]
fn a_layer_nobody_wants_any_more_stops_within_a_hole() {
    let Some(dir) = root() else { return };
    let tar = Tar::new().sparse("endless", 1 << 50, b"end").build();
    let (sender, receiver) = mpsc::channel(2);
    sender.blocking_send(Piece::Data(bytes::Bytes::copy_from_slice(&tar))).unwrap();
    sender.blocking_send(Piece::End).unwrap();
    let want = Want::default();
    let (root, wanted) = (OwnedFd::from(fs::File::open(dir.path()).unwrap()), want.watched());
    let expected = Expected { limits: Limits { bytes: u64::MAX, ..limits() }, ..expected(&tar, &tar) };
    let unpacking = std::thread::spawn(move || {
        let arriving = Arriving { pieces: receiver, kept: &mut KeepNothing };
        unpack(arriving, root, &expected, &wanted)
    });
    while !dir.path().join("endless").exists() {
        std::thread::yield_now();
    }
    assert!(!unpacking.is_finished());
    drop(want);
    let result = unpacking.join().unwrap();
    assert!(matches!(result, Err(UnpackError::Abandoned)), "{result:?}");
}

#[test]
fn directories_left_out_count_as_entries() {
    let Some(dir) = root() else { return };
    let path = |n: usize| format!("{n}/{}f", "a/".repeat(40));
    let tar = (0..20).fold(Tar::new(), |tar, n| tar.file(&path(n), b"")).build();
    try_tar(&tar, dir.path()).unwrap();
    refused_as_too_large(&tar, Limits { entries: 200, ..limits() }, "more than 200 entries");
}

#[test]
fn paths_of_hundreds_of_directories_are_refused() {
    let Some(dir) = root() else { return };
    let long = |depth: usize| format!("{}f", "a/".repeat(depth));
    let file = |name: &str| {
        let tar = Tar::new().pax(&[("path", name.as_bytes())]);
        tar.file("f", b"").build()
    };
    try_tar(&file(&long(255)), dir.path()).unwrap();
    for depth in [256, 2000] {
        let text = try_tar(&file(&long(depth)), dir.path()).unwrap_err().to_string();
        assert!(text.contains("deeper than 256"), "{text}");
    }
    assert_eq!(names(dir.path()), ["a"]);
}

#[test]
fn attributes_of_directories_are_kept_within_bounds() {
    let Some(_dir) = root() else { return };
    let keys: Vec<String> = (0..20_000).map(|n| format!("SCHILY.xattr.user.{n}")).collect();
    let records: Vec<(&str, &[u8])> = keys.iter().map(|key| (key.as_str(), &b""[..])).collect();
    let tar = (0..50).fold(Tar::new(), |tar, n| tar.pax(&records).dir(&format!("d{n}/"), 0o755));
    refused_as_too_large(&tar.build(), Limits { bytes: 1 << 30, ..limits() }, "attributes of directories");
}

#[test]
fn names_of_directories_left_out_are_kept_within_bounds() {
    let Some(_dir) = root() else { return };
    let top = format!("{}/", "p".repeat(200)).repeat(17);
    let tar = (0..110).fold(Tar::new(), |tar, n| {
        let path = format!("{top}{n}/{}f", "a/".repeat(200));
        tar.pax(&[("path", path.as_bytes())]).file("f", b"")
    });
    refused_as_too_large(
        &tar.build(),
        Limits { entries: 1_000_000, ..limits() },
        "attributes of directories",
    );
}

#[test]
fn an_attribute_larger_than_the_kernel_takes_is_refused() {
    let Some(dir) = root() else { return };
    let tar = Tar::new().pax(&[("SCHILY.xattr.user.x", &vec![b'x'; (64 << 10) + 1])]).file("f", b"").build();
    let text = try_tar(&tar, dir.path()).unwrap_err().to_string();
    assert!(text.contains("user.x") && text.contains("larger than 65536"), "{text}");
}
