//! Sizes of writable layers, counted now and then. A count walks a directory tree on a disk that may be
//! slow or hang: it is done in the background, one at a time for each layer, and nobody waits for it
//! longer than [`PATIENCE`].

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use podhold_image::Usage;
use podhold_sandbox::ContainerId;

/// How long a size is believed at least.
const AGE: Duration = Duration::from_secs(10);
/// A size is believed this many times as long as its count took, so that counting takes 1 % of the time.
const TIMES: u32 = 100;
/// How long a size is believed at most.
const OLDEST: Duration = Duration::from_secs(300);
/// How long a count may keep whoever asks.
const PATIENCE: Duration = Duration::from_millis(500);

/// The sizes known.
#[derive(Debug, Clone, Default)]
pub(super) struct Layers {
    known: Arc<Mutex<HashMap<ContainerId, Entry>>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    usage: Option<Usage>,
    /// Until when it is believed.
    until: Option<Instant>,
    /// Since when it is being counted.
    counting: Option<Instant>,
}

impl Entry {
    fn is_overdue(&self) -> bool {
        self.counting.is_some_and(|begun| begun.elapsed() > PATIENCE)
    }
}

impl Layers {
    /// A layer's size, the last known one while a count takes long; `None` when it was never counted.
    /// Blocks for [`PATIENCE`] at most, and not at all while another count is overdue. For threads of a
    /// tokio runtime that may block.
    pub(super) fn size(
        &self,
        id: &ContainerId,
        count: impl FnOnce() -> Option<Usage> + Send + 'static,
    ) -> Option<Usage> {
        let (last, patience) = {
            let mut known = self.lock();
            let overdue = known.values().any(Entry::is_overdue);
            let entry = known.entry(id.clone()).or_default();
            if entry.counting.is_some() || entry.until.is_some_and(|until| Instant::now() < until) {
                return entry.usage;
            }
            entry.counting = Some(Instant::now());
            (entry.usage, if overdue { Duration::ZERO } else { PATIENCE })
        };
        let (tell, told) = mpsc::sync_channel(1);
        let (layers, id) = (self.clone(), id.clone());
        tokio::runtime::Handle::current().spawn_blocking(move || {
            let usage = count();
            layers.counted(&id, usage);
            // Nobody may be waiting any more.
            let _waiting = tell.send(usage);
        });
        told.recv_timeout(patience).unwrap_or(last)
    }

    /// Keeps a count, unless the layer was forgotten meanwhile.
    fn counted(&self, id: &ContainerId, usage: Option<Usage>) {
        let now = Instant::now();
        let mut known = self.lock();
        let Some(entry) = known.get_mut(id) else { return };
        let cost = entry.counting.take().map_or(Duration::ZERO, |begun| now.duration_since(begun));
        entry.until = Some(now + (cost * TIMES).clamp(AGE, OLDEST));
        entry.usage = usage.or(entry.usage);
    }

    /// Forgets a layer.
    pub(super) fn forget(&self, id: &ContainerId) {
        self.lock().remove(id);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ContainerId, Entry>> {
        self.known.lock().expect("no code panics while it holds the sizes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> ContainerId {
        ContainerId::parse(&format!("{n:064x}")).unwrap()
    }

    fn bytes(bytes: u64) -> Option<Usage> {
        Some(Usage { bytes, inodes: 1 })
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nobody_waits_long_for_a_disk_that_hangs() {
        let layers = Layers::default();
        let begun = Instant::now();
        let (release, hang) = mpsc::channel::<()>();
        let asked = layers.clone();
        let never = tokio::task::spawn_blocking(move || {
            let hanging = asked.size(&id(1), move || {
                let _released = hang.recv();
                bytes(7)
            });
            let again = asked.size(&id(1), || unreachable!("it is being counted"));
            // Others are counted, without anybody waiting for them.
            let others: Vec<_> = (2..50).map(|n| asked.size(&id(n), move || bytes(n.into()))).collect();
            (hanging, again, others.len())
        });
        assert_eq!(never.await.unwrap(), (None, None, 48));
        assert!(begun.elapsed() < 3 * PATIENCE, "{:?}", begun.elapsed());
        drop(release);
        let deadline = Instant::now() + Duration::from_secs(10);
        while layers.lock().values().any(|entry| entry.counting.is_some()) {
            assert!(Instant::now() < deadline);
            tokio::task::yield_now().await;
        }
        let known = tokio::task::spawn_blocking({
            let layers = layers.clone();
            move || [1, 9].map(|n| layers.size(&id(n), || unreachable!("it is known")))
        });
        assert_eq!(known.await.unwrap(), [bytes(7), bytes(9)]);
        layers.forget(&id(1));
        layers.counted(&id(1), bytes(8));
        assert!(!layers.lock().contains_key(&id(1)), "a count of a layer that is gone is dropped");
    }
}
