//! Waiting for an fd in the async runtime.

use std::{io, os::fd::OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

/// Registers an fd with the runtime's poller, until it is dropped.
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd always names the same open file and closes it only when it is dropped, which
    // is what registering asks for; AsyncFd deregisters it before.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}
