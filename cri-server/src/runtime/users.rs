//! User namespaces: what a request may ask for, and the namespace of a pod that runs.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use podhold_proto::cri::{self, NamespaceMode};
use podhold_sandbox::{
    PodId, idmap,
    launch::{IdMap, IdRange, LaunchError},
};
use tokio::time::timeout;

use super::{Runtime, blocking, flight::to_its_end};
use crate::{
    error::{Error, Result},
    spec::{self, User, mounts::HostMount},
    state::{Pod, PodRecord, id_ranges},
};

/// The pod whose namespaces are made to see whether the host can.
const PROBE: &str = "usernamespaceprobe";
/// How long it may take to find out whether the host can.
const PROBE_TIME: Duration = Duration::from_secs(10);
/// How long the answer that it cannot is good.
const ASK_AGAIN: Duration = Duration::from_secs(60);
const FIELD: &str = "linux.security_context.namespace_options.userns_options";

/// What a pod's user namespace may not be.
pub(super) fn check_pod(options: &cri::NamespaceOption) -> Result<()> {
    let Some(users) = &options.userns_options else { return Ok(()) };
    match NamespaceMode::try_from(users.mode) {
        Ok(NamespaceMode::Pod) => {}
        Ok(NamespaceMode::Node) if users.uids.is_empty() && users.gids.is_empty() => return Ok(()),
        Ok(NamespaceMode::Node) => {
            let reason =
                "NODE is the host's namespace, which maps nothing: leave uids and gids out, or use POD";
            return Err(Error::invalid(format!("{FIELD}.mode"), reason));
        }
        Ok(mode) => {
            let reason = format!("{} is not for users: use POD or NODE", mode.as_str_name());
            return Err(Error::invalid(format!("{FIELD}.mode"), reason));
        }
        Err(_) => {
            let reason = format!("{} is not a value of this field", users.mode);
            return Err(Error::invalid(format!("{FIELD}.mode"), reason));
        }
    }
    for (name, ranges) in [("uids", &users.uids), ("gids", &users.gids)] {
        check_ranges(name, ranges)?;
    }
    for (name, mode) in [("pid", options.pid()), ("ipc", options.ipc())] {
        if mode == NamespaceMode::Node {
            let field = format!("linux.security_context.namespace_options.{name}");
            let reason = "NODE cannot be had with users of the pod's own: the kernel lets them mount nothing \
                          of the host's namespace";
            return Err(Error::invalid(field, reason));
        }
    }
    Ok(())
}

fn check_ranges(name: &str, ranges: &[cri::IdMapping]) -> Result<()> {
    let field = |index: usize, part: &str| format!("{FIELD}.{name}[{index}].{part}");
    let [range] = ranges else {
        let reason = format!("has {} mappings; POD takes exactly one, from container id 0 on", ranges.len());
        return Err(Error::invalid(format!("{FIELD}.{name}"), reason));
    };
    if range.container_id != 0 {
        let reason = format!("is {}; it must be 0, for root in the container", range.container_id);
        return Err(Error::invalid(field(0, "container_id"), reason));
    }
    if range.length == 0 {
        return Err(Error::invalid(field(0, "length"), "is 0; map at least one id, 65536 as a rule"));
    }
    // The last number means "no id" to the kernel.
    if range.host_id.checked_add(range.length).is_none() {
        let reason = format!("{} ids from {} on reach beyond the largest id", range.length, range.host_id);
        return Err(Error::invalid(field(0, "length"), reason));
    }
    Ok(())
}

/// A container has its pod's user namespace.
pub(super) fn check_container(options: &cri::NamespaceOption, pod: &PodRecord) -> Result<()> {
    let of = |options: &cri::NamespaceOption| {
        let users = options.userns_options.clone().unwrap_or_else(node);
        (users.mode, users.uids, users.gids)
    };
    if of(options) != of(&pod.namespaces()) {
        let reason = "differs from the pod's: its containers have the pod's users; repeat what the pod says";
        return Err(Error::invalid(FIELD, reason));
    }
    Ok(())
}

fn node() -> cri::UserNamespace {
    cri::UserNamespace { mode: NamespaceMode::Node.into(), ..Default::default() }
}

/// What the mounts of a container may not ask for, given its pod.
pub(super) fn check_mounts(mounts: &[cri::Mount], pod: &PodRecord) -> Result<()> {
    let map = pod.user_map();
    for (index, mount) in mounts.iter().enumerate() {
        let field = |name: &str| format!("mounts[{index}].{name}");
        if map.is_some() && mount.propagation() == cri::MountPropagation::PropagationBidirectional {
            let reason = "PROPAGATION_BIDIRECTIONAL cannot be had in a pod with users of its own: the kernel \
                          keeps its mounts from the host";
            return Err(Error::invalid(field("propagation"), reason));
        }
        if map.is_some() && spec::mounts::is_dev(mount) {
            let reason = "is /dev, which cannot be replaced in a pod with users of its own; mount what is \
                          needed beneath it, or name devices";
            return Err(Error::invalid(field("container_path"), reason));
        }
        if mount.uid_mappings.is_empty() && mount.gid_mappings.is_empty() {
            continue;
        }
        let Some(map) = &map else {
            let reason = "the pod has no user namespace whose ids could be shown; leave it out";
            return Err(Error::invalid(field("uidMappings"), reason));
        };
        for (name, asked, own) in
            [("uidMappings", &mount.uid_mappings, &map.uids), ("gidMappings", &mount.gid_mappings, &map.gids)]
        {
            if id_ranges(asked) != *own {
                return Err(Error::invalid(field(name), "differs from the pod's own mapping; repeat that"));
            }
        }
    }
    Ok(())
}

/// Whether the mounts' file systems can show owners shifted. Blocks.
pub(super) fn check_sources(mounts: &[HostMount], users: &podhold_image::IdMap) -> Result<()> {
    for (index, mount) in mounts.iter().enumerate().filter(|(_, mount)| mount.is_mapped()) {
        idmap::check(&mount.source, &users.namespace).map_err(|error| {
            Error::Precondition(format!(
                "mounts[{index}].host_path: {} cannot be shown with the owners of the pod's user namespace \
                 ({error}); its file system has no idmapped mounts: use another one, or a pod without",
                mount.source.display()
            ))
        })?;
    }
    Ok(())
}

/// Everybody a container runs as is mapped.
pub(super) fn check_user(user: &User, pod: &PodRecord) -> Result<()> {
    let Some(map) = pod.user_map() else { return Ok(()) };
    let within = |ranges: &[IdRange], id: u32| {
        ranges.iter().any(|range| id.checked_sub(range.container).is_some_and(|d| d < range.length))
    };
    let of = |name: &str, id: u32| {
        let reason = format!("{id} is not mapped in the pod's user namespace; use a smaller one or map more");
        Err(Error::invalid(format!("linux.security_context.{name}"), reason))
    };
    match user.groups.iter().find(|group| !within(&map.gids, **group)) {
        _ if !within(&map.uids, user.uid) => of("run_as_user", user.uid),
        _ if !within(&map.gids, user.gid) => of("run_as_group", user.gid),
        Some(group) => of("supplemental_groups", *group),
        None => Ok(()),
    }
}

/// A mapping with its namespace, as the image store takes it.
fn for_images(map: &IdMap, namespace: std::os::fd::OwnedFd) -> podhold_image::IdMap {
    let ranges = |ranges: &[IdRange]| {
        let range = |range: &IdRange| podhold_image::IdRange {
            container: range.container,
            host: range.host,
            length: range.length,
        };
        ranges.iter().map(range).collect()
    };
    podhold_image::IdMap { namespace, uids: ranges(&map.uids), gids: ranges(&map.gids) }
}

impl Runtime {
    /// Whether pods can have users of their own on this host. A host that could not is asked again at times:
    /// what was in the way may be gone.
    pub async fn user_namespaces(self: &Arc<Self>) -> bool {
        let mut known = self.user_namespaces.lock().await;
        match *known {
            Some((answer, at)) if answer || at.elapsed() < ASK_AGAIN => return answer,
            _ => {}
        }
        let runtime = Arc::clone(self);
        // To its end, whoever waits for it: what it makes it also removes.
        let probe = to_its_end(async move { runtime.probe_user_namespaces().await });
        let probed = timeout(PROBE_TIME, probe).await;
        let probed = probed.unwrap_or_else(|_| Err(Error::Deadline("no answer in time".to_owned())));
        if let Err(reason) = &probed {
            tracing::warn!(%reason, "this host cannot give pods users of their own");
        }
        *known = Some((probed.is_ok(), Instant::now()));
        probed.is_ok()
    }

    /// Does what a pod with users of its own takes.
    async fn probe_user_namespaces(&self) -> Result<()> {
        let pod = PodId::parse(PROBE).map_err(Error::doing("user namespaces"))?;
        let range = vec![IdRange { container: 0, host: 65536, length: 65536 }];
        let map = IdMap { uids: range.clone(), gids: range };
        let made = self.launcher.make_namespaces(&pod, &map, true).await;
        // It is not open, so this ends it.
        let _gone = self.launcher.reopen_pod(&pod).await;
        let (directory, snapshots) = (self.layout.pod_run(&pod), self.images.snapshots());
        blocking("user namespaces", move || {
            let _ = std::fs::remove_dir_all(directory);
            let map = for_images(&map, made?.user);
            snapshots.check_ids(&map).map_err(|error| Error::snapshot("container root", error))
        })
        .await
    }

    /// The user namespace of a pod that runs; `None` when it has the host's.
    pub(super) async fn users_of(&self, pod: &Pod) -> Result<Option<podhold_image::IdMap>> {
        let Some(map) = pod.record.user_map() else { return Ok(None) };
        let id = &pod.record.id;
        let live = self.store.pod(id).and_then(|pod| pod.live);
        let live = live.ok_or_else(|| Error::from(LaunchError::Gone { pod: id.clone() }))?;
        let made = live.user_namespace().await?.ok_or_else(|| {
            Error::Precondition(format!("pod {id}: its shim does not hold its user namespace; run it anew"))
        })?;
        Ok(Some(for_images(&map, made.user)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_mapping_is_named_by_its_field() {
        let range = |container_id, host_id, length| cri::IdMapping { container_id, host_id, length };
        let pod = |mode: NamespaceMode, uids: Vec<cri::IdMapping>, gids: Vec<cri::IdMapping>| {
            let users = cri::UserNamespace { mode: mode.into(), uids, gids };
            cri::NamespaceOption { userns_options: Some(users), ..Default::default() }
        };
        let good = || vec![range(0, 100_000, 65_536)];
        assert!(check_pod(&cri::NamespaceOption::default()).is_ok());
        assert!(check_pod(&pod(NamespaceMode::Node, vec![], vec![])).is_ok());
        assert!(check_pod(&pod(NamespaceMode::Pod, good(), vec![range(0, 7, 1)])).is_ok());
        use NamespaceMode::{Container, Node, Pod, Target};
        for (field, options) in [
            (".mode", pod(Container, vec![], vec![])),
            (".mode", pod(Target, good(), good())),
            (".mode", pod(Node, good(), good())),
            (".uids", pod(Pod, vec![], good())),
            (".gids", pod(Pod, good(), vec![])),
            (".uids", pod(Pod, vec![range(0, 1000, 10), range(10, 2000, 10)], good())),
            (".uids[0].container_id", pod(Pod, vec![range(1, 1000, 10)], good())),
            (".gids[0].length", pod(Pod, good(), vec![range(0, 1000, 0)])),
            (".uids[0].length", pod(Pod, vec![range(0, u32::MAX, 1)], good())),
        ] {
            let message = check_pod(&options).unwrap_err().to_string();
            assert!(message.starts_with(&format!("{FIELD}{field}: ")), "{message}");
        }
        for (name, options) in [
            ("pid", cri::NamespaceOption { pid: Node.into(), ..pod(Pod, good(), good()) }),
            ("ipc", cri::NamespaceOption { ipc: Node.into(), ..pod(Pod, good(), good()) }),
        ] {
            let message = check_pod(&options).unwrap_err().to_string();
            assert!(message.contains(&format!("namespace_options.{name}: ")), "{message}");
        }
    }
}
