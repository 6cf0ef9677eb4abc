//! `podhold ps`.

use std::{process::ExitCode, time::SystemTime};

use podhold_proto::cri::{
    Container, ContainerState, ContainerStatus, ContainerStatusRequest, PodSandbox, PodSandboxState,
    PodSandboxStatusRequest,
};
use serde_json::Value;

use super::{Source, Where, attempt, document, name_of, said, table};
use crate::{cli::Failure, output};

/// List pods and their containers
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// Also those that have ended
    #[arg(short, long)]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Where,
}

/// A pod and its containers, as far as they are to be shown.
pub(super) struct Shown {
    pub(super) pod: PodSandbox,
    pub(super) ips: Vec<String>,
    /// What the runtime says of the pod besides.
    pub(super) more: Value,
    /// With what is known of each; nothing of one that runs, where only a line is shown.
    pub(super) containers: Vec<(Container, ContainerStatus)>,
}

pub(super) async fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let mut pods = Vec::new();
    for mut source in arguments.place.sources().await? {
        pods.extend(of(&mut source, arguments.all, arguments.json).await?);
        source.close().await;
    }
    if arguments.json {
        output::line(format_args!("{:#}", Value::Array(pods.iter().map(document::pod).collect())))?;
        return Ok(ExitCode::SUCCESS);
    }
    let head = ["POD", "CONTAINER", "STATE", "RESTARTS", "AGE", "IMAGE", "ID"].map(str::to_owned).to_vec();
    let rows: Vec<Vec<String>> = [head].into_iter().chain(pods.iter().flat_map(rows)).collect();
    output::this(format_args!("{}", table(&rows)))?;
    Ok(ExitCode::SUCCESS)
}

/// The pods with their containers; what only the document shows, when it is to be told `wholly`.
async fn of(source: &mut Source, all: bool, wholly: bool) -> Result<Vec<Shown>, Failure> {
    let containers = source.containers().await?;
    let mut pods = Vec::new();
    for pod in source.pods().await? {
        let mut shown = Vec::new();
        for container in containers.iter().filter(|container| container.pod_sandbox_id == pod.id) {
            if all || container.state() == ContainerState::ContainerRunning {
                let asked = wholly || container.state() == ContainerState::ContainerExited;
                let status = if asked {
                    status(source, &container.id).await?
                } else {
                    Some(ContainerStatus::default())
                };
                // One that went away meanwhile is not shown.
                shown.extend(status.map(|status| (container.clone(), status)));
            }
        }
        if shown.is_empty() && !all && pod.state() != PodSandboxState::SandboxReady {
            continue;
        }
        let about = if wholly { about(source, &pod.id).await? } else { Some(Default::default()) };
        pods.extend(about.map(|(ips, more)| Shown { pod, ips, more, containers: shown }));
    }
    Ok(pods)
}

/// What is known of a container; `None` when it is gone.
async fn status(source: &mut Source, id: &str) -> Result<Option<ContainerStatus>, Failure> {
    let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
    match source.client.container_status(request).await {
        Ok(answer) => Ok(answer.into_inner().status),
        Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
        Err(status) => Err(said(status)),
    }
}

/// The addresses of a pod, and what else the runtime says of it; `None` when it is gone.
async fn about(source: &mut Source, id: &str) -> Result<Option<(Vec<String>, Value)>, Failure> {
    let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
    let answer = match source.client.pod_sandbox_status(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) if status.code() == tonic::Code::NotFound => return Ok(None),
        Err(status) => return Err(said(status)),
    };
    let network = answer.status.and_then(|status| status.network).unwrap_or_default();
    let ips = [network.ip].into_iter().chain(network.additional_ips.into_iter().map(|more| more.ip));
    let more = answer.info.get("info").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    Ok(Some((ips.filter(|ip| !ip.is_empty()).collect(), more)))
}

fn state(container: &Container, status: &ContainerStatus) -> String {
    match container.state() {
        ContainerState::ContainerExited => format!("exited ({})", status.exit_code),
        other => document::state(other).to_owned(),
    }
}

/// The lines of a pod: one for each container, or one for itself.
fn rows(shown: &Shown) -> Vec<Vec<String>> {
    let of = shown.pod.metadata.clone().unwrap_or_default();
    let name = if of.namespace == "default" { of.name } else { format!("{}/{}", of.namespace, of.name) };
    let short = |id: &str| id.chars().take(13).collect::<String>();
    if shown.containers.is_empty() {
        let state = document::pod_state(&shown.pod).to_owned();
        let (none, age) = ("-".to_owned(), age(shown.pod.created_at));
        return vec![vec![name, none.clone(), state, none, age, String::new(), short(&shown.pod.id)]];
    }
    let row = |(container, status): &(Container, ContainerStatus)| {
        vec![
            name.clone(),
            name_of(container),
            state(container, status),
            attempt(container).to_string(),
            age(container.created_at),
            document::image(container),
            short(&container.id),
        ]
    };
    shown.containers.iter().map(row).collect()
}

/// How long ago a time was, in its largest unit.
fn age(nanos: i64) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = now.as_secs().saturating_sub(u64::try_from(nanos).unwrap_or(0) / 1_000_000_000);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}
