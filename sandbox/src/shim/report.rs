//! What a short-lived child tells the shim while it makes a process: packets over a socket pair.
//!
//! Every process on the way holds the sending end, and exec closes it: when the receiving end sees the
//! end, the workload runs, or everyone on the way has died.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::SystemTime,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
};
use serde::{Deserialize, Serialize};

use crate::wire;

/// Longer messages are cut, so that a packet always fits.
const MAX_WORDS: usize = 4096;

/// One packet.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// The container's cgroup path, before anything is made in it.
    Cgroup(String),
    /// The process that will become the workload, as the shim's pid namespace sees it.
    Process(i32),
    /// The container's init was told to execute the workload, at this time: taken before it is told, so
    /// that no exit is earlier.
    Started(SystemTime),
    /// The terminal's master side comes with this packet.
    Terminal,
    /// It cannot be done: why, in words for the user.
    Failed(String),
}

/// A new pair: the shim's end, and the children's.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Tells; a shim that is gone is not an error of the child's.
pub(super) fn tell(to: impl AsFd, report: &Report, files: &[BorrowedFd<'_>]) {
    if let Ok(packet) = serde_json::to_vec(report) {
        let _ = wire::send_packet(to, &packet, files);
    }
}

/// Tells that it cannot be done.
pub(super) fn tell_failure(to: impl AsFd, words: &str) {
    let cut = words.char_indices().map(|(at, _)| at).find(|at| *at >= MAX_WORDS).unwrap_or(words.len());
    tell(to, &Report::Failed(words[..cut].to_owned()), &[]);
}

/// Whether nobody holds the receiving end any more.
pub(super) fn forsaken(to: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&to, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::HUP)
}

/// What a look at the receiving end brought.
#[derive(Debug)]
pub(super) enum Heard {
    /// A report, with the file that came with it.
    Report(Report, Option<OwnedFd>),
    /// Nothing for now.
    Nothing,
    /// Nobody holds the other end any more.
    End,
}

/// Takes the next report without waiting.
pub(super) fn hear(from: impl AsFd) -> Heard {
    match wire::receive_packet(from) {
        Ok(None) => Heard::Nothing,
        Ok(Some((packet, mut files))) if !packet.is_empty() => match serde_json::from_slice(&packet) {
            Ok(report) => Heard::Report(report, files.pop()),
            Err(error) => Heard::Report(Report::Failed(format!("a report: {error}")), None),
        },
        _ => Heard::End,
    }
}
