//! Folds what a pod's shim tells into the store. One task per pod.
//!
//! Invariant: a pod whose pause process or shim has died is NotReady before anything else is done about it;
//! then whatever ran in it is ended, and each container's end is committed as it was recorded, or as unknown.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use podhold_cgroups::Driver;
use podhold_sandbox::{
    ContainerId, PodId,
    launch::{Exit, PodEvent as ShimEvent},
    record::{self, RecordError},
};
use tokio::{sync::mpsc::UnboundedReceiver, time::timeout};
use tracing::{info, warn};

use super::{Runtime, blocking, flight::guarded};
use crate::error::chain;
use crate::state::{
    Container, ContainerEvent, ContainerPhase, ContainerStatusRecord, Ended, Hidden, PodEvent, Wait,
};

/// Exit code of a container whose end nobody saw.
const UNSEEN: i32 = 255;
/// How long an end that only this daemon knows is kept back until it is on disk.
const KEEP_TIME: Duration = Duration::from_secs(5);

impl Runtime {
    /// Follows a pod until its shim is gone.
    pub(super) fn watch(self: &Arc<Self>, pod: PodId, mut events: UnboundedReceiver<ShimEvent>) {
        let runtime = Arc::clone(self);
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                match event {
                    ShimEvent::ContainerExited(id, exit) => runtime.exited(&id, &exit),
                    ShimEvent::PauseExited => {
                        warn!(pod = %pod, "pause process ended unasked");
                        runtime.pod_died(&pod);
                        runtime.say_who_stops(&pod).await;
                        runtime.end_containers(&pod);
                    }
                    ShimEvent::Gone(reason) => {
                        runtime.shim_gone(&pod, &reason);
                        break;
                    }
                    ShimEvent::Lost(reason) => {
                        runtime.shim_lost(&pod, reason);
                        break;
                    }
                }
            }
        });
    }

    /// Commits a container's exit.
    pub(super) fn exited(self: &Arc<Self>, id: &ContainerId, exit: &Exit) {
        let Some(container) = self.store.container(id) else { return };
        if !matches!(container.phase, ContainerPhase::Exited(_) | ContainerPhase::Removing(_)) {
            info!(container = %id, code = exit.code, oom_killed = exit.oom_killed, "container exited");
        }
        let started_at = container.phase.run().map(|run| run.started_at).or(exit.started_at);
        // It may have been removed meanwhile. The shim has written it.
        let event = ContainerEvent::Exited(ended(started_at, exit));
        if let Some(Ok(_)) = self.store.container_event(id, event) {
            self.keep_status(id);
        }
    }

    /// Commits an exit that nobody saw. Blocks.
    pub(super) fn exit_unseen(self: &Arc<Self>, id: &ContainerId, started_at: Option<SystemTime>, why: &str) {
        let Some(container) = self.store.container(id) else { return };
        let written = || {
            let path = self.layout.container_status(&container.record.pod, id);
            record::read::<ContainerStatusRecord>(&path).ok()?.started_at
        };
        let started_at = container.phase.run().map(|run| run.started_at).or(started_at).or_else(written);
        self.commit_end(id, unseen(started_at, why), ContainerEvent::Exited);
    }

    /// As [`commit_end`](Self::commit_end), in time.
    pub(super) async fn end_kept(
        self: &Arc<Self>,
        id: &ContainerId,
        ended: Ended,
        event: fn(Ended) -> ContainerEvent,
    ) {
        let (runtime, key, end) = (Arc::clone(self), id.clone(), ended.clone());
        self.commit_in_time(id, move || runtime.commit_end(&key, end, event), event(ended)).await;
    }

    /// Waits for work that keeps an end and commits it, but not for ever: a disk that hangs must not keep anybody
    /// from stopping what has ended. What is late is committed as `instead` at once.
    async fn commit_in_time(
        &self,
        id: &ContainerId,
        work: impl FnOnce() + Send + 'static,
        instead: ContainerEvent,
    ) {
        let work = blocking("container status", move || {
            work();
            Ok(())
        });
        if !matches!(timeout(KEEP_TIME, guarded(work)).await, Ok(Ok(()))) {
            warn!(container = %id, "its end is told before it is on disk");
            let _committed = self.store.container_event(id, instead);
        }
    }

    /// Writes an end of which only this daemon knows, and then commits it: the next one must not tell another.
    /// Blocks.
    fn commit_end(&self, id: &ContainerId, ended: Ended, event: fn(Ended) -> ContainerEvent) {
        let _writing = self.status_files.lock().expect("no code panics while it holds this");
        let Some(container) = self.store.container(id) else { return };
        let ended = match &container.phase {
            // The first end counts.
            ContainerPhase::Exited(first) => first.clone(),
            phase if phase.after(event(ended.clone())).is_err() => return,
            _ => ended,
        };
        let mut written = self.write_life(&container, ended.started_at, Some(ended.clone()));
        // It may have been removed meanwhile, or its shim has told another end.
        if let Some(Ok(now)) = self.store.container_event(id, event(ended.clone()))
            && let ContainerPhase::Exited(told) = &now.phase
            && *told != ended
        {
            written = self.write_life(&now, told.started_at, Some(told.clone()));
        }
        if let Err(error) = written {
            self.status_not_kept(id, &error);
        }
    }

    /// As [`keep_status`](Self::keep_status), and waits for it: what was answered must not be forgotten by the
    /// next daemon, and nobody else knows of it.
    pub(super) async fn status_kept(self: &Arc<Self>, id: &ContainerId) {
        if let Err(error) = self.keep_status(id).await {
            warn!(container = %id, %error, "status not kept");
        }
    }

    /// Writes what must outlive a reboot, off the path of whoever waits.
    pub(super) fn keep_status(self: &Arc<Self>, id: &ContainerId) -> tokio::task::JoinHandle<()> {
        let runtime = Arc::clone(self);
        let id = id.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = runtime.write_status(&id) {
                runtime.status_not_kept(&id, &error);
            }
        })
    }

    fn status_not_kept(&self, id: &ContainerId, error: &RecordError) {
        let again = self.undone.status(id, &chain(error));
        warn!(container = %id, %error, again, "status not kept");
    }

    /// Writes what must outlive a reboot. Blocks.
    pub(super) fn write_status(&self, id: &ContainerId) -> Result<(), RecordError> {
        // One writer at a time, and what is written is looked up meanwhile: the latest wins.
        let _writing = self.status_files.lock().expect("no code panics while it holds this");
        let Some(container) = self.store.container(id) else { return Ok(()) };
        let (started_at, ended) = match &container.phase {
            ContainerPhase::Removing(_) => return Ok(()),
            ContainerPhase::Exited(ended) => (ended.started_at, Some(ended.clone())),
            phase => (phase.run().map(|run| run.started_at), None),
        };
        self.write_life(&container, started_at, ended)
    }

    fn write_life(
        &self,
        container: &Container,
        started_at: Option<SystemTime>,
        ended: Option<Ended>,
    ) -> Result<(), RecordError> {
        let path = self.layout.container_status(&container.record.pod, &container.record.id);
        record::write(
            &path,
            &ContainerStatusRecord { resources: container.resources.clone(), started_at, ended },
        )
    }

    /// Says that systemd ends a pod, which it does when somebody stops its scope.
    async fn say_who_stops(&self, pod: &PodId) {
        let scope = self.store.pod(pod).and_then(|pod| pod.record.cgroup.scope());
        let Some(scope) = scope.filter(|_| self.cgroups.driver() == Driver::Systemd) else { return };
        let cgroups = self.cgroups.clone();
        let unit = scope.name().to_owned();
        let stops = blocking("scope", move || Ok(cgroups.is_stopped_by_systemd(&scope)));
        if stops.await.unwrap_or(false) {
            warn!(pod = %pod, "systemd stops {unit}, and the pod with it: somebody has asked for that");
        }
    }

    fn pod_died(self: &Arc<Self>, pod: &PodId) {
        self.store.change_pod(pod, |pod| pod.ips.clear());
        if let Some(Err(error)) = self.store.pod_event(pod, PodEvent::Died) {
            warn!(pod = %pod, %error, "pod died");
        }
    }

    /// Ends what runs in a pod that has lost its pause process: without it nothing holds the pod's namespaces
    /// for the next container, and nobody reaps in a shared PID namespace.
    fn end_containers(self: &Arc<Self>, pod: &PodId) {
        for container in self.store.containers_of(pod) {
            let (runtime, id) = (Arc::clone(self), container.record.id.clone());
            tokio::spawn(async move {
                if let Err(error) = runtime.stop(&id, Duration::ZERO).await {
                    warn!(container = %id, %error, "not ended with its pod; stop or remove it");
                }
            });
        }
    }

    /// The shim is gone: whatever it has not recorded is unknown for ever.
    fn shim_gone(self: &Arc<Self>, pod: &PodId, reason: &str) {
        let why = format!("its shim is gone: {reason}");
        if self.store.pod_is_unheld(pod).is_none() {
            // Whoever has taken the handle away ends what is left.
            let (runtime, pod) = (Arc::clone(self), pod.clone());
            tokio::spawn(async move { runtime.settle_unheld(&pod, &why).await });
            return;
        }
        warn!(pod = %pod, reason, "shim is gone");
        self.end_unheld_in_background(pod, why);
    }

    /// The shim lives, and cannot be talked to: the pod is as it was, for all that is known. Asked again and
    /// again.
    fn shim_lost(self: &Arc<Self>, pod: &PodId, reason: String) {
        // Whoever has taken the handle away, or has another one, knows better.
        let ours = self.store.pod(pod).and_then(|pod| pod.live).is_some_and(|live| live.is_silent());
        if !ours {
            return;
        }
        warn!(pod = %pod, reason, "shim lives and cannot be talked to; asked again in the background");
        self.store.change_pod(pod, |pod| pod.wait = Some(Wait::new(reason)));
        if let Some(Ok(_)) = self.store.pod_event(pod, PodEvent::Lost) {
            self.keep_asking(pod.clone());
        }
    }

    /// Ends what is left of a pod that nothing holds any more, and commits the exits of its containers.
    pub(super) fn end_unheld_in_background(self: &Arc<Self>, pod: &PodId, why: String) {
        let Some(pod) = self.store.pod(pod) else { return };
        let runtime = Arc::clone(self);
        tokio::spawn(async move {
            let id = &pod.record.id;
            if let Err(error) = runtime.end_unheld(&pod.record).await {
                warn!(pod = %id, %error, "processes of a pod without shim not ended");
            }
            runtime.settle_unheld(id, &why).await;
        });
    }

    /// Commits how the containers of a pod have ended that nothing holds any more. A start that is under way
    /// ends with the shim, and alone knows whether that was asked: it says first how it went.
    pub(super) async fn settle_unheld(self: &Arc<Self>, pod: &PodId, why: &str) {
        let started = |now: Option<&Container>| match now.map(|now| &now.phase) {
            Some(ContainerPhase::Starting) => None,
            _ => Some(now.cloned()),
        };
        let settle = |container: Container| async move {
            let now = self.store.wait_container(&container.record.id, started).await;
            let unsettled = |container: &Container| {
                container.phase.run().is_some() || matches!(container.phase, ContainerPhase::Unknown { .. })
            };
            if let Some(container) = now.filter(unsettled) {
                self.commit_unattended(&container, why.to_owned()).await;
            }
        };
        futures::future::join_all(self.store.containers_of(pod).into_iter().map(settle)).await;
    }

    /// Commits the exit of a container that no shim attends any more, as it was recorded, or as unknown.
    pub(super) async fn commit_unattended(self: &Arc<Self>, container: &Container, why: String) {
        let instead = unseen(container.phase.run().map(|run| run.started_at), &why);
        let (runtime, known) = (Arc::clone(self), container.clone());
        let work = move || runtime.commit_recorded_exit(&known, None, &why);
        self.commit_in_time(&container.record.id, work, ContainerEvent::Exited(instead)).await;
    }

    /// Commits the exit of a container that does not run as its shim has recorded it, or as unknown. Blocks.
    pub(super) fn commit_recorded_exit(
        self: &Arc<Self>,
        container: &Container,
        started_at: Option<SystemTime>,
        why: &str,
    ) {
        let record = &container.record;
        let path = self.layout.exit_record(&record.pod, &record.id);
        match record::read::<Exit>(&path) {
            Ok(exit) => self.exited(&record.id, &exit),
            Err(error) if error.is_missing() => self.exit_unseen(&record.id, started_at, why),
            Err(error) => {
                self.report_damage(path, chain(&error), Hidden::Nothing);
                self.exit_unseen(&record.id, started_at, &format!("{why}; {error}"));
            }
        }
    }
}

/// An exit that nobody saw.
fn unseen(started_at: Option<SystemTime>, why: &str) -> Ended {
    Ended {
        started_at,
        // A clock that was set back must not end it before it began.
        finished_at: SystemTime::now().max(started_at.unwrap_or(SystemTime::UNIX_EPOCH)),
        code: UNSEEN,
        reason: "Unknown".to_owned(),
        message: why.to_owned(),
    }
}

/// An exit in the words the kubelet knows.
fn ended(started_at: Option<SystemTime>, exit: &Exit) -> Ended {
    let reason = match (exit.code, exit.oom_killed) {
        (0, _) => "Completed",
        (_, true) => "OOMKilled",
        (_, false) => "Error",
    };
    Ended {
        started_at,
        finished_at: exit.at,
        code: exit.code,
        reason: reason.to_owned(),
        message: String::new(),
    }
}
