//! Reads a client's frames and hands them to its streams; the only reader of its connection.
//!
//! Invariants: stream numbers rise; a broken frame ends the connection, nothing else does harm; what a client
//! makes us keep is bounded (streams, queued bytes, control frames).

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
};

use bytes::BytesMut;
use tokio::sync::mpsc;

use super::{
    frame::{self, Control, FrameError, Head, Status},
    headers::{self, HeaderError},
    stream::{Offer, Outgoing, State, Stream},
};
use crate::streaming::{
    inbox::{Budget, End, Inbox},
    link::{Link, Packet, Source},
    websocket::{self, Reader as WebSocketReader, WebSocketError},
};

/// The pings we send have even numbers.
const OUR_PING: u32 = 2;
/// Streams that wait for the session to look at them.
const OFFERS: usize = 16;
/// Streams that are refused before a client is taken for a flood.
const REFUSALS: u32 = 1024;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(in crate::streaming) enum ConnectionError {
    /// The client is gone.
    #[error("the client has closed the connection")]
    Gone,
    /// The connection broke.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// No SPDY frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// No header block.
    #[error(transparent)]
    Headers(#[from] HeaderError),
    /// No WebSocket frame around it.
    #[error(transparent)]
    WebSocket(#[from] WebSocketError),
    /// A stream number that cannot be.
    #[error("stream {0} was opened out of order")]
    Order(u32),
    /// Octets for a stream that never was.
    #[error("stream {0} was never opened")]
    NeverOpened(u32),
    /// A SYN_REPLY for a stream we did not open.
    #[error("a reply to stream {0}, which the client opened")]
    Reply(u32),
    /// Streams without end.
    #[error("{REFUSALS} streams had to be refused")]
    Flood,
}

/// Where frames come from.
pub(in crate::streaming) enum Intake {
    /// The connection itself.
    Plain(Source),
    /// The binary messages of a WebSocket.
    Tunnel(WebSocketReader, BytesMut),
}

impl Intake {
    fn buffer(&mut self) -> &mut BytesMut {
        match self {
            Self::Plain(source) => &mut source.buffer,
            Self::Tunnel(_, buffer) => buffer,
        }
    }

    async fn more(&mut self) -> Result<(), ConnectionError> {
        match self {
            Self::Plain(source) => source.more().await?.then_some(()).ok_or(ConnectionError::Gone),
            Self::Tunnel(reader, buffer) => {
                if buffer.is_empty() {
                    *buffer = BytesMut::new();
                }
                let piece = reader.next().await?.ok_or(ConnectionError::Gone)?;
                if buffer.is_empty() {
                    *buffer = piece.data;
                } else {
                    buffer.extend_from_slice(&piece.data);
                }
                Ok(())
            }
        }
    }
}

/// What all streams of a connection share.
pub(super) struct Shared {
    link: Arc<Link>,
    tunnelled: bool,
    table: Mutex<Table>,
    replied: AtomicBool,
    /// Streams that somebody still holds, on whichever side they have ended.
    pub(super) held: AtomicUsize,
    /// Streams that were not accepted so far.
    pub(super) refused: AtomicU32,
}

#[derive(Default)]
struct Table {
    open: HashMap<u32, Arc<State>>,
    last: u32,
}

impl Shared {
    /// Writes a frame.
    pub(super) async fn send(&self, mut packet: Packet) -> io::Result<()> {
        if self.tunnelled {
            websocket::wrap(&mut packet);
        }
        self.link.send(packet).await
    }

    /// Queues a control frame; one per stream at most, so it need not wait.
    pub(super) fn post_now(&self, frame: &[u8]) {
        self.link.post_now(&self.wrapped(frame));
    }

    /// Queues the answer that accepts a stream.
    pub(super) fn reply(&self, stream: u32) {
        // In one step with the queueing: the first reply begins the compressed stream.
        let _order = self.table();
        let first = !self.replied.swap(true, Ordering::Relaxed);
        self.post_now(&frame::syn_reply(stream, &headers::empty_block(first)));
    }

    /// Forgets a stream that has ended on both sides.
    pub(super) fn forget(&self, stream: u32) {
        self.table().open.remove(&stream);
    }

    async fn post(&self, frame: &[u8]) {
        self.link.post(&self.wrapped(frame)).await;
    }

    fn wrapped(&self, frame: &[u8]) -> Vec<u8> {
        let mut packet = Packet::new(frame);
        if self.tunnelled {
            websocket::wrap(&mut packet);
        }
        packet.bytes().to_vec()
    }

    fn find(&self, stream: u32) -> Result<Option<Arc<State>>, ConnectionError> {
        let table = self.table();
        match table.open.get(&stream) {
            Some(state) => Ok(Some(state.clone())),
            None if stream <= table.last && stream % 2 == 1 => Ok(None),
            None => Err(ConnectionError::NeverOpened(stream)),
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task's part of a connection.
pub(in crate::streaming) struct Connection {
    intake: Intake,
    shared: Arc<Shared>,
    headers: headers::Reader,
    budget: Arc<Budget>,
    offers: mpsc::Sender<Offer>,
    most_streams: usize,
    sign_of_life: Vec<u8>,
}

impl Connection {
    /// A connection of at most so many streams at a time, and the streams its client opens.
    pub(in crate::streaming) fn new(
        link: Arc<Link>,
        intake: Intake,
        most_streams: usize,
    ) -> (Self, mpsc::Receiver<Offer>) {
        let shared = Arc::new(Shared {
            link,
            tunnelled: matches!(intake, Intake::Tunnel(..)),
            table: Mutex::default(),
            replied: AtomicBool::new(false),
            held: AtomicUsize::new(0),
            refused: AtomicU32::new(0),
        });
        let (offers, receiver) = mpsc::channel(OFFERS);
        let headers = headers::Reader::default();
        let budget = Arc::default();
        let sign_of_life = shared.wrapped(&frame::ping(OUR_PING));
        (Self { intake, shared, headers, budget, offers, most_streams, sign_of_life }, receiver)
    }

    /// Reads frames until the client goes or breaks the protocol; then all streams are reset.
    pub(in crate::streaming) async fn run(mut self) -> ConnectionError {
        let error = loop {
            if let Err(error) = self.frame().await {
                break error;
            }
        };
        if !matches!(error, ConnectionError::Gone | ConnectionError::Io(_)) {
            let last = self.shared.table().last;
            self.shared.post_now(&frame::go_away(last, 1));
        }
        for (_, state) in std::mem::take(&mut self.shared.table().open) {
            state.reset();
        }
        error
    }

    async fn frame(&mut self) -> Result<(), ConnectionError> {
        self.fill(frame::HEAD).await?;
        let mut head = [0; frame::HEAD];
        head.copy_from_slice(&self.intake.buffer().split_to(frame::HEAD));
        match frame::head(head)? {
            Head::Data { stream, fin, length } => self.data(stream, fin, length).await,
            Head::Control { kind, flags, length } => {
                self.fill(length).await?;
                let body = self.intake.buffer().split_to(length);
                self.control(frame::control(kind, flags, &body)?).await
            }
        }
    }

    async fn fill(&mut self, length: usize) -> Result<(), ConnectionError> {
        while self.intake.buffer().len() < length {
            self.intake.more().await?;
        }
        Ok(())
    }

    async fn data(&mut self, stream: u32, fin: bool, mut left: usize) -> Result<(), ConnectionError> {
        let state = self.shared.find(stream)?;
        while left > 0 {
            if self.intake.buffer().is_empty() {
                self.intake.more().await?;
            }
            let buffer = self.intake.buffer();
            let piece = buffer.split_to(left.min(buffer.len()));
            left -= piece.len();
            if let Some(state) = &state {
                tokio::select! {
                    biased;
                    () = state.inbox.room() => state.inbox.push(piece),
                    () = self.shared.link.gone(&self.sign_of_life) => return Err(ConnectionError::Gone),
                }
            }
        }
        if let (true, Some(state)) = (fin, state) {
            self.finished(&state);
        }
        Ok(())
    }

    async fn control(&mut self, control: Control<'_>) -> Result<(), ConnectionError> {
        match control {
            Control::SynStream { stream, fin, block } => self.open(stream, fin, block).await?,
            Control::SynReply { stream, .. } => return Err(ConnectionError::Reply(stream)),
            Control::Headers { stream, fin, block } => {
                self.headers.read(block)?;
                if let (Some(state), true) = (self.shared.find(stream)?, fin) {
                    self.finished(&state);
                }
            }
            Control::Reset { stream, .. } => {
                if let Some(state) = self.shared.find(stream)? {
                    state.reset();
                    self.shared.forget(stream);
                }
            }
            // Odd ones are the client's to be answered; we send none of our own.
            Control::Ping(id) if id % 2 == 1 => self.shared.post(&frame::ping(id)).await,
            Control::GoAway => return Err(ConnectionError::Gone),
            Control::Ping(_) | Control::Ignored => {}
        }
        Ok(())
    }

    async fn open(&mut self, stream: u32, fin: bool, block: &[u8]) -> Result<(), ConnectionError> {
        let headers = self.headers.read(block)?;
        if self.shared.refused.load(Ordering::Relaxed) > REFUSALS {
            return Err(ConnectionError::Flood);
        }
        // A client that does not read the answers opens no more.
        self.shared.link.room().await;
        if self.offers.is_closed() {
            return self.refuse(stream).await;
        }
        let (inbox, incoming) = Inbox::new(self.budget.clone());
        let state = Arc::new(State::new(stream, inbox));
        {
            let mut table = self.shared.table();
            if stream.is_multiple_of(2) || stream <= table.last {
                return Err(ConnectionError::Order(stream));
            }
            table.last = stream;
            if self.shared.held.load(Ordering::Acquire) < self.most_streams {
                table.open.insert(stream, state.clone());
            }
        }
        if self.shared.find(stream)?.is_none() {
            return self.refuse(stream).await;
        }
        if fin {
            self.finished(&state);
        }
        let outgoing = Outgoing::new(self.shared.clone(), state);
        self.offer(Offer { stream: Stream { incoming, outgoing }, headers }).await
    }

    async fn offer(&mut self, offer: Offer) -> Result<(), ConnectionError> {
        tokio::select! {
            biased;
            // One that nobody takes any more is reset when it is dropped.
            _ = self.offers.send(offer) => Ok(()),
            () = self.shared.link.gone(&self.sign_of_life) => Err(ConnectionError::Gone),
        }
    }

    async fn refuse(&mut self, stream: u32) -> Result<(), ConnectionError> {
        {
            let mut table = self.shared.table();
            if stream.is_multiple_of(2) || stream < table.last {
                return Err(ConnectionError::Order(stream));
            }
            table.last = stream;
        }
        self.shared.refused.fetch_add(1, Ordering::Relaxed);
        self.shared.post(&frame::reset(stream, Status::Refused)).await;
        Ok(())
    }

    fn finished(&self, state: &State) {
        state.inbox.end(End::Finished);
        if state.remote_finished() {
            self.shared.forget(state.id);
        }
    }
}
