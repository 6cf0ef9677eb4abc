//! Folds what a pod's shim tells into the store. One task per pod.
//!
//! Invariant: a pod whose pause process or shim has died is NotReady before anything else is done about it;
//! then whatever ran in it is ended, and each container's end is committed as it was recorded, or as unknown.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use podhold_sandbox::{
    ContainerId, PodId,
    launch::{Exit, PodEvent as ShimEvent},
    record,
};
use tokio::sync::mpsc::UnboundedReceiver;
use tracing::{info, warn};

use super::Runtime;
use crate::state::{Container, ContainerEvent, ContainerPhase, ContainerStatusRecord, Ended, PodEvent};

/// Exit code of a container whose end nobody saw.
const UNSEEN: i32 = 255;

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
                        runtime.end_containers(&pod);
                    }
                    ShimEvent::Gone(reason) => {
                        runtime.shim_gone(&pod, &reason);
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
        self.commit_exit(id, ended(started_at, exit));
    }

    /// Commits an exit that nobody saw. Reads a file.
    fn exit_unseen(self: &Arc<Self>, id: &ContainerId, why: &str) {
        let Some(container) = self.store.container(id) else { return };
        let written = || {
            let path = self.layout.container_status(&container.record.pod, id);
            record::read::<ContainerStatusRecord>(&path).ok()?.started_at
        };
        let ended = Ended {
            started_at: container.phase.run().map(|run| run.started_at).or_else(written),
            finished_at: SystemTime::now(),
            code: UNSEEN,
            reason: "Unknown".to_owned(),
            message: why.to_owned(),
        };
        self.commit_exit(id, ended);
    }

    /// Moves the container to Exited and keeps it on disk.
    pub(super) fn commit_exit(self: &Arc<Self>, id: &ContainerId, ended: Ended) {
        // It may have been removed meanwhile.
        if let Some(Ok(_)) = self.store.container_event(id, ContainerEvent::Exited(ended)) {
            self.keep_status(id);
        }
    }

    /// Writes what must outlive a reboot, off the path of whoever waits.
    pub(super) fn keep_status(self: &Arc<Self>, id: &ContainerId) {
        let runtime = Arc::clone(self);
        let id = id.clone();
        tokio::task::spawn_blocking(move || {
            // One writer at a time, and what is written is looked up meanwhile: the latest wins.
            let _writing = runtime.status_files.lock().expect("no code panics while it holds this");
            let Some(container) = runtime.store.container(&id) else { return };
            let (started_at, ended) = match container.phase {
                ContainerPhase::Removing(_) => return,
                ContainerPhase::Exited(ended) => (ended.started_at, Some(ended)),
                phase => (phase.run().map(|run| run.started_at), None),
            };
            let path = runtime.layout.container_status(&container.record.pod, &id);
            let status = ContainerStatusRecord { resources: container.resources, started_at, ended };
            if let Err(error) = record::write(&path, &status) {
                warn!(container = %id, %error, "status not kept");
            }
        });
    }

    fn pod_died(self: &Arc<Self>, pod: &PodId) {
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
        // Whoever has taken the handle away closes the pod, and ends what is left.
        let closing = self.store.change_pod(pod, |pod| pod.live.take().is_none()).unwrap_or(true);
        if !closing {
            warn!(pod = %pod, reason, "shim is gone");
            self.pod_died(pod);
        }
        self.end_unheld_in_background(pod, format!("its shim is gone: {reason}"));
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
            for container in runtime.store.containers_of(id) {
                let unsettled = matches!(container.phase, ContainerPhase::Starting | ContainerPhase::Unknown);
                if unsettled || container.phase.run().is_some() {
                    runtime.commit_unattended(&container, why.clone()).await;
                }
            }
        });
    }

    /// Commits the exit of a container that no shim attends any more, as it was recorded, or as unknown.
    pub(super) async fn commit_unattended(self: &Arc<Self>, container: &Container, why: String) {
        let (runtime, record) = (Arc::clone(self), Arc::clone(&container.record));
        let committed = tokio::task::spawn_blocking(move || {
            match record::read::<Exit>(&runtime.layout.exit_record(&record.pod, &record.id)) {
                Ok(exit) => runtime.exited(&record.id, &exit),
                Err(_) => runtime.exit_unseen(&record.id, &why),
            }
        });
        if let Err(error) = committed.await {
            warn!(container = %container.record.id, %error, "exit not committed");
        }
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
