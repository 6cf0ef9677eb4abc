//! One stream of a connection: its two directions end independently.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use super::{
    connection::Shared,
    frame::{self, Status},
    headers::Headers,
};
use crate::streaming::{
    inbox::{End, Inbox, Receiver},
    link::Packet,
};

const LOCAL_FINISHED: u8 = 1;
const REMOTE_FINISHED: u8 = 2;
const RESET: u8 = 4;
const ACCEPTED: u8 = 8;

/// What the connection knows of a stream.
pub(super) struct State {
    /// Its number.
    pub(super) id: u32,
    /// What the client has sent on it.
    pub(super) inbox: Arc<Inbox>,
    ends: AtomicU8,
}

impl State {
    pub(super) fn new(id: u32, inbox: Arc<Inbox>) -> Self {
        Self { id, inbox, ends: AtomicU8::new(0) }
    }

    /// The client has reset it, or is gone.
    pub(super) fn reset(&self) {
        self.ends.fetch_or(RESET, Ordering::AcqRel);
        self.inbox.end(End::Reset);
    }

    /// The client has finished; true when we had as well.
    pub(super) fn remote_finished(&self) -> bool {
        self.ends.fetch_or(REMOTE_FINISHED, Ordering::AcqRel) & LOCAL_FINISHED != 0
    }
}

/// A stream that a client has opened and that is not accepted yet; dropping it refuses it.
pub(in crate::streaming) struct Offer {
    pub(super) stream: Stream,
    pub(super) headers: Headers,
}

impl Offer {
    /// The headers it was opened with.
    pub(in crate::streaming) fn headers(&self) -> &Headers {
        &self.headers
    }

    /// The value of the header `streamtype`.
    pub(in crate::streaming) fn kind(&self) -> &str {
        self.headers.get("streamtype").unwrap_or_default()
    }

    /// Its number.
    pub(in crate::streaming) fn id(&self) -> u32 {
        self.stream.outgoing.state.id
    }

    /// Tells the client that the stream is open.
    pub(in crate::streaming) fn accept(self) -> Stream {
        let outgoing = &self.stream.outgoing;
        outgoing.state.ends.fetch_or(ACCEPTED, Ordering::AcqRel);
        // Only refusals in a row are a flood.
        outgoing.shared.refused.store(0, Ordering::Relaxed);
        outgoing.shared.reply(self.id());
        self.stream
    }
}

/// An accepted stream.
pub(in crate::streaming) struct Stream {
    /// From the client.
    pub(in crate::streaming) incoming: Receiver,
    /// To the client.
    pub(in crate::streaming) outgoing: Outgoing,
}

/// The direction to the client; dropping it without [`Outgoing::finish`] resets the stream.
pub(in crate::streaming) struct Outgoing {
    shared: Arc<Shared>,
    state: Arc<State>,
}

impl Outgoing {
    pub(super) fn new(shared: Arc<Shared>, state: Arc<State>) -> Self {
        shared.held.fetch_add(1, Ordering::AcqRel);
        Self { shared, state }
    }

    /// Sends octets; fails when the client has reset the stream.
    pub(in crate::streaming) async fn send(&mut self, mut packet: Packet) -> io::Result<()> {
        if self.state.ends.load(Ordering::Acquire) & (RESET | LOCAL_FINISHED) != 0 {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let head = frame::data_head(self.state.id, false, packet.bytes().len());
        packet.prepend(&head);
        self.shared.send(packet).await
    }

    /// Ends this direction in order.
    pub(in crate::streaming) async fn finish(&mut self) -> io::Result<()> {
        let before = self.state.ends.fetch_or(LOCAL_FINISHED, Ordering::AcqRel);
        if before & REMOTE_FINISHED != 0 {
            self.shared.forget(self.state.id);
        }
        if before & (RESET | LOCAL_FINISHED) != 0 {
            return Ok(());
        }
        self.shared.send(Packet::new(&frame::data_head(self.state.id, true, 0))).await
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        let before = self.state.ends.fetch_or(LOCAL_FINISHED, Ordering::AcqRel);
        if before & ACCEPTED == 0 {
            self.shared.refused.fetch_add(1, Ordering::Relaxed);
        }
        if before & (RESET | LOCAL_FINISHED) == 0 {
            self.state.reset();
            self.shared.forget(self.state.id);
            self.shared.post_now(&frame::reset(self.state.id, Status::Cancel));
        }
        self.shared.held.fetch_sub(1, Ordering::AcqRel);
    }
}
