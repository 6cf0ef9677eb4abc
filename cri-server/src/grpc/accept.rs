//! The connections of the CRI socket, as they come.
//!
//! Invariants: accepting never ends and never spins, whatever the kernel answers; connections take a part of
//! the files that this process may have open, so that the verbs keep the rest. Who comes when all places are
//! taken waits until another client leaves.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::Stream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tonic::transport::server::Connected;
use tracing::warn;

/// How long to wait when no connection can be accepted (no descriptors left); the kernel tells no end of it.
const PAUSE: Duration = Duration::from_millis(100);
/// How long trouble is not told of again.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// A client.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    _place: OwnedSemaphorePermit,
}

/// All connections, of which `most` are there at a time.
pub(super) fn connections(
    socket: UnixListener,
    most: usize,
) -> impl Stream<Item = io::Result<Connection>> + Send {
    let door = Door { socket, places: Arc::new(Semaphore::new(most)), said: None };
    futures::stream::unfold(door, |mut door| async {
        let place = door.place().await?;
        let stream = door.next().await;
        Some((Ok(Connection { stream, _place: place }), door))
    })
}

struct Door {
    socket: UnixListener,
    places: Arc<Semaphore>,
    /// When trouble was last told of.
    said: Option<Instant>,
}

impl Door {
    /// `None` when the places are closed, which nobody does.
    async fn place(&mut self) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            return Some(place);
        }
        if self.is_news() {
            warn!("all connections of the CRI socket are taken; the next client waits until one is closed");
        }
        Arc::clone(&self.places).acquire_owned().await.ok()
    }

    async fn next(&mut self) -> UnixStream {
        loop {
            match self.socket.accept().await {
                Ok((stream, _)) => return stream,
                Err(error) => {
                    if self.is_news() {
                        warn!(%error, "a CRI connection cannot be accepted; tried until it can");
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Whether trouble has not been told of for a while.
    fn is_news(&mut self) -> bool {
        let news = self.said.is_none_or(|said| said.elapsed() > SAY_AGAIN);
        if news {
            self.said = Some(Instant::now());
        }
        news
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
