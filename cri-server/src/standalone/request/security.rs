//! Security contexts of pod and container. Pure.
//!
//! Where a manifest names no seccomp profile the runtime's own is taken, and not none as a kubelet does unless
//! it is told: nobody here has to ask for the safe choice.

use std::collections::{HashMap, HashSet};

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Capabilities, PodSecurityContext, PodSpec, SELinuxOptions, SeccompProfile,
    SecurityContext,
};
use podhold_proto::cri::{self, NamespaceMode, security_profile::ProfileType};

use crate::{
    spec::process::Granted,
    standalone::manifest::{Findings, ManifestError, refuse},
};

/// Where a kubelet looks for the profiles that pods name.
const PROFILES: &str = "/var/lib/kubelet/seccomp";
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

/// The namespaces of a pod and of its containers.
pub(super) fn namespaces(spec: &PodSpec) -> Result<cri::NamespaceOption, ManifestError> {
    let of_host = [("spec.hostPID", spec.host_pid), ("spec.hostIPC", spec.host_ipc)];
    if let Some((field, _)) = of_host.iter().find(|(_, wanted)| *wanted == Some(true))
        && spec.host_users == Some(false)
    {
        return refuse(*field, "cannot be had with hostUsers: false; leave one of the two out");
    }
    let shared = spec.share_process_namespace == Some(true);
    if shared && spec.host_pid == Some(true) {
        return refuse("spec.shareProcessNamespace", "cannot be had with hostPID; leave one of the two out");
    }
    let mode = |host: Option<bool>, own| if host == Some(true) { NamespaceMode::Node } else { own };
    let own_pid = if shared { NamespaceMode::Pod } else { NamespaceMode::Container };
    Ok(cri::NamespaceOption {
        network: mode(spec.host_network, NamespaceMode::Pod).into(),
        pid: mode(spec.host_pid, own_pid).into(),
        ipc: mode(spec.host_ipc, NamespaceMode::Pod).into(),
        ..Default::default()
    })
}

/// The security context of the pod sandbox.
pub(super) fn of_pod(
    spec: &PodSpec,
    namespaces: &cri::NamespaceOption,
) -> Result<cri::LinuxSandboxSecurityContext, ManifestError> {
    let context = spec.security_context.clone().unwrap_or_default();
    let mut found = Findings::default();
    if !matches!(context.fs_group_change_policy.as_deref(), None | Some("Always" | "OnRootMismatch")) {
        let reason = "is Always or OnRootMismatch";
        found.part::<()>(refuse("spec.securityContext.fsGroupChangePolicy", reason));
    }
    let seccomp = seccomp(context.seccomp_profile.as_ref(), "spec.securityContext");
    let (seccomp, groups, policy) =
        (found.part(seccomp), found.part(groups(&context)), found.part(policy(&context)));
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let privileged = all.filter_map(|container| container.security_context.as_ref());
    found.whole(cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces.clone()),
        privileged: privileged.into_iter().any(|context| context.privileged == Some(true)),
        seccomp,
        selinux_options: context.se_linux_options.as_ref().map(selinux),
        supplemental_groups: groups.unwrap_or_default(),
        supplemental_groups_policy: policy.unwrap_or_default(),
        ..Default::default()
    })
}

/// The security context of a container; `field` is the container's path in the manifest.
pub(super) fn of_container(
    context: Option<&SecurityContext>,
    field: &str,
    spec: &PodSpec,
    namespaces: &cri::NamespaceOption,
) -> Result<cri::LinuxContainerSecurityContext, ManifestError> {
    let field = format!("{field}.securityContext");
    let context = context.cloned().unwrap_or_default();
    let pod = spec.security_context.clone().unwrap_or_default();
    let mut found = Findings::default();
    let number = |value: Option<i64>, name: &str| match value {
        Some(value) if !(0..=i64::from(u32::MAX) - 1).contains(&value) => {
            refuse(format!("{field}.{name}"), format!("{value} is not an id from 0 to {}", u32::MAX - 1))
        }
        value => Ok(value.map(|value| cri::Int64Value { value })),
    };
    let privileged = context.privileged == Some(true);
    if privileged && context.allow_privilege_escalation == Some(false) {
        let reason = "is false, and a privileged container has all there is; leave one of the two out";
        found.part::<()>(refuse(format!("{field}.allowPrivilegeEscalation"), reason));
    }
    let user = context.run_as_user.or(pod.run_as_user);
    if is_non_root(Some(&context), &pod) && user == Some(0) {
        let reason = "is true, and runAsUser is 0, which is root; give another one";
        found.part::<()>(refuse(format!("{field}.runAsNonRoot"), reason));
    }
    let bare = match context.proc_mount.as_deref() {
        None | Some("" | "Default") => Ok(privileged),
        Some("Unmasked") if spec.host_users == Some(false) => Ok(true),
        Some("Unmasked") => {
            refuse(format!("{field}.procMount"), "Unmasked needs hostUsers: false; set it as well")
        }
        Some(other) => refuse(format!("{field}.procMount"), format!("{other:?} is not Default or Unmasked")),
    };
    let bare = found.part(bare).unwrap_or_default();
    let paths =
        |list: &[&str]| if bare { Vec::new() } else { list.iter().map(|path| (*path).to_owned()).collect() };
    let capabilities = context.capabilities.clone().unwrap_or_default();
    found.part(check_capabilities(&capabilities, &format!("{field}.capabilities")));
    let (profile, at) = match &context.seccomp_profile {
        Some(profile) => (Some(profile), field.as_str()),
        None => (pod.seccomp_profile.as_ref(), "spec.securityContext"),
    };
    let (armor, armor_at) = match &context.app_armor_profile {
        Some(profile) => (Some(profile), field.as_str()),
        None => (pod.app_armor_profile.as_ref(), "spec.securityContext"),
    };
    let run_as_user = found.part(number(user, "runAsUser")).flatten();
    let run_as_group = found.part(number(context.run_as_group.or(pod.run_as_group), "runAsGroup")).flatten();
    let (groups, policy) = (found.part(groups(&pod)), found.part(policy(&pod)));
    let (seccomp, apparmor) = (found.part(seccomp(profile, at)), found.part(apparmor(armor, armor_at)));
    found.whole(cri::LinuxContainerSecurityContext {
        capabilities: Some(cri::Capability {
            add_capabilities: capabilities.add.unwrap_or_default(),
            drop_capabilities: capabilities.drop.unwrap_or_default(),
            ..Default::default()
        }),
        privileged,
        namespace_options: Some(namespaces.clone()),
        run_as_user,
        run_as_group,
        readonly_rootfs: context.read_only_root_filesystem == Some(true),
        supplemental_groups: groups.unwrap_or_default(),
        supplemental_groups_policy: policy.unwrap_or_default(),
        no_new_privs: context.allow_privilege_escalation == Some(false),
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READ_ONLY),
        seccomp,
        apparmor: apparmor.flatten(),
        selinux_options: context.se_linux_options.as_ref().or(pod.se_linux_options.as_ref()).map(selinux),
        ..Default::default()
    })
}

/// Refuses names of capabilities that there are not.
fn check_capabilities(asked: &Capabilities, field: &str) -> Result<(), ManifestError> {
    let mut found = Findings::default();
    for (list, names) in [("add", &asked.add), ("drop", &asked.drop)] {
        for (index, name) in names.iter().flatten().enumerate() {
            let one = cri::Capability { add_capabilities: vec![name.clone()], ..Default::default() };
            let security =
                cri::LinuxContainerSecurityContext { capabilities: Some(one), ..Default::default() };
            if Granted::of(&security, &HashSet::new()).is_err() {
                let reason = format!("{name:?} is not a capability, such as NET_ADMIN, or ALL");
                found.part::<()>(refuse(format!("{field}.{list}[{index}]"), reason));
            }
        }
    }
    found.whole(())
}

/// Whether a container may not run as root.
pub(super) fn is_non_root(context: Option<&SecurityContext>, pod: &PodSecurityContext) -> bool {
    context.and_then(|context| context.run_as_non_root).or(pod.run_as_non_root) == Some(true)
}

/// Further groups: those that are named, and the one the volumes belong to.
fn groups(pod: &PodSecurityContext) -> Result<Vec<i64>, ManifestError> {
    let mut groups = pod.supplemental_groups.clone().unwrap_or_default();
    groups.extend(pod.fs_group.filter(|group| !groups.contains(group)));
    let range = 0..i64::from(u32::MAX);
    match groups.iter().find(|group| !range.contains(group)) {
        Some(bad) => {
            let name = if pod.fs_group == Some(*bad) { "fsGroup" } else { "supplementalGroups" };
            refuse(
                format!("spec.securityContext.{name}"),
                format!("{bad} is not an id from 0 to {}", u32::MAX - 1),
            )
        }
        None => Ok(groups),
    }
}

fn policy(pod: &PodSecurityContext) -> Result<i32, ManifestError> {
    match pod.supplemental_groups_policy.as_deref() {
        None | Some("Merge") => Ok(cri::SupplementalGroupsPolicy::Merge.into()),
        Some("Strict") => Ok(cri::SupplementalGroupsPolicy::Strict.into()),
        Some(other) => {
            let reason = format!("{other:?} is not Merge or Strict");
            refuse("spec.securityContext.supplementalGroupsPolicy", reason)
        }
    }
}

fn seccomp(profile: Option<&SeccompProfile>, field: &str) -> Result<cri::SecurityProfile, ManifestError> {
    let Some(profile) = profile else { return Ok(cri::SecurityProfile::default()) };
    let field = format!("{field}.seccompProfile");
    let kind = kind(&profile.type_, profile.localhost_profile.as_deref(), &field)?;
    let localhost_ref = match (&profile.localhost_profile, kind) {
        (Some(path), ProfileType::Localhost) => {
            let plain = std::path::Path::new(path)
                .components()
                .all(|part| matches!(part, std::path::Component::Normal(_) | std::path::Component::CurDir));
            if !plain {
                let reason = format!("{path:?} is not a path below {PROFILES}");
                return refuse(format!("{field}.localhostProfile"), reason);
            }
            format!("{PROFILES}/{path}")
        }
        _ => String::new(),
    };
    Ok(cri::SecurityProfile { profile_type: kind.into(), localhost_ref })
}

fn apparmor(
    profile: Option<&AppArmorProfile>,
    field: &str,
) -> Result<Option<cri::SecurityProfile>, ManifestError> {
    let Some(profile) = profile else { return Ok(None) };
    let field = format!("{field}.appArmorProfile");
    let kind = kind(&profile.type_, profile.localhost_profile.as_deref(), &field)?;
    let localhost_ref = profile.localhost_profile.clone().unwrap_or_default();
    Ok(Some(cri::SecurityProfile { profile_type: kind.into(), localhost_ref }))
}

fn kind(name: &str, reference: Option<&str>, field: &str) -> Result<ProfileType, ManifestError> {
    let named = reference.is_some_and(|name| !name.is_empty());
    match name {
        "Localhost" if named => Ok(ProfileType::Localhost),
        "Localhost" => refuse(format!("{field}.localhostProfile"), "is missing; name the profile"),
        "RuntimeDefault" | "Unconfined" if named => {
            refuse(format!("{field}.localhostProfile"), format!("is for type Localhost, and this is {name}"))
        }
        "RuntimeDefault" => Ok(ProfileType::RuntimeDefault),
        "Unconfined" => Ok(ProfileType::Unconfined),
        other => refuse(
            format!("{field}.type"),
            format!("{other:?} is not RuntimeDefault, Localhost or Unconfined"),
        ),
    }
}

fn selinux(options: &SELinuxOptions) -> cri::SeLinuxOption {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    cri::SeLinuxOption {
        user: text(&options.user),
        role: text(&options.role),
        r#type: text(&options.type_),
        level: text(&options.level),
    }
}

/// The sysctls of the pod's namespaces.
pub(super) fn sysctls(spec: &PodSpec) -> Result<HashMap<String, String>, ManifestError> {
    let list = spec.security_context.as_ref().and_then(|context| context.sysctls.clone());
    let (mut sysctls, mut found) = (HashMap::new(), Findings::default());
    for (index, sysctl) in list.unwrap_or_default().into_iter().enumerate() {
        let name = sysctl.name.clone();
        if sysctls.insert(sysctl.name, sysctl.value).is_some() {
            let reason = format!("{name:?} is set twice; leave one out");
            found.part::<()>(refuse(format!("spec.securityContext.sysctls[{index}].name"), reason));
        }
    }
    found.whole(sysctls)
}
