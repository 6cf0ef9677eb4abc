//! The truth of pods that run: their shims are asked, and what they say is folded into the store.

use std::{sync::Arc, time::Duration};

use podhold_sandbox::{
    ContainerId, PodId,
    launch::{KnownState, LaunchError, LivePod},
};
use tokio::time::timeout;
use tracing::warn;

use super::super::Runtime;
use crate::state::{Container, ContainerEvent, ContainerPhase, PodPhase, Run, Wait};

/// How long a shim that was dialled may take to answer.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// Pauses between questions to a shim that does not answer.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Waits before the next question, and longer before the one after.
async fn rest(pause: &mut Duration) {
    tokio::time::sleep(*pause).await;
    *pause = (*pause * 2).min(LONGEST_PAUSE);
}

impl Runtime {
    /// A shim that is there and does not answer may be busy, or of a build that this one cannot talk to:
    /// its containers are not declared dead. Asked again and again, for there is no event to wait for.
    pub(in crate::runtime) fn keep_asking(self: &Arc<Self>, id: PodId) {
        let runtime = Arc::clone(self);
        tokio::spawn(async move {
            let mut pause = FIRST_PAUSE;
            loop {
                rest(&mut pause).await;
                match runtime.store.pod(&id) {
                    Some(pod) if pod.phase == PodPhase::Unanswered => {}
                    Some(pod) if pod.ended || pod.phase == PodPhase::Ready => return,
                    // It could not be stopped.
                    Some(pod) if pod.live.is_none() && pod.phase == PodPhase::NotReady => {}
                    // Whoever stops it talks to its shim, which listens to the last who has come.
                    Some(pod) if pod.live.is_none() => continue,
                    _ => return,
                }
                match runtime.ask_shim(&id).await {
                    Ok(true) => return,
                    // Asked again if that fails.
                    Ok(false) => {}
                    Err(LaunchError::Gone { .. }) => break,
                    Err(reason) => {
                        warn!(pod = %id, reason = %reason, "shim still does not answer");
                        runtime.still_waits(&id, reason.to_string());
                    }
                }
            }
            let folded = tokio::task::spawn_blocking(move || runtime.fold_dead(&id));
            if let Err(error) = folded.await {
                warn!(%error, "exits not read");
            }
        });
    }

    /// Keeps why a pod waits for its shim, for who asks.
    pub(in crate::runtime) fn still_waits(&self, id: &PodId, reason: String) {
        self.store.change_pod(id, |pod| match &mut pod.wait {
            Some(wait) => wait.reason = reason,
            none => *none = Some(Wait::new(reason)),
        });
    }

    /// Dials the shim and folds what it says into the store; `false` when somebody has begun to stop the pod
    /// meanwhile.
    pub(super) async fn ask_shim(self: &Arc<Self>, id: &PodId) -> std::result::Result<bool, LaunchError> {
        let open = self.launcher.reopen_pod(id).await?;
        let known =
            timeout(ANSWER_TIME, open.pod.containers()).await.map_err(|_| LaunchError::Protocol {
                pod: id.clone(),
                reason: format!("no answer within {} s", ANSWER_TIME.as_secs()),
            })??;
        if !self.store.pod_is_found(id, open.pod) {
            return Ok(false);
        }
        for container in known {
            self.fold(&container.id, container.state);
        }
        for container in self.store.containers_of(id) {
            if matches!(container.phase, ContainerPhase::Unknown { .. }) {
                self.fold_unlisted(container).await;
            }
        }
        self.watch(id.clone(), open.events);
        Ok(true)
    }

    /// Asks the pod's shim, in the background, for a container of which it is not known whether it runs, until
    /// that is known. Who asks for all of an unanswered pod, or ends it, learns of this one as well.
    pub(in crate::runtime) fn ask_for_container(self: &Arc<Self>, id: ContainerId) {
        let runtime = Arc::clone(self);
        tokio::spawn(async move {
            let mut pause = FIRST_PAUSE;
            loop {
                rest(&mut pause).await;
                let container = runtime.store.container(&id);
                let unknown = container.filter(|now| matches!(now.phase, ContainerPhase::Unknown { .. }));
                let Some(container) = unknown else { return };
                let Some(pod) = runtime.store.pod(&container.record.pod) else { return };
                match pod.live {
                    _ if pod.phase == PodPhase::Unanswered => {}
                    None if pod.ended => return runtime.fold_unlisted(container).await,
                    None => {}
                    Some(live) => {
                        if let Err(reason) = runtime.fold_one(live.as_ref(), container).await {
                            warn!(container = %id, %reason, "not known whether it runs; asked again");
                        }
                    }
                }
            }
        });
    }

    /// Folds what the pod's shim says of one container of which it was not known whether it runs.
    pub(super) async fn fold_one(
        self: &Arc<Self>,
        live: &dyn LivePod,
        container: Container,
    ) -> std::result::Result<(), LaunchError> {
        let known = live.containers().await?;
        match known.into_iter().find(|known| known.id == container.record.id) {
            Some(known) => self.fold(&known.id, known.state),
            None => self.fold_unlisted(container).await,
        }
        Ok(())
    }

    /// A container that the pod's shim does not know: it has been deleted there already, or was never started.
    pub(super) async fn fold_unlisted(self: &Arc<Self>, container: Container) {
        let runtime = Arc::clone(self);
        let folded = tokio::task::spawn_blocking(move || {
            let (started, started_at) = runtime.start_kept(&container);
            if started || runtime.left_traces(&container) {
                runtime.commit_recorded_exit(&container, started_at, "its removal was under way");
            } else {
                runtime.store.container_event(&container.record.id, ContainerEvent::NeverStarted);
            }
        });
        if let Err(error) = folded.await {
            warn!(%error, "exit not read");
        }
    }

    pub(super) fn fold(self: &Arc<Self>, id: &ContainerId, state: KnownState) {
        match state {
            KnownState::Running(started) => {
                let run = Run { pid: started.pid, started_at: started.at };
                self.store.container_event(id, ContainerEvent::Started(run));
            }
            KnownState::Exited { exit, .. } => self.exited(id, &exit),
            KnownState::Starting => self.go_on_starting(id),
        }
    }

    /// Joins, in the background, a start that an earlier daemon had asked for.
    fn go_on_starting(self: &Arc<Self>, id: &ContainerId) {
        let Some(Ok(container)) = self.store.container_event(id, ContainerEvent::FoundStarting) else {
            return;
        };
        let (runtime, id) = (Arc::clone(self), id.clone());
        tokio::spawn(async move {
            let starting = Arc::clone(&runtime);
            let started =
                runtime.under_way.start.join(id.clone(), || starting.carry_out_start(container)).await;
            if let Err(error) = started {
                warn!(container = %id, %error, "start under way at the last daemon's end has failed");
            }
        });
    }
}
