//! Every path of a pod and its containers, derived from their ids. No I/O.
//!
//! Volatile things (sockets, namespaces, exit records, mounts) live under the run directory, which a
//! reboot empties; what must survive a reboot lives under the state directory.

use std::path::{Path, PathBuf};

use crate::{ContainerId, PodId};

/// The two roots all paths derive from.
#[derive(Debug, Clone)]
pub struct Layout {
    run: PathBuf,
    state: PathBuf,
}

impl Layout {
    /// `run` is the volatile directory (`/run/podhold`), `state` the lasting one (`/var/lib/podhold`).
    pub fn new(run: impl Into<PathBuf>, state: impl Into<PathBuf>) -> Self {
        Self { run: run.into(), state: state.into() }
    }

    /// The volatile root.
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// The lasting root.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Directory that holds the volatile directories of all pods.
    pub fn pods_run(&self) -> PathBuf {
        self.run.join("pods")
    }

    /// Volatile directory of one pod.
    pub fn pod_run(&self, pod: &PodId) -> PathBuf {
        self.pods_run().join(pod.as_str())
    }

    /// Socket the pod's shim listens on. May be longer than a socket address can hold: bind and
    /// connect through a directory fd (`/proc/self/fd/N/shim.sock`).
    pub fn shim_socket(&self, pod: &PodId) -> PathBuf {
        self.pod_run(pod).join("shim.sock")
    }

    /// Bind mount that pins the pod's network namespace.
    pub fn netns(&self, pod: &PodId) -> PathBuf {
        self.netns_dir().join(pod.as_str())
    }

    /// Directory of all pinned network namespaces.
    pub fn netns_dir(&self) -> PathBuf {
        self.run.join("netns")
    }

    /// The record of the boot in which a daemon last ran.
    pub fn boot_record(&self) -> PathBuf {
        self.state.join("boot.json")
    }

    /// tmpfs mounted as `/dev/shm` in the pod's containers.
    pub fn pod_shm(&self, pod: &PodId) -> PathBuf {
        self.pod_run(pod).join("shm")
    }

    /// Directory with the pod's `resolv.conf`, `hosts` and `hostname`.
    pub fn pod_etc(&self, pod: &PodId) -> PathBuf {
        self.pod_state(pod).join("etc")
    }

    /// Volatile directory of one container: the OCI bundle, with `config.json` and `rootfs`.
    pub fn bundle(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.pod_run(pod).join("containers").join(container.as_str())
    }

    /// Mount point of the container's root filesystem.
    pub fn rootfs(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.bundle(pod, container).join("rootfs")
    }

    /// Directory of the container's image volumes, each mounted in a directory named by its index in the
    /// request.
    pub fn volumes(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.bundle(pod, container).join("volumes")
    }

    /// The shim's record of how a container ended.
    pub fn exit_record(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.bundle(pod, container).join("exit.json")
    }

    /// Directory in which libcontainer keeps its own state of the pod's containers.
    pub fn libcontainer(&self, pod: &PodId) -> PathBuf {
        self.pod_run(pod).join("libcontainer")
    }

    /// Directory that holds the lasting directories of all pods.
    pub fn pods_state(&self) -> PathBuf {
        self.state.join("pods")
    }

    /// Lasting directory of one pod.
    pub fn pod_state(&self, pod: &PodId) -> PathBuf {
        self.pods_state().join(pod.as_str())
    }

    /// The pod's own record.
    pub fn pod_record(&self, pod: &PodId) -> PathBuf {
        self.pod_state(pod).join("pod.json")
    }

    /// Lasting directory of one container.
    pub fn container_state(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.pod_state(pod).join("containers").join(container.as_str())
    }

    /// The container's own record.
    pub fn container_record(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.container_state(pod, container).join("container.json")
    }

    /// What changes in the container's life: its limits and how it ended.
    pub fn container_status(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.container_state(pod, container).join("status.json")
    }

    /// Directory with a record of each pod on the built-in network: of links, which are as volatile.
    pub fn bridge(&self) -> PathBuf {
        self.run.join("bridge")
    }

    /// Results of CNI ADD, kept so that DEL can be replayed after a reboot.
    pub fn cni_cache(&self) -> PathBuf {
        self.state.join("cni")
    }
}
