//! Waiting for processes to end, on events alone.

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

/// A process that cannot be mistaken for a later one with the same number.
pub(crate) struct Process {
    fd: OwnedFd,
}

impl Process {
    /// Opens the process; `None` when it has ended or is not in our pid namespace.
    pub(crate) fn open(pid: u32) -> Option<Self> {
        let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
        pidfd_open(pid, PidfdFlags::empty()).ok().map(|fd| Self { fd })
    }

    /// Kills it; one that has ended is fine.
    pub(crate) fn kill(&self) {
        let _ended_already = pidfd_send_signal(&self.fd, Signal::KILL);
    }
}

/// Waits until all of them have ended, or the deadline.
pub(crate) fn wait_ended(mut processes: Vec<Process>, deadline: Instant) {
    while !processes.is_empty() && Instant::now() < deadline {
        // A bounded number at a time: poll refuses more entries than files may be open.
        let batch = processes.len().min(512);
        let mut fds: Vec<PollFd<'_>> =
            processes[..batch].iter().map(|p| PollFd::new(&p.fd, PollFlags::IN)).collect();
        if poll(&mut fds, Some(&timeout(deadline))).is_err() {
            return;
        }
        let ended: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        let mut ended = ended.into_iter().chain(std::iter::repeat(false));
        processes.retain(|_| !ended.next().unwrap_or(false));
    }
}

/// Waits for the kernel to finish what gives no event: a task that has been reaped may still be
/// accounted to its cgroup until it has been scheduled for the last time.
pub(crate) fn settle(time: Duration) {
    let time = Timespec::try_from(time).unwrap_or_default();
    let _elapsed = poll(&mut [], Some(&time));
}

fn timeout(deadline: Instant) -> Timespec {
    let left = deadline.saturating_duration_since(Instant::now());
    Timespec::try_from(left).unwrap_or_default()
}
