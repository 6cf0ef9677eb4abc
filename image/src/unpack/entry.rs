//! What one archive entry says about itself, checked. No files.

use std::{io::Read, time::Duration};

use rustix::fs::{Mode, Timespec, Timestamps, UTIME_OMIT};
use tar::Entry;

/// Longest entry name or link target, in bytes (PATH_MAX).
const MAX_NAME: usize = 4096;
/// Deepest path, in components: each may stand for a directory to be made.
const MAX_DEPTH: usize = 256;
/// Largest value of an extended attribute, in bytes (XATTR_SIZE_MAX, xattr(7)).
const MAX_XATTR: usize = 64 << 10;
/// Prefix that marks a removal (OCI image-spec, layer.md, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
/// The file that marks a directory as opaque.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Prefix of the bookkeeping files of AUFS, which mean nothing here.
const AUFS: &[u8] = b".wh..wh.";

/// What an entry's name asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Name {
    /// The root directory itself.
    Root,
    /// Something called `name` in `dir` (empty for the root).
    Plain { dir: Vec<u8>, name: Vec<u8> },
    /// `name` in `dir` was removed.
    Whiteout { dir: Vec<u8>, name: Vec<u8> },
    /// Everything that lower layers have in this directory was removed.
    Opaque { dir: Vec<u8> },
    /// Nothing that matters.
    Bookkeeping,
}

/// Reads an entry's name.
pub(super) fn name(raw: &[u8]) -> Result<Name, &'static str> {
    if raw.first() == Some(&b'/') && raw.iter().any(|b| !matches!(b, b'/' | b'.')) {
        return Err("its name is absolute; names in a layer are relative to the image's root");
    }
    let mut path = clean(raw)?;
    let Some(last) = path.rsplit(|b| *b == b'/').next().filter(|last| !last.is_empty()) else {
        return Ok(Name::Root);
    };
    let name = last.to_vec();
    path.truncate(path.len() - name.len());
    path.pop();
    if path.split(|b| *b == b'/').any(|part| part.starts_with(WHITEOUT)) {
        return Err("it lies in a directory with the name of a whiteout");
    }
    let dir = path;
    if name == OPAQUE {
        return Ok(Name::Opaque { dir });
    }
    if name.starts_with(AUFS) {
        return Ok(Name::Bookkeeping);
    }
    match name.strip_prefix(WHITEOUT) {
        None => Ok(Name::Plain { dir, name }),
        Some(b"" | b"." | b"..") => Err("it is a whiteout of nothing"),
        Some(hidden) => Ok(Name::Whiteout { dir, name: hidden.to_vec() }),
    }
}

/// A path relative to the root, with single slashes and without `.`; `..` is refused. A leading slash
/// means the root, as in targets of hard links.
pub(super) fn clean(raw: &[u8]) -> Result<Vec<u8>, &'static str> {
    if raw.len() > MAX_NAME {
        return Err("the path is longer than 4096 bytes");
    }
    if raw.contains(&0) {
        return Err("the path holds a NUL");
    }
    let mut path = Vec::with_capacity(raw.len());
    let mut depth = 0;
    for part in raw.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err("the path holds '..', which could lead out of the image's root"),
            part => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err("the path is deeper than 256 directories");
                }
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(part);
            }
        }
    }
    Ok(path)
}

/// Owner, mode, times and extended attributes of an entry.
#[derive(Debug, Clone)]
pub(super) struct Attributes {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mode: Mode,
    pub(super) times: Timestamps,
    pub(super) xattrs: Vec<(String, Vec<u8>)>,
}

impl Attributes {
    /// Reads them from the header and the PAX records that belong to it.
    pub(super) fn read<R: Read>(entry: &mut Entry<'_, R>) -> Result<Self, String> {
        let header = entry.header();
        let id = |what: &str, value: std::io::Result<u64>| match value {
            // The highest id means "leave as it is" to chown.
            Ok(id) if id < u64::from(u32::MAX) => Ok(id as u32),
            Ok(id) => Err(format!("its {what} {id} is too large")),
            Err(error) => Err(format!("its {what} cannot be read: {error}")),
        };
        // Some writers leave fields blank that they have no value for.
        let blank = |field: &[u8]| field.iter().all(|b| matches!(b, 0 | b' '));
        let old = header.as_old();
        let uid = if blank(&old.uid) { 0 } else { id("owner", header.uid())? };
        let gid = if blank(&old.gid) { 0 } else { id("group", header.gid())? };
        let mode = header.mode().map_err(|error| format!("its mode cannot be read: {error}"))?;
        let time = if blank(&old.mtime) { Ok(0) } else { header.mtime() };
        let seconds = time.map_err(|error| format!("its time cannot be read: {error}"))?;
        let mut mtime = Timespec { tv_sec: seconds.min(i64::MAX as u64) as i64, tv_nsec: 0 };
        let mut xattrs = Vec::new();
        if let Some(records) = entry.pax_extensions().map_err(|error| error.to_string())? {
            for record in records {
                let record = record.map_err(|error| format!("its PAX records are damaged: {error}"))?;
                let Ok(key) = record.key() else { continue };
                if key == "mtime" {
                    mtime = record.value().ok().and_then(pax_time).ok_or("its PAX time cannot be read")?;
                }
                let Some(name) = key.strip_prefix("SCHILY.xattr.") else { continue };
                if xattr_is_wanted(name)? {
                    if record.value_bytes().len() > MAX_XATTR {
                        return Err(format!(
                            "its extended attribute {name:?} is larger than {MAX_XATTR} bytes"
                        ));
                    }
                    xattrs.push((name.to_owned(), record.value_bytes().to_vec()));
                }
            }
        }
        let last_access = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let times = Timestamps { last_access, last_modification: mtime };
        Ok(Self { uid, gid, mode: Mode::from_raw_mode(mode & 0o7777), times, xattrs })
    }
}

/// Whether an extended attribute is part of an image. Those of overlayfs would steer the mount itself;
/// labels of security modules belong to the machine, not to the image.
fn xattr_is_wanted(name: &str) -> Result<bool, String> {
    if name.starts_with("trusted.overlay.") || name.starts_with("user.overlay.") {
        return Err(format!("its attribute {name} would steer overlayfs"));
    }
    Ok(name.starts_with("user.") || name == "security.capability" || name.starts_with("system.posix_acl_"))
}

/// `-?SECONDS[.FRACTION]` (POSIX pax, "mtime").
fn pax_time(text: &str) -> Option<Timespec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.bytes().any(|b| !b.is_ascii_digit()) {
        return None;
    }
    let digits = &fraction[..fraction.len().min(9)];
    let nanos: i64 =
        if digits.is_empty() { 0 } else { digits.parse::<i64>().ok()? * 10_i64.pow(9 - digits.len() as u32) };
    let whole: i64 = seconds.parse().ok()?;
    if !seconds.starts_with('-') || nanos == 0 {
        return Some(Timespec { tv_sec: whole, tv_nsec: nanos });
    }
    let second = Duration::from_secs(1).as_nanos() as i64;
    Some(Timespec { tv_sec: whole.checked_sub(1)?, tv_nsec: second - nanos })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_the_layer_format_says() {
        let plain = |dir: &str, name: &str| Name::Plain { dir: dir.into(), name: name.into() };
        let whiteout = |dir: &str, name: &str| Name::Whiteout { dir: dir.into(), name: name.into() };
        let table = [
            ("./", Name::Root),
            (".", Name::Root),
            ("/", Name::Root),
            ("a", plain("", "a")),
            ("./a//b/./c/", plain("a/b", "c")),
            (".wh.a", whiteout("", "a")),
            ("a/.wh.b", whiteout("a", "b")),
            ("a/.wh..wh..opq", Name::Opaque { dir: b"a".to_vec() }),
            (".wh..wh..opq", Name::Opaque { dir: Vec::new() }),
            ("a/.wh..wh.plnk", Name::Bookkeeping),
            ("a/..b", plain("a", "..b")),
        ];
        for (raw, expected) in table {
            assert_eq!(name(raw.as_bytes()), Ok(expected), "{raw}");
        }
        let long = "a/".repeat(3000);
        for bad in [
            "..",
            "a/../b",
            "../a",
            "/etc/passwd",
            "a/..",
            "a\0b",
            ".wh.",
            "a/.wh..",
            ".wh.a/b",
            "/..",
            &long,
        ] {
            assert!(name(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn pax_times_keep_their_fraction() {
        let time = |text: &str| pax_time(text).map(|t| (t.tv_sec, t.tv_nsec));
        assert_eq!(time("12.5"), Some((12, 500_000_000)));
        assert_eq!(time("12"), Some((12, 0)));
        assert_eq!(time("12.1234567891"), Some((12, 123_456_789)));
        assert_eq!(time("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time("x"), None);
        assert_eq!(time("1.x"), None);
    }

    #[test]
    fn attributes_that_steer_overlayfs_are_refused() {
        assert!(xattr_is_wanted("trusted.overlay.redirect").is_err());
        assert!(xattr_is_wanted("user.overlay.opaque").is_err());
        assert_eq!(xattr_is_wanted("security.capability"), Ok(true));
        assert_eq!(xattr_is_wanted("user.x"), Ok(true));
        assert_eq!(xattr_is_wanted("security.selinux"), Ok(false));
        assert_eq!(xattr_is_wanted("trusted.x"), Ok(false));
    }
}
