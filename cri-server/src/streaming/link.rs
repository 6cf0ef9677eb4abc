//! One client's TCP connection once it has been upgraded: bytes in, whole frames out.
//!
//! Invariants: a frame that was begun is finished before another one begins, even when the task that sent it
//! is dropped half way (the rest is written by whoever writes next). No buffer is held while nothing flows.
//! Knows neither SPDY nor WebSocket.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::{BufMut, BytesMut};
use rustix::net::{Shutdown, sockopt};
use tokio::{
    io::Interest,
    net::TcpStream,
    sync::{Mutex as AsyncMutex, Notify},
    time::timeout,
};

/// Room before a payload for the headers of all layers below: WebSocket (10), channel (1), SPDY (8).
const HEADROOM: usize = 24;
/// How much is read from a socket or a process at once.
pub(super) const CHUNK: usize = 64 * 1024;
/// Below this much room a new buffer is taken instead of a short read.
const SMALL_READ: usize = 16 * 1024;
/// A connection rests when nothing comes for so long.
const REST: Duration = Duration::from_millis(200);
/// What is left of a frame while a connection rests moves to a buffer of its own size.
const SMALL_REST: usize = 2 * 1024;
/// How often a client that has to wait is told that we are there; Go's WebSocket client waits 61 seconds.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);
/// How often a silent client's machine is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Most bytes of control frames that wait to be written.
const CONTROL_LIMIT: usize = 16 * 1024;

/// A payload that layers put their headers before, without copying it.
pub(super) struct Packet {
    bytes: BytesMut,
    start: usize,
}

impl Packet {
    /// An empty packet with room for a payload of this many bytes.
    pub(super) fn with_capacity(payload: usize) -> Self {
        let mut bytes = BytesMut::with_capacity(HEADROOM + payload);
        bytes.put_bytes(0, HEADROOM);
        Self { bytes, start: HEADROOM }
    }

    /// A packet with this payload.
    pub(super) fn new(payload: &[u8]) -> Self {
        let mut packet = Self::with_capacity(payload.len());
        packet.bytes.put_slice(payload);
        packet
    }

    /// Where a payload is appended.
    pub(super) fn tail(&mut self) -> &mut BytesMut {
        &mut self.bytes
    }

    /// The headers put so far, and the payload.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Puts the header of the next layer down before the rest.
    pub(super) fn prepend(&mut self, header: &[u8]) {
        debug_assert!(header.len() <= self.start, "the headroom holds the headers of all layers");
        let start = self.start - header.len();
        self.bytes[start..self.start].copy_from_slice(header);
        self.start = start;
    }
}

/// The connection; shared by everyone who writes to it.
pub(super) struct Link {
    tcp: TcpStream,
    writing: AsyncMutex<()>,
    control: Mutex<Vec<u8>>,
    posted: Notify,
    drained: Notify,
    born: Instant,
    /// Milliseconds after `born` at which bytes last moved.
    moved: AtomicU64,
}

impl Link {
    /// Takes over a connection.
    pub(super) fn new(tcp: TcpStream) -> Arc<Self> {
        // Keystrokes do not wait for more; a failure costs latency only.
        let _slower = tcp.set_nodelay(true);
        // A client whose machine is gone is noticed within minutes; without, when the session is idle too long.
        let _later = sockopt::set_socket_keepalive(&tcp, true)
            .and_then(|()| sockopt::set_tcp_keepidle(&tcp, KEEPALIVE))
            .and_then(|()| sockopt::set_tcp_keepintvl(&tcp, KEEPALIVE));
        Arc::new(Self {
            tcp,
            writing: AsyncMutex::new(()),
            control: Mutex::new(Vec::new()),
            posted: Notify::new(),
            drained: Notify::new(),
            born: Instant::now(),
            moved: AtomicU64::new(0),
        })
    }

    /// Writes a frame, after all control frames that were posted before it. May be dropped at any time.
    pub(super) async fn send(&self, packet: Packet) -> io::Result<()> {
        let _turn = self.writing.lock().await;
        self.write_control().await?;
        self.write(Unfinished { link: self, rest: packet.bytes(), begun: false }).await?;
        self.touch();
        Ok(())
    }

    /// Queues a small control frame for [`Self::write_posted`]; waits only when very many are queued, so
    /// that who reads from a client need not wait until the client reads.
    pub(super) async fn post(&self, frame: &[u8]) {
        self.room().await;
        self.post_now(frame);
    }

    /// Waits while very many control frames are queued.
    pub(super) async fn room(&self) {
        loop {
            let drained = self.drained.notified();
            if self.control().len() < CONTROL_LIMIT {
                return;
            }
            drained.await;
        }
    }

    /// Queues a control frame however many there are. For frames whose number is bounded otherwise: so many
    /// for each stream, and streams are opened when there is [room](Self::room).
    pub(super) fn post_now(&self, frame: &[u8]) {
        self.control().extend_from_slice(frame);
        self.posted.notify_one();
    }

    /// Writes posted frames as they come; runs as long as the connection.
    pub(super) async fn write_posted(&self) -> io::Result<()> {
        loop {
            self.posted.notified().await;
            let _turn = self.writing.lock().await;
            self.write_control().await?;
        }
    }

    /// Writes what was posted, now.
    pub(super) async fn flush(&self) -> io::Result<()> {
        let _turn = self.writing.lock().await;
        self.write_control().await
    }

    /// Waits until the client is gone, while its bytes are not read.
    ///
    /// The end of a client that was still sending cannot reach us past what we do not read. So a sign of life
    /// is sent now and then: a closed socket answers it with a reset (RFC 9293, section 3.10.7.1), and a
    /// client that waits for one goes on waiting.
    pub(super) async fn gone(&self, sign_of_life: &[u8]) {
        let signs = async {
            loop {
                tokio::time::sleep(SIGN_OF_LIFE).await;
                // One that is not written yet is enough.
                if self.control().is_empty() {
                    self.post_now(sign_of_life);
                }
            }
        };
        tokio::select! {
            // Priority data is never asked for, so what can come is the end alone, or an error.
            _end = self.tcp.ready(Interest::PRIORITY) => {}
            () = signs => {}
        }
    }

    /// Tells the client that nothing follows.
    pub(super) fn finish(&self) {
        // It fails when the client is gone, which is as well.
        let _gone = rustix::net::shutdown(&self.tcp, Shutdown::Write);
    }

    /// Lets the connection end with a reset (socket(7), `SO_LINGER`): an orderly end would look as if what was
    /// sent had been all.
    pub(super) fn break_off(&self) {
        let _gone = sockopt::set_socket_linger(&self.tcp, Some(Duration::ZERO));
    }

    /// Waits until no byte has moved for this long.
    pub(super) async fn idle(&self, limit: Duration) {
        loop {
            let moved = self.born + Duration::from_millis(self.moved.load(Ordering::Relaxed));
            let end = moved + limit;
            if Instant::now() >= end {
                return;
            }
            tokio::time::sleep_until(end.into()).await;
        }
    }

    async fn write_control(&self) -> io::Result<()> {
        let frames = std::mem::take(&mut *self.control());
        self.drained.notify_waiters();
        if frames.is_empty() {
            return Ok(());
        }
        self.write(Unfinished { link: self, rest: &frames, begun: true }).await
    }

    async fn write(&self, mut frame: Unfinished<'_>) -> io::Result<()> {
        while !frame.rest.is_empty() {
            match self.tcp.try_write(frame.rest) {
                Ok(written) => {
                    frame.begun = true;
                    frame.rest = &frame.rest[written..];
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.tcp.writable().await?,
                Err(error) => {
                    frame.rest = &[];
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn touch(&self) {
        let elapsed = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved.store(elapsed, Ordering::Relaxed);
    }

    fn control(&self) -> MutexGuard<'_, Vec<u8>> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The part of a frame that is not written yet; kept for the next writer when its own is dropped.
struct Unfinished<'a> {
    link: &'a Link,
    rest: &'a [u8],
    begun: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if self.begun && !self.rest.is_empty() {
            self.link.control().splice(0..0, self.rest.iter().copied());
            self.link.posted.notify_one();
        }
    }
}

/// What a client sends.
pub(super) struct Source {
    link: Arc<Link>,
    /// Read and not yet taken.
    pub(super) buffer: BytesMut,
}

impl Source {
    /// Reads from a connection; `begun` was read before the upgrade.
    pub(super) fn new(link: Arc<Link>, begun: &[u8]) -> Self {
        Self { link, buffer: BytesMut::from(begun) }
    }

    /// The connection it reads from.
    pub(super) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// Appends what the client sends next to the buffer. False at the end.
    pub(super) async fn more(&mut self) -> io::Result<bool> {
        tokio::task::consume_budget().await;
        loop {
            if self.buffer.capacity() - self.buffer.len() < SMALL_READ {
                self.buffer.reserve(CHUNK);
            }
            match self.link.tcp.try_read_buf(&mut self.buffer) {
                Ok(0) => return Ok(false),
                Ok(_) => {
                    self.link.touch();
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait().await?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits for octets; without the buffer when they take long.
    async fn wait(&mut self) -> io::Result<()> {
        if let Ok(ready) = timeout(REST, self.link.tcp.readable()).await {
            return ready;
        }
        if self.buffer.len() <= SMALL_REST {
            self.buffer = BytesMut::from(&self.buffer[..]);
        }
        self.link.tcp.readable().await
    }
}
