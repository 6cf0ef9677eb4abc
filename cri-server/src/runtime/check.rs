//! What a request may not hold, as far as it can be told without looking at the host. Pure.

use std::{
    collections::{HashMap, HashSet},
    path::{Component, Path},
};

use podhold_proto::cri::{self, NamespaceMode};
use serde::Serialize;

use super::{confinement, users};
use crate::{
    error::{Error, Result},
    state::PodRecord,
};

/// Most supplementary groups the kernel takes (NGROUPS_MAX).
const LARGEST_GROUPS: usize = 65_536;
/// Longest path of the kernel.
const LONGEST_PATH: usize = 4096;
/// Longest name of a file.
const LONGEST_NAME: usize = 255;
/// Sysctls of the network namespace.
const NET_SYSCTLS: &str = "net.";
/// Sysctls of the IPC namespace.
const IPC_SYSCTLS: [&str; 9] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
    "fs.mqueue.",
];

/// The first field in which two configurations differ, as a path; `None` when they are equal.
pub(super) fn first_difference<T: Serialize + PartialEq>(have: &T, asked: &T) -> Option<String> {
    if have == asked {
        return None;
    }
    let value = |config: &T| serde_json::to_value(config).unwrap_or_default();
    Some(differing(&value(have), &value(asked)).unwrap_or_else(|| "config".to_owned()))
}

fn differing(have: &serde_json::Value, asked: &serde_json::Value) -> Option<String> {
    match (have, asked) {
        (serde_json::Value::Object(have), serde_json::Value::Object(asked)) => {
            let keys = have.keys().chain(asked.keys().filter(|key| !have.contains_key(*key)));
            let null = serde_json::Value::Null;
            keys.into_iter().find_map(|key| {
                let deeper = differing(have.get(key).unwrap_or(&null), asked.get(key).unwrap_or(&null))?;
                Some(if deeper.is_empty() { key.clone() } else { format!("{key}.{deeper}") })
            })
        }
        (have, asked) if have == asked => None,
        _ => Some(String::new()),
    }
}

/// What a pod's log directory may not be.
pub(super) fn check_log_directory(dir: &str) -> Result<()> {
    let path = Path::new(dir);
    fits("log_directory", path)?;
    let plain = path.is_absolute() && !path.components().any(|part| part == Component::ParentDir);
    if dir.is_empty() || plain {
        return Ok(());
    }
    Err(Error::invalid("log_directory", format!("{dir:?} is not an absolute path without '..'")))
}

/// Refuses paths that the kernel does not take (limits.h: NAME_MAX, PATH_MAX).
fn fits(field: &str, path: &Path) -> Result<()> {
    let long = path.as_os_str().len() >= LONGEST_PATH;
    if long || path.components().any(|part| part.as_os_str().len() > LONGEST_NAME) {
        let reason = format!("a path has at most {LONGEST_PATH} bytes, each of its names {LONGEST_NAME}");
        return Err(Error::invalid(field, reason));
    }
    if path.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(Error::invalid(field, "holds a NUL byte"));
    }
    Ok(())
}

/// What a container's log path may not be: it stays beneath the pod's log directory.
pub(super) fn check_log_path(dir: &str, path: &str) -> Result<()> {
    let plain =
        Path::new(path).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !plain || path.contains('\0') {
        return Err(Error::invalid(
            "log_path",
            format!("{path:?} is not a path beneath the pod's log_directory"),
        ));
    }
    fits("log_path", &Path::new(dir).join(path))?;
    if !path.is_empty() && dir.is_empty() {
        return Err(Error::invalid("log_path", "the pod has no log_directory to put it in"));
    }
    Ok(())
}

/// What a container's security context may not ask for.
pub(super) fn check_security(security: &cri::LinuxContainerSecurityContext, pod: &PodRecord) -> Result<()> {
    let field = |name: &str| format!("linux.security_context.{name}");
    if security.privileged && !pod.privileged() {
        let reason = "needs a pod that is privileged as well; set it in the pod's security context";
        return Err(Error::invalid(field("privileged"), reason));
    }
    check_groups(&security.supplemental_groups, security.supplemental_groups_policy)?;
    confinement::check_container(security)?;
    let asked = security.namespace_options.clone().unwrap_or_default();
    check_modes(&asked)?;
    for (name, mode) in [("network", asked.network()), ("ipc", asked.ipc())] {
        if matches!(mode, NamespaceMode::Container | NamespaceMode::Target) {
            let reason = "is POD or NODE; no other is offered for it";
            return Err(Error::invalid(field(&format!("namespace_options.{name}")), reason));
        }
    }
    let of_pod = pod.namespaces();
    if (asked.network() == NamespaceMode::Node) != pod.host_network() {
        let reason = "must be that of the pod: its containers share one network";
        return Err(Error::invalid(field("namespace_options.network"), reason));
    }
    if (asked.ipc() == NamespaceMode::Node) != (of_pod.ipc() == NamespaceMode::Node) {
        let reason = "must be that of the pod: its containers share one IPC namespace";
        return Err(Error::invalid(field("namespace_options.ipc"), reason));
    }
    if asked.pid() == NamespaceMode::Pod && of_pod.pid() != NamespaceMode::Pod {
        let reason = "the pod has no PID namespace of its own; run it with pid: POD";
        return Err(Error::invalid(field("namespace_options.pid"), reason));
    }
    users::check_container(&asked, pod)?;
    let lists = [("masked_paths", &security.masked_paths), ("readonly_paths", &security.readonly_paths)];
    for (name, list) in lists {
        if let Some(bad) = list.iter().find(|path| !path.starts_with('/') || path.contains("..")) {
            return Err(Error::invalid(field(name), format!("{bad:?} is not an absolute path without '..'")));
        }
    }
    Ok(())
}

/// What a pod's security context may not ask for.
pub(super) fn check_pod_security(security: &cri::LinuxSandboxSecurityContext) -> Result<()> {
    let field = |name: &str| format!("linux.security_context.{name}");
    let ids = [("run_as_user", &security.run_as_user), ("run_as_group", &security.run_as_group)];
    for (name, id) in ids {
        if let Some(id) = id.as_ref().filter(|id| !(0..i64::from(u32::MAX)).contains(&id.value)) {
            let reason = format!("{} is not an id from 0 to 4294967294", id.value);
            return Err(Error::invalid(field(name), reason));
        }
    }
    if security.run_as_group.is_some() && security.run_as_user.is_none() {
        return Err(Error::invalid(field("run_as_group"), "a group without run_as_user; set it as well"));
    }
    check_groups(&security.supplemental_groups, security.supplemental_groups_policy)?;
    confinement::check_pod(security)
}

/// The further groups of a pod or a container.
fn check_groups(groups: &[i64], policy: i32) -> Result<()> {
    let field = |name: &str| format!("linux.security_context.{name}");
    if groups.len() > LARGEST_GROUPS {
        let reason = format!("names more than {LARGEST_GROUPS} groups");
        return Err(Error::invalid(field("supplemental_groups"), reason));
    }
    known::<cri::SupplementalGroupsPolicy>(&field("supplemental_groups_policy"), policy)
}

/// Namespace modes are those the CRI knows.
pub(super) fn check_modes(options: &cri::NamespaceOption) -> Result<()> {
    for (name, mode) in [("network", options.network), ("pid", options.pid), ("ipc", options.ipc)] {
        known::<NamespaceMode>(&format!("linux.security_context.namespace_options.{name}"), mode)?;
    }
    Ok(())
}

/// Refuses a number that is no value of its enum; the decoder alone would take it for the first one.
fn known<E: TryFrom<i32>>(field: &str, value: i32) -> Result<()> {
    match E::try_from(value) {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::invalid(field, format!("{value} is not a value of this field"))),
    }
}

/// Sysctls may only be those of namespaces the pod has of its own.
pub(super) fn check_sysctls(
    sysctls: &HashMap<String, String>,
    namespaces: &cri::NamespaceOption,
) -> Result<()> {
    let mut seen = HashSet::new();
    for (name, value) in sysctls {
        let field = format!("linux.sysctls[{name:?}]");
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/');
        if name.is_empty() || !name.bytes().all(plain) || name.split(['.', '/']).any(str::is_empty) {
            return Err(Error::invalid(field, "is not the name of a sysctl"));
        }
        if value.contains(['\n', '\0']) {
            return Err(Error::invalid(field, "its value is more than one line"));
        }
        let dotted = name.replace('/', ".");
        if !seen.insert(dotted.clone()) {
            return Err(Error::invalid(field, "is set twice, once with '.' and once with '/'"));
        }
        let of_net = dotted.starts_with(NET_SYSCTLS);
        let of_ipc = IPC_SYSCTLS.iter().any(|known| match known.strip_suffix('.') {
            Some(_) => dotted.starts_with(known),
            None => dotted == *known,
        });
        let host = match (of_net, of_ipc) {
            (true, _) => namespaces.network() == NamespaceMode::Node,
            (_, true) => namespaces.ipc() == NamespaceMode::Node,
            _ => return Err(Error::invalid(field, "does not belong to a namespace; set it on the node")),
        };
        if host {
            return Err(Error::invalid(field, "the pod uses the host's namespace; set it on the node"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_named_by_its_path() {
        let one = cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata { name: "a".into(), ..Default::default() }),
            ..Default::default()
        };
        let mut other = one.clone();
        assert_eq!(first_difference(&one, &other), None);
        other.metadata.as_mut().unwrap().name = "b".into();
        assert_eq!(first_difference(&one, &other).as_deref(), Some("metadata.name"));
    }

    #[test]
    fn a_log_stays_beneath_its_directory() {
        for bad in ["../x", "/etc/x", "a/../../b"] {
            assert!(check_log_path("/var/log/pods", bad).is_err(), "{bad}");
        }
        assert!(check_log_path("/var/log/pods", "web/0.log").is_ok());
        assert!(check_log_path("", "web/0.log").is_err());
        assert!(check_log_directory("logs").is_err() && check_log_directory("/a/../b").is_err());
    }

    #[test]
    fn a_sysctl_cannot_reach_the_host() {
        let check = |name: &str, value: &str, network| {
            let namespaces = cri::NamespaceOption { network, ..Default::default() };
            check_sysctls(&HashMap::from([(name.into(), value.into())]), &namespaces)
        };
        let (pod, node) = (NamespaceMode::Pod.into(), NamespaceMode::Node.into());
        assert!(check("net.ipv4.ip_forward", "1", pod).is_ok());
        assert!(check("net/ipv4/ip_forward", "1", pod).is_ok());
        assert!(check("kernel.shm_rmid_forced", "1", node).is_ok());
        for name in ["kernel.core_pattern", "net..ipv4", "net.ipv4/../../kernel/core_pattern", "a+b=c", ""] {
            assert!(check(name, "1", pod).is_err(), "{name}");
        }
        assert!(check("net.ipv4.ip_forward", "1", node).is_err());
        assert!(check("net.ipv4.ip_forward", "1\n2", pod).is_err());
    }
}
