//! The only unsafe code of this crate: settings of the C library and the kernel that nothing else reaches.
#![allow(unsafe_code)]

/// Heaps of malloc that all threads share.
const ARENAS: libc::c_int = 2;

/// Lets threads share a few heaps. By default each new one gets a heap of its own, up to eight for every
/// processor, and keeps what it ever took: a hundred sessions at once would be paid for ever after.
///
/// To be called before there is a second thread.
pub(crate) fn share_heaps() {
    // SAFETY: it takes two numbers and sets one in the allocator, under its own lock (mallopt(3)).
    let set = unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
    if set == 0 {
        tracing::warn!("the allocator does not take M_ARENA_MAX; memory use may be higher");
    }
}

/// Gives what this thread starts from now on, threads and processes, nice value 0 where its own is lower.
pub(crate) fn forget_priority_on_fork() -> std::io::Result<()> {
    let policy = libc::SCHED_OTHER | libc::SCHED_RESET_ON_FORK;
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: `parameters` lives across the call, which reads it and changes the calling thread alone
    // (sched_setscheduler(2); the thread is 0).
    match unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
