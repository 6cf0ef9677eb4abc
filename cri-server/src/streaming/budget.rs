//! The files that streaming may have open: what is beyond them is refused to its client alone, before
//! it takes from the rest of the daemon.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use async_trait::async_trait;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tonic::Code;

use crate::{
    error::{Error, Result},
    runtime::session::{AttachRequest, Duplex, ExecRequest, Process, Session, Sessions, Streams},
};

/// Files of a connection to a port: a socket of each family is made for it.
const PORT: u32 = 2;

/// How many more files streaming may open.
#[derive(Clone)]
pub(super) struct Budget(Arc<Semaphore>);

impl Budget {
    /// A budget of so many files.
    pub(super) fn new(files: usize) -> Self {
        Self(Arc::new(Semaphore::new(files.min(Semaphore::MAX_PERMITS))))
    }

    /// Takes files until the permit is dropped; `None` when there are not as many left.
    pub(super) fn take(&self, files: u32) -> Option<OwnedSemaphorePermit> {
        self.0.clone().try_acquire_many_owned(files).ok()
    }

    fn take_for(&self, files: u32, what: impl FnOnce() -> String) -> Result<OwnedSemaphorePermit> {
        self.take(files).ok_or_else(|| Error::Failed {
            operation: what(),
            code: Code::ResourceExhausted,
            cause: "streaming clients have as many files open as the daemon's limit allows; \
                    end some sessions, or raise the limit (LimitNOFILE= in the daemon's unit)"
                .into(),
        })
    }
}

/// Sessions within a budget.
pub(super) struct Bounded {
    sessions: Arc<dyn Sessions>,
    budget: Budget,
}

impl Bounded {
    /// Sessions, each of which takes its files from the budget.
    pub(super) fn new(sessions: Arc<dyn Sessions>, budget: Budget) -> Self {
        Self { sessions, budget }
    }
}

/// The files of a session while it starts: both ends of each stream, and of its own connection to the shim.
fn files(streams: Streams) -> u32 {
    let wanted = [streams.stdin, streams.stdout, streams.stderr, true];
    wanted.map(|wanted| 2 * u32::from(wanted)).iter().sum()
}

#[async_trait]
impl Sessions for Bounded {
    async fn exec(&self, exec: ExecRequest) -> Result<Session> {
        let what = || format!("container {}: exec", exec.container);
        let permit = self.budget.take_for(files(exec.streams), what)?;
        Ok(held(self.sessions.exec(exec).await?, permit))
    }

    async fn attach(&self, attach: AttachRequest) -> Result<Session> {
        let what = || format!("container {}: attach", attach.container);
        let permit = self.budget.take_for(files(attach.streams), what)?;
        Ok(held(self.sessions.attach(attach).await?, permit))
    }

    async fn connect(&self, pod: &str, port: u16) -> Result<Pin<Box<dyn Duplex>>> {
        let permit = self.budget.take_for(PORT, || format!("pod {pod}: port {port}"))?;
        let stream = self.sessions.connect(pod, port).await?;
        Ok(Box::pin(Held { inner: stream, _permit: permit }))
    }

    async fn stopped(&self, pod: &str) {
        self.sessions.stopped(pod).await;
    }
}

fn held(session: Session, permit: OwnedSemaphorePermit) -> Session {
    let process = Held { inner: session.process, _permit: permit };
    Session { process: Box::new(process), ..session }
}

/// Something that has files open, and their permit: given back after them.
struct Held<T> {
    inner: T,
    _permit: OwnedSemaphorePermit,
}

#[async_trait]
impl Process for Held<Box<dyn Process>> {
    fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        self.inner.resize(columns, rows)
    }

    async fn wait(&mut self) -> Result<i32> {
        self.inner.wait().await
    }
}

impl AsyncRead for Held<Pin<Box<dyn Duplex>>> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.inner.as_mut().poll_read(cx, buf)
    }
}

impl AsyncWrite for Held<Pin<Box<dyn Duplex>>> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.inner.as_mut().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.as_mut().poll_shutdown(cx)
    }
}
