//! Whether paths that a request names answer: found out without risking the daemon.
//!
//! A path on a mount that hangs puts whoever follows it to sleep where no signal reaches it. A thread of the
//! daemon that sleeps there outlives the daemon, with its locks and its sockets, and no other daemon can
//! start. So a path is followed here only where it stays on the mount of our own state directory or on one that
//! lies in memory, or where the kernel knows it and it lies on a disk. Any other is followed first by a process of its
//! own, `podhold look-up`; when that comes back the path answers, and the kernel has it in memory.
//!
//! Invariant: one such process for a path at a time, however many ask for it, and [`MOST`] in all. One that
//! is late is killed; until it is gone, which may take as long as the mount hangs, whoever asks for its path
//! is told so at once. Says nothing about what is at the path.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags};
use tokio::time::timeout;

use super::flight::Flights;
use crate::error::{Error, Result};

/// How long a path may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Processes that may wait for paths at the same time.
const MOST: usize = 128;
/// Length from which on the kernel takes no path (PATH_MAX).
const LONGEST: usize = libc::PATH_MAX as usize;
/// Largest file that is read to see whether it answers, in bytes.
const LARGEST: u64 = 4 << 20;

/// What a path is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Purpose {
    /// To be mounted or looked at; a directory is made when nothing is there.
    Source,
    /// To be looked at; nothing is made.
    Look,
    /// A directory that everybody can enter, made with its parents when it is missing.
    Directory,
    /// A file whose content is wanted, or a directory of devices.
    Content,
}

/// Finds out whether paths answer.
#[derive(Debug)]
pub(super) struct Reach {
    /// The mount of the state directory: while it hangs, nothing works anyway.
    ours: Option<u64>,
    following: Flights<(PathBuf, Purpose), ()>,
    late: Late,
}

/// Paths that are waited for, and since when those are waited for in vain.
#[derive(Debug, Clone, Default)]
struct Late(Arc<Mutex<HashMap<PathBuf, Option<Instant>>>>);

impl Late {
    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Option<Instant>>> {
        self.0.lock().expect("no code panics while it holds the paths")
    }
}

impl super::Runtime {
    /// Success when a path that `field` of a manifest names answers, whatever is there.
    pub(crate) async fn host_path_answers(&self, field: &str, path: &Path) -> Result<()> {
        let answered = self.reach.answers(path, Purpose::Look).await;
        answered.map_err(|error| match error {
            Error::Deadline(reason) => Error::Deadline(format!("{field}: {reason}")),
            other => other,
        })
    }
}

impl Reach {
    /// `state` is a directory of ours. Blocks.
    pub(super) fn new(state: &Path) -> Self {
        let ours = cached(state).and_then(|place| mount_of(&place));
        Self { ours, following: Flights::default(), late: Late::default() }
    }

    /// Success when `path` answers within [`PATIENCE`], whatever the answer is.
    pub(super) async fn answers(&self, path: &Path, purpose: Purpose) -> Result<()> {
        // One that is too long to be followed is refused, by its field, without being followed.
        let too_long = path.as_os_str().len() >= LONGEST;
        if too_long || self.answers_at_once(path, purpose) {
            return Ok(());
        }
        {
            let late = self.late.lock();
            if let Some(Some(since)) = late.get(path) {
                return Err(silent(path, since.elapsed() + PATIENCE));
            }
            if late.len() >= MOST && !late.contains_key(path) {
                return Err(Error::Deadline(format!(
                    "{}: not followed, since {MOST} other paths of this host do not answer; mend their file \
                     systems first",
                    path.display()
                )));
            }
        }
        let (owned, late) = (path.to_owned(), self.late.clone());
        let work = || async move { follow(&owned, purpose, &late).await };
        let joined = self.following.join((path.to_owned(), purpose), work);
        timeout(PATIENCE + PATIENCE / 10, joined).await.unwrap_or_else(|_| Err(silent(path, PATIENCE)))
    }

    /// Whether following the path cannot hang.
    fn answers_at_once(&self, path: &Path, purpose: Purpose) -> bool {
        if let Some(place) = cached(path) {
            // The top of a mount is always known, whether its file system answers or not; and reading asks.
            return self.is_ours(&place)
                || is_device(&place)
                || (purpose != Purpose::Content && on_disk(&place))
                || in_memory(&place);
        }
        let known = path.ancestors().skip(1).find_map(|above| Some((above, cached(above)?)));
        let Some((above, place)) = known.filter(|(_, place)| self.is_ours(place) || in_memory(place)) else {
            return false;
        };
        let Ok(rest) = path.strip_prefix(above) else { return false };
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
        let found = rustix::fs::openat2(&place, rest, flags, Mode::empty(), resolve);
        matches!(found, Ok(_) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR))
    }

    fn is_ours(&self, place: &rustix::fd::OwnedFd) -> bool {
        self.ours.is_some() && mount_of(place) == self.ours
    }
}

/// The path, if the kernel knows it without asking a file system.
fn cached(path: &Path) -> Option<rustix::fd::OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED).ok()
}

/// The number of its mount; the file system is not asked.
fn mount_of(place: &rustix::fd::OwnedFd) -> Option<u64> {
    about(place, StatxFlags::MNT_ID).map(|found| found.stx_mnt_id)
}

/// What the kernel has in memory; the file system is not asked.
fn about(place: &rustix::fd::OwnedFd, what: StatxFlags) -> Option<Statx> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    rustix::fs::statx(place, "", flags, what).ok()
}

/// Whether it is a device, of which nothing but its number is wanted.
fn is_device(place: &rustix::fd::OwnedFd) -> bool {
    let kind = about(place, StatxFlags::TYPE).map(|found| FileType::from_raw_mode(found.stx_mode.into()));
    matches!(kind, Some(FileType::CharacterDevice | FileType::BlockDevice))
}

/// Whether its file system lies on a block device: what the kernel knows of it, it tells from memory. Network
/// file systems and those of user space, like some others, have no device (major number 0).
fn on_disk(place: &rustix::fd::OwnedFd) -> bool {
    about(place, StatxFlags::empty()).is_some_and(|found| found.stx_dev_major != 0)
}

/// Whether its file system is nowhere but in memory, as the volumes are in which a kubelet gives secrets and tokens.
fn in_memory(place: &rustix::fd::OwnedFd) -> bool {
    let (Some(id), Ok(mounts)) = (mount_of(place), std::fs::read_to_string("/proc/self/mountinfo")) else {
        return false;
    };
    let id = format!("{id} ");
    // The type follows the optional fields, whose end is marked (proc_pid_mountinfo(5)).
    let kind = mounts.lines().find(|line| line.starts_with(&id)).and_then(|line| line.split_once(" - "));
    kind.is_some_and(|(_, kind)| ["tmpfs ", "ramfs ", "devtmpfs "].iter().any(|name| kind.starts_with(name)))
}

fn silent(path: &Path, waited: Duration) -> Error {
    Error::Deadline(format!(
        "{} has not answered for {} s: its file system hangs; call again when it is mended or unmounted",
        path.display(),
        waited.as_secs()
    ))
}

/// Has a process of its own follow the path; returns when that process is gone.
async fn follow(path: &Path, purpose: Purpose, late: &Late) -> Result<()> {
    late.lock().insert(path.to_owned(), None);
    let followed = follow_and_wait(path, purpose, late).await;
    late.lock().remove(path);
    followed
}

async fn follow_and_wait(path: &Path, purpose: Purpose, late: &Late) -> Result<()> {
    let doing = || format!("looking up {}", path.display());
    let purpose = clap::ValueEnum::to_possible_value(&purpose).expect("every purpose has a word");
    let mut child = tokio::process::Command::new("/proc/self/exe")
        .args(["look-up", purpose.get_name()])
        .arg(path)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(Error::doing(doing()))?;
    if let Ok(ended) = timeout(PATIENCE, child.wait()).await {
        return ended.map(drop).map_err(Error::doing(doing()));
    }
    late.lock().insert(path.to_owned(), Some(Instant::now()));
    tracing::warn!(path = %path.display(), "does not answer; its file system hangs");
    // Where a signal reaches it, it ends now; otherwise with the hang, which is how we hear of that.
    let _ended_meanwhile = child.start_kill();
    let ended = child.wait().await;
    tracing::info!(path = %path.display(), ?ended, "no longer waited for");
    Err(silent(path, PATIENCE))
}

/// What the process does that follows a path. Errors mean that it answers, and are found again by whoever
/// wants the path.
pub fn look_up(path: &Path, purpose: Purpose) {
    let _answered: io::Result<()> = match purpose {
        Purpose::Source => std::fs::symlink_metadata(path)
            .map(drop)
            .or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => super::prepare::make_public(path),
                _ => Err(error),
            })
            .and_then(|()| std::fs::canonicalize(path)?.metadata().map(drop)),
        Purpose::Look => std::fs::metadata(path).map(drop),
        Purpose::Directory => super::prepare::make_public(path),
        Purpose::Content => content(path),
    };
}

fn content(path: &Path) -> io::Result<()> {
    use std::{io::Read as _, os::unix::fs::OpenOptionsExt};
    let metadata = std::fs::metadata(path)?;
    if metadata.is_dir() {
        return std::fs::read_dir(path)?.try_for_each(|entry| entry?.metadata().map(drop));
    }
    if metadata.is_file() {
        // Something else may have taken its place: a FIFO would have us wait for a writer.
        let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
        let file = std::fs::File::options().read(true).custom_flags(flags).open(path)?;
        io::copy(&mut file.take(LARGEST), &mut io::sink())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_our_own_mount_is_followed_by_ourselves() {
        let place = tempfile::tempdir().unwrap();
        let reach = Reach::new(place.path());
        let at_once = |path: &Path, purpose| reach.answers_at_once(path, purpose);
        std::fs::write(place.path().join("file"), "x").unwrap();
        for name in ["file", "missing", "missing/deeper", "file/beneath"] {
            assert!(at_once(&place.path().join(name), Purpose::Source), "{name}");
        }
        assert!(at_once(&place.path().join("file"), Purpose::Content));
        assert!(at_once(Path::new("/dev/null"), Purpose::Content), "a device");
        std::fs::metadata("/dev/shm").unwrap();
        assert!(at_once(Path::new("/dev/shm"), Purpose::Source), "the top of a mount in memory");
        assert!(at_once(Path::new("/dev/shm/missing/deeper"), Purpose::Source), "beneath it");
        assert!(!at_once(Path::new("/proc"), Purpose::Source), "the top of a mount that has no disk");
        assert!(
            !at_once(Path::new("/proc/self/status"), Purpose::Content),
            "another mount is asked elsewhere"
        );
        std::os::unix::fs::symlink("/proc/nosuch", place.path().join("out")).unwrap();
        assert!(!at_once(&place.path().join("out/file"), Purpose::Source), "a link out of our mount");
    }

    #[test]
    fn what_was_looked_up_is_there_for_the_request() {
        let place = tempfile::tempdir().unwrap();
        look_up(&place.path().join("a/b"), Purpose::Source);
        look_up(&place.path().join("c/d"), Purpose::Directory);
        assert!(place.path().join("a/b").is_dir() && place.path().join("c/d").is_dir());
        for purpose in [Purpose::Content, Purpose::Look] {
            look_up(&place.path().join("e"), purpose);
            assert!(!place.path().join("e").exists());
        }
    }
}
