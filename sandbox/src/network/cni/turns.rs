//! Whose turn it is: GC has the network alone, all other commands share it (CNI specification 1.1,
//! "Lifecycle & Ordering").
//!
//! Invariant: who shares never waits for a GC that is only waiting itself.

use tokio::sync::{Notify, RwLock, RwLockReadGuard, RwLockWriteGuard};

#[derive(Debug, Default)]
pub(super) struct Turns {
    lock: RwLock<()>,
    left: Notify,
}

/// A share in the turn of all but GC.
pub(super) struct Shared<'a> {
    turns: &'a Turns,
    guard: Option<RwLockReadGuard<'a, ()>>,
}

impl Drop for Shared<'_> {
    fn drop(&mut self) {
        self.guard = None;
        self.turns.left.notify_waiters();
    }
}

impl Turns {
    /// A turn together with others; waits for a GC that is under way.
    pub(super) async fn shared(&self) -> Shared<'_> {
        Shared { guard: Some(self.lock.read().await), turns: self }
    }

    /// A turn alone, at the next moment in which nobody has one. It does not queue: others would then wait
    /// behind it for the slowest of those before it.
    pub(super) async fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        loop {
            let left = self.left.notified();
            tokio::pin!(left);
            left.as_mut().enable();
            if let Ok(guard) = self.lock.try_write() {
                return guard;
            }
            left.await;
        }
    }
}
