//! Requests as a kubelet makes them: the same labels, annotations, directories and defaults.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use podhold_proto::cri::*;

/// Masked and read-only paths that the kubelet sends for an ordinary container.
const MASKED: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Every pod gets a UID of its own.
static NEXT: AtomicU32 = AtomicU32::new(1);

/// An ordinary pod `name` in the Kubernetes namespace `default`; logs go beneath `logs`.
pub fn pod(name: &str, logs: &Path) -> PodSandboxConfig {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let uid = format!("00000000-0000-4000-8000-{:08x}{number:04x}", std::process::id());
    PodSandboxConfig {
        hostname: name.to_owned(),
        log_directory: logs.join(format!("default_{name}_{uid}")).display().to_string(),
        dns_config: Some(DnsConfig {
            servers: vec!["192.0.2.53".into()],
            searches: vec!["default.svc.cluster.local".into()],
            options: vec!["ndots:5".into()],
        }),
        labels: labels(name, &uid),
        annotations: HashMap::from([("kubernetes.io/config.source".into(), "api".into())]),
        linux: Some(LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(own_processes()),
                seccomp: Some(runtime_default()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        metadata: Some(PodSandboxMetadata {
            name: name.to_owned(),
            uid,
            namespace: "default".into(),
            attempt: 0,
        }),
        ..Default::default()
    }
}

fn labels(pod: &str, uid: &str) -> HashMap<String, String> {
    let label = |key: &str, value: &str| (format!("io.kubernetes.pod.{key}"), value.to_owned());
    HashMap::from([label("name", pod), label("uid", uid), label("namespace", "default")])
}

/// Network and IPC of the pod, processes of the container.
pub fn own_processes() -> NamespaceOption {
    NamespaceOption { pid: NamespaceMode::Container.into(), ..Default::default() }
}

fn runtime_default() -> SecurityProfile {
    SecurityProfile {
        profile_type: security_profile::ProfileType::RuntimeDefault.into(),
        ..Default::default()
    }
}

/// An ordinary container `name` from `image` with these arguments.
pub fn container(name: &str, image: &str, arguments: &[&str]) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(ImageSpec {
            image: image.to_owned(),
            user_specified_image: image.to_owned(),
            ..Default::default()
        }),
        args: arguments.iter().map(|word| (*word).to_owned()).collect(),
        labels: HashMap::from([("io.kubernetes.container.name".into(), name.to_owned())]),
        annotations: HashMap::from([("io.kubernetes.container.restartCount".into(), "0".into())]),
        log_path: format!("{name}/0.log"),
        linux: Some(LinuxContainerConfig {
            resources: Some(LinuxContainerResources {
                cpu_shares: 102,
                oom_score_adj: 1000,
                ..Default::default()
            }),
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(own_processes()),
                seccomp: Some(runtime_default()),
                masked_paths: MASKED.map(str::to_owned).to_vec(),
                readonly_paths: READ_ONLY.map(str::to_owned).to_vec(),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

/// Changes parts of requests that lie deep inside.
pub trait Parts {
    /// The namespaces it shares.
    fn namespaces(&mut self) -> &mut NamespaceOption;
}

impl Parts for PodSandboxConfig {
    fn namespaces(&mut self) -> &mut NamespaceOption {
        let linux = self.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default().namespace_options.get_or_insert_default()
    }
}

impl Parts for ContainerConfig {
    fn namespaces(&mut self) -> &mut NamespaceOption {
        security(self).namespace_options.get_or_insert_default()
    }
}

/// The security context of a container.
pub fn security(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// The limits of a container.
pub fn resources(config: &mut ContainerConfig) -> &mut LinuxContainerResources {
    config.linux.get_or_insert_default().resources.get_or_insert_default()
}

/// A read-only bind mount of a host directory or file.
pub fn mount(host: &Path, container: &str) -> Mount {
    Mount {
        host_path: host.display().to_string(),
        container_path: container.to_owned(),
        readonly: true,
        ..Default::default()
    }
}

/// Where the log of the container `name` is.
pub fn log_file(pod: &PodSandboxConfig, name: &str) -> PathBuf {
    Path::new(&pod.log_directory).join(name).join("0.log")
}
