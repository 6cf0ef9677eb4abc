//! A Pod manifest as the CRI requests a kubelet would send. Pure.

use std::{collections::HashMap, path::PathBuf, time::Duration};

use k8s_openapi::api::core::v1::{Container, ContainerPort, PodSecurityContext, PodSpec, SecurityContext};
use podhold_proto::cri::{self, NamespaceMode};

use super::{
    limits,
    manifest::{Manifest, ManifestError, check_name, refuse},
    volumes,
};

/// Paths of the kernel's that a container does not see, as Kubernetes masks them.
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
];
/// Paths of the kernel's that a container cannot change.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// Longest grace period, in seconds: a year.
const LONGEST_GRACE: i64 = 365 * 24 * 3600;
/// Grace period of a pod that names none.
const GRACE: Duration = Duration::from_secs(30);

/// The requests of one pod.
#[derive(Debug)]
pub(super) struct Requests {
    /// RunPodSandbox.
    pub(super) pod: cri::PodSandboxConfig,
    /// Run one after another, each to success.
    pub(super) init: Vec<ContainerRequest>,
    /// Run at once.
    pub(super) apps: Vec<ContainerRequest>,
    /// How long containers have to end.
    pub(super) grace: Duration,
    /// Directories to make before the pod runs.
    pub(super) empty_dirs: Vec<PathBuf>,
}

/// One CreateContainer.
#[derive(Debug)]
pub(super) struct ContainerRequest {
    pub(super) config: cri::ContainerConfig,
    pub(super) pull: Pull,
}

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pull {
    Always,
    IfNotPresent,
    Never,
}

/// The requests. `uid` names this run, `dir` is the pod's directory for logs and volumes.
pub(super) fn requests(
    manifest: &Manifest,
    uid: &str,
    dir: &std::path::Path,
) -> Result<Requests, ManifestError> {
    let metadata = &manifest.pod.metadata;
    let Some(spec) = &manifest.pod.spec else { return refuse("spec", "is missing") };
    let Some(name) = metadata.name.clone().filter(|name| !name.is_empty()) else {
        return refuse("metadata.name", "is missing; a pod needs a name");
    };
    check_name("metadata.name", &name, 253)?;
    if spec.containers.is_empty() {
        return refuse("spec.containers", "is empty; a pod needs at least one container");
    }
    let of_host = [("spec.hostPID", spec.host_pid), ("spec.hostIPC", spec.host_ipc)];
    if let Some((field, _)) = of_host.iter().find(|(_, wanted)| *wanted == Some(true))
        && spec.host_users == Some(false)
    {
        return refuse(*field, "cannot be had with hostUsers: false; leave one of the two out");
    }
    let linux = cri::LinuxPodSandboxConfig {
        security_context: Some(cri::LinuxSandboxSecurityContext {
            namespace_options: Some(namespaces(spec)),
            privileged: any_privileged(spec),
            ..Default::default()
        }),
        sysctls: sysctls(spec.security_context.as_ref()),
        ..Default::default()
    };
    let pod = cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: name.clone(),
            uid: metadata.uid.clone().unwrap_or_else(|| uid.to_owned()),
            namespace: metadata.namespace.clone().unwrap_or_else(|| "default".to_owned()),
            attempt: 0,
        }),
        hostname: spec.hostname.clone().unwrap_or_else(|| name.chars().take(63).collect()),
        log_directory: dir.join("logs").display().to_string(),
        port_mappings: ports(spec)?,
        labels: metadata.labels.clone().unwrap_or_default().into_iter().collect(),
        annotations: metadata.annotations.clone().unwrap_or_default().into_iter().collect(),
        linux: Some(linux),
        ..Default::default()
    };
    let volumes = volumes::of(spec, dir)?;
    let list = |which: &str, containers: &[Container]| -> Result<Vec<ContainerRequest>, ManifestError> {
        let one = |(index, container)| {
            self::container(container, &format!("spec.{which}[{index}]"), spec, &volumes)
        };
        containers.iter().enumerate().map(one).collect()
    };
    let requests = Requests {
        pod,
        init: list("initContainers", spec.init_containers.as_deref().unwrap_or_default())?,
        apps: list("containers", &spec.containers)?,
        grace: grace(spec.termination_grace_period_seconds)?,
        empty_dirs: volumes::empty_dirs(spec, dir),
    };
    check_names(&requests)?;
    Ok(requests)
}

fn grace(seconds: Option<i64>) -> Result<Duration, ManifestError> {
    match seconds {
        None => Ok(GRACE),
        Some(seconds @ 0..=LONGEST_GRACE) => Ok(Duration::from_secs(seconds.unsigned_abs())),
        Some(seconds) => {
            let reason = format!("{seconds} is not a number of seconds from 0 to {LONGEST_GRACE}");
            refuse("spec.terminationGracePeriodSeconds", reason)
        }
    }
}

fn check_names(requests: &Requests) -> Result<(), ManifestError> {
    let mut seen = std::collections::BTreeSet::new();
    for request in requests.init.iter().chain(&requests.apps) {
        let name = request.config.metadata.clone().unwrap_or_default().name;
        if !seen.insert(name.clone()) {
            return refuse("spec.containers", format!("two containers are named {name:?}"));
        }
    }
    Ok(())
}

fn namespaces(spec: &PodSpec) -> cri::NamespaceOption {
    let mode = |host: Option<bool>, own| if host == Some(true) { NamespaceMode::Node } else { own };
    let own_pid = if spec.share_process_namespace == Some(true) {
        NamespaceMode::Pod
    } else {
        NamespaceMode::Container
    };
    cri::NamespaceOption {
        network: mode(spec.host_network, NamespaceMode::Pod).into(),
        pid: mode(spec.host_pid, own_pid).into(),
        ipc: mode(spec.host_ipc, NamespaceMode::Pod).into(),
        ..Default::default()
    }
}

fn any_privileged(spec: &PodSpec) -> bool {
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    all.filter_map(|container| container.security_context.as_ref())
        .any(|context| context.privileged == Some(true))
}

fn sysctls(context: Option<&PodSecurityContext>) -> HashMap<String, String> {
    let list = context.and_then(|context| context.sysctls.clone()).unwrap_or_default();
    list.into_iter().map(|sysctl| (sysctl.name, sysctl.value)).collect()
}

fn ports(spec: &PodSpec) -> Result<Vec<cri::PortMapping>, ManifestError> {
    let mut mappings = Vec::new();
    for (index, container) in spec.containers.iter().enumerate() {
        for (at, port) in container.ports.iter().flatten().enumerate() {
            let mapping = self::port(port, &format!("spec.containers[{index}].ports[{at}]"))?;
            if mapping.host_port != 0 {
                mappings.push(mapping);
            }
        }
    }
    Ok(mappings)
}

fn port(port: &ContainerPort, field: &str) -> Result<cri::PortMapping, ManifestError> {
    let numbers = [("containerPort", Some(port.container_port)), ("hostPort", port.host_port)];
    for (name, number) in numbers.into_iter().filter_map(|(name, number)| Some((name, number?))) {
        if !(1..=65_535).contains(&number) {
            return refuse(format!("{field}.{name}"), format!("{number} is not a port from 1 to 65535"));
        }
    }
    let protocol = match port.protocol.as_deref() {
        None | Some("TCP") => cri::Protocol::Tcp,
        Some("UDP") => cri::Protocol::Udp,
        Some("SCTP") => cri::Protocol::Sctp,
        Some(other) => {
            return refuse(format!("{field}.protocol"), format!("{other:?} is not TCP, UDP or SCTP"));
        }
    };
    Ok(cri::PortMapping {
        protocol: protocol.into(),
        container_port: port.container_port,
        host_port: port.host_port.unwrap_or_default(),
        host_ip: port.host_ip.clone().unwrap_or_default(),
    })
}

fn container(
    container: &Container,
    field: &str,
    pod: &PodSpec,
    volumes: &HashMap<String, String>,
) -> Result<ContainerRequest, ManifestError> {
    check_name(&format!("{field}.name"), &container.name, 63)?;
    let Some(image) = container.image.clone().filter(|image| !image.is_empty()) else {
        return refuse(format!("{field}.image"), "is missing; name an image");
    };
    let mut mounts = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let Some(host_path) = volumes.get(&mount.name) else {
            let reason = format!("spec.volumes has no {:?}", mount.name);
            return refuse(format!("{field}.volumeMounts[{index}].name"), reason);
        };
        if mounts.iter().any(|made: &cri::Mount| made.container_path == mount.mount_path) {
            let reason = format!("{:?} is mounted over twice", mount.mount_path);
            return refuse(format!("{field}.volumeMounts[{index}].mountPath"), reason);
        }
        mounts.push(cri::Mount {
            container_path: mount.mount_path.clone(),
            host_path: host_path.clone(),
            readonly: mount.read_only == Some(true),
            ..Default::default()
        });
    }
    let env = container.env.iter().flatten().map(|entry| cri::KeyValue {
        key: entry.name.clone(),
        value: entry.value.clone().unwrap_or_default().into_bytes(),
    });
    let linux = cri::LinuxContainerConfig {
        resources: Some(limits::of(container.resources.as_ref(), field)?),
        security_context: Some(security(container.security_context.as_ref(), pod)),
    };
    Ok(ContainerRequest {
        pull: pull(container, &image, field)?,
        config: cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: container.name.clone(), attempt: 0 }),
            image: Some(cri::ImageSpec { image, ..Default::default() }),
            command: container.command.clone().unwrap_or_default(),
            args: container.args.clone().unwrap_or_default(),
            working_dir: container.working_dir.clone().unwrap_or_default(),
            envs: env.collect(),
            mounts,
            log_path: format!("{}.log", container.name),
            linux: Some(linux),
            ..Default::default()
        },
    })
}

/// As Kubernetes decides it: `latest` is always pulled, anything else when it is missing.
fn pull(container: &Container, image: &str, field: &str) -> Result<Pull, ManifestError> {
    match container.image_pull_policy.as_deref() {
        Some("Always") => Ok(Pull::Always),
        Some("IfNotPresent") => Ok(Pull::IfNotPresent),
        Some("Never") => Ok(Pull::Never),
        Some(other) => {
            let reason = format!("{other:?} is not Always, IfNotPresent or Never");
            refuse(format!("{field}.imagePullPolicy"), reason)
        }
        None => {
            let name = image.rsplit('/').next().unwrap_or(image);
            let latest = !image.contains('@') && (!name.contains(':') || name.ends_with(":latest"));
            Ok(if latest { Pull::Always } else { Pull::IfNotPresent })
        }
    }
}

fn security(context: Option<&SecurityContext>, pod: &PodSpec) -> cri::LinuxContainerSecurityContext {
    let none = SecurityContext::default();
    let context = context.unwrap_or(&none);
    let of_pod = pod.security_context.clone().unwrap_or_default();
    let number = |value: Option<i64>| value.map(|value| cri::Int64Value { value });
    let privileged = context.privileged == Some(true);
    let paths = |list: &[&str]| {
        if privileged { Vec::new() } else { list.iter().map(|path| (*path).to_owned()).collect() }
    };
    let capabilities = context.capabilities.clone().unwrap_or_default();
    cri::LinuxContainerSecurityContext {
        capabilities: Some(cri::Capability {
            add_capabilities: capabilities.add.unwrap_or_default(),
            drop_capabilities: capabilities.drop.unwrap_or_default(),
            ..Default::default()
        }),
        privileged,
        namespace_options: Some(namespaces(pod)),
        run_as_user: number(context.run_as_user.or(of_pod.run_as_user)),
        run_as_group: number(context.run_as_group.or(of_pod.run_as_group)),
        readonly_rootfs: context.read_only_root_filesystem == Some(true),
        supplemental_groups: of_pod.supplemental_groups.unwrap_or_default(),
        no_new_privs: context.allow_privilege_escalation == Some(false),
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READ_ONLY),
        seccomp: Some(cri::SecurityProfile::default()),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests_of(container: &str, spec: &str) -> Result<Requests, ManifestError> {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n  {spec}\n  containers:\n  - {container}\n"
        );
        requests(&Manifest::parse(&text)?, "uid", std::path::Path::new("/d"))
    }

    #[test]
    fn limits_become_quota_shares_and_bytes() {
        let container =
            "{name: c, image: i, resources: {limits: {cpu: 500m, memory: 64Mi}, requests: {cpu: 0.25}}}";
        let requests = requests_of(container, "hostname: h").unwrap();
        let limits = requests.apps[0].config.linux.clone().unwrap().resources.unwrap();
        assert_eq!((limits.cpu_quota, limits.cpu_period, limits.cpu_shares), (50_000, 100_000, 256));
        assert_eq!(limits.memory_limit_in_bytes, 64 << 20);
    }

    #[test]
    fn latest_is_always_pulled() {
        let policy = |image: &str| pull(&Container::default(), image, "c").unwrap();
        assert_eq!(policy("localhost:5000/busybox"), Pull::Always);
        assert_eq!(policy("busybox:latest"), Pull::Always);
        assert_eq!(policy("busybox:1.36"), Pull::IfNotPresent);
        assert_eq!(policy("busybox@sha256:00"), Pull::IfNotPresent);
    }

    #[test]
    fn what_cannot_be_run_is_refused_by_field() {
        for (container, spec, field) in [
            ("{name: c}", "hostname: h", "spec.containers[0].image"),
            (
                "{name: c, image: i, volumeMounts: [{name: v, mountPath: /v}]}",
                "hostname: h",
                "spec.containers[0].volumeMounts[0].name",
            ),
            (
                "{name: c, image: i, resources: {limits: {cpu: lots}}}",
                "hostname: h",
                "spec.containers[0].resources.limits.cpu",
            ),
            (
                "{name: c, image: i, imagePullPolicy: Maybe}",
                "hostname: h",
                "spec.containers[0].imagePullPolicy",
            ),
            ("{name: C d, image: i}", "hostname: h", "spec.containers[0].name"),
            (
                "{name: c, image: i, ports: [{containerPort: 0}]}",
                "hostname: h",
                "spec.containers[0].ports[0].containerPort",
            ),
            (
                "{name: c, image: i}",
                "terminationGracePeriodSeconds: -1",
                "spec.terminationGracePeriodSeconds",
            ),
            (
                "{name: c, image: i}",
                "volumes: [{name: v, emptyDir: {}}, {name: v, emptyDir: {}}]",
                "spec.volumes[1].name",
            ),
            ("{name: c, image: i}", "initContainers: [{name: c, image: i}]", "spec.containers"),
        ] {
            let message = requests_of(container, spec).unwrap_err().to_string();
            assert!(message.starts_with(&format!("{field}: ")), "{message}");
        }
    }
}
