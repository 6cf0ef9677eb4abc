//! What has arrived of blobs under way, kept so that a later pull, also of a later process, goes on where this
//! one ended.
//!
//! ```text
//! partial/ALGORITHM-HEX      the beginning of the blob with this digest
//! ```
//! A blob that comes so fast that it would soon be fetched again is not kept: copying it would cost every pull
//! something, and save little. A file is deleted as soon as its blob was read to the end, before the layer is synced: its pages then were
//! never written to disk. What a pull that ended early left is kept for [`AGE`], and within the limit of all files
//! together; the oldest go first.
//!
//! Invariant: nothing here is trusted. A file is a proposal for the beginning of a blob whose digest is checked
//! as if all of it had come from the registry; one that was wrong is discarded. One pull at a time has a file.

use std::{
    collections::HashSet,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use rustix::fs::OFlags;

use crate::{
    digest::Digest,
    error::ImageError,
    store::{Usage, record},
    unpack::Kept,
};

/// Smaller blobs are not kept; and after so many bytes it is decided whether a larger one is.
pub(super) const SMALLEST: u64 = 4 << 20;
/// How long a pull waits for one that has the file of its blob.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the file of a pull that ended early is kept.
const AGE: Duration = Duration::from_secs(24 * 3600);
/// What is kept here takes at most this part of what it and the free space of the file system are together.
const SPARE: u64 = 4;

/// The beginnings of blobs.
#[derive(Debug)]
pub(crate) struct Partials {
    dir: PathBuf,
    limit: u64,
    /// A blob that is fetched in less time is not kept while it arrives.
    worth: Duration,
    bytes: AtomicU64,
    files: AtomicU64,
    /// Files that pulls have.
    taken: Mutex<HashSet<PathBuf>>,
    given_back: Condvar,
}

impl Partials {
    /// Opens the directory beneath `dir`, made when missing, and deletes what is too old. `limit`: most bytes of all
    /// files; 0 keeps nothing. `worth`: how long it must take to fetch a blob. Blocks.
    pub(crate) fn open(dir: &Path, limit: u64, worth: Duration) -> Result<Arc<Self>, ImageError> {
        let dir = dir.join("partial");
        let at = |error: io::Error| ImageError::io(format!("use {}", dir.display()))(error);
        match DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(at(error)),
            _ => {}
        }
        let refuse = |reason| at(io::Error::new(io::ErrorKind::PermissionDenied, reason));
        record::check_directory(&dir).map_err(refuse)?;
        let (bytes, files) = (AtomicU64::new(0), AtomicU64::new(0));
        let (taken, given_back) = (Mutex::default(), Condvar::new());
        let partials = Self { dir, limit, worth, bytes, files, taken, given_back };
        for path in record::children(&partials.dir)? {
            let length = fs::symlink_metadata(&path).map_or(0, |found| found.len());
            partials.count(length, 1);
        }
        partials.make_room(0);
        Ok(Arc::new(partials))
    }

    /// What all files take.
    pub(crate) fn usage(&self) -> Usage {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Usage { bytes: read(&self.bytes), inodes: read(&self.files) }
    }

    fn count(&self, bytes: u64, files: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.files.fetch_add(files, Ordering::Relaxed);
    }

    fn uncount(&self, bytes: u64, files: u64) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.files.fetch_sub(files, Ordering::Relaxed);
    }

    /// The file of a blob; `None` when it is not worth one, when another pull writes it, or when there is trouble
    /// with it, which is no trouble of the pull. Blocks.
    pub(crate) fn take(self: &Arc<Self>, digest: &Digest, size: u64) -> Option<Partial> {
        if size < SMALLEST || self.limit == 0 {
            return None;
        }
        let path = self.dir.join(digest.as_str().replace(':', "-"));
        let claim = Claim::new(self, path)?;
        match self.open_file(&claim.path, size) {
            Ok((file, held)) => {
                let waiting = Some(Waiting::default()).filter(|_| held == 0);
                let (file, length) = (Some(file), held);
                Some(Partial { claim, file, size, held, length, room: None, full: false, waiting })
            }
            Err(error) => {
                tracing::debug!(path = %claim.path.display(), %error, "blob not kept");
                None
            }
        }
    }

    /// Opens a file, made when missing or when it cannot be what we wrote; with its length.
    fn open_file(&self, path: &Path, size: u64) -> io::Result<(File, u64)> {
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let mut options = OpenOptions::new();
        options.read(true).append(true).custom_flags(flags).mode(0o600);
        if let Ok(file) = options.open(path) {
            let found = file.metadata()?;
            let ours = found.is_file()
                && found.nlink() == 1
                && found.mode() & 0o077 == 0
                && found.uid() == rustix::process::geteuid().as_raw();
            if ours && found.len() <= size {
                return Ok((file, found.len()));
            }
            self.delete(path, found.len());
        }
        let file = options.create_new(true).open(path)?;
        self.count(0, 1);
        Ok((file, 0))
    }

    fn taken(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.taken.lock().expect("no panics under this lock")
    }

    /// Deletes what is too old, and then the oldest, until `wanted` bytes more have room; answers how many bytes
    /// there is room for in all. Files that pulls have stay.
    fn make_room(&self, wanted: u64) -> u64 {
        let room = self.limit.min(self.usage().bytes.saturating_add(self.free()) / SPARE);
        let mut files: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for path in record::children(&self.dir).unwrap_or_default() {
            let Ok(found) = fs::symlink_metadata(&path) else { continue };
            files.push((found.modified().unwrap_or(SystemTime::UNIX_EPOCH), found.len(), path));
        }
        files.sort();
        let oldest = SystemTime::now().checked_sub(AGE).unwrap_or(SystemTime::UNIX_EPOCH);
        for (modified, length, path) in files {
            let too_much = self.usage().bytes.saturating_add(wanted) > room;
            // No pull can take it meanwhile.
            let taken = self.taken();
            if (modified < oldest || too_much) && !taken.contains(&path) {
                tracing::debug!(path = %path.display(), too_much, "beginning of a blob deleted");
                self.delete(&path, length);
            }
        }
        room
    }

    /// Bytes that are free where the files are.
    fn free(&self) -> u64 {
        rustix::fs::statvfs(&self.dir).map_or(u64::MAX, |found| found.f_bavail.saturating_mul(found.f_frsize))
    }

    fn delete(&self, path: &Path, length: u64) {
        match fs::remove_file(path) {
            Ok(()) => self.uncount(length, 1),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(path = %path.display(), %error, "blob that was kept is not deleted"),
        }
    }
}

/// The right to a file.
#[derive(Debug)]
struct Claim {
    partials: Arc<Partials>,
    path: PathBuf,
}

impl Claim {
    /// Waits a moment for a pull that has it: one that was cancelled just now gives it back. Blocks.
    fn new(partials: &Arc<Partials>, path: PathBuf) -> Option<Self> {
        let wait = partials.given_back.wait_timeout_while(partials.taken(), PATIENCE, |t| t.contains(&path));
        let (mut taken, _) = wait.expect("no panics under this lock");
        taken.insert(path.clone()).then(|| Self { partials: Arc::clone(partials), path })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.partials.taken().remove(&self.path);
        self.partials.given_back.notify_all();
    }
}

/// The file of one blob, ours alone until it is dropped; dropped, it stays for the next pull.
#[derive(Debug)]
pub(crate) struct Partial {
    claim: Claim,
    /// `None` once it is deleted.
    file: Option<File>,
    /// Size of the whole blob, as its manifest says.
    size: u64,
    /// Bytes an earlier pull kept.
    held: u64,
    length: u64,
    /// Bytes that all files together may have; looked up, and others deleted for it, when the first byte is kept.
    room: Option<u64>,
    /// No more is kept: after a gap nothing would be worth anything.
    full: bool,
    /// The first bytes, until it is known how fast they come.
    waiting: Option<Waiting>,
}

/// The first bytes of a blob, which are kept if it takes long enough to fetch it.
#[derive(Debug, Default)]
struct Waiting {
    pieces: Vec<Bytes>,
    bytes: u64,
    /// Spent on waiting for the network: what the unpacker takes is spent again on what was kept.
    waited: Duration,
}

impl Waiting {
    /// How long one waits for a blob of `size`, as far as its beginning tells.
    fn expected(&self, size: u64) -> Duration {
        self.waited.mul_f64(size as f64 / self.bytes.max(1) as f64)
    }
}

impl Partial {
    /// How many bytes an earlier pull kept.
    pub(super) fn held(&self) -> u64 {
        self.held
    }

    /// Deletes the file: the blob is complete, or was not what it must be. Blocks.
    pub(super) fn discard(mut self) {
        self.drop_file();
    }

    fn drop_file(&mut self) {
        if self.file.take().is_some() {
            self.claim.partials.delete(&self.claim.path, self.length);
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        self.append_waiting();
        if self.length == 0 {
            self.drop_file();
        }
    }
}

impl Kept for Partial {
    fn replay(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.file {
            // Ends at the end of the file, as nothing is appended before all of it was read.
            Some(file) if self.held > 0 => file.read(buffer),
            _ => Ok(0),
        }
    }

    fn keep(&mut self, bytes: &Bytes, waited: Duration) {
        let Some(waiting) = &mut self.waiting else { return self.append(bytes) };
        waiting.pieces.push(bytes.clone());
        waiting.bytes += bytes.len() as u64;
        waiting.waited += waited;
        if waiting.bytes < SMALLEST {
            return;
        }
        if waiting.expected(self.size) < self.claim.partials.worth {
            (self.full, self.waiting) = (true, None);
        } else {
            self.append_waiting();
        }
    }
}

impl Partial {
    fn append_waiting(&mut self) {
        for piece in self.waiting.take().map(|waiting| waiting.pieces).unwrap_or_default() {
            self.append(&piece);
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        let partials = &self.claim.partials;
        let Some(file) = self.file.as_mut().filter(|_| !self.full) else { return };
        let more = bytes.len() as u64;
        let rest = self.size.min(partials.limit).saturating_sub(self.length);
        let room = *self.room.get_or_insert_with(|| partials.make_room(rest));
        // What is there stays worth something when no more of it fits.
        if partials.usage().bytes.saturating_add(more) > room {
            self.full = true;
            return;
        }
        match file.write_all(bytes) {
            Ok(()) => {
                self.length += more;
                partials.count(more, 0);
            }
            Err(error) => {
                // On a full disk the layer itself needs the room.
                tracing::debug!(path = %self.claim.path.display(), %error, "blob not kept any more");
                self.drop_file();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_fast_is_kept_only_when_it_stops_early() {
        let (dir, digest, size) = (tempfile::tempdir().unwrap(), Digest::of(b"x"), 4 * SMALLEST);
        let piece = Bytes::from(vec![1; 1 << 20]);
        let pull = |worth: Duration, pieces: usize| {
            let partials = Partials::open(dir.path(), 1 << 30, worth).unwrap();
            let mut partial = partials.take(&digest, size).unwrap();
            let held = partial.held();
            (0..pieces).for_each(|_| partial.keep(&piece, Duration::from_secs(1)));
            drop(partial);
            let usage = partials.usage();
            let kept = fs::metadata(dir.path().join("partial").join(digest.as_str().replace(':', "-")));
            assert_eq!(usage.bytes, kept.as_ref().map_or(0, |found| found.len()));
            assert_eq!(usage.inodes, u64::from(kept.is_ok()));
            (held >> 20, usage.bytes >> 20)
        };
        // Of 16 MiB, a second each.
        let (never, always) = (Duration::from_secs(17), Duration::from_secs(16));
        assert_eq!(pull(never, 5), (0, 0), "fast");
        assert_eq!(pull(never, 3), (0, 3), "stopped before that was known");
        assert_eq!(pull(never, 2), (3, 5), "what is begun is gone on with");
        assert_eq!(pull(always, 1), (5, 6));
        fs::remove_dir_all(dir.path().join("partial")).unwrap();
        assert_eq!(pull(always, 5), (0, 5));
    }

    #[test]
    fn a_blob_has_one_file_and_small_ones_have_none() {
        let (dir, digest) = (tempfile::tempdir().unwrap(), Digest::of(b"x"));
        let partials = Partials::open(dir.path(), 1 << 30, Duration::ZERO).unwrap();
        assert!(partials.take(&digest, SMALLEST - 1).is_none());
        let first = partials.take(&digest, SMALLEST).unwrap();
        assert!(partials.take(&digest, SMALLEST).is_none(), "another pull has it");
        let waiting = std::thread::spawn({
            let (partials, digest) = (Arc::clone(&partials), digest.clone());
            move || partials.take(&digest, SMALLEST).is_some()
        });
        drop(first);
        assert!(waiting.join().unwrap(), "given back in time");
        assert_eq!(partials.usage(), Usage::default(), "an empty file is not kept");
    }
}
