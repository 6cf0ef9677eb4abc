//! One blob, streamed to its reader while it arrives.
//!
//! A download must move [`MIN_WINDOW`] bytes in every window of network waiting, so that neither silence
//! nor a trickle holds it for ever; time spent waiting for the reader does not count. What broke off goes
//! on where it stopped (RFC 9110, Range), at the same host or the next.

use std::time::Duration;

use bytes::Buf;
use reqwest::{Response, StatusCode, header::CONTENT_RANGE};
use tokio::{sync::mpsc::Sender, time::Instant};

use super::{
    Retry, Session,
    client::{ANYTHING, Ask, Failure, HostClient, causes},
};
use crate::{
    digest::Digest,
    error::{ErrorKind, ImageError},
    unpack::Piece,
};

/// Least bytes per window.
const MIN_WINDOW: u64 = 64 << 10;
/// Attempts at one blob in all, however much each of them brought.
const MAX_ATTEMPTS: u32 = 100;

impl Session {
    /// Sends the blob's bytes to `pieces`, then [`Piece::End`]. `moved` is told how many bytes have
    /// arrived so far. Returns early without error when the reader is gone: the reader knows why.
    pub(crate) async fn download(
        &self,
        digest: &Digest,
        size: u64,
        pieces: &Sender<Piece>,
        moved: &(dyn Fn(u64) + Sync),
    ) -> Result<(), ImageError> {
        let mut transfer = Transfer { digest, size, offset: 0, pieces, moved, stall: self.stall };
        let mut last = None;
        let mut attempts = 0;
        for client in self.hosts(false) {
            let mut retry = Retry::default();
            loop {
                let before = transfer.offset;
                let failure = match transfer.attempt(self, client).await {
                    Ok(()) => return Ok(()),
                    Err(failure) => failure,
                };
                tracing::debug!(%digest, offset = transfer.offset, error = %failure.error, "download broke off");
                last = Some(failure.error);
                attempts += 1;
                let Some(after) = failure.retry.filter(|_| attempts < MAX_ATTEMPTS) else { break };
                if transfer.offset - before >= MIN_WINDOW {
                    retry = Retry::default();
                }
                if !retry.pause(after).await {
                    break;
                }
            }
        }
        Err(last.unwrap_or_else(|| self.no_host()))
    }
}

struct Transfer<'a> {
    digest: &'a Digest,
    size: u64,
    /// Bytes the reader has.
    offset: u64,
    pieces: &'a Sender<Piece>,
    moved: &'a (dyn Fn(u64) + Sync),
    stall: Duration,
}

impl Transfer<'_> {
    async fn attempt(&mut self, session: &Session, client: &HostClient) -> Result<(), Failure> {
        let reference = &session.reference;
        let ask = Ask { path: format!("blobs/{}", self.digest), accept: ANYTHING, offset: self.offset };
        let response = client.get(reference, &ask, self.stall).await?;
        let fail = |kind, reason: String| {
            client.failure(reference, kind, format!("{}: {reason}", ask.path), Some(None))
        };
        let skip = self.skip(&response).map_err(|reason| fail(ErrorKind::Unavailable, reason))?;
        self.stream(response, skip).await.map_err(|reason| fail(ErrorKind::Unavailable, reason))
    }

    /// How many bytes of the response the reader has already.
    fn skip(&self, response: &Response) -> Result<u64, String> {
        if response.status() == StatusCode::OK || self.offset == 0 {
            return Ok(self.offset);
        }
        let range =
            response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match range.starts_with(&format!("bytes {}-", self.offset)) {
            true => Ok(0),
            false => Err(format!("it answers bytes from {} with the range {range:?}", self.offset)),
        }
    }

    async fn stream(&mut self, mut response: Response, mut skip: u64) -> Result<(), String> {
        let mut window = Window::new(self.stall);
        loop {
            let chunk = window.wait(response.chunk()).await?;
            let Some(mut chunk) =
                chunk.map_err(|error| format!("the connection broke: {}", causes(error.without_url())))?
            else {
                if self.offset < self.size {
                    return Err(format!("it ends after {} of {} bytes", self.offset, self.size));
                }
                let _ = self.pieces.send(Piece::End).await;
                return Ok(());
            };
            window.moved(chunk.len() as u64);
            let known = skip.min(chunk.len() as u64);
            chunk.advance(known as usize);
            skip -= known;
            if chunk.is_empty() {
                continue;
            }
            self.offset += chunk.len() as u64;
            (self.moved)(self.offset);
            // What is more than promised goes to the reader too: it refuses it.
            if self.pieces.send(Piece::Data(chunk)).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// Watches that a download moves.
struct Window {
    length: Duration,
    left: Duration,
    bytes: u64,
}

impl Window {
    fn new(length: Duration) -> Self {
        Self { length, left: length, bytes: 0 }
    }

    /// Waits for the network, on the window's time.
    async fn wait<T>(&mut self, network: impl Future<Output = T>) -> Result<T, String> {
        tokio::pin!(network);
        loop {
            let start = Instant::now();
            let outcome = tokio::time::timeout(self.left, &mut network).await;
            self.left = self.left.saturating_sub(start.elapsed());
            if outcome.is_err() || self.left.is_zero() {
                if self.bytes < MIN_WINDOW {
                    return Err(format!(
                        "it stalls: {} bytes in {} s",
                        self.bytes,
                        self.length.as_secs_f32()
                    ));
                }
                (self.left, self.bytes) = (self.length, 0);
            }
            if let Ok(value) = outcome {
                return Ok(value);
            }
        }
    }

    fn moved(&mut self, bytes: u64) {
        self.bytes += bytes;
    }
}
