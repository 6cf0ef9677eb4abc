//! A bounded queue from the task that reads a client's connection to the one that serves a stream of it.
//!
//! Invariant: per stream and per connection only so much is queued; then the connection is not read, which is
//! how a client is slowed down to what takes its bytes.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

/// Most bytes that wait in one stream, give or take one read.
const STREAM_LIMIT: usize = 128 * 1024;
/// Most bytes that wait in all streams of a connection.
const CONNECTION_LIMIT: usize = 1024 * 1024;
/// What a queued piece costs besides its bytes.
const PIECE: usize = 128;
/// Smaller pieces are copied, so that they do not keep the whole read they came with.
const COPIED: usize = 16 * 1024;

/// How a client ended its side of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Orderly: end of file.
    Finished,
    /// Torn down, by the client or with its connection.
    Reset,
}

/// What all streams of a connection have queued.
#[derive(Default)]
pub(super) struct Budget {
    used: AtomicUsize,
    freed: Notify,
}

impl Budget {
    fn free(&self, cost: usize) {
        self.used.fetch_sub(cost, Ordering::AcqRel);
        self.freed.notify_one();
    }
}

/// The queue of one stream.
pub(super) struct Inbox {
    state: Mutex<State>,
    filled: Notify,
    budget: Arc<Budget>,
}

#[derive(Default)]
struct State {
    pieces: VecDeque<Bytes>,
    cost: usize,
    end: Option<End>,
    discarded: bool,
}

impl Inbox {
    /// An empty queue, and who takes from it.
    pub(super) fn new(budget: Arc<Budget>) -> (Arc<Self>, Receiver) {
        let inbox = Arc::new(Self { state: Mutex::default(), filled: Notify::new(), budget });
        (inbox.clone(), Receiver { inbox })
    }

    /// Waits until a piece may be pushed. One task at a time may wait on the queues of a connection.
    pub(super) async fn room(&self) {
        while !self.has_room() {
            self.budget.freed.notified().await;
        }
    }

    /// Queues a piece; drops it when nobody will take it.
    pub(super) fn push(&self, piece: BytesMut) {
        if piece.is_empty() {
            return;
        }
        let mut state = self.state();
        if state.discarded || state.end.is_some() {
            return;
        }
        let piece = if piece.len() < COPIED { Bytes::copy_from_slice(&piece) } else { piece.freeze() };
        let cost = piece.len() + PIECE;
        state.cost += cost;
        self.budget.used.fetch_add(cost, Ordering::AcqRel);
        state.pieces.push_back(piece);
        drop(state);
        self.filled.notify_one();
    }

    /// Nothing follows. After a reset nothing queued is taken either.
    pub(super) fn end(&self, end: End) {
        let mut state = self.state();
        if state.end != Some(End::Reset) {
            state.end = Some(end);
        }
        if end == End::Reset {
            self.empty(&mut state);
        }
        drop(state);
        self.filled.notify_one();
    }

    fn has_room(&self) -> bool {
        let state = self.state();
        state.discarded
            || state.end.is_some()
            || state.cost < STREAM_LIMIT && self.budget.used.load(Ordering::Acquire) < CONNECTION_LIMIT
    }

    fn empty(&self, state: &mut State) {
        state.pieces = VecDeque::new();
        let cost = std::mem::take(&mut state.cost);
        self.budget.free(cost);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes from an [`Inbox`]; dropping it discards what the client still sends.
pub(super) struct Receiver {
    inbox: Arc<Inbox>,
}

impl Receiver {
    /// The next bytes, or how the client ended. May be dropped at any time.
    pub(super) async fn next(&mut self) -> Result<Bytes, End> {
        loop {
            {
                let mut state = self.inbox.state();
                if let Some(piece) = state.pieces.pop_front() {
                    let cost = piece.len() + PIECE;
                    state.cost -= cost;
                    if state.pieces.is_empty() {
                        state.pieces = VecDeque::new();
                    }
                    self.inbox.budget.free(cost);
                    return Ok(piece);
                }
                if let Some(end) = state.end {
                    return Err(end);
                }
            }
            self.inbox.filled.notified().await;
        }
    }
}

impl Receiver {
    /// Waits until the client tears the stream down.
    pub(super) async fn torn(&mut self) {
        while self.inbox.state().end != Some(End::Reset) {
            self.inbox.filled.notified().await;
        }
    }

    /// From now on what the client sends is thrown away.
    pub(super) fn discard(&mut self) {
        let mut state = self.inbox.state();
        state.discarded = true;
        self.inbox.empty(&mut state);
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.discard();
    }
}
