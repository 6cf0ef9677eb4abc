//! `podhold rm`.

use std::process::ExitCode;

use podhold_proto::cri::RemovePodSandboxRequest;

use super::{Where, said, stop};
use crate::{cli::Failure, standalone};

/// Remove a pod with its containers and logs
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// Name of the pod, or the beginning of its id
    pod: String,
    /// Also one that runs; it is stopped first
    #[arg(short, long)]
    force: bool,
    /// Seconds its containers have to end when it is stopped
    #[arg(short, long, value_name = "SECONDS", default_value_t = 30)]
    time: u32,
    #[command(flatten)]
    place: Where,
}

pub(super) async fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let mut found = arguments.place.find(&arguments.pod).await?;
    let served = found.run_process().is_some();
    if found.is_ready() || served {
        if !arguments.force {
            let pod = &arguments.pod;
            return Err(Failure(format!(
                "{pod}: runs; stop it with podhold stop {pod} first, or give --force"
            )));
        }
        let id = found.pod.id.clone();
        stop::stop(found, i64::from(arguments.time)).await?;
        found = match arguments.place.find(&id).await {
            Ok(found) => found,
            // A run that is not to be kept removes its pod itself.
            Err(_) if served => return Ok(ExitCode::SUCCESS),
            Err(failure) => return Err(failure),
        };
    }
    let request = RemovePodSandboxRequest { pod_sandbox_id: found.pod.id.clone() };
    found.source.client.remove_pod_sandbox(request).await.map_err(said)?;
    if let Some(here) = &found.source.here {
        standalone::remove_directories(&here.runtime);
    }
    found.source.close().await;
    Ok(ExitCode::SUCCESS)
}
