//! Folds what a pod's shim tells into the store. One task per pod.

use std::{sync::Arc, time::SystemTime};

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

    /// Commits an exit that nobody saw.
    pub(super) fn exit_unseen(self: &Arc<Self>, id: &ContainerId, why: &str) {
        let Some(container) = self.store.container(id) else { return };
        let ended = Ended {
            started_at: container.phase.run().map(|run| run.started_at),
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
                let again = runtime.undone.status(&id, &crate::error::chain(&error));
                warn!(container = %id, %error, again, "status not kept");
            }
        });
    }

    fn pod_died(self: &Arc<Self>, pod: &PodId) {
        if let Some(Err(error)) = self.store.pod_event(pod, PodEvent::Died) {
            warn!(pod = %pod, %error, "pod died");
        }
    }

    /// The shim is gone: whatever it has not recorded is unknown for ever.
    fn shim_gone(self: &Arc<Self>, pod: &PodId, reason: &str) {
        let closing = self.store.change_pod(pod, |pod| pod.live.take().is_none()).unwrap_or(true);
        if !closing {
            warn!(pod = %pod, reason, "shim is gone");
            self.pod_died(pod);
        }
        for container in self.store.containers_of(pod) {
            if matches!(container.phase, ContainerPhase::Starting) || container.phase.run().is_some() {
                self.end_unattended(container, format!("its shim is gone: {reason}"));
            }
        }
    }

    /// Ends what is left of a container that no shim attends any more, then commits its exit as it was
    /// recorded, or as unknown.
    pub(super) fn end_unattended(self: &Arc<Self>, container: Container, why: String) {
        let runtime = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let record = &container.record;
            if runtime.cgroups.exists(&record.cgroup)
                && let Err(error) = runtime.cgroups.kill(&record.cgroup)
            {
                warn!(container = %record.id, %error, "processes of a container without shim not ended");
            }
            match record::read::<Exit>(&runtime.layout.exit_record(&record.pod, &record.id)) {
                Ok(exit) => runtime.exited(&record.id, &exit),
                Err(_) => runtime.exit_unseen(&record.id, &why),
            }
        });
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
