//! How many files this process may have open at a time (getrlimit(2), RLIMIT_NOFILE).
//!
//! The daemon and its shims take all that the host allows them. Containers get what the daemon was started
//! with: programs that use select(2), or close every number there could be, suffer from a high soft limit.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::OnceLock,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What a limit is when there is none.
const UNLIMITED: u64 = u64::MAX;
/// Left at least to everything but streaming, as far as that is not more than half.
const RESERVE: u64 = 256;

/// What making or undoing a pod opens at the same time, and some more.
const ROOM: usize = 32;
/// More clients than this no CRI socket has.
const MOST_CLIENTS: usize = 4096;

static STARTED_WITH: OnceLock<Limit> = OnceLock::new();

/// A limit on open files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// What holds.
    pub soft: u64,
    /// What a process may raise it to.
    pub hard: u64,
}

/// Raises the soft limit to the hard one; shims and other children inherit it. To be called before anything
/// is opened.
pub fn raise() {
    let Limit { soft, hard } = started_with();
    if soft < hard {
        let limit = Rlimit { current: Some(hard), maximum: Some(hard) };
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, soft, hard, "limit on open files not raised");
        }
    }
}

/// The limit this process was started with.
pub fn started_with() -> Limit {
    *STARTED_WITH.get_or_init(now)
}

/// How many files streaming clients may take, all of them together.
pub fn for_streaming() -> usize {
    usize::try_from(share(now().soft)).unwrap_or(usize::MAX)
}

/// Whether there is room for a new pod, container or pull, and for undoing it: what is begun without may be
/// left half made.
pub fn has_room() -> std::io::Result<()> {
    let stderr = std::io::stderr();
    let open = |_| stderr.as_fd().try_clone_to_owned();
    let places: std::io::Result<Vec<OwnedFd>> = (0..ROOM).map(open).collect();
    places.map(drop)
}

/// How many clients the CRI socket may have at a time: half of what streaming leaves.
pub fn for_clients() -> usize {
    usize::try_from(clients(now().soft)).unwrap_or(usize::MAX).clamp(1, MOST_CLIENTS)
}

fn clients(limit: u64) -> u64 {
    (limit - share(limit)) / 2
}

fn share(limit: u64) -> u64 {
    limit - (limit / 4).max(RESERVE).min(limit / 2)
}

fn now() -> Limit {
    let limit = getrlimit(Resource::Nofile);
    Limit { soft: limit.current.unwrap_or(UNLIMITED), hard: limit.maximum.unwrap_or(UNLIMITED) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streaming_leaves_a_quarter_and_never_takes_nothing() {
        let shares = [64, 512, 1024, 4096, 524_288].map(share);
        assert_eq!(shares, [32, 256, 768, 3072, 393_216]);
        assert_eq!([64, 512, 1024].map(clients), [16, 128, 128]);
    }
}
