//! Commands a streaming client is joined with.
//!
//! Invariant: a command that was started ends with its client, also when the client leaves while it is
//! being started. One task per command owns it and sees to that.

use std::os::fd::OwnedFd;

use async_trait::async_trait;
use podhold_sandbox::{
    launch::{ExecEnd, ExecIo, ExecSession, ExecSpec, LaunchError, LivePod},
    terminal::Terminal,
};
use tokio::{
    net::unix::pipe,
    sync::{oneshot, watch},
    time::Instant,
};

use super::{
    ExecRequest, Input, Output, Process, Session, Streams,
    streams::{Closing, Ending},
};
use crate::{
    error::{Error, Result},
    runtime::Runtime,
};

/// Bytes a pipe to or from a command holds; as few wake-ups per byte as more would need.
const PIPE: usize = 256 << 10;
/// Bytes a terminal holds; more than the kernel keeps (tty_buffer.c).
const TERMINAL: usize = 128 << 10;

/// This end of a command's pipes.
struct Pipes {
    stdin: Option<pipe::Sender>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
}

impl Runtime {
    pub(super) async fn open_exec(&self, exec: ExecRequest) -> Result<Session> {
        let container = self.known_container(&exec.container)?;
        let live = self.live_container(&container, "commands run in running ones only")?;
        let streams = exec.streams;
        let process = self.exec_process(&container, exec.command, streams.tty).await?;
        let (io, pipes) = if streams.tty { (ExecIo::Terminal, None) } else { pipes(streams)? };
        let spec = ExecSpec { container: container.record.id.clone(), process, io, timeout: None };
        let (abandon, abandoned) = oneshot::channel();
        let (started, starting) = oneshot::channel();
        let (end, ended) = watch::channel(None);
        let (over, is_over) = watch::channel(None);
        tokio::spawn(async move {
            if let Some(ended) = run(live, spec, started, abandoned).await {
                end.send_replace(Some(ended));
            }
            over.send_replace(Some(Instant::now()));
        });
        let master = starting.await.map_err(Error::doing("exec"))??;
        let mut process = ExecProcess { ended, terminal: None, _abandon: abandon };
        let output = |pipe| -> Output { Box::pin(Ending::new(pipe, is_over.clone(), PIPE)) };
        let Some(master) = master else {
            let pipes =
                pipes.ok_or_else(|| Error::Precondition("the command's terminal did not come".into()))?;
            let stdin = pipes.stdin.map(|pipe| -> Input { Box::pin(Closing::new(pipe, || {})) });
            let (stdout, stderr) = (pipes.stdout.map(output), pipes.stderr.map(output));
            return Ok(Session { stdin, stdout, stderr, process: Box::new(process) });
        };
        let terminal = Terminal::whole(master).map_err(Error::doing("the command's terminal"))?;
        process.terminal = Some(terminal.clone());
        let stdin = streams.stdin.then(|| -> Input { Box::pin(Closing::new(terminal.clone(), || {})) });
        let screen = Ending::new(terminal, is_over.clone(), TERMINAL);
        let stdout = streams.stdout.then_some(screen).map(|screen| -> Output { Box::pin(screen) });
        Ok(Session { stdin, stdout, stderr: None, process: Box::new(process) })
    }
}

/// The command's life: from its start to its own end or that of its client. Tells the start with the
/// terminal, if there is one; gives how it ended, if it did.
async fn run(
    live: std::sync::Arc<dyn LivePod>,
    spec: ExecSpec,
    started: oneshot::Sender<Result<Option<OwnedFd>>>,
    mut abandoned: oneshot::Receiver<()>,
) -> Option<Result<i32>> {
    let container = spec.container.clone();
    let mut session = match live.exec(spec).await {
        Ok(session) => session,
        Err(error) => {
            let _ = started.send(Err(error.into()));
            return None;
        }
    };
    // Nobody takes it: then nobody waits either, which is seen below.
    let _ = started.send(Ok(session.take_terminal()));
    tokio::select! {
        end = session.wait() => Some(match end {
            Ok(ExecEnd::Exited(code)) => Ok(code),
            Ok(ExecEnd::TimedOut) => Err(Error::Deadline(format!("container {container}: command timed out"))),
            Err(error) => Err(error.into()),
        }),
        _ = &mut abandoned => {
            if let Err(error) = kill(session.as_ref()).await {
                tracing::warn!(container = %container, %error, "command whose client has left is not killed");
            }
            None
        }
    }
}

async fn kill(session: &dyn ExecSession) -> std::result::Result<(), LaunchError> {
    match session.kill().await {
        // A command ends with the connection on which it was asked for.
        Err(LaunchError::Gone { .. } | LaunchError::Lost { .. }) => Ok(()),
        result => result,
    }
}

/// Pipes for the streams that are asked for; the others are `/dev/null`.
fn pipes(streams: Streams) -> Result<(ExecIo, Option<Pipes>)> {
    let failed = |error: std::io::Error| Error::failed("pipe", &error);
    let pair = || -> Result<(OwnedFd, OwnedFd)> {
        let (reading, writing) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(Error::doing("pipe"))?;
        // Where the host does not allow it, a pipe of the usual size does as well.
        let _ = rustix::pipe::fcntl_setpipe_size(&writing, PIPE);
        Ok((reading, writing))
    };
    let mut own = Pipes { stdin: None, stdout: None, stderr: None };
    let mut theirs = [None, None, None];
    if streams.stdin {
        let (reading, writing) = pair()?;
        own.stdin = Some(pipe::Sender::from_owned_fd(writing).map_err(failed)?);
        theirs[0] = Some(reading);
    }
    for (index, wanted, end) in [(1, streams.stdout, &mut own.stdout), (2, streams.stderr, &mut own.stderr)] {
        if wanted {
            let (reading, writing) = pair()?;
            *end = Some(pipe::Receiver::from_owned_fd(reading).map_err(failed)?);
            theirs[index] = Some(writing);
        }
    }
    let [stdin, stdout, stderr] = theirs;
    Ok((ExecIo::Files { stdin, stdout, stderr }, Some(own)))
}

/// A command; killed when this is dropped.
struct ExecProcess {
    ended: watch::Receiver<Option<Result<i32>>>,
    terminal: Option<Terminal>,
    /// Its end is what the command's task hears.
    _abandon: oneshot::Sender<()>,
}

#[async_trait]
impl Process for ExecProcess {
    fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let resized = self.terminal.as_ref().map(|terminal| terminal.resize(columns, rows));
        resized.unwrap_or(Ok(())).map_err(Error::doing("set the size of the command's terminal"))
    }

    async fn wait(&mut self) -> Result<i32> {
        let ended = self.ended.wait_for(Option::is_some).await.map_err(Error::doing("exec"))?;
        match &*ended {
            Some(end) => end.clone(),
            None => Err(Error::Precondition("the command's end is not known".into())),
        }
    }
}
