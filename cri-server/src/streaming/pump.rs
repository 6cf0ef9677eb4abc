//! Moves bytes between a client's streams and what they are joined with.

use std::{future::poll_fn, io, pin::pin};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{
    inbox::{End, Receiver},
    link::{CHUNK, Packet},
    spdy, websocket,
};

/// The way to the client of one stream, in whichever protocol.
pub(super) enum Outlet {
    /// A SPDY stream.
    Spdy(spdy::stream::Outgoing),
    /// A channel of a WebSocket.
    Channel(websocket::channels::Outgoing),
}

impl Outlet {
    /// Sends octets as one frame.
    pub(super) async fn send(&mut self, packet: Packet) -> io::Result<()> {
        match self {
            Self::Spdy(outgoing) => outgoing.send(packet).await,
            Self::Channel(outgoing) => outgoing.send(packet).await,
        }
    }

    /// Tells the client that nothing follows, where the protocol can.
    pub(super) async fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Spdy(outgoing) => outgoing.finish().await,
            Self::Channel(_) => Ok(()),
        }
    }
}

/// Reads what is there; `None` at the end of file. Holds no buffer while it waits.
pub(super) async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Packet>> {
    poll_fn(|context| {
        let mut packet = Packet::with_capacity(CHUNK);
        let read = pin!(from.read_buf(packet.tail())).poll(context);
        read.map_ok(|count| (count > 0).then_some(packet))
    })
    .await
}

/// Passes on what a client sends until it ends its side, and how it did; `Ok` is end of file.
pub(super) async fn pour(from: &mut Receiver, into: &mut (impl AsyncWrite + Unpin)) -> Poured {
    loop {
        let piece: Bytes = match from.next().await {
            Ok(piece) => piece,
            Err(End::Finished) => return Poured::Finished,
            Err(End::Reset) => return Poured::Reset,
        };
        if into.write_all(&piece).await.is_err() || into.flush().await.is_err() {
            return Poured::Refused;
        }
    }
}

/// How a client's side ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Poured {
    /// The client has finished.
    Finished,
    /// The client has torn the stream down.
    Reset,
    /// Nobody takes it any more.
    Refused,
}
