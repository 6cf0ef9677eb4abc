//! The only unsafe code of this crate: settings of the C library that nothing else reaches.
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
