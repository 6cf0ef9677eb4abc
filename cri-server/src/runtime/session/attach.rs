//! Running containers a streaming client is joined with.
//!
//! As with containerd and CRI-O a session ends well when its container ends, whatever that one's exit
//! code: `kubectl run` takes a failed attach as a reason to print the log. Where stdin outlives its client
//! (`stdin_once` is not set, no terminal), end of input is the end of the session.

use std::sync::Arc;

use async_trait::async_trait;
use podhold_sandbox::{
    ContainerId,
    launch::{AttachEnd, AttachSession, AttachSpec},
    terminal::Terminal,
};
use tokio::{
    io::AsyncWrite,
    net::{UnixStream, unix::pipe},
    sync::watch,
    time::Instant,
};
use tonic::Code;

use super::{
    AttachRequest, Input, Output, Process, Session,
    streams::{Closing, Ending},
};
use crate::{
    error::{Error, Result},
    runtime::Runtime,
};

/// What is read at most of a stream that its client has left; see [`Ending`].
const CAPACITY: usize = 64 << 10;

impl Runtime {
    pub(super) async fn open_attach(&self, attach: AttachRequest) -> Result<Session> {
        let container = self.known_container(&attach.container)?;
        let live = self.live_container(&container, "only running ones can be attached to")?;
        let record = &container.record;
        let streams = attach.streams;
        let attached = live
            .attach(AttachSpec {
                container: record.id.clone(),
                stdin: streams.stdin,
                stdout: streams.stdout,
                stderr: streams.stderr && !record.config.tty,
            })
            .await?;
        let failed =
            |error: std::io::Error| Error::failed(format!("container {}: attach", record.id), &error);
        let session: Arc<dyn AttachSession> = Arc::from(attached.session);
        let terminal = attached.terminal.map(Terminal::input).transpose().map_err(failed)?;
        let (left, has_left) = watch::channel(None);
        // Nothing comes any more from a session that has no output either.
        let no_output = !(streams.stdout || streams.stderr);
        let leaves = no_output || !(record.config.stdin_once || record.config.tty);
        let give_up = {
            let (session, left) = (Arc::clone(&session), left.clone());
            move || {
                session.give_up_stdin();
                if leaves {
                    left.send_replace(Some(Instant::now()));
                }
            }
        };
        let stdin = match (&terminal, attached.stdin) {
            _ if !streams.stdin => None,
            (Some(terminal), _) => Some(input(terminal.clone(), give_up)),
            (None, Some(writing)) => {
                Some(input(pipe::Sender::from_owned_fd(writing).map_err(failed)?, give_up))
            }
            (None, None) => None,
        };
        let output = |socket: std::os::fd::OwnedFd| -> Result<Output> {
            let socket = std::os::unix::net::UnixStream::from(socket);
            socket.set_nonblocking(true).map_err(failed)?;
            let socket = UnixStream::from_std(socket).map_err(failed)?;
            Ok(Box::pin(Ending::new(socket, has_left.clone(), CAPACITY)))
        };
        let stdout = attached.stdout.map(output).transpose()?;
        let stderr = attached.stderr.map(output).transpose()?;
        let process = Attachment { container: record.id.clone(), session, terminal, left };
        Ok(Session { stdin, stdout, stderr, process: Box::new(process) })
    }
}

fn input(stream: impl AsyncWrite + Unpin + Send + 'static, after: impl FnOnce() + Send + 'static) -> Input {
    Box::pin(Closing::new(stream, after))
}

struct Attachment {
    container: ContainerId,
    session: Arc<dyn AttachSession>,
    terminal: Option<Terminal>,
    /// Set when the client's last word is the end of the session. The outputs end without this, too.
    left: watch::Sender<Option<Instant>>,
}

#[async_trait]
impl Process for Attachment {
    fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let resized = self.terminal.as_ref().map(|terminal| terminal.resize(columns, rows));
        let operation = format!("set the size of the terminal of container {}", self.container);
        resized.unwrap_or(Ok(())).map_err(Error::doing(operation))
    }

    async fn wait(&mut self) -> Result<i32> {
        let mut left = self.left.subscribe();
        tokio::select! {
            end = self.session.ended() => match end? {
                AttachEnd::Exited(_) => Ok(0),
                AttachEnd::TooSlow => Err(Error::Failed {
                    operation: format!("container {}: attach", self.container),
                    code: Code::ResourceExhausted,
                    cause: "the client reads more slowly than the container writes and was cut off; \
                            the container's log has everything".into(),
                }),
            },
            _ = left.wait_for(Option::is_some) => Ok(0),
        }
    }
}
