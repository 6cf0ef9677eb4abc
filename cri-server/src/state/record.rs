//! What is kept on disk of a pod and of a container. Plain data; read and written through
//! `podhold_sandbox::record`.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::SystemTime};

use podhold_cgroups::CgroupPath;
use podhold_proto::cri;
use podhold_sandbox::{
    ContainerId, PodId,
    launch::{IdMap, IdRange},
};
use serde::{Deserialize, Serialize};

use super::{ContainerName, Ended, PodName};

/// A pod, from the moment RunPodSandbox has claimed its name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PodRecord {
    /// Its id.
    pub id: PodId,
    /// As it was asked for.
    pub config: cri::PodSandboxConfig,
    /// The runtime handler that was asked for; empty is the built-in one.
    pub runtime_handler: String,
    /// When it was asked for.
    pub created_at: SystemTime,
    /// The cgroup above its pause process and its containers.
    pub cgroup: CgroupPath,
    /// The topmost of its ancestors, or itself, that was made for this pod and goes with it.
    pub owned_cgroup: Option<CgroupPath>,
    /// Whether RunPodSandbox has finished; what is half made is undone at the next start.
    pub complete: bool,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// The boot of the host in which it was made; `None` of pods of a build that did not note it.
    #[serde(default)]
    pub boot: Option<String>,
    /// Its overhead and resources as last updated; as it was asked for when `None`.
    #[serde(default)]
    pub limits: Option<PodLimits>,
}

/// What a pod may take (CRI `LinuxPodSandboxConfig`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PodLimits {
    /// What it takes itself.
    pub overhead: Option<cri::LinuxContainerResources>,
    /// The sum over its containers.
    pub resources: Option<cri::LinuxContainerResources>,
}

impl PodRecord {
    /// What makes it the same pod.
    pub fn name(&self) -> PodName {
        let metadata = self.config.metadata.clone().unwrap_or_default();
        (metadata.uid, metadata.namespace, metadata.name, metadata.attempt)
    }

    /// Refuses a record that cannot be of the pod `id`; the reason in words.
    pub fn check(&self, id: &PodId) -> Result<(), String> {
        if self.id != *id {
            return Err(format!("it is of another pod, {}", self.id));
        }
        let mut above = std::iter::successors(Some(self.cgroup.clone()), CgroupPath::parent);
        match &self.owned_cgroup {
            Some(owned) if !above.any(|cgroup| cgroup == *owned) => {
                Err(format!("its owned_cgroup {owned} is not above its cgroup {}", self.cgroup))
            }
            _ => Ok(()),
        }
    }

    /// The pod's namespace options, with the defaults of the CRI.
    pub fn namespaces(&self) -> cri::NamespaceOption {
        self.security().and_then(|security| security.namespace_options.clone()).unwrap_or_default()
    }

    /// How the ids of its own user namespace map; `None` when it has the host's.
    pub fn user_map(&self) -> Option<IdMap> {
        let users = self.namespaces().userns_options?;
        let own = users.mode() == cri::NamespaceMode::Pod;
        own.then(|| IdMap { uids: id_ranges(&users.uids), gids: id_ranges(&users.gids) })
    }

    /// User and group on the host that root of the pod stands for; `None` when that is the host's root.
    pub fn user_root(&self) -> Option<(u32, u32)> {
        let map = self.user_map()?;
        Some((map.uids.first()?.host, map.gids.first()?.host))
    }

    /// Whether privileged containers may be created in it.
    pub fn privileged(&self) -> bool {
        self.security().is_some_and(|security| security.privileged)
    }

    /// What it may take, as last updated.
    pub fn current_limits(&self) -> PodLimits {
        self.limits.clone().unwrap_or_else(|| {
            let linux = self.config.linux.clone().unwrap_or_default();
            PodLimits { overhead: linux.overhead, resources: linux.resources }
        })
    }

    fn security(&self) -> Option<&cri::LinuxSandboxSecurityContext> {
        self.config.linux.as_ref()?.security_context.as_ref()
    }

    /// Whether it uses the host's network.
    pub fn host_network(&self) -> bool {
        self.namespaces().network() == cri::NamespaceMode::Node
    }

    /// The cgroup that counts what the pod uses, and has its limits. A scope has none: they are its slice's, which a
    /// kubelet has made for the pod.
    pub fn counting_cgroup(&self) -> CgroupPath {
        let slice = self.cgroup.pod_of_scope().and_then(|_| self.cgroup.parent());
        slice.unwrap_or_else(|| self.cgroup.clone())
    }

    /// The cgroup leaf of its pause process.
    pub fn pause_cgroup(&self) -> CgroupPath {
        self.cgroup.child(&format!("pause-{}", self.id))
    }
}

/// Where the output of a container goes (CRI `log_directory` and `log_path`).
pub fn log_path(pod: &cri::PodSandboxConfig, container: &cri::ContainerConfig) -> Option<PathBuf> {
    let asked = !container.log_path.is_empty() && !pod.log_directory.is_empty();
    asked.then(|| PathBuf::from(&pod.log_directory).join(&container.log_path))
}

/// Ranges of ids of a request, in the launcher's words.
pub fn id_ranges(asked: &[cri::IdMapping]) -> Vec<IdRange> {
    let range = |range: &cri::IdMapping| IdRange {
        container: range.container_id,
        host: range.host_id,
        length: range.length,
    };
    asked.iter().map(range).collect()
}

/// A container, from the moment CreateContainer has made it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Its id.
    pub id: ContainerId,
    /// The pod it belongs to.
    pub pod: PodId,
    /// As it was asked for.
    pub config: cri::ContainerConfig,
    /// Id of its image (`sha256:...`).
    pub image_id: String,
    /// Its image by digest where one is known, otherwise the id (CRI `image_ref`).
    pub image_ref: String,
    /// When it was asked for.
    pub created_at: SystemTime,
    /// Where its output goes.
    pub log_path: Option<PathBuf>,
    /// Its cgroup.
    pub cgroup: CgroupPath,
    /// Who its first process runs as.
    pub user: cri::LinuxContainerUser,
    /// The signal that asks it to end.
    pub stop_signal: i32,
    /// Ids of the images it has mounted, by the index of their mount in the request.
    #[serde(default)]
    pub volumes: BTreeMap<usize, String>,
}

impl ContainerRecord {
    /// Refuses a record that cannot be of the container `id` of `pod`; the reason in words.
    pub fn check(&self, id: &ContainerId, pod: &PodRecord) -> Result<(), String> {
        if self.id != *id || self.pod != pod.id {
            return Err(format!("it is of another container, {} of pod {}", self.id, self.pod));
        }
        if self.cgroup != pod.cgroup.child(id.as_str()) {
            return Err(format!("its cgroup {} is not one of its pod's", self.cgroup));
        }
        if self.log_path != log_path(&pod.config, &self.config) {
            return Err(format!("its log_path {:?} is not that of its configuration", self.log_path));
        }
        Ok(())
    }

    /// What makes it the same container.
    pub fn name(&self) -> ContainerName {
        let metadata = self.config.metadata.clone().unwrap_or_default();
        (self.pod.clone(), metadata.name, metadata.attempt)
    }
}

/// What changes in a container's life and must outlive the daemon and a reboot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerStatusRecord {
    /// Its limits, as last updated.
    pub resources: cri::LinuxContainerResources,
    /// When it was started, once it was.
    pub started_at: Option<SystemTime>,
    /// How it ended, once it has.
    pub ended: Option<Ended>,
}
