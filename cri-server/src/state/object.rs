//! What is known of a pod and of a container. No I/O.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Instant, SystemTime},
};

use podhold_proto::cri;
use podhold_sandbox::{ContainerId, launch::LivePod};

use super::{ContainerPhase, ContainerRecord, PodPhase, PodRecord};

/// A pod as the store knows it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pod {
    /// What does not change, as on disk.
    pub record: Arc<PodRecord>,
    /// Where it is in its life.
    pub phase: PodPhase,
    /// Addresses, the first one being the primary.
    pub ips: Vec<std::net::IpAddr>,
    /// What makes it run, while it runs.
    pub live: Option<Arc<dyn LivePod>>,
    /// What it waits for, while it is [`PodPhase::Unanswered`].
    pub wait: Option<Wait>,
    /// Its processes are known to have ended, and it starts none any more.
    pub ended: bool,
    /// Its containers.
    pub containers: BTreeSet<ContainerId>,
    /// Held by who changes its limits: two updates come one after the other.
    pub updating: Arc<tokio::sync::Mutex<()>>,
}

/// Since when a pod waits for its shim, and why.
#[derive(Debug, Clone)]
pub struct Wait {
    /// Since when.
    pub since: Instant,
    /// What was found last.
    pub reason: String,
}

impl Wait {
    /// From now on.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { since: Instant::now(), reason: reason.into() }
    }
}

impl Pod {
    /// A pod of which nothing more is known.
    pub fn new(record: PodRecord, phase: PodPhase) -> Self {
        Self {
            record: Arc::new(record),
            phase,
            ips: Vec::new(),
            live: None,
            wait: None,
            ended: false,
            containers: BTreeSet::new(),
            updating: Arc::default(),
        }
    }

    /// What it waits for, in words; `None` when it waits for nothing.
    pub fn waits_for(&self) -> Option<String> {
        if self.phase == PodPhase::Unanswered {
            let wait = self.wait.as_ref()?;
            let seconds = wait.since.elapsed().as_secs();
            return Some(format!("its shim has not answered for {seconds} s: {}", wait.reason));
        }
        let silent = self.phase == PodPhase::Ready && self.live.as_ref().is_some_and(|live| live.is_silent());
        silent.then(|| "its shim has not answered the last question".to_owned())
    }
}

/// A container as the store knows it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Container {
    /// What does not change, as on disk.
    pub record: Arc<ContainerRecord>,
    /// Where it is in its life.
    pub phase: ContainerPhase,
    /// The shim of its pod is dead: whatever runs of it is being ended.
    pub unheld: bool,
    /// Its limits, as last updated.
    pub resources: cri::LinuxContainerResources,
    /// Held by who changes its limits: two updates come one after the other.
    pub updating: Arc<tokio::sync::Mutex<()>>,
}

impl Container {
    /// A container that nobody has updated.
    pub fn new(
        record: ContainerRecord,
        phase: ContainerPhase,
        resources: cri::LinuxContainerResources,
    ) -> Self {
        Self { record: Arc::new(record), phase, unheld: false, resources, updating: Arc::default() }
    }

    /// Its state in words, for messages.
    pub fn name_of_state(&self) -> &'static str {
        match &self.phase {
            ContainerPhase::Running(_) | ContainerPhase::Stopping { .. } | ContainerPhase::Unknown { .. }
                if self.unheld =>
            {
                "being ended, since the shim of its pod has ended"
            }
            phase => phase.name(),
        }
    }

    /// When it was started, while it runs as far as is known.
    pub fn running_since(&self) -> Option<SystemTime> {
        match &self.phase {
            _ if self.unheld => None,
            ContainerPhase::Unknown { started_at } => *started_at,
            phase => phase.run().map(|run| run.started_at),
        }
    }
}
