//! Signals by number: the libraries' enums lack the real-time ones, which workloads use (systemd is
//! stopped by `SIGRTMIN+3`).

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use nix::unistd::Pid;

/// A signal that Linux has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SignalNumber(i32);

impl SignalNumber {
    pub(crate) const KILL: Self = Self(libc::SIGKILL);

    /// The signal of that number, 1 to 64 (see signal(7)); none for other numbers.
    pub(crate) fn new(number: i32) -> Option<Self> {
        (1..=64).contains(&number).then_some(Self(number))
    }

    /// Sends it to a child that has not been reaped, so its number still means it. Success when the
    /// child is dead already.
    pub(crate) fn send_to_child(self, child: Pid) -> io::Result<()> {
        if child.as_raw() <= 0 {
            // kill(2) would take it for a group, or for everyone.
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: kill(2) touches no memory of ours.
        done(libc::c_long::from(unsafe { libc::kill(child.as_raw(), self.0) }))
    }

    /// Sends it to the process of a pidfd. Success when that is dead already.
    pub(crate) fn send(self, pidfd: impl AsFd) -> io::Result<()> {
        let fd = pidfd.as_fd().as_raw_fd();
        // SAFETY: without a siginfo pidfd_send_signal(2) touches no memory of ours; the fd is borrowed,
        // so it is open.
        done(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, self.0, 0usize, 0usize) })
    }
}

impl std::fmt::Display for SignalNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "signal {}", self.0)
    }
}

fn done(answer: libc::c_long) -> io::Result<()> {
    match answer {
        -1 => Err(io::Error::last_os_error()).or_else(|error| match error.raw_os_error() {
            Some(libc::ESRCH) => Ok(()),
            _ => Err(error),
        }),
        _ => Ok(()),
    }
}
