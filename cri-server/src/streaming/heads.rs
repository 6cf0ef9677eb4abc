//! Connections that have not shown a token yet. There is always room for one more: the oldest goes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

/// The connections whose heads are being read.
#[derive(Clone)]
pub(super) struct Heads {
    most: usize,
    table: Arc<Mutex<Table>>,
}

#[derive(Default)]
struct Table {
    next: u64,
    /// By age.
    open: BTreeMap<u64, oneshot::Sender<()>>,
}

/// One of them; dropped when it is over.
pub(super) struct Head {
    number: u64,
    heads: Heads,
}

/// Tells when a connection is to be ended.
pub(super) struct Turn(oneshot::Receiver<()>);

impl Heads {
    /// So many at a time, at least one.
    pub(super) fn new(most: usize) -> Self {
        Self { most: most.max(1), table: Arc::default() }
    }

    /// Adds a connection. The oldest are told to end while there are too many.
    pub(super) fn join(&self) -> (Head, Turn) {
        let (end, turn) = oneshot::channel();
        let mut table = self.table();
        let number = table.next;
        table.next += 1;
        table.open.insert(number, end);
        while table.open.len() > self.most {
            // One that is over by itself does not hear it.
            let _over = table.open.pop_first().map(|(_, end)| end.send(()));
        }
        drop(table);
        (Head { number, heads: self.clone() }, Turn(turn))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Head {
    /// It has shown a token: nobody ends it any more.
    pub(super) fn pass(&self) {
        self.heads.table().open.remove(&self.number);
    }
}

impl Drop for Head {
    fn drop(&mut self) {
        self.pass();
    }
}

impl Turn {
    /// Waits until the connection has to make room; for ever, once it has passed.
    pub(super) async fn come(self) {
        if self.0.await.is_err() {
            std::future::pending().await
        }
    }
}
