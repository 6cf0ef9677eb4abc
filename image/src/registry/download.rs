//! One blob, streamed to its reader while it arrives.
//!
//! A download must move [`MIN_WINDOW`] bytes in every window of network waiting, so that neither silence
//! nor a trickle holds it for ever; time spent waiting for the reader does not count. What broke off goes
//! on where it stopped (RFC 9110, Range), at the same host or the next. A host that answers with another range than
//! the one asked for is asked for the whole, and what the reader has already is passed over.
//!
//! Does not hash: its reader finds out whether a blob is right, and says whom to ask next ([`Wish::sources`]).

use std::{sync::Arc, time::Duration};

use bytes::Buf;
use reqwest::{Response, StatusCode, header::CONTENT_RANGE};
use tokio::{sync::mpsc::Sender, time::Instant};

use super::{
    ATTEMPTS, ATTEMPTS_WITH_OTHERS, Retry, Session, add,
    client::{ANYTHING, Ask, Failure, HostClient},
    trouble::causes,
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

/// A blob that is wanted.
pub(crate) struct Wish<'a> {
    pub(crate) digest: &'a Digest,
    /// Its size, in bytes.
    pub(crate) size: u64,
    /// The first byte wanted; its reader has those before it.
    pub(crate) from: u64,
    /// Whom to ask, in order.
    pub(crate) sources: &'a [Source],
    /// Whether the last of them is asked for longer: nobody else can be.
    pub(crate) patient: bool,
}

/// A host that can be asked for blobs.
#[derive(Clone)]
pub(crate) struct Source(Arc<HostClient>);

impl PartialEq for Source {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Source {
    /// Its address, for messages.
    pub(crate) fn address(&self) -> String {
        self.0.address()
    }
}

/// How a blob came together.
pub(crate) enum Came {
    /// In one response, from one host, as far as it was wanted.
    WholeFrom(Source),
    /// In pieces.
    InPieces,
}

impl Session {
    /// The hosts that may be asked for content, in order.
    pub(crate) fn sources(&self) -> Vec<Source> {
        self.hosts(false).into_iter().map(|client| Source(Arc::clone(client))).collect()
    }

    /// Sends the blob's bytes to `pieces`, then [`Piece::End`]. `moved` is told how many bytes the reader has so
    /// far. Returns early without error when the reader is gone: the reader knows why.
    pub(crate) async fn download(
        &self,
        wish: &Wish<'_>,
        pieces: &Sender<Piece>,
        moved: &(dyn Fn(u64) + Sync),
    ) -> Result<Came, ImageError> {
        let Wish { digest, size, from, sources, patient } = *wish;
        let (offset, stall) = (from, self.stall);
        let mut transfer =
            Transfer { digest, size, offset, pieces, moved, stall, without_range: false, answers: 0 };
        if from > 0 && from == size {
            let _ = pieces.send(Piece::End).await;
            return Ok(Came::InPieces);
        }
        let mut failed = Vec::new();
        let mut attempts = 0;
        for (index, source) in sources.iter().enumerate() {
            let spent =
                if patient && index + 1 == sources.len() { 0 } else { ATTEMPTS - ATTEMPTS_WITH_OTHERS };
            let mut retry = Retry { attempts: spent };
            transfer.without_range = false;
            loop {
                let before = transfer.offset;
                let failure = match transfer.attempt(self, &source.0).await {
                    Ok(()) if transfer.answers == 1 => return Ok(Came::WholeFrom(source.clone())),
                    Ok(()) => return Ok(Came::InPieces),
                    Err(failure) => failure,
                };
                let error = failure.error;
                tracing::debug!(%digest, offset = transfer.offset, %error, "download broke off");
                attempts += 1;
                if transfer.offset - before >= MIN_WINDOW {
                    retry = Retry { attempts: spent };
                }
                let again = match failure.retry.filter(|_| attempts < MAX_ATTEMPTS) {
                    Some(after) => retry.pause(after).await,
                    None => false,
                };
                if !again {
                    failed.push(error);
                    break;
                }
                add(&self.counters.retries, 1);
            }
        }
        let decides = sources.last().is_some_and(|source| source.0.host.upstream);
        Err(self.in_one(failed, decides))
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
    /// The host does not do ranges right: it is asked for the whole.
    without_range: bool,
    /// Responses that brought something.
    answers: u32,
}

impl Transfer<'_> {
    async fn attempt(&mut self, session: &Session, client: &HostClient) -> Result<(), Failure> {
        let reference = &session.reference;
        let first = if self.without_range { 0 } else { self.offset };
        let ask = Ask { path: format!("blobs/{}", self.digest), accept: ANYTHING, offset: first };
        let response = client.get(reference, &ask, self.stall).await?;
        let fail = |kind, reason: String| {
            client.failure(reference, kind, format!("{}: {reason}", ask.path), Some(None))
        };
        let start = start_of(&response, self.size).filter(|start| *start <= self.offset);
        let Some(start) = start else {
            self.without_range = true;
            let (status, range) = (response.status(), range_of(&response).unwrap_or("none"));
            let reason =
                format!("asked for bytes from {first}, it answers {status} with the range {range:?}");
            return Err(fail(ErrorKind::Unavailable, reason));
        };
        self.answers += 1;
        let skip = self.offset - start;
        self.stream(response, skip).await.map_err(|reason| fail(ErrorKind::Unavailable, reason))
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

fn range_of(response: &Response) -> Option<&str> {
    response.headers().get(CONTENT_RANGE)?.to_str().ok()
}

/// The position in the blob of the first byte of a response; `None` when it is not bytes of a blob of this size.
fn start_of(response: &Response, size: u64) -> Option<u64> {
    match response.status() {
        StatusCode::PARTIAL_CONTENT => start_of_range(range_of(response)?, size),
        StatusCode::OK => Some(0),
        _ => None,
    }
}

/// `bytes FIRST-LAST/SIZE`, where the size may be `*` (RFC 9110, Content-Range).
fn start_of_range(range: &str, size: u64) -> Option<u64> {
    let (bounds, complete) = range.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = bounds.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let fits = complete == "*" || complete.parse() == Ok(size);
    (fits && first <= last && last < size).then_some(first)
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

#[cfg(test)]
mod tests {
    use super::start_of_range;

    #[test]
    fn a_range_must_be_one_of_this_blob() {
        for (range, start) in [
            ("bytes 5-9/10", Some(5)),
            ("bytes 0-9/10", Some(0)),
            ("bytes 5-7/10", Some(5)),
            ("bytes 5-9/*", Some(5)),
            ("bytes 5-9/11", None),
            ("bytes 5-10/10", None),
            ("bytes 9-5/10", None),
            ("bytes */10", None),
            ("items 5-9/10", None),
            ("", None),
        ] {
            assert_eq!(start_of_range(range, 10), start, "{range}");
        }
    }
}
