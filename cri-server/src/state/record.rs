//! What is kept on disk of a pod and of a container. Plain data; read and written through
//! `podhold_sandbox::record`.

use std::{net::IpAddr, path::PathBuf, time::SystemTime};

use podhold_cgroups::CgroupPath;
use podhold_proto::cri;
use podhold_sandbox::{ContainerId, PodId};
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
}

impl PodRecord {
    /// What makes it the same pod.
    pub fn name(&self) -> PodName {
        let metadata = self.config.metadata.clone().unwrap_or_default();
        (metadata.uid, metadata.namespace, metadata.name, metadata.attempt)
    }

    /// The pod's namespace options, with the defaults of the CRI.
    pub fn namespaces(&self) -> cri::NamespaceOption {
        self.security().and_then(|security| security.namespace_options.clone()).unwrap_or_default()
    }

    /// Whether privileged containers may be created in it.
    pub fn privileged(&self) -> bool {
        self.security().is_some_and(|security| security.privileged)
    }

    fn security(&self) -> Option<&cri::LinuxSandboxSecurityContext> {
        self.config.linux.as_ref()?.security_context.as_ref()
    }

    /// Whether it uses the host's network.
    pub fn host_network(&self) -> bool {
        self.namespaces().network() == cri::NamespaceMode::Node
    }

    /// The cgroup leaf of its pause process.
    pub fn pause_cgroup(&self) -> CgroupPath {
        self.cgroup.child(&format!("pause-{}", self.id))
    }
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
}

impl ContainerRecord {
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
