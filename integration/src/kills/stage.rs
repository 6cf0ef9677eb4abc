//! What is there before each verb, and the verb's call.

use std::fmt;

use podhold_proto::cri::{
    ContainerConfig, IdMapping, ImageSpec, Mount, NamespaceMode, PodSandboxConfig, PortMapping, UserNamespace,
};
use tonic::Status;

use crate::{
    cgroup,
    configs::{self, Parts},
    cri::Cri,
    rig::{BUSYBOX, PROBE, REGISTRY, Rig},
};

/// What is called when the daemon dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// RunPodSandbox.
    RunPod,
    /// RunPodSandbox of a pod with users of its own.
    RunUserPod,
    /// RunPodSandbox of a pod with a host port, in a cgroup that the kubelet names.
    RunPlacedPod,
    /// CreateContainer.
    Create,
    /// CreateContainer with an image as a volume.
    CreateWithVolume,
    /// CreateContainer in a pod with users of its own.
    CreateInUserPod,
    /// UpdateContainerResources before the start.
    UpdateCreated,
    /// UpdateContainerResources of one that runs.
    UpdateRunning,
    /// StartContainer.
    Start,
    /// StopContainer of one that heeds its signal.
    Stop,
    /// StopContainer of one that has to be killed.
    StopByForce,
    /// RemoveContainer of one that runs.
    Remove,
    /// RemoveContainer of one that has ended.
    RemoveEnded,
    /// RemoveContainer of one that runs and has an image as a volume.
    RemoveWithVolume,
    /// StopPodSandbox with a container that runs.
    StopPod,
    /// RemovePodSandbox with a container that runs.
    RemovePod,
    /// RemovePodSandbox with a container that runs, of a pod with a host port, in a cgroup that the kubelet
    /// names.
    RemovePlacedPod,
    /// RemovePodSandbox of one that was stopped.
    RemoveStoppedPod,
    /// PullImage.
    Pull,
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::RunPod,
        Self::RunUserPod,
        Self::RunPlacedPod,
        Self::Create,
        Self::CreateWithVolume,
        Self::CreateInUserPod,
        Self::UpdateCreated,
        Self::UpdateRunning,
        Self::Start,
        Self::Stop,
        Self::StopByForce,
        Self::Remove,
        Self::RemoveEnded,
        Self::RemoveWithVolume,
        Self::StopPod,
        Self::RemovePod,
        Self::RemovePlacedPod,
        Self::RemoveStoppedPod,
        Self::Pull,
    ];

    fn volume(self) -> bool {
        matches!(self, Self::CreateWithVolume | Self::RemoveWithVolume)
    }

    fn placed(self) -> bool {
        matches!(self, Self::RunPlacedPod | Self::RemovePlacedPod)
    }

    fn users(self) -> bool {
        matches!(self, Self::RunUserPod | Self::CreateInUserPod)
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RunPod => "RunPodSandbox",
            Self::RunUserPod => "RunPodSandbox, own users",
            Self::RunPlacedPod => "RunPodSandbox, host port, cgroup",
            Self::Create => "CreateContainer",
            Self::CreateWithVolume => "CreateContainer, image volume",
            Self::CreateInUserPod => "CreateContainer, own users",
            Self::UpdateCreated => "UpdateContainerResources, created",
            Self::UpdateRunning => "UpdateContainerResources, running",
            Self::Start => "StartContainer",
            Self::Stop => "StopContainer",
            Self::StopByForce => "StopContainer, by force",
            Self::Remove => "RemoveContainer, running",
            Self::RemoveEnded => "RemoveContainer, ended",
            Self::RemoveWithVolume => "RemoveContainer, image volume",
            Self::StopPod => "StopPodSandbox",
            Self::RemovePod => "RemovePodSandbox, running",
            Self::RemovePlacedPod => "RemovePodSandbox, host port, cgroup",
            Self::RemoveStoppedPod => "RemovePodSandbox, stopped",
            Self::Pull => "PullImage",
        })
    }
}

/// What a verb is called with.
#[derive(Debug, Clone)]
pub(super) struct Stage {
    pub(super) pod_config: PodSandboxConfig,
    pub(super) container_config: ContainerConfig,
    /// Empty when it is the verb that makes it.
    pub(super) pod: String,
    pub(super) container: String,
}

/// The CPU shares of a container that was updated.
pub(super) const SHARES: i64 = 200;

/// The image that is pulled: several layers, three compressions.
pub(super) fn pulled() -> String {
    format!("{REGISTRY}/layers:1")
}

/// Makes what the verb works on.
pub(super) async fn set(rig: &Rig, verb: Verb) -> Stage {
    let mut pod_config = rig.pod("killed");
    let words: &[&str] = if verb == Verb::StopByForce { &["ignore"] } else { &["catch", "0"] };
    let mut container_config = configs::container("one", PROBE, words);
    if verb.users() {
        pod_config.namespaces().userns_options = Some(users());
        container_config.namespaces().userns_options = Some(users());
    }
    if verb.volume() {
        let image = ImageSpec { image: BUSYBOX.to_owned(), ..Default::default() };
        let path = "/volume".to_owned();
        let volume = Mount { container_path: path, readonly: true, image: Some(image), ..Default::default() };
        container_config.mounts.push(volume);
    }
    if verb.placed() {
        pod_config.port_mappings =
            vec![PortMapping { container_port: 80, host_port: 65_001, ..Default::default() }];
        let uid = pod_config.metadata.as_ref().map_or("", |metadata| metadata.uid.as_str());
        let name = match *cgroup::DRIVER {
            cgroup::Driver::Cgroupfs => format!("kubepods/burstable/pod{uid}"),
            cgroup::Driver::Systemd => format!("pod{}", uid.replace('-', "_")),
        };
        let (parent, _) = cgroup::DRIVER.given(&rig.cgroup, &name);
        pod_config.linux.get_or_insert_default().cgroup_parent = parent;
    }
    let mut stage = Stage { pod_config, container_config, pod: String::new(), container: String::new() };
    let made = stage.make(rig.cri(), verb).await;
    made.unwrap_or_else(|status| panic!("before {verb}: {status}"));
    stage
}

fn users() -> UserNamespace {
    let ids = |host_id| vec![IdMapping { host_id, container_id: 0, length: 65_536 }];
    UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids(200_000), gids: ids(400_000) }
}

impl Stage {
    async fn make(&mut self, cri: &Cri, verb: Verb) -> Result<(), Status> {
        if matches!(verb, Verb::RunPod | Verb::RunUserPod | Verb::RunPlacedPod | Verb::Pull) {
            return Ok(());
        }
        self.pod = cri.run_pod(&self.pod_config).await?;
        if matches!(verb, Verb::Create | Verb::CreateWithVolume | Verb::CreateInUserPod) {
            return Ok(());
        }
        self.container = cri.create(&self.pod, &self.pod_config, &self.container_config).await?;
        if matches!(verb, Verb::Start | Verb::UpdateCreated) {
            return Ok(());
        }
        cri.start(&self.container).await?;
        match verb {
            Verb::RemoveEnded => cri.stop(&self.container, 0).await,
            Verb::RemoveStoppedPod => cri.stop_pod(&self.pod).await,
            _ => Ok(()),
        }
    }

    /// Calls the verb.
    pub(super) async fn call(&self, cri: &Cri, verb: Verb) -> Result<(), Status> {
        match verb {
            Verb::RunPod | Verb::RunUserPod | Verb::RunPlacedPod => {
                cri.run_pod(&self.pod_config).await.map(drop)
            }
            Verb::Create | Verb::CreateWithVolume | Verb::CreateInUserPod => {
                cri.create(&self.pod, &self.pod_config, &self.container_config).await.map(drop)
            }
            Verb::UpdateCreated | Verb::UpdateRunning => cri.update_shares(&self.container, SHARES).await,
            Verb::Start => cri.start(&self.container).await,
            Verb::Stop => cri.stop(&self.container, 30).await,
            Verb::StopByForce => cri.stop(&self.container, 0).await,
            Verb::Remove | Verb::RemoveEnded | Verb::RemoveWithVolume => cri.remove(&self.container).await,
            Verb::StopPod => cri.stop_pod(&self.pod).await,
            Verb::RemovePod | Verb::RemovePlacedPod | Verb::RemoveStoppedPod => {
                cri.remove_pod(&self.pod).await
            }
            Verb::Pull => cri.pull(&pulled()).await.map(drop),
        }
    }
}
