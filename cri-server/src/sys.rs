//! The only unsafe code of this crate: settings of the C library and the kernel that nothing else reaches.
#![allow(unsafe_code)]

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
