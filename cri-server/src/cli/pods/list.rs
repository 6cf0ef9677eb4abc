//! `podhold ps`.

use std::{process::ExitCode, time::SystemTime};

use podhold_proto::cri::{Container, ContainerState, ContainerStatusRequest, PodSandbox, PodSandboxState};
use serde_json::{Value, json};

use super::{Source, Where, attempt, name_of, said, table};
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

/// One line of the table.
struct Line {
    pod: PodSandbox,
    container: Option<(Container, i32)>,
}

pub(super) async fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let mut lines = Vec::new();
    for mut source in arguments.place.sources().await? {
        lines.extend(of(&mut source, arguments.all).await?);
        source.close().await;
    }
    if arguments.json {
        output::line(format_args!("{:#}", Value::Array(lines.iter().map(brief).collect())))?;
        return Ok(ExitCode::SUCCESS);
    }
    let head = ["POD", "CONTAINER", "STATE", "RESTARTS", "AGE", "IMAGE", "ID"].map(str::to_owned).to_vec();
    let rows: Vec<Vec<String>> = [head].into_iter().chain(lines.iter().map(row)).collect();
    output::this(format_args!("{}", table(&rows)))?;
    Ok(ExitCode::SUCCESS)
}

async fn of(source: &mut Source, all: bool) -> Result<Vec<Line>, Failure> {
    let containers = source.containers().await?;
    let mut lines = Vec::new();
    for pod in source.pods().await? {
        let up = pod.state() == PodSandboxState::SandboxReady;
        let before = lines.len();
        for container in containers.iter().filter(|container| container.pod_sandbox_id == pod.id) {
            if all || container.state() == ContainerState::ContainerRunning {
                let code = match container.state() {
                    ContainerState::ContainerExited => exit_code(source, &container.id).await?,
                    _ => 0,
                };
                lines.push(Line { pod: pod.clone(), container: Some((container.clone(), code)) });
            }
        }
        if lines.len() == before && (all || up) {
            lines.push(Line { pod, container: None });
        }
    }
    Ok(lines)
}

async fn exit_code(source: &mut Source, id: &str) -> Result<i32, Failure> {
    let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
    match source.client.container_status(request).await {
        Ok(answer) => Ok(answer.into_inner().status.unwrap_or_default().exit_code),
        // It went away meanwhile.
        Err(status) if status.code() == tonic::Code::NotFound => Ok(0),
        Err(status) => Err(said(status)),
    }
}

fn state(line: &Line) -> String {
    match &line.container {
        Some((container, code)) => match container.state() {
            ContainerState::ContainerRunning => "running".to_owned(),
            ContainerState::ContainerCreated => "created".to_owned(),
            ContainerState::ContainerExited => format!("exited ({code})"),
            ContainerState::ContainerUnknown => "unknown".to_owned(),
        },
        None if line.pod.state() == PodSandboxState::SandboxReady => "ready".to_owned(),
        None => "not ready".to_owned(),
    }
}

fn row(line: &Line) -> Vec<String> {
    let of = line.pod.metadata.clone().unwrap_or_default();
    let container = line.container.as_ref().map(|(container, _)| container);
    let id = container.map_or(&line.pod.id, |container| &container.id);
    let image = container.and_then(|container| container.image.clone()).unwrap_or_default();
    let image = if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image };
    vec![
        if of.namespace == "default" { of.name } else { format!("{}/{}", of.namespace, of.name) },
        container.map_or_else(|| "-".to_owned(), name_of),
        state(line),
        container.map_or_else(|| "-".to_owned(), |container| attempt(container).to_string()),
        age(container.map_or(line.pod.created_at, |container| container.created_at)),
        image,
        id.chars().take(13).collect(),
    ]
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

fn brief(line: &Line) -> Value {
    let of = line.pod.metadata.clone().unwrap_or_default();
    let container = line.container.as_ref().map(|(container, code)| {
        let exited = container.state() == ContainerState::ContainerExited;
        json!({
            "name": name_of(container), "id": container.id, "restarts": attempt(container),
            "exitCode": exited.then_some(*code), "createdAt": container.created_at,
        })
    });
    json!({
        "pod": of.name, "namespace": of.namespace, "podId": line.pod.id, "state": state(line),
        "container": container,
    })
}
