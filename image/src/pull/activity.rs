//! Counts of what pulls do, for metrics and status. No I/O.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::error::{ErrorKind, ImageError};

/// What pulls have done since the store was opened, and how many are under way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Activity {
    /// Pulls under way.
    pub pulls: u64,
    /// Pulls that gave an image.
    pub pulled: u64,
    /// Pulls that failed, by class; those whose caller went away are not among them.
    pub failed: BTreeMap<ErrorKind, u64>,
    /// Pulls whose caller went away.
    pub cancelled: u64,
    /// Bytes of layers that came from registries.
    pub fetched_bytes: u64,
    /// Bytes of layers that an earlier pull had fetched and kept.
    pub resumed_bytes: u64,
    /// Requests to registries that were made again after trouble.
    pub retries: u64,
    /// Layers that were thrown away because what was kept or pieced together was wrong, and fetched anew.
    pub refetched: u64,
    /// Layers that were unpacked and count.
    pub layers: u64,
}

/// The counts while they change.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pulls: AtomicU64,
    pulled: AtomicU64,
    cancelled: AtomicU64,
    pub(super) fetched: AtomicU64,
    pub(super) resumed: AtomicU64,
    pub(crate) retries: AtomicU64,
    pub(super) refetched: AtomicU64,
    pub(super) layers: AtomicU64,
    failed: Mutex<BTreeMap<ErrorKind, u64>>,
}

/// Adds to a count.
pub(crate) fn add(count: &AtomicU64, more: u64) {
    count.fetch_add(more, Ordering::Relaxed);
}

impl Counters {
    /// Counts a pull as under way until it is told how it ended or is dropped.
    pub(super) fn begin(&self) -> Begun<'_> {
        add(&self.pulls, 1);
        Begun { counters: self, ended: false }
    }

    pub(crate) fn read(&self) -> Activity {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Activity {
            pulls: read(&self.pulls),
            pulled: read(&self.pulled),
            failed: self.failed.lock().expect("no panics under this lock").clone(),
            cancelled: read(&self.cancelled),
            fetched_bytes: read(&self.fetched),
            resumed_bytes: read(&self.resumed),
            retries: read(&self.retries),
            refetched: read(&self.refetched),
            layers: read(&self.layers),
        }
    }
}

/// A pull under way.
pub(super) struct Begun<'a> {
    counters: &'a Counters,
    ended: bool,
}

impl Begun<'_> {
    pub(super) fn end<T>(mut self, outcome: &Result<T, ImageError>) {
        self.ended = true;
        match outcome {
            Ok(_) => add(&self.counters.pulled, 1),
            Err(error) => {
                let mut failed = self.counters.failed.lock().expect("no panics under this lock");
                *failed.entry(error.kind()).or_default() += 1;
            }
        }
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.counters.pulls.fetch_sub(1, Ordering::Relaxed);
        if !self.ended {
            add(&self.counters.cancelled, 1);
        }
    }
}
