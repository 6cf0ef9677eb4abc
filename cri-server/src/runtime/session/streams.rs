//! The streams of a session: input that can be closed, output that ends a bounded time after its process.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
    time::Instant,
};

/// How long output is waited for once its process has ended, or its client has said its last word, while
/// something in the container keeps it open.
const DRAIN: Duration = Duration::from_secs(1);

/// Input that is closed when it is shut down or dropped, whatever else holds its session.
pub(super) struct Closing<W> {
    stream: Option<W>,
    after: Option<Box<dyn FnOnce() + Send>>,
}

impl<W> Closing<W> {
    /// Calls `after` once the stream has been closed.
    pub(super) fn new(stream: W, after: impl FnOnce() + Send + 'static) -> Self {
        Self { stream: Some(stream), after: Some(Box::new(after)) }
    }

    fn close(&mut self) {
        self.stream = None;
        if let Some(after) = self.after.take() {
            after();
        }
    }
}

impl<W> Drop for Closing<W> {
    fn drop(&mut self) {
        self.close();
    }
}

impl<W: AsyncWrite + Unpin> Closing<W> {
    fn open(&mut self) -> io::Result<Pin<&mut W>> {
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Closing<W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.open()?.poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.open()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.close();
        Poll::Ready(Ok(()))
    }
}

/// Output that ends at its end of file, or some time after its process: what was printed before is read
/// in any case, and whoever keeps it open then is not waited for.
pub(super) struct Ending<R> {
    stream: R,
    over: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// The most that can be in the stream by now; once that is read, it is over.
    left: Option<usize>,
    capacity: usize,
}

impl<R> Ending<R> {
    /// Ends some time after the time that `ended` tells. `capacity` is what the stream can hold, in bytes.
    pub(super) fn new(stream: R, mut ended: watch::Receiver<Option<Instant>>, capacity: usize) -> Self {
        let over = Box::pin(async move {
            let at = ended.wait_for(Option::is_some).await.ok().and_then(|at| *at);
            drop(ended);
            // Whoever knew is gone: it has ended by now.
            tokio::time::sleep_until(at.unwrap_or_else(Instant::now) + DRAIN).await;
        });
        Self { stream, over, left: None, capacity }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Ending<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.left.is_none() && self.over.as_mut().poll(cx).is_ready() {
            self.left = Some(self.capacity);
        }
        let Some(left) = self.left else { return Pin::new(&mut self.stream).poll_read(cx, buf) };
        if left == 0 {
            return Poll::Ready(Ok(()));
        }
        let room = left.min(buf.remaining());
        let mut rest = ReadBuf::new(buf.initialize_unfilled_to(room));
        match Pin::new(&mut self.stream).poll_read(cx, &mut rest) {
            Poll::Ready(Ok(())) => {
                let count = rest.filled().len();
                buf.advance(count);
                self.left = Some(left - count);
                Poll::Ready(Ok(()))
            }
            Poll::Pending => {
                self.left = Some(0);
                Poll::Ready(Ok(()))
            }
            failed => failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::unix::pipe,
    };

    use super::*;

    const PIPE: usize = 64 << 10;

    #[tokio::test]
    async fn output_ends_though_somebody_keeps_it_open() {
        let (mut writing, reading) = pipe::pipe().unwrap();
        let (over, ended) = watch::channel(None);
        let mut output = Ending::new(reading, ended, PIPE);
        writing.write_all(b"while it runs").await.unwrap();
        output.read_exact(&mut [0; 13]).await.unwrap();
        writing.write_all(b"last words").await.unwrap();
        over.send_replace(Some(Instant::now()));
        let begun = Instant::now();
        let mut rest = String::new();
        output.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "last words");
        assert!(begun.elapsed() < DRAIN * 5, "{:?}", begun.elapsed());
        drop(writing);
    }

    #[tokio::test]
    async fn what_was_printed_is_read_however_late_and_no_more_than_that() {
        let (mut writing, reading) = pipe::pipe().unwrap();
        let (over, ended) = watch::channel(None);
        let mut output = Ending::new(reading, ended, PIPE);
        writing.write_all(&vec![b'x'; PIPE]).await.unwrap();
        over.send_replace(Some(Instant::now()));
        tokio::time::sleep(DRAIN * 2).await;
        // Whoever is left writes without end.
        let left = tokio::spawn(async move { while writing.write_all(&[b'y'; 4096]).await.is_ok() {} });
        let mut got = Vec::new();
        output.read_to_end(&mut got).await.unwrap();
        assert!(got.len() == PIPE && got.iter().all(|byte| *byte == b'x'), "{}", got.len());
        drop(output);
        left.await.unwrap();
    }

    #[tokio::test]
    async fn input_that_is_shut_down_or_dropped_is_closed_once() {
        let closed = Arc::new(AtomicUsize::new(0));
        for shut_down in [true, false] {
            let (writing, mut reading) = pipe::pipe().unwrap();
            let count = Arc::clone(&closed);
            let mut input = Closing::new(writing, move || {
                count.fetch_add(1, Ordering::Relaxed);
            });
            input.write_all(b"x").await.unwrap();
            if shut_down {
                input.shutdown().await.unwrap();
                let refused = input.write_all(b"y").await.unwrap_err();
                assert_eq!(refused.kind(), io::ErrorKind::BrokenPipe);
                assert_eq!(reading.read(&mut [0; 10]).await.unwrap(), 1);
                assert_eq!(reading.read(&mut [0; 10]).await.unwrap(), 0, "closed while the input is held");
            }
            drop(input);
            let mut rest = Vec::new();
            reading.read_to_end(&mut rest).await.unwrap();
        }
        assert_eq!(closed.load(Ordering::Relaxed), 2);
    }
}
