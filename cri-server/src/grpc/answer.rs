//! Answers of the services: what the store and the verbs know, as CRI messages. Pure.

use std::time::SystemTime;

use podhold_cgroups::{Pressure, PressureLine, Stats};
use podhold_image::Image;
use podhold_proto::cri;
use podhold_sandbox::netns::InterfaceStats;

use super::select::{container_state, pod_state};
use crate::{
    runtime::{ContainerUsage, PodUsage},
    spec::signal,
    state::{Container, ContainerPhase, ContainerRecord, Ended, Pod, nanos},
};

/// A pod in a list.
pub(super) fn pod(pod: &Pod) -> cri::PodSandbox {
    let record = &pod.record;
    cri::PodSandbox {
        id: record.id.to_string(),
        metadata: record.config.metadata.clone(),
        state: pod_state(pod.phase).into(),
        created_at: nanos(record.created_at),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
    }
}

/// The annotation in which the status of a damaged pod says what is wrong.
const DAMAGED: &str = "podhold.io/damaged";

/// A pod's status.
pub(super) fn pod_status(pod: &Pod) -> cri::PodSandboxStatus {
    let record = &pod.record;
    let mut ips = pod.ips.iter().map(ToString::to_string);
    cri::PodSandboxStatus {
        id: record.id.to_string(),
        metadata: record.config.metadata.clone(),
        state: pod_state(pod.phase).into(),
        created_at: nanos(record.created_at),
        network: Some(cri::PodSandboxNetworkStatus {
            ip: ips.next().unwrap_or_default(),
            additional_ips: ips.map(|ip| cri::PodIp { ip }).collect(),
        }),
        linux: Some(cri::LinuxPodSandboxStatus {
            namespaces: Some(cri::Namespace { options: Some(record.namespaces()) }),
        }),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
    }
}

/// What stands where a damaged object's record would say something: clients refuse a status in which the names,
/// the image or the time is empty.
const UNTOLD: &str = "damaged";

/// What can be told of a pod whose record cannot be used.
pub(super) fn damaged_pod(id: &str, damage: String) -> cri::PodSandboxStatus {
    let (name, namespace) = (UNTOLD.to_owned(), UNTOLD.to_owned());
    cri::PodSandboxStatus {
        id: id.to_owned(),
        metadata: Some(cri::PodSandboxMetadata { name, uid: id.to_owned(), namespace, attempt: 0 }),
        state: cri::PodSandboxState::SandboxNotready.into(),
        created_at: nanos(std::time::SystemTime::now()),
        annotations: [(DAMAGED.to_owned(), damage)].into(),
        ..Default::default()
    }
}

/// What can be told of a container whose record cannot be used.
pub(super) fn damaged_container(id: &str, damage: String) -> cri::ContainerStatus {
    cri::ContainerStatus {
        id: id.to_owned(),
        metadata: Some(cri::ContainerMetadata { name: UNTOLD.to_owned(), attempt: 0 }),
        state: cri::ContainerState::ContainerUnknown.into(),
        created_at: nanos(std::time::SystemTime::now()),
        image: Some(cri::ImageSpec { image: UNTOLD.to_owned(), ..Default::default() }),
        image_ref: UNTOLD.to_owned(),
        reason: "Damaged".to_owned(),
        message: damage,
        ..Default::default()
    }
}

/// A container in a list.
pub(super) fn container(container: &Container) -> cri::Container {
    let record = &container.record;
    cri::Container {
        id: record.id.to_string(),
        pod_sandbox_id: record.pod.to_string(),
        metadata: record.config.metadata.clone(),
        image: record.config.image.clone(),
        image_ref: record.image_ref.clone(),
        state: container_state(container).into(),
        created_at: nanos(record.created_at),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        image_id: record.image_id.clone(),
    }
}

/// A container's status; `wait` is what its pod waits for.
pub(super) fn container_status(container: &Container, wait: Option<&str>) -> cri::ContainerStatus {
    let record = &container.record;
    let ended = ended(&container.phase);
    let ran = container.phase.run().map(|run| run.started_at).or_else(|| container.running_since());
    let started_at = ran.or(ended.and_then(|ended| ended.started_at));
    let spec = record.config.image.clone().unwrap_or_default();
    let asked = if spec.user_specified_image.is_empty() { spec.image } else { spec.user_specified_image };
    cri::ContainerStatus {
        id: record.id.to_string(),
        metadata: record.config.metadata.clone(),
        state: container_state(container).into(),
        created_at: nanos(record.created_at),
        started_at: started_at.map_or(0, nanos),
        finished_at: ended.map_or(0, |ended| nanos(ended.finished_at)),
        exit_code: ended.map_or(0, |ended| ended.code),
        image: Some(cri::ImageSpec { image: asked, ..Default::default() }),
        image_ref: record.image_ref.clone(),
        reason: ended.map(|ended| ended.reason.clone()).unwrap_or_default(),
        message: match (ended, wait) {
            (Some(ended), _) => ended.message.clone(),
            (None, Some(wait)) => format!("as it was last known: {wait}"),
            (None, None) if matches!(container.phase, ContainerPhase::Unknown { .. }) || container.unheld => {
                format!("it is {}", container.name_of_state())
            }
            (None, None) => String::new(),
        },
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        mounts: mounts(record),
        log_path: record.log_path.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        resources: Some(cri::ContainerResources { linux: Some(container.resources.clone()), windows: None }),
        image_id: record.image_id.clone(),
        user: Some(cri::ContainerUser { linux: Some(record.user.clone()) }),
        stop_signal: signal::to_cri(record.stop_signal).into(),
    }
}

/// A container's mounts as asked for; those of images with what a pull of the image answers.
fn mounts(record: &ContainerRecord) -> Vec<cri::Mount> {
    let mut mounts = record.config.mounts.clone();
    for (index, id) in &record.volumes {
        if let Some(image) = mounts.get_mut(*index).and_then(|mount| mount.image.as_mut()) {
            image.image_ref.clone_from(id);
        }
    }
    mounts
}

fn ended(phase: &ContainerPhase) -> Option<&Ended> {
    match phase {
        ContainerPhase::Exited(ended) | ContainerPhase::Removing(Some(ended)) => Some(ended),
        _ => None,
    }
}

/// An image.
pub(super) fn image(image: &Image) -> cri::Image {
    let user = image.config.config().as_ref().and_then(|config| config.user().clone()).unwrap_or_default();
    let user = user.split(':').next().unwrap_or_default().to_owned();
    let uid: Option<i64> = user.parse().ok();
    cri::Image {
        id: image.id.clone(),
        repo_tags: image.tags.clone(),
        repo_digests: image.digests.clone(),
        size: image.size,
        uid: uid.map(|value| cri::Int64Value { value }),
        username: if uid.is_some() { String::new() } else { user },
        spec: Some(cri::ImageSpec { image: image.id.clone(), ..Default::default() }),
        pinned: image.pinned,
    }
}

/// A file system's use.
pub(super) fn filesystem(mountpoint: &std::path::Path, usage: podhold_image::Usage) -> cri::FilesystemUsage {
    cri::FilesystemUsage {
        timestamp: nanos(SystemTime::now()),
        fs_id: Some(cri::FilesystemIdentifier { mountpoint: mountpoint.display().to_string() }),
        used_bytes: number(Some(usage.bytes)),
        inodes_used: number(Some(usage.inodes)),
    }
}

/// A container's statistics. `root` is where writable layers are kept.
pub(super) fn container_stats(usage: &ContainerUsage, root: &std::path::Path) -> cri::ContainerStats {
    let record = &usage.container.record;
    let timestamp = nanos(usage.at);
    cri::ContainerStats {
        attributes: Some(cri::ContainerAttributes {
            id: record.id.to_string(),
            metadata: record.config.metadata.clone(),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
        }),
        cpu: Some(cpu(&usage.stats, usage.nano_cores, timestamp)),
        memory: Some(memory(&usage.stats, timestamp)),
        writable_layer: usage.layer.map(|layer| filesystem(root, layer)),
        swap: Some(cri::SwapUsage {
            timestamp,
            swap_available_bytes: number(usage.stats.swap.available),
            swap_usage_bytes: number(usage.stats.swap.usage),
        }),
        io: Some(cri::IoUsage { timestamp, psi: usage.stats.io_pressure.as_ref().map(psi) }),
    }
}

/// A pod's statistics.
pub(super) fn pod_stats(usage: &PodUsage, root: &std::path::Path) -> cri::PodSandboxStats {
    let record = &usage.pod.record;
    let timestamp = nanos(usage.at);
    let mut interfaces = usage.interfaces.iter().map(interface);
    cri::PodSandboxStats {
        attributes: Some(cri::PodSandboxAttributes {
            id: record.id.to_string(),
            metadata: record.config.metadata.clone(),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
        }),
        linux: Some(cri::LinuxPodSandboxStats {
            cpu: Some(cpu(&usage.stats, usage.nano_cores, timestamp)),
            memory: Some(memory(&usage.stats, timestamp)),
            network: (!usage.interfaces.is_empty()).then(|| cri::NetworkUsage {
                timestamp,
                default_interface: interfaces.next(),
                interfaces: interfaces.collect(),
            }),
            process: Some(cri::ProcessUsage { timestamp, process_count: number(Some(usage.processes)) }),
            containers: usage.containers.iter().map(|container| container_stats(container, root)).collect(),
            io: Some(cri::IoUsage { timestamp, psi: usage.stats.io_pressure.as_ref().map(psi) }),
        }),
        windows: None,
    }
}

fn number(value: Option<u64>) -> Option<cri::UInt64Value> {
    value.map(|value| cri::UInt64Value { value })
}

fn cpu(stats: &Stats, nano_cores: Option<u64>, timestamp: i64) -> cri::CpuUsage {
    cri::CpuUsage {
        timestamp,
        usage_core_nano_seconds: number(stats.cpu.usage_ns),
        usage_nano_cores: number(nano_cores),
        psi: stats.cpu.pressure.as_ref().map(psi),
    }
}

fn memory(stats: &Stats, timestamp: i64) -> cri::MemoryUsage {
    cri::MemoryUsage {
        timestamp,
        working_set_bytes: number(stats.memory.working_set),
        available_bytes: number(stats.memory.available),
        usage_bytes: number(stats.memory.usage),
        rss_bytes: number(stats.memory.rss),
        page_faults: number(stats.memory.page_faults),
        major_page_faults: number(stats.memory.major_page_faults),
        psi: stats.memory.pressure.as_ref().map(psi),
    }
}

fn interface(stats: &InterfaceStats) -> cri::NetworkInterfaceUsage {
    cri::NetworkInterfaceUsage {
        name: stats.name.clone(),
        rx_bytes: number(Some(stats.rx_bytes)),
        rx_errors: number(Some(stats.rx_errors)),
        tx_bytes: number(Some(stats.tx_bytes)),
        tx_errors: number(Some(stats.tx_errors)),
    }
}

fn psi(pressure: &Pressure) -> cri::PsiStats {
    let line = |line: &PressureLine| cri::PsiData {
        total: line.total_us,
        avg10: line.avg10,
        avg60: line.avg60,
        avg300: line.avg300,
    };
    cri::PsiStats { full: Some(line(&pressure.full)), some: Some(line(&pressure.some)) }
}
