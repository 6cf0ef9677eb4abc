//! What a shim that has died, or does not answer, leaves of itself: the logger, and the short-lived
//! processes with which it makes others. All of them are forks of the shim: until they execute something
//! else they have its command line, which names the pod.
//!
//! Everything here may block, for a bounded time. So a command line, which the kernel reads from the process's
//! own memory and for which it may have to wait behind a disk that hangs, is read of our own program alone.
//! Does not look for containers, nor for pause, which the
//! kernel ends with its shim.

use std::{
    collections::HashSet,
    fs, io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use crate::{Layout, PodId};

/// What the shim's program is called; forks have the same one until they execute another.
const PROGRAM: &str = "/memfd:podhold-shim";
/// What the logger is called; the shim has named it.
const LOGGER: &[u8] = b"podhold-logger\n";
/// How long the logger may write what is left in the pipes; as long as its own drain, and a little more.
const LAST_LINES: Duration = Duration::from_secs(2);
/// How long killed processes may take to be gone. One that waits for a disk takes longer, and is left.
const KILLED: Duration = Duration::from_secs(1);
/// For how long one look through all processes serves.
const MOMENT: Duration = Duration::from_secs(1);

/// The shim's program and arguments, as `/proc` shows them.
fn command_line(layout: &Layout, pod: &PodId) -> Vec<u8> {
    let words = ["podhold-shim".as_ref(), layout.run().as_os_str(), layout.state().as_os_str()];
    let mut line = Vec::new();
    for word in words.into_iter().chain([pod.as_str().as_ref()]) {
        line.extend(word.as_bytes());
        line.push(0);
    }
    line
}

/// The process `pid`, if it is the pod's shim or a fork of it.
pub(super) fn is_shim(layout: &Layout, pod: &PodId, pid: u32) -> Option<OwnedFd> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    let process = pidfd_open(number, PidfdFlags::NONBLOCK).ok()?;
    // Read after the process is held: its number cannot have become another's in between.
    has_command_line(pid, &command_line(layout, pod)).then_some(process)
}

fn has_command_line(pid: u32, wanted: &[u8]) -> bool {
    own_command_line(pid).is_some_and(|line| line == wanted)
}

/// The command line of a process that runs our program.
fn own_command_line(pid: u32) -> Option<Vec<u8>> {
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let ours = program.as_os_str().as_bytes().starts_with(PROGRAM.as_bytes());
    ours.then(|| fs::read(format!("/proc/{pid}/cmdline")).ok()).flatten()
}

/// The pid of the pod's shim: the one whose parent is no fork of it.
pub(super) fn shim(layout: &Layout, pod: &PodId) -> Option<u32> {
    let wanted = command_line(layout, pod);
    let is_fork = |pid: u32| has_command_line(pid, &wanted);
    let mut forks = pids().ok()?.filter(|pid| is_fork(*pid));
    forks.find(|pid| parent(*pid).is_some_and(|parent| !is_fork(parent)))
}

/// Field `ppid` of `/proc/PID/stat` (proc_pid_stat(5)).
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold blanks and parentheses.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

fn pids() -> io::Result<impl Iterator<Item = u32>> {
    Ok(fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()))
}

/// The command lines of all shims and their forks, as they were a moment ago.
///
/// A pod that has no socket has no shim, unless somebody has deleted it by hand. To look through all processes
/// for each pod that is removed would cost too much: one look serves all pods of the same moment.
#[derive(Debug, Default)]
pub(super) struct Listing(Mutex<Option<(Instant, HashSet<Vec<u8>>)>>);

impl Listing {
    /// To be called before a shim is started.
    pub(super) fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether a process with this command line was there a moment ago.
    fn has(&self, line: &[u8]) -> io::Result<bool> {
        // Held while it looks: whoever asks meanwhile wants what is found.
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, lines)) = seen.as_ref().filter(|(at, _)| at.elapsed() < MOMENT) {
            return Ok(lines.contains(line));
        }
        let lines: HashSet<Vec<u8>> = pids()?.filter_map(own_command_line).collect();
        let has = lines.contains(line);
        *seen = Some((Instant::now(), lines));
        Ok(has)
    }
}

/// Kills the shim and all its forks, except the logger.
pub(super) fn end_makers(layout: &Layout, pod: &PodId, listing: &Listing) -> io::Result<()> {
    if !may_have_any(layout, pod, listing)? {
        return Ok(());
    }
    let deadline = Instant::now() + KILLED;
    loop {
        let found = forks(layout, pod, false)?;
        found.iter().for_each(kill);
        // One that was about to fork has done so or not by now: looks again.
        if found.is_empty() || !wait(&found, deadline) {
            return Ok(());
        }
    }
}

/// Waits for the logger, then kills it.
pub(super) fn end_logger(layout: &Layout, pod: &PodId, listing: &Listing) -> io::Result<()> {
    if !may_have_any(layout, pod, listing)? {
        return Ok(());
    }
    let found = forks(layout, pod, true)?;
    if !wait(&found, Instant::now() + LAST_LINES) {
        found.iter().for_each(kill);
        wait(&found, Instant::now() + KILLED);
    }
    // What an orderly end of the shim removes: while it is there, there may be something to end.
    match fs::remove_file(layout.shim_socket(pod)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn may_have_any(layout: &Layout, pod: &PodId, listing: &Listing) -> io::Result<bool> {
    Ok(layout.shim_socket(pod).exists() || listing.has(&command_line(layout, pod))?)
}

fn forks(layout: &Layout, pod: &PodId, loggers: bool) -> io::Result<Vec<OwnedFd>> {
    let wanted = command_line(layout, pod);
    let mut found = Vec::new();
    for pid in pids()? {
        // Most are not: nothing is opened for those.
        if !has_command_line(pid, &wanted) {
            continue;
        }
        let Some(process) = is_shim(layout, pod, pid) else { continue };
        let logger = fs::read(format!("/proc/{pid}/comm")).is_ok_and(|name| name == LOGGER);
        if logger == loggers {
            found.push(process);
        }
    }
    Ok(found)
}

fn kill(process: &OwnedFd) {
    // Fails for one that has ended.
    let _ = pidfd_send_signal(process, Signal::KILL);
}

/// Whether all have ended by `deadline`.
fn wait(processes: &[OwnedFd], deadline: Instant) -> bool {
    processes.iter().all(|process| {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 });
        let mut fds = [PollFd::new(process, PollFlags::IN)];
        poll(&mut fds, Some(&left)).is_ok_and(|ready| ready > 0)
    })
}
