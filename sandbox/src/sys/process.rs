//! Making processes out of a single-threaded one, and preparing them for exec.

use std::{
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixListener,
    },
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicBool, Ordering},
};

pub(crate) use nix::sched::CloneFlags;
use nix::unistd::Pid;

/// Set once the process has been seen to have a single thread.
static SINGLE_THREADED: AtomicBool = AtomicBool::new(false);

/// Where a search for open fds ends, on kernels that have none of their own. The lowest free number is
/// given first, and the processes here have a few files per container.
const FD_LIMIT: u32 = 1 << 16;

/// Promises that this process has a single thread and never makes another; checked for the present.
/// [`fork`] works only in such a process.
pub(crate) fn promise_single_thread() -> io::Result<()> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("the process has several threads"));
    }
    SINGLE_THREADED.store(true, Ordering::Relaxed);
    Ok(())
}

/// Forks, with new namespaces or as a sibling (`CLONE_PARENT`) as `flags` say; see clone(2). The child
/// runs `child` and ends with the code it returns; nothing of the parent's stack is unwound in it.
///
/// Works only after [`promise_single_thread`]: the child may then use everything, the allocator included.
pub(crate) fn fork(flags: CloneFlags, child: impl FnOnce() -> i32) -> io::Result<Pid> {
    if !SINGLE_THREADED.load(Ordering::Relaxed) {
        return Err(io::Error::other("a process that may have several threads cannot fork"));
    }
    let signal = if flags.contains(CloneFlags::CLONE_PARENT) { 0 } else { libc::SIGCHLD };
    let flags = libc::c_long::from(flags.bits() | signal);
    // SAFETY: without CLONE_VM and with a null stack clone(2) behaves as fork(2): the child goes on with
    // a copy of this stack. The process has one thread, so no lock is held by a thread that the child
    // lacks. The remaining arguments are unused without the flags that ask for them.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0usize, 0usize, 0usize, 0usize) };
    go_on(pid, child)
}

/// As [`fork`], with a child that begins its life in the cgroup (of version 2) whose directory this is: what
/// moves a process later waits for all processors, often for 10 ms. Needs Linux 5.7.
pub(crate) fn fork_into(cgroup: BorrowedFd<'_>, child: impl FnOnce() -> i32) -> io::Result<Pid> {
    /// As far as clone3(2) knows it since it takes a cgroup.
    #[repr(C)]
    #[derive(Default)]
    struct Arguments {
        flags: u64,
        unused: [u64; 3],
        exit_signal: u64,
        unused_either: [u64; 5],
        cgroup: u64,
    }
    const INTO_CGROUP: u64 = 0x2_0000_0000;
    if !SINGLE_THREADED.load(Ordering::Relaxed) {
        return Err(io::Error::other("a process that may have several threads cannot fork"));
    }
    let cgroup = u64::try_from(cgroup.as_raw_fd()).map_err(io::Error::other)?;
    let exit_signal = libc::SIGCHLD.unsigned_abs().into();
    let arguments = Arguments { flags: INTO_CGROUP, exit_signal, cgroup, ..Arguments::default() };
    let (place, size) = (std::ptr::from_ref(&arguments), size_of::<Arguments>());
    // SAFETY: as in `fork`; the kernel reads `size` bytes of `arguments`, which outlive the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, place, size) };
    go_on(pid, child)
}

/// Goes on with what clone(2) has answered, in either process.
fn go_on(pid: libc::c_long, child: impl FnOnce() -> i32) -> io::Result<Pid> {
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(101);
            // SAFETY: _exit(2) has no preconditions. No destructor may run in the child, since it
            // shares open files and paths with the parent.
            unsafe { libc::_exit(code) }
        }
        pid => Ok(Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?)),
    }
}

/// Unblocks all signals and gives each its default action, as a program expects at its start.
pub(crate) fn reset_signals() {
    // The kernel's struct sigaction, all zero: SIG_DFL, no flags, no restorer, empty mask.
    let default = [0u64; 4];
    for signal in 1..=64usize {
        // SAFETY: SIG_DFL installs no handler, so nothing can run at a signal; the kernel reads at most
        // the 32 bytes of `default`. The call is made directly, since libc hides the two signals it
        // uses itself. Those that cannot be changed answer EINVAL, which changes nothing.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), 0usize, 8usize) };
    }
    let _ = nix::sys::signal::SigSet::all().thread_unblock();
}

/// Closes every fd but those in `keep`. Only for a child that never touches the others again, not even
/// by dropping their owners: it must end in exec or in [`fork`]'s exit.
pub(crate) fn close_fds_except(keep: &[RawFd]) {
    let mut keep: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    keep.sort_unstable();
    let mut next = 0;
    for fd in keep {
        if fd > next {
            close_range(next, fd - 1);
        }
        next = next.max(fd + 1);
    }
    close_range(next, u32::MAX);
}

/// Marks every fd from `first` on to be closed at exec.
pub(crate) fn set_close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: this touches no memory and closes nothing now.
    let answer = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if answer == 0 { Ok(()) } else { set_close_on_exec_each(first) }
}

/// As [`set_close_on_exec_from`], before Linux 5.11. Not by way of `/proc/self/fd`: in a container that
/// directory is whatever the container has put there.
fn set_close_on_exec_each(first: u32) -> io::Result<()> {
    for fd in first..FD_LIMIT {
        // SAFETY: F_SETFD touches no memory and closes nothing now; a number that is not open is EBADF.
        let answer = unsafe { libc::fcntl(fd.cast_signed(), libc::F_SETFD, libc::FD_CLOEXEC) };
        let error = io::Error::last_os_error();
        if answer == -1 && error.raw_os_error() != Some(libc::EBADF) {
            return Err(error);
        }
    }
    Ok(())
}

fn close_range(first: u32, last: u32) {
    // SAFETY: closing fds touches no memory; the callers' contracts say that their owners are not used
    // any more.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } == 0 {
        return;
    }
    // Before Linux 5.9.
    for fd in first..last.saturating_add(1).min(FD_LIMIT) {
        // SAFETY: as above.
        unsafe { libc::close(fd.cast_signed()) };
    }
}

/// Takes over a listening unix socket by its number; refuses what is none. Call once per number.
pub(crate) fn adopt_listener(fd: RawFd) -> io::Result<UnixListener> {
    let fd = adopt_fd(fd)?;
    if !rustix::net::sockopt::socket_acceptconn(&fd)? {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "stdin is not a listening socket"));
    }
    Ok(UnixListener::from(fd))
}

/// Takes over an open fd by its number. Call once per number.
fn adopt_fd(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl(F_GETFD) only asks whether the number is open.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the number is open, and the caller says that nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsRawFd};

    use super::*;

    #[test]
    fn every_fd_is_marked_on_old_kernels_too() {
        for mark in [set_close_on_exec_from, set_close_on_exec_each] {
            let file = File::open("/dev/null").unwrap();
            rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
            mark(file.as_raw_fd().cast_unsigned()).unwrap();
            assert_eq!(rustix::io::fcntl_getfd(&file).unwrap(), rustix::io::FdFlags::CLOEXEC);
        }
    }
}
