//! StartContainer, UpdateContainerResources, ReopenContainerLog.

use std::{sync::Arc, time::SystemTime};

use oci_spec::runtime::Spec;
use podhold_cgroups::Version;
use podhold_proto::cri;
use podhold_sandbox::{
    ContainerId, bundle,
    launch::{LaunchError, StartSpec},
};
use tracing::{info, warn};

use super::{
    Runtime, blocking,
    flight::{guarded, to_its_end},
};
use crate::{
    descriptors,
    error::{Error, Result},
    spec::{self, process, resources},
    state::{Container, ContainerEvent, ContainerPhase, Ended, Pod, PodPhase, Run},
};

/// Exit code of a container that could not be started.
const NOT_STARTED: i32 = 128;

impl Runtime {
    /// Starts a created container. Success when it runs already; joins a start that is under way.
    pub async fn start_container(self: &Arc<Self>, id: &str) -> Result<()> {
        let container = self.known_container(id)?;
        let id = container.record.id.clone();
        if container.phase.run().is_some() {
            return Ok(());
        }
        // Before it is claimed: a start that fails is the container's end.
        self.is_answered(&container)?;
        descriptors::has_room().map_err(Error::doing("a start"))?;
        let (runtime, live) =
            (Arc::clone(self), self.store.pod(&container.record.pod).and_then(|pod| pod.live));
        let started = self.under_way.start.join(id.clone(), || async move { runtime.launch(&id).await });
        match live {
            None => started.await,
            // The start goes on with the shim, and whoever asks again joins it.
            Some(live) => tokio::select! {
                started = started => started,
                silent = live.silent() => Err(silent.into()),
            },
        }
    }

    /// Refuses while the shim of the container's pod cannot be talked to.
    pub(super) fn is_answered(&self, container: &Container) -> Result<()> {
        if matches!(container.phase, ContainerPhase::Exited(_) | ContainerPhase::Removing(_)) {
            return Ok(());
        }
        let wait = self.store.pod(&container.record.pod).filter(|pod| pod.phase == PodPhase::Unanswered);
        match wait.and_then(|pod| pod.waits_for()) {
            None => Ok(()),
            Some(wait) => Err(Error::Deadline(format!(
                "container {}: nothing can be done in pod {} now: {wait}; call again",
                container.record.id, container.record.pod
            ))),
        }
    }

    async fn launch(self: Arc<Self>, id: &ContainerId) -> Result<()> {
        if let Some(container) = self.store.container(id).filter(|now| now.phase == ContainerPhase::Created) {
            // Before it is claimed: as long as one of them hangs, the container stays one that can be started.
            let record = &container.record;
            self.reach_paths(&record.config, record.log_path.as_deref()).await?;
        }
        let container = match self.store.container_event(id, ContainerEvent::StartClaimed) {
            None => return Err(Error::not_found("container", id.as_str())),
            Some(claim) => claim.map_err(|_| {
                let phase = self.store.container(id).map_or("gone", |now| now.phase.name());
                Error::Precondition(format!("container {id} is {phase}; only a created one can be started"))
            })?,
        };
        self.carry_out_start(container).await
    }

    /// Has the shim start a container that was claimed, and commits how that went.
    pub(super) async fn carry_out_start(self: Arc<Self>, container: Container) -> Result<()> {
        // Limits are changed before the start, in the bundle, or after it, in the cgroup.
        let _turn = container.updating.lock().await;
        let id = &container.record.id;
        match guarded(self.start(&container)).await {
            Ok(Ok(run)) => {
                self.store.container_event(id, ContainerEvent::Started(run));
                self.keep_status(id);
                info!(container = %id, pid = run.pid, "container started");
                Ok(())
            }
            // The shim may go on with it: only it knows.
            Ok(Err(lost @ LaunchError::Lost { .. })) => {
                self.store.container_event(id, ContainerEvent::StartLost);
                self.ask_for_container(id.clone());
                Err(lost.into())
            }
            Ok(Err(gone @ LaunchError::Gone { .. })) if self.may_have_run(&container).await => {
                let ended = self.end_unattended_container(&container, "its shim ended while it was started");
                if let Err(error) = ended.await {
                    warn!(container = %id, %error, "processes of a container without shim not ended");
                    self.store.container_event(id, ContainerEvent::StartLost);
                    self.ask_for_container(id.clone());
                }
                Err(gone.into())
            }
            Ok(Err(error)) => self.start_failed(id, error.into()).await,
            Err(error) => self.start_failed(id, error).await,
        }
    }

    /// Whether a container may have run whose shim has ended before it answered to the start. A shim that ends
    /// in order leaves an exit record of each container that ran, and nothing of libcontainer's.
    async fn may_have_run(&self, container: &Container) -> bool {
        let (pod, id) = (&container.record.pod, &container.record.id);
        let traces = [self.layout.exit_record(pod, id), self.layout.libcontainer(pod)];
        let is_there = move || Ok(traces.iter().any(|path| path.symlink_metadata().is_ok()));
        blocking("exit", is_there).await.unwrap_or(true)
    }

    async fn start_failed(self: &Arc<Self>, id: &ContainerId, error: Error) -> Result<()> {
        let ended = Ended {
            started_at: None,
            finished_at: SystemTime::now(),
            code: NOT_STARTED,
            reason: "StartError".to_owned(),
            message: error.to_string(),
        };
        self.end_kept(id, ended, ContainerEvent::StartFailed).await;
        Err(error)
    }

    /// What the pod's shim answers to the start; an error when it was not asked.
    async fn start(&self, container: &Container) -> Result<std::result::Result<Run, LaunchError>> {
        let record = &container.record;
        let pod = self.store.pod(&record.pod).ok_or_else(|| Error::not_found("pod", record.pod.as_str()))?;
        let live = match (&pod.live, pod.phase) {
            (Some(live), PodPhase::Ready) => live,
            (_, phase) => {
                let reason = format!("pod {} is {}; nothing can be started in it", record.pod, phase.name());
                return Err(Error::Precondition(reason));
            }
        };
        let options = process::security(&record.config).namespace_options.unwrap_or_default();
        self.make_cgroup(container).await?;
        let started = live
            .start(StartSpec {
                id: record.id.clone(),
                join: spec::joins(&options)?,
                log_path: record.log_path.clone(),
                tty: record.config.tty,
                stdin: record.config.stdin,
                stdin_once: record.config.stdin_once,
            })
            .await;
        Ok(started.map(|started| Run { pid: started.pid, started_at: started.at }))
    }

    /// The container's cgroup in every hierarchy: some are mounted into it, and on version 2 its device
    /// rules are a program that libcontainer does not attach.
    async fn make_cgroup(&self, container: &Container) -> Result<()> {
        let cgroups = self.cgroups.clone();
        let record = Arc::clone(&container.record);
        let bundle = self.layout.bundle(&record.pod, &record.id);
        blocking("cgroup", move || {
            cgroups.create(&record.cgroup)?;
            if cgroups.version() == Version::V1 {
                return Ok(());
            }
            let spec: Spec = bundle::config(&bundle).map_err(Error::doing("container bundle"))?;
            let limits = spec.linux().as_ref().and_then(|linux| linux.resources().clone());
            cgroups.set(&record.cgroup, &limits.unwrap_or_default()).map_err(Error::from)
        })
        .await
    }

    /// Changes the limits of a container that was created or runs. What the request leaves unset stays.
    pub async fn update_container(
        self: &Arc<Self>,
        id: &str,
        update: &cri::LinuxContainerResources,
    ) -> Result<()> {
        let (runtime, id, update) = (Arc::clone(self), id.to_owned(), update.clone());
        to_its_end(async move { runtime.update_limits(&id, &update).await }).await
    }

    async fn update_limits(self: &Arc<Self>, id: &str, update: &cri::LinuxContainerResources) -> Result<()> {
        let updating = self.known_container(id)?.updating;
        let _turn = updating.lock().await;
        let container = self.known_container(id)?;
        let merged = resources::updated(&container.resources, update);
        let limits = resources::build(&merged, Vec::new())?;
        let id = container.record.id.clone();
        match &container.phase {
            ContainerPhase::Running(_) | ContainerPhase::Stopping { .. } => {
                let cgroups = self.cgroups.clone();
                let cgroup = container.record.cgroup.clone();
                let mut limits = limits;
                if let Some(memory) = limits.memory_mut() {
                    // Version 1 refuses a limit below what is in use; version 2 kills.
                    memory.set_check_before_update(Some(true));
                }
                let set =
                    blocking("limits", move || cgroups.set(&cgroup, &limits).map_err(Error::from)).await;
                set.map_err(|error| self.unless_ended(&id, error))?;
            }
            // A start that was claimed waits for its turn.
            ContainerPhase::Created | ContainerPhase::Starting => {
                self.cgroups.check(&container.record.cgroup, &limits)?;
                let mut limits = limits;
                self.without_foreign_limits(&mut limits);
                self.rewrite_limits(&container, limits).await?;
            }
            phase => {
                let reason = format!("container {id} is {}; its limits cannot be changed", phase.name());
                return Err(Error::Precondition(reason));
            }
        }
        self.store.change_container(&id, |container| container.resources = merged);
        self.status_kept(&id).await;
        Ok(())
    }

    /// Why limits could not be set: the container has ended meanwhile and its cgroup is gone, or this error.
    fn unless_ended(&self, id: &ContainerId, error: Error) -> Error {
        let phase = self.store.container(id).map(|container| container.phase);
        match &phase {
            Some(ContainerPhase::Running(_) | ContainerPhase::Stopping { .. }) => error,
            ended => {
                let phase = ended.as_ref().map_or("gone", ContainerPhase::name);
                Error::Precondition(format!("container {id} is {phase}; its limits cannot be changed"))
            }
        }
    }

    /// Puts new limits into the bundle of a container that was not started.
    async fn rewrite_limits(
        &self,
        container: &Container,
        limits: oci_spec::runtime::LinuxResources,
    ) -> Result<()> {
        let layout = self.layout.clone();
        let record = Arc::clone(&container.record);
        blocking("limits", move || {
            let (pod, id) = (&record.pod, &record.id);
            let path = layout.bundle(pod, id);
            let doing = || format!("changing {}", path.display());
            let mut spec: Spec = bundle::config(&path).map_err(Error::doing(doing()))?;
            let mut linux = spec.linux().clone().unwrap_or_default();
            let devices = linux.resources().as_ref().and_then(|now| now.devices().clone());
            let mut limits = limits;
            limits.set_devices(devices);
            linux.set_resources(Some(limits));
            spec.set_linux(Some(linux));
            bundle::create(&layout, pod, id, &spec).map_err(Error::doing(doing()))
        })
        .await
    }

    /// Opens a running container's log file anew, after it was renamed.
    pub async fn reopen_log(&self, id: &str) -> Result<()> {
        let container = self.known_container(id)?;
        let id = &container.record.id;
        let live = self.store.pod(&container.record.pod).and_then(|pod: Pod| pod.live);
        match (container.phase.run(), live) {
            (Some(_), Some(live)) => live.reopen_log(id).await.map_err(|error| match (error, &container.record.log_path) {
                (LaunchError::Io { source, .. }, Some(log)) if source.kind() == std::io::ErrorKind::TimedOut => {
                    Error::Deadline(format!(
                        "container {id}: its log {} could not be opened anew in time: its file system hangs or is \
                         frozen; call again",
                        log.display()
                    ))
                }
                (error, _) => error.into(),
            }),
            _ => Err(Error::Precondition(format!(
                "container {id} is {}; only a running one writes a log",
                container.name_of_state()
            ))),
        }
    }
}
