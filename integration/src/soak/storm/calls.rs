//! The calls of a storm, and their answers in the ledger's words.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use podhold_proto::cri::*;
use tonic::Status;

use super::words::{ContainerSeen, PodSeen, Reply, Slot, State, What};
use crate::{
    configs::{self, Parts},
    cri::Cri,
    rig::PROBE,
    soak::dice::Dice,
};

/// The containers of each pod: one runs until it is killed, one ends by itself, one when it is told to.
const CONTAINERS: [&str; 3] = ["sleeps", "ends", "catches"];

/// The name of one of the containers.
pub(super) fn one_of(dice: &mut Dice) -> &'static str {
    dice.pick::<&'static str>(&CONTAINERS)
}

/// What is asked for by which name.
#[derive(Debug)]
pub(super) struct Orders {
    pub slots: Vec<Slot>,
    pods: Vec<PodSandboxConfig>,
    pulls: AtomicBool,
}

impl Orders {
    /// Pods of `names` names, two attempts each; two of the names have a network of their own.
    pub(super) fn new(names: usize, logs: &Path) -> Self {
        let (mut slots, mut pods) = (Vec::new(), Vec::new());
        for number in 0..names {
            let mut config = configs::pod(&format!("storm-{number}"), logs);
            if number > 1 {
                config.hostname = String::new();
                config.namespaces().network = NamespaceMode::Node.into();
            }
            for attempt in 0..2 {
                let mut config = config.clone();
                let metadata = config.metadata.get_or_insert_default();
                metadata.attempt = attempt;
                slots.push(slot(Some(metadata)));
                pods.push(config);
            }
        }
        Self { slots, pods, pulls: AtomicBool::new(true) }
    }

    /// Whether images are pulled as well.
    pub(super) fn pulls(&self) -> bool {
        self.pulls.load(Ordering::Relaxed)
    }

    /// No images are pulled from now on: a connection to a registry is kept for minutes, and is a file.
    pub(super) fn pull_no_more(&self) {
        self.pulls.store(false, Ordering::Relaxed);
    }

    fn pod(&self, slot: &Slot, other: bool) -> PodSandboxConfig {
        let index = self.slots.iter().position(|its| its == slot).unwrap_or_default();
        let mut config = self.pods[index].clone();
        if other {
            config.annotations.insert("storm".into(), "other".into());
        }
        config
    }
}

fn container(name: &str, other: bool) -> ContainerConfig {
    let words: &[&str] = match name {
        "ends" => &["pause", "0.2", "+", "exit", "3"],
        "catches" => &["catch", "5"],
        _ => &["sleep"],
    };
    let mut config = configs::container(name, PROBE, words);
    // As the pod says: some are in the host's network.
    configs::security(&mut config).namespace_options = None;
    if other {
        config.annotations.insert("storm".into(), "other".into());
    }
    config
}

fn slot(metadata: Option<&PodSandboxMetadata>) -> Slot {
    let metadata = metadata.cloned().unwrap_or_default();
    Slot { name: metadata.name, attempt: metadata.attempt }
}

pub(super) async fn carry_out(cri: &Cri, orders: &Orders, what: &What) -> Result<Reply, Status> {
    Ok(match what {
        What::RunPod(slot, other) => Reply::Id(cri.run_pod(&orders.pod(slot, *other)).await?),
        What::StopPod(id) => done(cri.stop_pod(id).await)?,
        What::RemovePod(id) => done(cri.remove_pod(id).await)?,
        What::PodStatus(id) => {
            let status = cri.pod_status(id).await?;
            Reply::Pod(PodSeen {
                id: status.id.clone(),
                slot: slot(status.metadata.as_ref()),
                ready: status.state() == PodSandboxState::SandboxReady,
            })
        }
        What::Create(pod, name, other) => {
            let pod_config = PodSandboxConfig::default();
            Reply::Id(cri.create(pod, &pod_config, &container(name, *other)).await?)
        }
        What::Start(id) => done(cri.start(id).await)?,
        What::Stop(id, grace) => done(cri.stop(id, *grace).await)?,
        What::Remove(id) => done(cri.remove(id).await)?,
        What::Status(id) => Reply::Container(status(cri, id).await?),
        What::Exec(id) => Reply::Code(cri.exec(id, &["/probe", "exit", "7"]).await?.exit_code),
        What::Update(id) => done(update(cri, id).await)?,
        What::Reopen(id) => {
            let request = ReopenContainerLogRequest { container_id: id.clone() };
            done(cri.runtime.clone().reopen_container_log(request).await)?
        }
        What::Stats(id) => {
            let request = ContainerStatsRequest { container_id: id.clone() };
            done(cri.runtime.clone().container_stats(request).await)?
        }
        What::ListPods => Reply::Pods(pods(cri).await?),
        What::ListContainers => Reply::Containers(containers(cri).await?),
        What::ListStats => {
            done(cri.runtime.clone().list_pod_sandbox_stats(ListPodSandboxStatsRequest::default()).await)?
        }
        What::Pull => done(cri.pull(PROBE).await)?,
    })
}

fn done<T>(answer: Result<T, Status>) -> Result<Reply, Status> {
    answer.map(|_| Reply::Done)
}

async fn update(cri: &Cri, id: &str) -> Result<(), Status> {
    let linux = Some(LinuxContainerResources { cpu_shares: 204, ..Default::default() });
    let request = UpdateContainerResourcesRequest { container_id: id.into(), linux, ..Default::default() };
    cri.runtime.clone().update_container_resources(request).await.map(drop)
}

/// All pods.
pub(super) async fn pods(cri: &Cri) -> Result<Vec<PodSeen>, Status> {
    let seen = |pod: PodSandbox| PodSeen {
        slot: slot(pod.metadata.as_ref()),
        ready: pod.state() == PodSandboxState::SandboxReady,
        id: pod.id,
    };
    Ok(cri.list_pods().await?.into_iter().map(seen).collect())
}

/// All containers.
pub(super) async fn containers(cri: &Cri) -> Result<Vec<ContainerSeen>, Status> {
    let answer = cri.runtime.clone().list_containers(ListContainersRequest::default()).await?;
    let seen = |container: Container| ContainerSeen {
        state: state(container.state()),
        name: container.metadata.map(|metadata| metadata.name).unwrap_or_default(),
        id: container.id,
        pod: container.pod_sandbox_id,
        ended: None,
    };
    Ok(answer.into_inner().containers.into_iter().map(seen).collect())
}

async fn status(cri: &Cri, id: &str) -> Result<ContainerSeen, Status> {
    let status = cri.status(id).await?;
    let state = state(status.state());
    let ended = (state == Some(State::Exited)).then_some((status.exit_code, status.finished_at));
    let name = status.metadata.map(|metadata| metadata.name).unwrap_or_default();
    // A status does not name the pod; the ledger has it from the answer that had the container first.
    Ok(ContainerSeen { id: status.id, pod: String::new(), name, state, ended })
}

fn state(state: ContainerState) -> Option<State> {
    match state {
        ContainerState::ContainerCreated => Some(State::Created),
        ContainerState::ContainerRunning => Some(State::Running),
        ContainerState::ContainerExited => Some(State::Exited),
        ContainerState::ContainerUnknown => None,
    }
}
