//! `podhold stop`.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    process::ExitCode,
};

use podhold_proto::cri::{StopContainerRequest, StopPodSandboxRequest};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use super::{Found, Where, said};
use crate::cli::Failure;

/// Stop a pod: hooks, stop signals, and after the grace period the end
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// Name of the pod, or the beginning of its id
    pod: String,
    /// Seconds its containers have to end; a pod of podhold run has its own grace period
    #[arg(short, long, value_name = "SECONDS", default_value_t = 30)]
    time: u32,
    #[command(flatten)]
    place: Where,
}

pub(super) async fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let found = arguments.place.find(&arguments.pod).await?;
    stop(found, i64::from(arguments.time)).await?;
    Ok(ExitCode::SUCCESS)
}

/// Stops a pod; one of `podhold run` by a word to its process, which knows hooks and order.
pub(super) async fn stop(mut found: Found, grace: i64) -> Result<(), Failure> {
    if let Some(pid) = found.run_process() {
        let process = open(pid)?;
        found.source.close().await;
        return end(process).await;
    }
    let containers = found.containers().await?;
    let stops = containers.into_iter().map(|container| {
        let mut client = found.source.client.clone();
        let request = StopContainerRequest { container_id: container.id, timeout: grace };
        async move { client.stop_container(request).await }
    });
    futures::future::try_join_all(stops).await.map_err(said)?;
    let request = StopPodSandboxRequest { pod_sandbox_id: found.pod.id.clone() };
    found.source.client.stop_pod_sandbox(request).await.map_err(said)?;
    found.source.close().await;
    Ok(())
}

/// The handle of a process, which no other process can come to have.
fn open(pid: i32) -> Result<OwnedFd, Failure> {
    let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    Ok(pidfd_open(pid, PidfdFlags::NONBLOCK)?)
}

/// Tells the process to end, and waits until it has.
async fn end(process: OwnedFd) -> Result<(), Failure> {
    match pidfd_send_signal(process.as_fd(), Signal::TERM) {
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        sent => sent?,
    }
    // A thread of its own, that ends with this command.
    let ended = move || loop {
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], None) {
            Err(rustix::io::Errno::INTR) => {}
            polled => return polled.map(drop),
        }
    };
    tokio::task::spawn_blocking(ended).await??;
    Ok(())
}
