//! Tar framing for archives that are made on the way: entries whose content comes piece by piece.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use bytes::Bytes;
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags};
use tokio::sync::mpsc::Sender;

const BLOCK: u64 = 512;

/// The head of a file's entry. Names are short and ours.
fn head(name: &str, size: u64) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_path(name).expect("names in archives of images are short and relative");
    header.set_size(size);
    header.set_mode(0o644);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn padding(size: u64) -> usize {
    (size.next_multiple_of(BLOCK) - size) as usize
}

/// An archive that goes into a channel.
pub(super) struct Writer {
    out: Sender<Bytes>,
}

/// Nobody takes the archive any more.
pub(super) struct Unwanted;

impl Writer {
    pub(super) fn new(out: Sender<Bytes>) -> Self {
        Self { out }
    }

    pub(super) async fn send(&self, bytes: Bytes) -> Result<(), Unwanted> {
        self.out.send(bytes).await.map_err(|_| Unwanted)
    }

    /// Begins an entry, whose content must follow.
    pub(super) async fn begin(&self, name: &str, size: u64) -> Result<(), Unwanted> {
        self.send(head(name, size).into()).await
    }

    /// Ends an entry.
    pub(super) async fn end(&self, size: u64) -> Result<(), Unwanted> {
        self.send(vec![0; padding(size)].into()).await
    }

    /// A whole entry.
    pub(super) async fn entry(&self, name: &str, content: &[u8]) -> Result<(), Unwanted> {
        self.begin(name, content.len() as u64).await?;
        self.send(Bytes::copy_from_slice(content)).await?;
        self.end(content.len() as u64).await
    }

    /// Ends the archive.
    pub(super) async fn finish(self) -> Result<(), Unwanted> {
        self.send(vec![0; 2 * BLOCK as usize].into()).await
    }
}

/// Writes an image layout that is a directory as an archive: its two documents, a `manifest.json`, and its
/// blobs. No link in it is followed. Blocks.
pub fn pack_directory(dir: &Path, out: &mut dyn Write) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, dir, flags, Mode::empty())?;
    let mut names: Vec<String> = ["oci-layout", "index.json", "manifest.json"].map(str::to_owned).into();
    for algorithm in ["sha256", "sha512"] {
        let place = format!("blobs/{algorithm}");
        let Some(blobs) = open(&root, &place, FileType::Directory)? else { continue };
        let mut found: Vec<String> = Vec::new();
        for entry in Dir::read_from(&blobs)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                found.push(format!("{place}/{name}"));
            }
        }
        found.sort();
        names.extend(found);
    }
    for name in names {
        let Some(file) = open(&root, &name, FileType::RegularFile)? else { continue };
        let file = fs::File::from(file);
        let size = file.metadata()?.len();
        out.write_all(&head(&name, size))?;
        let copied = io::copy(&mut file.take(size), out)?;
        if copied != size {
            return Err(io::Error::other(format!("{name} became shorter while it was read")));
        }
        out.write_all(&vec![0; padding(size)])?;
    }
    out.write_all(&[0; 2 * BLOCK as usize])?;
    out.flush()
}

/// Opens what is beneath `root`. `None` when it is not there.
fn open(root: &OwnedFd, name: &str, kind: FileType) -> io::Result<Option<OwnedFd>> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat2(root.as_fd(), name, flags, Mode::empty(), resolve) {
        Ok(file) => file,
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(io::Error::other(format!("{name}: {}", io::Error::from(errno)))),
    };
    let found = rustix::fs::fstat(&file)?;
    match FileType::from_raw_mode(found.st_mode) == kind {
        true => Ok(Some(file)),
        false => Err(io::Error::other(format!("{name} is not what it must be ({kind:?})"))),
    }
}

/// The annotations of an image in an exported index.
pub(super) fn annotations(name: &str, tag: &str) -> BTreeMap<&'static str, String> {
    [("io.containerd.image.name", name.to_owned()), ("org.opencontainers.image.ref.name", tag.to_owned())]
        .into()
}
