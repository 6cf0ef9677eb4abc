//! What `podhold ps --json` prints of a pod: all that is known of it and its containers. Pure.

use chrono::{DateTime, SecondsFormat};
use podhold_proto::cri::{
    Container, ContainerState, ContainerStatus, PodSandbox, PodSandboxConfig, PodSandboxState, PortMapping,
};
use serde_json::{Value, json};

use super::{attempt, list::Shown, name_of};
use crate::standalone::RUN_BY;

/// A pod.
pub(super) fn pod(shown: &Shown) -> Value {
    let Shown { pod, ips, more, containers } = shown;
    let of = pod.metadata.clone().unwrap_or_default();
    let run_by: Option<u32> = pod.annotations.get(RUN_BY).and_then(|pid| pid.parse().ok());
    json!({
        "id": pod.id,
        "name": of.name,
        "namespace": of.namespace,
        "uid": of.uid,
        "state": pod_state(pod),
        "createdAt": time(pod.created_at),
        "labels": pod.labels,
        "annotations": pod.annotations,
        "runBy": run_by,
        "ips": ips,
        "ports": ports(more),
        "containers": containers.iter().map(container).collect::<Vec<_>>(),
    })
}

fn container((container, status): &(Container, ContainerStatus)) -> Value {
    let exited = container.state() == ContainerState::ContainerExited;
    let word = |text: &String| (!text.is_empty()).then(|| text.clone());
    json!({
        "id": container.id,
        "name": name_of(container),
        "image": image(container),
        "imageRef": container.image_ref,
        "state": state(container.state()),
        "exitCode": exited.then_some(status.exit_code),
        "reason": word(&status.reason),
        "message": word(&status.message),
        "restarts": attempt(container),
        "createdAt": time(container.created_at),
        "startedAt": time(status.started_at),
        "finishedAt": time(status.finished_at),
        "logPath": word(&status.log_path),
    })
}

/// The ports of the host that lead into the pod, from what the runtime says of it; none from another runtime.
fn ports(more: &Value) -> Vec<Value> {
    let config: PodSandboxConfig = serde_json::from_value(more["config"].clone()).unwrap_or_default();
    let port = |mapping: &PortMapping| {
        json!({
            "containerPort": mapping.container_port,
            "hostPort": mapping.host_port,
            "hostIP": Some(&mapping.host_ip).filter(|ip| !ip.is_empty()),
            "protocol": mapping.protocol().as_str_name(),
        })
    };
    config.port_mappings.iter().map(port).collect()
}

/// How a pod is, in words.
pub(super) fn pod_state(pod: &PodSandbox) -> &'static str {
    if pod.state() == PodSandboxState::SandboxReady { "ready" } else { "not ready" }
}

/// How a container is, in a word.
pub(super) fn state(state: ContainerState) -> &'static str {
    match state {
        ContainerState::ContainerRunning => "running",
        ContainerState::ContainerCreated => "created",
        ContainerState::ContainerExited => "exited",
        ContainerState::ContainerUnknown => "unknown",
    }
}

/// The image as it was asked for.
pub(super) fn image(container: &Container) -> String {
    let image = container.image.clone().unwrap_or_default();
    if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image }
}

/// Nanoseconds since 1970 as in RFC 3339; none for 0, which is never.
fn time(nanos: i64) -> Option<String> {
    (nanos > 0).then(|| DateTime::from_timestamp_nanos(nanos).to_rfc3339_opts(SecondsFormat::Micros, true))
}
