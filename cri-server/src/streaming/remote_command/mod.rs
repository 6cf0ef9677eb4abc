//! Exec and attach: joins a session's streams with a client's, and tells how it ended.
//!
//! Invariants: the session lives as long as its client; everything a process wrote is sent before its end is
//! told; input is read as fast as the process takes it, output as fast as the client does.

pub(super) mod resize;
mod spdy;
mod status;
mod websocket;

use std::{io, sync::Arc, time::Duration};

use tokio::{sync::watch, task::JoinSet, time::timeout};

use self::{resize::Sizes, status::Outcome};
pub(super) use self::{
    spdy::serve as serve_spdy,
    websocket::{Prepared, serve as serve_websocket},
};
use super::{
    inbox::Receiver,
    link::Packet,
    pump::{self, Outlet},
};
use crate::{
    error::{Result, chain},
    runtime::session::{AttachRequest, ExecRequest, Input, Output, Process, Session, Sessions, Streams},
};

/// How long the end of the output is awaited after a process's end, counted anew whenever some comes: a
/// background child may hold the pipe open for ever.
const DRAIN: Duration = Duration::from_secs(1);
/// How long a client may take to accept what was sent before a session ended for a reason on this side.
const CUT_OFF: Duration = Duration::from_secs(5);

/// What a client wants to be joined with.
#[derive(Debug, Clone)]
pub(super) enum Request {
    /// A new command.
    Exec(ExecRequest),
    /// A container's first process.
    Attach(AttachRequest),
}

impl Request {
    pub(super) fn streams(&self) -> Streams {
        match self {
            Self::Exec(exec) => exec.streams,
            Self::Attach(attach) => attach.streams,
        }
    }

    async fn open(&self, sessions: &dyn Sessions) -> Result<Session> {
        match self {
            Self::Exec(exec) => sessions.exec(exec.clone()).await,
            Self::Attach(attach) => sessions.attach(attach.clone()).await,
        }
    }

    fn doing(&self) -> &'static str {
        match self {
            Self::Exec(_) => "error executing command in container",
            Self::Attach(_) => "error attaching to container",
        }
    }
}

/// A client's streams.
struct Channels {
    /// 1 to 5.
    version: u8,
    stdin: Option<Receiver>,
    resize: Option<Receiver>,
    stdout: Option<Outlet>,
    stderr: Option<Outlet>,
    error: Outlet,
    /// Ways back that carry nothing and end last.
    silent: Vec<Outlet>,
}

impl Channels {
    /// Runs a session and tells its end; an error is a client that is gone. Dropping it ends the session.
    async fn run(mut self, request: Request, sessions: Arc<dyn Sessions>) -> io::Result<()> {
        let outcome = match request.open(&*sessions).await {
            Err(error) => Outcome::Failed(format!("{}: {}", request.doing(), chain(&error))),
            Ok(session) => match (self.join(session).await?, &request) {
                (Ok(0), _) | (Ok(_), Request::Attach(_)) => Outcome::Success,
                (Ok(code), Request::Exec(_)) => Outcome::Exit(code),
                (Err(error), _) => Outcome::Failed(format!("{}: {}", request.doing(), chain(&error))),
            },
        };
        if let Some(message) = outcome.message(self.version) {
            self.error.send(Packet::new(&message)).await?;
        }
        let outputs = [self.stdout.take(), self.stderr.take(), Some(self.error)];
        for mut outlet in outputs.into_iter().flatten().chain(self.silent) {
            outlet.finish().await?;
        }
        Ok(())
    }

    /// Moves bytes until the process ends and its output is sent.
    async fn join(&mut self, session: Session) -> io::Result<Result<i32>> {
        let Session { stdin, stdout, stderr, mut process } = session;
        let (phase, watched) = watch::channel(Phase::Running);
        // Aborted when it is dropped, which is when the client goes.
        let mut inputs = JoinSet::new();
        if let (Some(from), Some(into)) = (self.stdin.take(), stdin) {
            inputs.spawn(feed(from, into));
        }
        let mut outputs = JoinSet::new();
        for (output, outlet) in [(stdout, self.stdout.take()), (stderr, self.stderr.take())] {
            match (output, outlet) {
                (Some(output), Some(outlet)) => {
                    outputs.spawn(drain(output, outlet, watched.clone()));
                }
                (None, Some(outlet)) => self.silent.push(outlet),
                (_, None) => {}
            }
        }
        let ended = tokio::select! {
            ended = wait(&mut *process, self.resize.take()) => ended,
            Err(gone) = first_failure(&mut outputs, &mut self.silent) => return Err(gone),
        };
        inputs.abort_all();
        phase.send_replace(if ended.is_ok() { Phase::Draining } else { Phase::Over });
        let rest = async {
            while let Some(done) = outputs.join_next().await {
                self.silent.push(done.map_err(io::Error::other)??);
            }
            io::Result::Ok(())
        };
        match &ended {
            Ok(_) => rest.await?,
            Err(_) => timeout(CUT_OFF, rest).await.unwrap_or_else(|late| Err(late.into()))?,
        }
        Ok(ended)
    }
}

/// Where a session is; tells the output when to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    /// The process has ended: what it wrote is still sent.
    Draining,
    /// Ended on this side: nothing more is sent.
    Over,
}

/// Waits until an output fails; ones that end in order are kept.
async fn first_failure(outputs: &mut JoinSet<io::Result<Outlet>>, ended: &mut Vec<Outlet>) -> io::Result<()> {
    while let Some(done) = outputs.join_next().await {
        ended.push(done.map_err(io::Error::other)??);
    }
    std::future::pending().await
}

/// Waits for the process's end and passes terminal sizes on meanwhile.
async fn wait(process: &mut dyn Process, mut resize: Option<Receiver>) -> Result<i32> {
    let mut sizes = Sizes::default();
    loop {
        let octets = tokio::select! {
            biased;
            ended = process.wait() => return ended,
            octets = next(&mut resize) => octets,
        };
        match octets.map(|octets| sizes.read(&octets)) {
            Some(Ok(Some(size))) if size.width > 0 && size.height > 0 => {
                if let Err(error) = process.resize(size.width, size.height) {
                    tracing::debug!(error = %chain(&error), "a terminal was not resized");
                }
            }
            Some(Ok(_)) => {}
            // Ended, or no sizes: as in the kubelet, the session goes on without.
            None | Some(Err(_)) => resize = None,
        }
    }
}

async fn next(receiver: &mut Option<Receiver>) -> Option<bytes::Bytes> {
    match receiver {
        Some(receiver) => receiver.next().await.ok(),
        None => std::future::pending().await,
    }
}

/// Passes input on to its end, which closes it.
async fn feed(mut from: Receiver, mut into: Input) {
    use tokio::io::AsyncWriteExt;

    if pump::pour(&mut from, &mut into).await == pump::Poured::Finished {
        // It fails when the process has closed its end first.
        let _closed = into.shutdown().await;
    }
    drop(into);
}

/// Passes output on to its end.
async fn drain(
    mut output: Output,
    mut outlet: Outlet,
    mut phase: watch::Receiver<Phase>,
) -> io::Result<Outlet> {
    loop {
        let now = *phase.borrow_and_update();
        let packet = match now {
            Phase::Over => break,
            Phase::Draining => timeout(DRAIN, pump::read(&mut output)).await.unwrap_or(Ok(None)),
            Phase::Running => tokio::select! {
                biased;
                packet = pump::read(&mut output) => packet,
                Ok(()) = phase.changed() => continue,
            },
        };
        match packet {
            Ok(Some(packet)) => outlet.send(packet).await?,
            Ok(None) => break,
            Err(error) => {
                tracing::debug!(%error, "a process's output cannot be read");
                break;
            }
        }
    }
    outlet.finish().await?;
    Ok(outlet)
}
