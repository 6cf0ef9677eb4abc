//! The only unsafe code of this crate: settings of the C library and the kernel that nothing else reaches.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Lets this thread go before others at once when it has something to do: nice value `nice`, and turns of
/// `turn_ns` nanoseconds. What it starts from now on, threads and processes, has neither.
pub(crate) fn go_first(nice: i32, turn_ns: u64) -> std::io::Result<()> {
    let attributes = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: libc::SCHED_OTHER as u32,
        sched_flags: libc::SCHED_FLAG_RESET_ON_FORK as u64,
        sched_nice: nice,
        sched_priority: 0,
        // Linux 6.12 takes it as the length of a turn; earlier ones do not look at it.
        sched_runtime: turn_ns,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: `attributes` lives across the call, which reads `size` bytes of it and changes the calling
    // thread alone (sched_setattr(2); the thread and the flags are 0).
    match unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Has the allocator give memory back that was freed that many milliseconds ago, where it may keep it for a second. To
/// be called before there are other threads.
pub(crate) fn give_memory_back_after(milliseconds: std::ffi::c_long) {
    // `mi_option_purge_delay` of mimalloc.h, which the crate leaves without a name.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // SAFETY: it stores a number under an option that there is, while nobody else reads it.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, milliseconds) };
}

/// Sets how a detached mount and all beneath it propagate: `MS_PRIVATE` or `MS_SLAVE` (mount_setattr(2), Linux
/// 5.12).
pub(crate) fn set_propagation(tree: BorrowedFd<'_>, kind: libc::c_ulong) -> std::io::Result<()> {
    let attributes = libc::mount_attr { attr_set: 0, attr_clr: 0, propagation: kind, userns_fd: 0 };
    // SAFETY: the fd is borrowed, so it is open; the path is a NUL-terminated constant; `attributes` lives across
    // the call, which reads as many bytes of it as it is told.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if answer == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Takes the first socket that a service manager has handed over, sd_listen_fds(3). To be called at most once, before
/// this process opens anything, and only when the manager says that there is one.
pub(crate) fn first_inherited() -> OwnedFd {
    const FIRST: std::os::fd::RawFd = 3;
    // SAFETY: the protocol gives this number to the socket, nothing was opened or closed since the process began, and
    // the caller asks once: nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(FIRST) }
}
