//! ExecSync: a command in a running container, its output and exit code.
//!
//! Output is bounded, and so is the wait for it once the command has ended: a process it left behind
//! that keeps the pipe open delays nobody. The command ends with its last waiter.

use std::{os::fd::OwnedFd, sync::Arc, time::Duration};

use oci_spec::runtime::Process;
use podhold_sandbox::{
    bundle,
    launch::{ExecEnd, ExecIo, ExecSession, ExecSpec, LivePod},
};
use tokio::{io::AsyncReadExt, net::unix::pipe, sync::oneshot, time::timeout};

use super::{Runtime, blocking, session::check_command};
use crate::{
    error::{Error, Result},
    state::Container,
};

/// Most bytes of both streams that are answered: kubelet and crictl take messages of 16 MiB, and a frame
/// is around them.
const LARGEST_OUTPUT: usize = (16 << 20) - 1024;
/// How long output is waited for after the command has ended.
const DRAIN: Duration = Duration::from_secs(1);

/// What a command printed and how it ended.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// Standard output; with standard error just under 16 MiB.
    pub stdout: Vec<u8>,
    /// Standard error; with standard output just under 16 MiB.
    pub stderr: Vec<u8>,
    /// Exit code, or 128 + signal.
    pub code: i32,
}

impl Runtime {
    /// Runs a command in a container. After `limit` it is killed, alone.
    ///
    /// When the returned future is dropped, the command is killed.
    pub async fn exec_sync(
        self: &Arc<Self>,
        id: &str,
        command: Vec<String>,
        limit: Option<Duration>,
    ) -> Result<ExecOutput> {
        let container = self.known_container(id)?;
        check_command(&command)?;
        let live = self.live_container(&container, "commands run in running ones only")?;
        let process = self.exec_process(&container, command, false).await?;
        let (stdout, stdout_end) = output_pipe()?;
        let (stderr, stderr_end) = output_pipe()?;
        let spec = ExecSpec {
            container: container.record.id.clone(),
            process,
            io: ExecIo::Files { stdin: None, stdout: Some(stdout_end), stderr: Some(stderr_end) },
            timeout: limit,
        };
        // In a task of its own: dropped half way, the session could not be told to end.
        let (abandon, abandoned) = oneshot::channel::<()>();
        let work = tokio::spawn(async move {
            let session = live.exec(spec).await?;
            tokio::select! {
                ran = run(session, Output::of(stdout), Output::of(stderr), abandoned) => ran,
                // It is the shim that ends a command whose time is over.
                silent = live.silent(), if limit.is_some() => Err(silent.into()),
            }
        });
        let result = work.await.map_err(Error::doing("exec"))?;
        // Alive until here: its end is how the task hears that nobody waits any more.
        drop(abandon);
        match result? {
            (ExecEnd::Exited(code), stdout, stderr) => Ok(ExecOutput { code, ..fitting(stdout, stderr) }),
            (ExecEnd::TimedOut, ..) => Err(Error::Deadline(format!(
                "container {}: the command did not end within {} s and was killed",
                container.record.id,
                limit.unwrap_or_default().as_secs_f64()
            ))),
        }
    }

    /// What makes a running container run; `rule` says why another one will not do.
    pub(super) fn live_container(&self, container: &Container, rule: &str) -> Result<Arc<dyn LivePod>> {
        self.is_answered(container)?;
        let live = self.store.pod(&container.record.pod).and_then(|pod| pod.live);
        live.filter(|_| container.phase.run().is_some()).ok_or_else(|| {
            let (id, phase) = (&container.record.id, container.name_of_state());
            Error::Precondition(format!("container {id} is {phase}; {rule}"))
        })
    }

    /// The container's own process with another command, with a terminal or without.
    pub(super) async fn exec_process(
        &self,
        container: &Container,
        command: Vec<String>,
        terminal: bool,
    ) -> Result<Process> {
        let bundle = self.layout.bundle(&container.record.pod, &container.record.id);
        blocking("exec", move || {
            let config: Config = bundle::config(&bundle).map_err(Error::doing("container bundle"))?;
            let mut process = config.process;
            process.set_args(Some(command));
            process.set_terminal(Some(terminal));
            let mut env = process.env().clone().unwrap_or_default();
            if terminal && !env.iter().any(|entry| entry.starts_with("TERM=")) {
                env.push("TERM=xterm".to_owned());
                process.set_env(Some(env));
            }
            Ok(process)
        })
        .await
    }
}

/// What an exec needs of `config.json`. The rest, most of which is a seccomp profile's calls, is skipped.
#[derive(serde::Deserialize)]
struct Config {
    // One without it is damaged: a default would be another user with other rights.
    process: Process,
}

/// Output that fits into one answer: a long stream leaves at least half of it to the other.
fn fitting(mut stdout: Vec<u8>, mut stderr: Vec<u8>) -> ExecOutput {
    stdout.truncate(LARGEST_OUTPUT - stderr.len().min(LARGEST_OUTPUT / 2));
    stderr.truncate(LARGEST_OUTPUT - stdout.len());
    ExecOutput { stdout, stderr, code: 0 }
}

async fn run(
    mut session: Box<dyn ExecSession>,
    stdout: Output,
    stderr: Output,
    abandoned: oneshot::Receiver<()>,
) -> Result<(ExecEnd, Vec<u8>, Vec<u8>)> {
    let (mut stdout, mut stderr) = (stdout, stderr);
    let end = {
        let reading = async { tokio::join!(stdout.read(), stderr.read()) };
        tokio::pin!(reading);
        tokio::pin!(abandoned);
        let mut waiting = true;
        let mut open = true;
        loop {
            tokio::select! {
                end = session.wait() => break end?,
                _ = &mut reading, if open => open = false,
                _ = &mut abandoned, if waiting => {
                    waiting = false;
                    session.kill().await?;
                }
            }
        }
    };
    // Whoever keeps a pipe open after the command has ended is not waited for.
    let _rest = timeout(DRAIN, async { tokio::join!(stdout.read(), stderr.read()) }).await;
    Ok((end, stdout.bytes, stderr.bytes))
}

/// A pipe whose reading end does not block.
fn output_pipe() -> Result<(pipe::Receiver, OwnedFd)> {
    let (read, write) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(Error::doing("pipe"))?;
    let read = pipe::Receiver::from_owned_fd(read).map_err(Error::doing("pipe"))?;
    Ok((read, write))
}

/// One stream of a command.
struct Output {
    pipe: pipe::Receiver,
    bytes: Vec<u8>,
}

impl Output {
    fn of(pipe: pipe::Receiver) -> Self {
        Self { pipe, bytes: Vec::new() }
    }

    /// Reads to the end; what is too much is read and dropped. Can be called again after a drop.
    async fn read(&mut self) {
        let mut chunk = [0u8; 16 << 10];
        loop {
            match self.pipe.read(&mut chunk).await {
                Ok(0) | Err(_) => return,
                Ok(n) => {
                    let room = LARGEST_OUTPUT - self.bytes.len();
                    self.bytes.extend_from_slice(&chunk[..n.min(room)]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_fits_into_one_answer_and_no_stream_is_crowded_out() {
        let fit = |out, err| {
            let output = fitting(vec![b'o'; out], vec![b'e'; err]);
            (output.stdout.len(), output.stderr.len())
        };
        assert_eq!(fit(10, 20), (10, 20));
        assert_eq!(fit(LARGEST_OUTPUT, LARGEST_OUTPUT), (LARGEST_OUTPUT / 2, LARGEST_OUTPUT / 2));
        assert_eq!(fit(LARGEST_OUTPUT, 7), (LARGEST_OUTPUT - 7, 7));
        assert_eq!(fit(7, LARGEST_OUTPUT), (7, LARGEST_OUTPUT - 7));
    }
}
