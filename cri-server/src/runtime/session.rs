//! What a streaming client is joined with: a new command, a container's first process, or a port.
//!
//! The streaming server ([`crate::streaming`]) knows its clients' protocols and this contract; it knows
//! neither shims nor namespaces.
//!
//! Contract: a session ends with its client. Dropping a [`Session`] closes its streams; an exec'd command
//! is killed then, an attached container goes on.

mod attach;
mod exec;
mod forward;
mod request;
mod streams;

use std::pin::Pin;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

pub(super) use self::request::check_command;
use super::Runtime;
use crate::error::Result;

/// Bytes from a client to a process. Shutting it down is end of file.
pub type Input = Pin<Box<dyn AsyncWrite + Send>>;
/// Bytes from a process to a client, until end of file.
pub type Output = Pin<Box<dyn AsyncRead + Send>>;

/// Both directions of a connection to a port.
pub trait Duplex: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Duplex for T {}

/// Opens sessions.
#[async_trait]
pub trait Sessions: Send + Sync + 'static {
    /// Starts a command in a running container (CRI `ExecRequest`).
    async fn exec(&self, exec: ExecRequest) -> Result<Session>;

    /// Joins a running container's first process (CRI `AttachRequest`).
    async fn attach(&self, attach: AttachRequest) -> Result<Session>;

    /// Connects to a TCP port on the pod's loopback, in its network namespace (CRI
    /// `PortForwardRequest`).
    async fn connect(&self, pod: &str, port: u16) -> Result<Pin<Box<dyn Duplex>>>;

    /// Waits until a pod that is ready now has been stopped; of another one, for ever. What is at the other
    /// end of a connection may be the host's and outlive it.
    async fn stopped(&self, pod: &str);
}

#[async_trait]
impl Sessions for Runtime {
    async fn exec(&self, exec: ExecRequest) -> Result<Session> {
        self.open_exec(exec).await
    }

    async fn attach(&self, attach: AttachRequest) -> Result<Session> {
        self.open_attach(attach).await
    }

    async fn connect(&self, pod: &str, port: u16) -> Result<Pin<Box<dyn Duplex>>> {
        self.open_port(pod, port).await
    }

    async fn stopped(&self, pod: &str) {
        self.pod_stopped(pod).await;
    }
}

/// A command to start; checked before its URL was given out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRequest {
    /// The container's whole id.
    pub container: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Which streams are joined.
    pub streams: Streams,
}

/// A container to join; checked before its URL was given out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachRequest {
    /// The container's whole id.
    pub container: String,
    /// Which streams are joined.
    pub streams: Streams,
}

/// Which standard streams a client joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streams {
    /// A terminal; excludes stderr.
    pub tty: bool,
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
}

/// A process and the streams a client asked for; those it did not ask for are `None`.
pub struct Session {
    /// Its standard input (the terminal, when it has one).
    pub stdin: Option<Input>,
    /// Its standard output (the terminal, when it has one).
    pub stdout: Option<Output>,
    /// Its standard error.
    pub stderr: Option<Output>,
    /// The process itself.
    pub process: Box<dyn Process>,
}

/// The process behind a [`Session`].
#[async_trait]
pub trait Process: Send + Sync {
    /// Sets the size of its terminal, in characters. Nothing happens when it has none.
    fn resize(&self, columns: u16, rows: u16) -> Result<()>;

    /// Waits for its end, or for the end of the session for a reason on this side (a client that reads
    /// too slowly, a pod that is gone), which is an error that says so. Its output may be read after it.
    ///
    /// Cancel-safe: it is dropped and called anew whenever the terminal is resized.
    async fn wait(&mut self) -> Result<i32>;
}
