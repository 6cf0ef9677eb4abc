//! Credential helpers that outlived their daemon: ended when the next one begins.
//!
//! While a helper runs there is a file for it, a mark, and its environment names the file; so do its children's. A
//! daemon that was killed leaves marks. The next one looks for processes that have them in their environment, in a
//! thread of its own, and only when there are any. (A parent-death signal would need a fork, and is tied to the
//! thread that forked.)
//!
//! Invariant: only processes that have a mark of an earlier daemon are ended; each is looked at again once it cannot
//! be mistaken for another.

use std::{
    collections::HashSet,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use crate::store::record;

/// The variable that names a helper's mark.
pub(super) const VARIABLE: &str = "PODHOLD_HELPER";
/// How often processes are looked for: one that is found may be making others.
const ROUNDS: usize = 20;
/// How much of an environment is read.
const MOST: u64 = 64 << 10;
/// How long a killed process may take to end before others are looked for.
const ENDING: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// The marks of the helpers of one image directory.
pub(crate) struct Marks {
    dir: PathBuf,
    /// Tells our marks from those of other daemons.
    ours: u128,
    next: AtomicU64,
}

impl Marks {
    /// The marks beneath `dir`, which is made when missing. Helpers of earlier daemons are ended by a thread. Trouble
    /// is told in the log: helpers work without marks, too.
    pub(crate) fn open(dir: &Path) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let marks = Self { dir: dir.join("helpers"), ours: now.as_nanos(), next: AtomicU64::new(0) };
        if let Err(error) = marks.end_earlier() {
            let dir = marks.dir.display();
            tracing::warn!(%dir, %error, "credential helpers of an earlier daemon are not looked for");
        }
        marks
    }

    fn end_earlier(&self) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        record::check_directory(&self.dir).map_err(io::Error::other)?;
        let earlier = record::children(&self.dir).map_err(io::Error::other)?;
        if earlier.is_empty() {
            return Ok(());
        }
        let end = move || {
            let values: HashSet<Vec<u8>> =
                earlier.iter().map(|path| format!("{VARIABLE}={}", path.display()).into_bytes()).collect();
            match end_all(&values) {
                Ok(0) => {}
                Ok(ended) => tracing::info!(ended, "credential helpers of an earlier daemon were ended"),
                Err(error) => tracing::warn!(%error, "credential helpers of an earlier daemon are not ended"),
            }
            for path in &earlier {
                remove(path);
            }
        };
        std::thread::Builder::new().name("helpers".to_owned()).spawn(end).map(drop)
    }

    /// A mark for a helper that is about to be started. Blocks.
    pub(super) fn mark(&self) -> Mark {
        let path = self.dir.join(format!("{}-{}", self.ours, self.next.fetch_add(1, Ordering::Relaxed)));
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        if let Err(error) = made {
            // No reason not to ask it: it ends with its time all the same.
            tracing::debug!(path = %path.display(), %error, "a credential helper has no mark");
        }
        Mark(path)
    }
}

/// The mark of one helper; removed when dropped.
#[derive(Debug)]
pub(super) struct Mark(PathBuf);

impl Mark {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::debug!(path = %path.display(), %error, "the mark of a credential helper stays");
        }
        _ => {}
    }
}

/// Kills every process that has one of these variables; how many there were.
fn end_all(values: &HashSet<Vec<u8>>) -> io::Result<usize> {
    let mut ended = 0;
    for _ in 0..ROUNDS {
        let found = with_one_of(values)?;
        if found.is_empty() {
            return Ok(ended);
        }
        for process in &found {
            // One that has ended is what is wanted.
            let _ended = pidfd_send_signal(process, Signal::KILL);
            let _late = poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&ENDING));
        }
        ended += found.len();
    }
    Err(io::Error::other(format!("{ended} were killed, and there are still more")))
}

fn with_one_of(values: &HashSet<Vec<u8>>) -> io::Result<Vec<OwnedFd>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if !has_one_of(pid, values) {
            continue;
        }
        // Once it is held it stays the same process: looked at again, it is the one that was meant.
        let Some(held) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else {
            continue;
        };
        if has_one_of(pid, values) {
            found.push(held);
        }
    }
    Ok(found)
}

/// Whether a process of our user has one of these variables. One that has ended has none.
fn has_one_of(pid: i32, values: &HashSet<Vec<u8>>) -> bool {
    let path = format!("/proc/{pid}/environ");
    let ours = |found: fs::Metadata| found.uid() == rustix::process::geteuid().as_raw();
    if !fs::metadata(&path).is_ok_and(ours) {
        return false;
    }
    let mut environment = Vec::new();
    let read = File::open(&path).and_then(|file| file.take(MOST).read_to_end(&mut environment));
    read.is_ok() && environment.split(|byte| *byte == 0).any(|variable| values.contains(variable))
}
