//! What is there before each verb, and the verb's call.

use std::fmt;

use podhold_proto::cri::{ContainerConfig, IdMapping, NamespaceMode, PodSandboxConfig, UserNamespace};
use tonic::Status;

use crate::{
    configs::{self, Parts},
    cri::Cri,
    rig::{PROBE, REGISTRY, Rig},
};

/// What is called when the daemon dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// RunPodSandbox.
    RunPod,
    /// RunPodSandbox of a pod with users of its own.
    RunUserPod,
    /// CreateContainer.
    Create,
    /// CreateContainer in a pod with users of its own.
    CreateInUserPod,
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
    /// StopPodSandbox with a container that runs.
    StopPod,
    /// RemovePodSandbox with a container that runs.
    RemovePod,
    /// RemovePodSandbox of one that was stopped.
    RemoveStoppedPod,
    /// PullImage.
    Pull,
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::RunPod,
        Self::RunUserPod,
        Self::Create,
        Self::CreateInUserPod,
        Self::Start,
        Self::Stop,
        Self::StopByForce,
        Self::Remove,
        Self::RemoveEnded,
        Self::StopPod,
        Self::RemovePod,
        Self::RemoveStoppedPod,
        Self::Pull,
    ];

    fn users(self) -> bool {
        matches!(self, Self::RunUserPod | Self::CreateInUserPod)
    }

    /// Whether it needs a host that can give pods users of their own.
    pub fn needs_users(self) -> bool {
        self.users()
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RunPod => "RunPodSandbox",
            Self::RunUserPod => "RunPodSandbox, own users",
            Self::Create => "CreateContainer",
            Self::CreateInUserPod => "CreateContainer, own users",
            Self::Start => "StartContainer",
            Self::Stop => "StopContainer",
            Self::StopByForce => "StopContainer, by force",
            Self::Remove => "RemoveContainer, running",
            Self::RemoveEnded => "RemoveContainer, ended",
            Self::StopPod => "StopPodSandbox",
            Self::RemovePod => "RemovePodSandbox, running",
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
        if matches!(verb, Verb::RunPod | Verb::RunUserPod | Verb::Pull) {
            return Ok(());
        }
        self.pod = cri.run_pod(&self.pod_config).await?;
        if matches!(verb, Verb::Create | Verb::CreateInUserPod) {
            return Ok(());
        }
        self.container = cri.create(&self.pod, &self.pod_config, &self.container_config).await?;
        if verb == Verb::Start {
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
            Verb::RunPod | Verb::RunUserPod => cri.run_pod(&self.pod_config).await.map(drop),
            Verb::Create | Verb::CreateInUserPod => {
                cri.create(&self.pod, &self.pod_config, &self.container_config).await.map(drop)
            }
            Verb::Start => cri.start(&self.container).await,
            Verb::Stop => cri.stop(&self.container, 30).await,
            Verb::StopByForce => cri.stop(&self.container, 0).await,
            Verb::Remove | Verb::RemoveEnded => cri.remove(&self.container).await,
            Verb::StopPod => cri.stop_pod(&self.pod).await,
            Verb::RemovePod | Verb::RemoveStoppedPod => cri.remove_pod(&self.pod).await,
            Verb::Pull => cri.pull(&pulled()).await.map(drop),
        }
    }
}
