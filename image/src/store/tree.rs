//! What a layer's tree is, file by file: noted when the layer is made, compared when somebody doubts it.
//!
//! ```text
//! KIND MODE UID:GID SECONDS.NANOSECONDS SIZE CONTENT ATTRIBUTES NUL PATH NUL
//! ```
//! Content and attributes are XXH3 hashes of 128 bits. They are against bit rot and lost writes, not against somebody
//! who can write here: he could write this file too. The file's own hash is in the layer's record.
//!
//! Order: a directory's files by name, then what is in its directories, one after another. It is the same each
//! time, so two trees are compared side by side without keeping either in memory.

#[cfg(test)]
mod tests;

use std::{
    cmp::Ordering,
    collections::HashMap,
    ffi::OsStr,
    fs, io,
    io::{BufRead, Read, Write},
    ops::Range,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    },
    path::Path,
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, SeekFrom, Stat},
    io::Errno,
};
use twox_hash::XxHash3_128;

/// Bytes read at once.
const PIECE: usize = 256 << 10;
/// Largest list or value of attributes the kernel gives out, in bytes.
const ATTRIBUTES: usize = 64 << 10;
/// Set by others when they like, not by us.
const FOREIGN: &[u8] = b"security.selinux";

/// The contents of files that were just written, by inode number.
#[derive(Debug, Default)]
pub(crate) struct Contents(Vec<(u64, u128)>);

impl Contents {
    /// Notes the content of a file. One that is empty need not be noted.
    pub(crate) fn note(&mut self, inode: u64, hash: u128) {
        self.0.push((inode, hash));
    }

    /// Whether there are so many that they are rather read again than kept while something else is waited for.
    pub(crate) fn are_many(&self) -> bool {
        self.0.len() > 1 << 16
    }

    /// Makes it fit to be looked up in.
    pub(crate) fn sorted(mut self) -> Self {
        self.0.sort_unstable();
        self
    }
}

/// A file as one line, or why it cannot be read.
struct Item {
    path: Vec<u8>,
    /// Its inode, where that has other names as well.
    inode: Option<u64>,
    line: Result<String, Errno>,
}

/// Notes the tree beneath `root` in the new file `place`. Content that `contents`, sorted, has is not read: only few
/// files, those with holes and those from layers below, are. Answers the hash of what was written.
pub(crate) fn write(root: &OwnedFd, contents: &Contents, place: &Path) -> io::Result<String> {
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(place)?;
    let (mut file, mut hash) = (io::BufWriter::with_capacity(PIECE, file), XxHash3_128::new());
    let buffer = std::cell::RefCell::new(Vec::new());
    let content = |dir: BorrowedFd<'_>, name: &OsStr, found: &Stat| {
        let at = contents.0.binary_search_by_key(&found.st_ino, |(inode, _)| *inode);
        match at {
            Ok(at) => Ok(contents.0[at].1),
            Err(_) if found.st_size == 0 => Ok(XxHash3_128::oneshot(&[])),
            Err(_) => {
                let mut buffer = buffer.borrow_mut();
                buffer.resize(PIECE, 0);
                hash_content(dir, name, &mut buffer)
            }
        }
    };
    scan(root, &content, &mut |item| {
        let line = item.line?;
        for part in [line.as_bytes(), &[0], item.path.as_slice(), &[0]] {
            hash.write(part);
            file.write_all(part)?;
        }
        Ok(())
    })?;
    file.flush()?;
    Ok(format!("{:032x}", hash.finish_128()))
}

/// Something that is not as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The file, from the layer's root; where it has several names, the first.
    pub path: String,
    /// What differs, in words.
    pub what: String,
}

/// How many names of one file are told.
const MOST_NAMES: usize = 4;
const TOO_MANY_NAMES: usize = MOST_NAMES + 1;

/// What of the tree beneath `root` is not as `place` says, whose hash is `hash`: the first `most` differences, and how
/// many there are; what differs of a file with several names is one, not one for each name. Reads every file. Fails
/// when `place` cannot be used.
pub(crate) fn compare(
    root: &OwnedFd,
    (place, hash): (&Path, &str),
    most: usize,
) -> io::Result<(Vec<Difference>, u64)> {
    if hash_of_file(place)? != hash {
        return Err(io::Error::other("what was noted of the layer is damaged itself"));
    }
    let mut noted = Noted(io::BufReader::with_capacity(PIECE, fs::File::open(place)?));
    let (mut differences, mut count): (Vec<Difference>, u64) = (Vec::new(), 0);
    // Files with several names that differ: where the difference is told, if it is, and with how many of the names.
    let mut told: HashMap<u64, (Option<usize>, usize)> = HashMap::new();
    let mut differ = |path: &[u8], inode: Option<u64>, what: String| {
        let path = format!("/{}", String::from_utf8_lossy(path));
        if let Some((first, names)) = inode.and_then(|inode| told.get_mut(&inode)) {
            *names += 1;
            if let Some(first) = first {
                match *names {
                    ..=MOST_NAMES => differences[*first].what.push_str(&format!(" (also {path})")),
                    TOO_MANY_NAMES => differences[*first].what.push_str(" (and by more names)"),
                    _ => {}
                }
            }
            return;
        }
        count += 1;
        let is_told = differences.len() < most;
        if let Some(inode) = inode {
            told.insert(inode, (is_told.then_some(differences.len()), 1));
        }
        if is_told {
            differences.push(Difference { path, what });
        }
    };
    let mut next = noted.next()?;
    let buffer = std::cell::RefCell::new(vec![0; PIECE]);
    let content =
        |dir: BorrowedFd<'_>, name: &OsStr, _: &Stat| hash_content(dir, name, &mut buffer.borrow_mut());
    scan(root, &content, &mut |item| {
        let line = match item.line {
            Ok(line) => line,
            Err(errno) => {
                differ(&item.path, item.inode, format!("cannot be read: {}", io::Error::from(errno)));
                if next.as_ref().is_some_and(|(path, _)| *path == item.path) {
                    next = noted.next()?;
                }
                return Ok(());
            }
        };
        while let Some((path, was)) = next.take() {
            match order(&path, &item.path) {
                Ordering::Less => differ(&path, None, "is missing".to_owned()),
                Ordering::Equal => {
                    if was != line {
                        differ(&path, item.inode, what_differs(&was, &line));
                    }
                    next = noted.next()?;
                    return Ok(());
                }
                Ordering::Greater => {
                    next = Some((path, was));
                    break;
                }
            }
            next = noted.next()?;
        }
        differ(&item.path, None, "is not of the layer".to_owned());
        Ok(())
    })?;
    while let Some((path, _)) = next.take() {
        differ(&path, None, "is missing".to_owned());
        next = noted.next()?;
    }
    Ok((differences, count))
}

/// What was noted, one file after another.
struct Noted(io::BufReader<fs::File>);

impl Noted {
    fn next(&mut self) -> io::Result<Option<(Vec<u8>, String)>> {
        let (mut line, mut path) = (Vec::new(), Vec::new());
        if self.0.read_until(0, &mut line)? == 0 {
            return Ok(None);
        }
        self.0.read_until(0, &mut path)?;
        line.pop();
        path.pop();
        Ok(Some((path, String::from_utf8_lossy(&line).into_owned())))
    }
}

fn hash_of_file(place: &Path) -> io::Result<String> {
    let (mut file, mut hash, mut piece) = (fs::File::open(place)?, XxHash3_128::new(), vec![0; PIECE]);
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(format!("{:032x}", hash.finish_128())),
            count => hash.write(&piece[..count]),
        }
    }
}

/// In which order two files are met.
fn order(left: &[u8], right: &[u8]) -> Ordering {
    /// The root first; then by directory, whose parts are compared one by one; then by name.
    fn key(path: &[u8]) -> (bool, impl Iterator<Item = &[u8]>, &[u8]) {
        let (dir, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&b""[..], path),
        };
        (!path.is_empty(), dir.split(|byte| *byte == b'/').filter(|part| !part.is_empty()), name)
    }
    let (left, right) = (key(left), key(right));
    left.0.cmp(&right.0).then_with(|| left.1.cmp(right.1)).then_with(|| left.2.cmp(right.2))
}

/// In words, from two lines.
fn what_differs(was: &str, is: &str) -> String {
    const NAMES: [&str; 7] = ["type", "mode", "owner", "time", "size", "content", "extended attributes"];
    let pairs = NAMES.iter().zip(was.split(' ').zip(is.split(' ')));
    let words = pairs.filter(|(_, (was, is))| was != is).map(|(name, (was, is))| match *name {
        "content" | "extended attributes" => format!("other {name}"),
        name => format!("{name} {is} instead of {was}"),
    });
    words.collect::<Vec<_>>().join(", ")
}

/// How the content of a regular file is found.
type Content<'a> = dyn Fn(BorrowedFd<'_>, &OsStr, &Stat) -> Result<u128, Errno> + 'a;

/// Visits everything beneath `root`, itself first. Paths are followed beneath it, and through no link.
fn scan(
    root: &OwnedFd,
    content: &Content<'_>,
    visit: &mut dyn FnMut(Item) -> io::Result<()>,
) -> io::Result<()> {
    let own = describe(root.as_fd(), OsStr::new("."), content).line;
    visit(Item { path: Vec::new(), inode: None, line: own })?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let mut waiting: Vec<Vec<u8>> = vec![Vec::new()];
    while let Some(path) = waiting.pop() {
        let name = if path.is_empty() { OsStr::new(".") } else { OsStr::from_bytes(&path) };
        let listed = rustix::fs::openat2(root, name, flags, Mode::empty(), resolve)
            .and_then(|dir| names(&dir).map(|names| (dir, names)));
        let (dir, names) = match listed {
            Ok(listed) => listed,
            Err(errno) => {
                visit(Item { path, inode: None, line: Err(errno) })?;
                continue;
            }
        };
        let first = waiting.len();
        for name in names {
            let mut path = path.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            let found = describe(dir.as_fd(), OsStr::from_bytes(&name), content);
            if found.is_directory && found.line.is_ok() {
                waiting.push(path.clone());
            }
            visit(Item { path, inode: found.inode, line: found.line })?;
        }
        waiting[first..].reverse();
    }
    Ok(())
}

/// The names in a directory, sorted.
fn names(dir: &OwnedFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// What is known of a file.
struct Described {
    is_directory: bool,
    /// See [`Item::inode`].
    inode: Option<u64>,
    line: Result<String, Errno>,
}

fn describe(dir: BorrowedFd<'_>, name: &OsStr, content: &Content<'_>) -> Described {
    let found = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => found,
        Err(errno) => return Described { is_directory: false, inode: None, line: Err(errno) },
    };
    let is_directory = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
    let inode = (!is_directory && found.st_nlink > 1).then_some(found.st_ino);
    Described { is_directory, inode, line: line(dir, name, &found, content) }
}

/// A file as a line.
fn line(dir: BorrowedFd<'_>, name: &OsStr, found: &Stat, content: &Content<'_>) -> Result<String, Errno> {
    let (kind, size, hash) = match FileType::from_raw_mode(found.st_mode) {
        FileType::RegularFile => ('f', found.st_size.cast_unsigned(), content(dir, name, found)?),
        FileType::Directory => ('d', 0, 0),
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(dir, name, Vec::new())?;
            ('l', 0, XxHash3_128::oneshot(target.to_bytes()))
        }
        FileType::CharacterDevice => ('c', found.st_rdev, 0),
        FileType::BlockDevice => ('b', found.st_rdev, 0),
        FileType::Fifo => ('p', 0, 0),
        _ => ('?', 0, 0),
    };
    let xattrs = attributes(dir, name)?;
    let Stat { st_uid: uid, st_gid: gid, st_mtime: seconds, st_mtime_nsec: parts, .. } = *found;
    let mode = found.st_mode & 0o7777;
    Ok(format!("{kind} {mode:04o} {uid}:{gid} {seconds}.{parts} {size} {hash:x} {xattrs:x}"))
}

/// A hash of all extended attributes; 0 when there are none.
fn attributes(dir: BorrowedFd<'_>, name: &OsStr) -> Result<u128, Errno> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.as_bytes());
    let list = read_up_to_limit(|buffer| rustix::fs::llistxattr(path.as_slice(), buffer));
    let list = match list {
        Err(Errno::OPNOTSUPP) => return Ok(0),
        other => other?,
    };
    let mut names: Vec<&[u8]> = list.split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    names.retain(|name| *name != FOREIGN);
    names.sort_unstable();
    if names.is_empty() {
        return Ok(0);
    }
    let mut hash = XxHash3_128::new();
    for name in names {
        let value = read_up_to_limit(|buffer| rustix::fs::lgetxattr(path.as_slice(), name, buffer))?;
        for part in [name, &[0], &value, &value.len().to_le_bytes()] {
            hash.write(part);
        }
    }
    Ok(hash.finish_128())
}

/// What `read` puts into a buffer: mostly little or nothing.
fn read_up_to_limit(mut read: impl FnMut(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut few = [0; 512];
    match read(&mut few) {
        Ok(length) => Ok(few[..length].to_vec()),
        Err(Errno::RANGE) => {
            let mut most = vec![0; ATTRIBUTES];
            let length = read(&mut most)?;
            most.truncate(length);
            Ok(most)
        }
        Err(errno) => Err(errno),
    }
}

/// Reads a file, holes as zeros.
fn hash_content(dir: BorrowedFd<'_>, name: &OsStr, buffer: &mut [u8]) -> Result<u128, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    let size = rustix::fs::fstat(&file)?.st_size.cast_unsigned();
    let (mut hash, mut at) = (XxHash3_128::new(), 0);
    while at < size {
        let data = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => size,
            other => other?,
        };
        // Holes would fill the page cache with zeros.
        hash_zeros(&mut hash, data - at);
        at = data;
        if at < size {
            at = rustix::fs::seek(&file, SeekFrom::Hole(data))?;
            hash_range(&mut hash, &file, data..at, buffer)?;
        }
    }
    Ok(hash.finish_128())
}

fn hash_zeros(hash: &mut XxHash3_128, mut count: u64) {
    static ZEROS: [u8; PIECE] = [0; PIECE];
    while count > 0 {
        let part = usize::try_from(count).unwrap_or(PIECE).min(PIECE);
        hash.write(&ZEROS[..part]);
        count -= part as u64;
    }
}

fn hash_range(
    hash: &mut XxHash3_128,
    file: &OwnedFd,
    range: Range<u64>,
    buffer: &mut [u8],
) -> Result<(), Errno> {
    let mut at = range.start;
    while at < range.end {
        let most = usize::try_from(range.end - at).unwrap_or(buffer.len()).min(buffer.len());
        match rustix::io::pread(file, &mut buffer[..most], at)? {
            0 => break,
            count => {
                hash.write(&buffer[..count]);
                at += count as u64;
            }
        }
    }
    Ok(())
}
