//! Takes an archive apart: each file into the staging directory under a number, hashed and bounded. What
//! its names mean is not decided here.
//!
//! Invariants: nothing of the archive is used as a path; a name is in the archive once, blobs excepted, whose
//! name is their content.

use std::{
    cell::Cell,
    collections::HashMap,
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    path::PathBuf,
    rc::Rc,
};

use flate2::bufread::MultiGzDecoder;
use tar::{Entry, EntryType};

use super::{corrupt, form};
use crate::{
    digest::{Digest, Hasher},
    error::{ErrorKind, ImageError},
    store::blobs::Staging,
    unpack::{self, Limits, Wanted},
};

/// Most entries of an archive.
const MAX_ENTRIES: usize = 100_000;
/// Longest name, in bytes.
const MAX_NAME: usize = 1000;
/// Most bytes of headers (long names, PAX records) before one entry.
const MAX_HEADERS: u64 = 1 << 20;
/// Links followed to one file.
const MAX_LINKS: usize = 8;
/// From here on the expansion limit counts.
const EXPANSION_FLOOR: u64 = 1 << 30;
/// Bytes copied at once.
const BUFFER: usize = 256 << 10;
/// Largest zstd window, as a power of two.
const ZSTD_WINDOW_LOG: u32 = 27;

/// A file of an archive.
#[derive(Debug, Clone)]
pub(super) struct File {
    pub(super) path: PathBuf,
    pub(super) size: u64,
    pub(super) digest: Digest,
}

enum Item {
    File(File),
    /// A link to another name in the archive.
    Link(String),
}

/// The files of an archive, by their names.
pub(super) struct Staged {
    origin: String,
    items: HashMap<String, Item>,
    staging: Staging,
    room: Room,
}

/// How much may still be taken.
struct Room {
    limits: Limits,
    /// Bytes of the archive as it came, compressed perhaps.
    arrived: Rc<Cell<u64>>,
    /// Bytes of files.
    taken: u64,
}

impl Room {
    fn take(&mut self, bytes: u64) -> Result<(), String> {
        self.taken += bytes;
        let expansion = self.arrived.get().saturating_mul(self.limits.expansion).max(EXPANSION_FLOOR);
        let most = self.limits.bytes.min(expansion);
        if self.taken > most {
            return Err(format!("with it the archive has more than {most} bytes of files"));
        }
        Ok(())
    }
}

/// Takes the archive `input` apart, within the `limits` of one layer. Blocks.
pub(super) fn stage(
    input: Box<dyn Read + Send>,
    origin: &str,
    staging: Staging,
    limits: &Limits,
    wanted: &Wanted,
) -> Result<Staged, ImageError> {
    let arrived = Rc::new(Cell::new(0));
    let input = Box::new(Counted { input, arrived: Rc::clone(&arrived) });
    let mut staged = Staged {
        origin: origin.to_owned(),
        items: HashMap::new(),
        staging,
        room: Room { limits: limits.clone(), arrived, taken: 0 },
    };
    let damaged = |error: io::Error| corrupt(origin, format!("it cannot be read: {error}"));
    let budget = Rc::new(Cell::new(MAX_HEADERS));
    let (input, form) = decompressed(input).map_err(damaged)?;
    let input = form::tar(input, form).map_err(|refusal| match refusal {
        form::Refusal::Unread(error) => damaged(error),
        form::Refusal::Other(what) => corrupt(origin, what),
    })?;
    let mut tar = tar::Archive::new(Bounded { input, left: Rc::clone(&budget) });
    let mut entries = tar.entries().map_err(damaged)?;
    let mut entries_seen = 0;
    loop {
        budget.set(MAX_HEADERS);
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(damaged)?;
        budget.set(u64::MAX);
        entries_seen += 1;
        if entries_seen > MAX_ENTRIES {
            return Err(corrupt(origin, format!("it has more than {MAX_ENTRIES} entries")));
        }
        let raw = entry.path_bytes().into_owned();
        let shown = String::from_utf8_lossy(&raw[..raw.len().min(200)]).into_owned();
        let refused = |reason: String| corrupt(origin, format!("entry {shown:?} refused: {reason}"));
        let name = name(&raw).map_err(refused)?;
        staged.take(&mut entry, name, wanted).map_err(|trouble| match trouble {
            Trouble::Entry(reason) => refused(reason),
            Trouble::Other(error) => error,
        })?;
    }
    Ok(staged)
}

enum Trouble {
    /// The entry is to blame.
    Entry(String),
    Other(ImageError),
}

impl From<String> for Trouble {
    fn from(reason: String) -> Self {
        Self::Entry(reason)
    }
}

impl Staged {
    fn take<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        name: String,
        wanted: &Wanted,
    ) -> Result<(), Trouble> {
        let kind = entry.header().entry_type();
        let item = match kind {
            EntryType::Directory | EntryType::XGlobalHeader => return Ok(()),
            EntryType::Regular | EntryType::Continuous => {
                if self.items.contains_key(&name) && is_blob(&name) {
                    return self.pass_over(entry, wanted);
                }
                Item::File(self.copy(entry, &name, wanted)?)
            }
            EntryType::Symlink | EntryType::Link => {
                let target = entry.link_name_bytes().ok_or_else(|| "a link without a target".to_owned())?;
                if target.len() > MAX_NAME {
                    return Err(format!("its target is longer than {MAX_NAME} bytes").into());
                }
                let base = if kind == EntryType::Symlink { &name } else { "" };
                Item::Link(resolve(base, &target)?)
            }
            other => return Err(format!("an archive of images has no entries of the kind {other:?}").into()),
        };
        match self.items.insert(name, item) {
            None => Ok(()),
            Some(_) => Err("the name is in the archive twice".to_owned().into()),
        }
    }

    /// Reads on to the end of an entry whose content is here already.
    fn pass_over<R: Read>(&mut self, entry: &mut Entry<'_, R>, wanted: &Wanted) -> Result<(), Trouble> {
        let mut buffer = vec![0; BUFFER];
        loop {
            if !wanted.still() {
                return Err(Trouble::Other(ImageError::Cancelled(format!("archive {}", self.origin))));
            }
            match entry.read(&mut buffer).map_err(|error| format!("it cannot be read: {error}"))? {
                0 => return Ok(()),
                got => self.room.take(got as u64)?,
            }
        }
    }

    fn copy<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        name: &str,
        wanted: &Wanted,
    ) -> Result<File, Trouble> {
        let (file, path) = self.staging.file().map_err(Trouble::Other)?;
        let size = entry.size();
        let hasher = if name.starts_with("blobs/sha512/") { Hasher::sha512() } else { Hasher::sha256() };
        let mut copy = Copy { file, hasher, path };
        let mut buffer = vec![0; BUFFER];
        let mut done = 0;
        while done < size {
            if !wanted.still() {
                return Err(Trouble::Other(ImageError::Cancelled(format!("archive {}", self.origin))));
            }
            let got = entry.read(&mut buffer).map_err(|error| format!("it cannot be read: {error}"))?;
            if got == 0 {
                return Err(format!("the archive is truncated: it ends after {done} of {size} bytes").into());
            }
            copy.write(&buffer[..got]).map_err(Trouble::Other)?;
            done += got as u64;
            self.room.take(got as u64)?;
        }
        let Copy { hasher, path, .. } = copy;
        Ok(File { path, size, digest: hasher.finish() })
    }

    /// A file of the archive; links in the archive are followed, within it.
    pub(super) fn file(&self, name: &str) -> Option<&File> {
        let mut name = name;
        for _ in 0..MAX_LINKS {
            match self.items.get(name)? {
                Item::File(file) => return Some(file),
                Item::Link(target) => name = target,
            }
        }
        None
    }

    /// A file whose name comes from a document in the archive.
    pub(super) fn file_named(&self, given: &str) -> Result<&File, ImageError> {
        let name = name(given.as_bytes())
            .map_err(|reason| corrupt(&self.origin, format!("the file {given:?} is refused: {reason}")))?;
        self.file(&name)
            .ok_or_else(|| corrupt(&self.origin, format!("the file {given:?} is not in the archive")))
    }

    /// A blob of an image layout. `None` when it is not there; an error when its content is another.
    pub(super) fn blob(&self, digest: &Digest) -> Result<Option<&File>, ImageError> {
        let name = format!("blobs/{}", digest.as_str().replacen(':', "/", 1));
        match self.file(&name) {
            Some(file) if file.digest != *digest => Err(corrupt(
                &self.origin,
                format!("entry {name:?} refused: its content has the digest {}", file.digest),
            )),
            found => Ok(found),
        }
    }

    /// The content of a small file.
    pub(super) fn read(&self, file: &File, what: &str, most: u64) -> Result<Vec<u8>, ImageError> {
        if file.size > most {
            let reason = format!("{what} has {} bytes; at most {most} are read", file.size);
            return Err(super::refuse(&self.origin, ErrorKind::ResourceExhausted, reason));
        }
        fs::read(&file.path).map_err(ImageError::io(format!("read {}", file.path.display())))
    }

    /// Adds a file of our own making.
    pub(super) fn add(&mut self, content: &[u8]) -> Result<File, ImageError> {
        let (file, path) = self.staging.file()?;
        let mut copy = Copy { file, hasher: Hasher::sha256(), path };
        copy.write(content)?;
        Ok(File { path: copy.path, size: content.len() as u64, digest: copy.hasher.finish() })
    }

    pub(super) fn origin(&self) -> &str {
        &self.origin
    }
}

struct Copy {
    file: fs::File,
    hasher: Hasher,
    path: PathBuf,
}

impl Copy {
    fn write(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        self.hasher.update(bytes);
        self.file.write_all(bytes).map_err(ImageError::io(format!("write {}", self.path.display())))
    }
}

/// Whether a name says what the content is.
fn is_blob(name: &str) -> bool {
    name.strip_prefix("blobs/")
        .and_then(|rest| rest.split_once('/'))
        .is_some_and(|(algorithm, hex)| Digest::parse(&format!("{algorithm}:{hex}")).is_ok())
}

/// A name in the archive, without `./`.
fn name(raw: &[u8]) -> Result<String, String> {
    if raw.len() > MAX_NAME {
        return Err(format!("its name is longer than {MAX_NAME} bytes"));
    }
    resolve("", raw)
}

/// Where `target`, as it stands in a link at `base`, leads within the archive.
fn resolve(base: &str, target: &[u8]) -> Result<String, String> {
    let target = std::str::from_utf8(target).map_err(|_| "its name is not UTF-8 text".to_owned())?;
    if target.starts_with('/') {
        return Err("an absolute path has no place in an archive of images".to_owned());
    }
    let mut parts: Vec<&str> = base.split('/').filter(|part| !part.is_empty()).collect();
    // A link's own name is not a directory; of a name (`base` is empty) there is nothing to take away.
    let may_climb = parts.pop().is_some();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." if may_climb && !parts.is_empty() => drop(parts.pop()),
            ".." => return Err(format!("{target:?} leads out of the archive")),
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

/// The archive behind its compression, which its first bytes tell, and the name of that.
fn decompressed(input: Box<dyn Read>) -> io::Result<(Box<dyn Read>, Option<&'static str>)> {
    let mut start = Vec::new();
    let mut input = input;
    Read::by_ref(&mut input).take(4).read_to_end(&mut start)?;
    if let Some(name) = <[u8; 4]>::try_from(&start[..]).ok().and_then(unpack::not_understood) {
        let reason = format!("it is compressed as {name}; {}", form::UNDERSTOOD);
        return Err(io::Error::other(reason));
    }
    let rest = BufReader::with_capacity(BUFFER, input);
    let input: Box<dyn BufRead> = Box::new(BufReader::new(io::Cursor::new(start.clone()).chain(rest)));
    Ok(match start[..] {
        [0x1f, 0x8b, ..] => (Box::new(MultiGzDecoder::new(input)), Some("gzip")),
        [0x28, 0xb5, 0x2f, 0xfd] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            (Box::new(decoder), Some("zstd"))
        }
        _ => (Box::new(input), None),
    })
}

/// Counts what comes.
struct Counted {
    input: Box<dyn Read + Send>,
    arrived: Rc<Cell<u64>>,
}

impl Read for Counted {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let got = self.input.read(out)?;
        self.arrived.set(self.arrived.get() + got as u64);
        Ok(got)
    }
}

/// Bounds what the tar crate reads while it looks for the next entry.
struct Bounded {
    input: Box<dyn Read>,
    left: Rc<Cell<u64>>,
}

impl Read for Bounded {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let got = self.input.read(out)?;
        match self.left.get().checked_sub(got as u64) {
            Some(left) => self.left.set(left),
            None => {
                return Err(io::Error::other(format!(
                    "an entry has more than {MAX_HEADERS} bytes of headers"
                )));
            }
        }
        Ok(got)
    }
}
