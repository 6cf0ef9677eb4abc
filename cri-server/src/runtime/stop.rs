//! StopPodSandbox, RemovePodSandbox, StopContainer, RemoveContainer.
//!
//! A later Stop lowers the deadline of an earlier one; Remove and StopPodSandbox set it to zero.

use std::{sync::Arc, time::Duration};

use podhold_sandbox::{
    ContainerId, PodId,
    launch::{LaunchError, SignalTo},
};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

use super::{Runtime, blocking, waits};
use crate::{
    error::{Error, Result},
    state::{Container, ContainerEvent, ContainerPhase, Pod, PodEvent, PodPhase},
};

/// How long the kernel may take to end a process that was killed.
const KILL_TIME: Duration = Duration::from_secs(10);
/// How long it may take after a restart until it is known whether a container runs.
const SETTLE_TIME: Duration = Duration::from_secs(10);
/// The longest grace that is told apart from no limit: a year.
const LONGEST_GRACE: Duration = Duration::from_secs(365 * 24 * 3600);

impl Runtime {
    /// Stops a pod: its containers are killed, its network is taken down, its namespaces are let go.
    /// Success when it is stopped or not known.
    pub async fn stop_pod(self: &Arc<Self>, id: &str) -> Result<()> {
        let Some(pod) = self.store.find_pod(id) else { return self.refuse_damaged_pod(id) };
        let id = pod.record.id.clone();
        let runtime = Arc::clone(self);
        self.under_way.stop_pod.join(id.clone(), || async move { runtime.halt(&id).await }).await
    }

    pub(super) async fn halt(self: Arc<Self>, id: &PodId) -> Result<()> {
        let settled = |pod: Option<&Pod>| match pod {
            Some(pod) if pod.phase == PodPhase::Creating => None,
            other => Some(other.cloned()),
        };
        if self.store.wait_pod(id, settled).await.is_none() {
            return Ok(());
        }
        let pod = match self.store.pod_event(id, PodEvent::StopClaimed) {
            Some(Ok(pod)) => pod,
            // Being removed, which stops it as well.
            Some(Err(_)) | None => return Ok(()),
        };
        let result = async {
            let containers = self.store.containers_of(id);
            let stops = containers.iter().map(|c| self.stop(&c.record.id, Duration::ZERO));
            let stops = futures::future::join_all(stops).await;
            // A shim that says nothing does not tell the end of its containers; it is ended with its pod.
            let silent = self.store.pod(id).and_then(|pod| pod.live).is_some_and(|live| live.is_silent());
            match stops.into_iter().find_map(Result::err) {
                Some(error) if !silent => Err(error),
                _ => self.halt_pod(&pod.record).await,
            }
        }
        .await;
        let event = if result.is_ok() { PodEvent::StopDone } else { PodEvent::StopFailed };
        self.store.pod_event(id, event);
        if result.is_ok() {
            self.store.change_pod(id, |pod| pod.ips.clear());
            info!(pod = %id, "pod stopped");
        }
        result
    }

    /// Removes a pod with its containers, stopping them first. Success when it is not known.
    pub async fn remove_pod(self: &Arc<Self>, id: &str) -> Result<()> {
        let Some(pod) = self.store.find_pod(id) else { return self.remove_damaged_pod(id).await };
        let id = pod.record.id.clone();
        let runtime = Arc::clone(self);
        self.under_way.remove_pod.join(id.clone(), || async move { runtime.discard(&id).await }).await
    }

    async fn discard(self: Arc<Self>, id: &PodId) -> Result<()> {
        // Between the end of this stop and the claim another one may begin.
        loop {
            self.stop_pod(id.as_str()).await?;
            match self.store.pod_event(id, PodEvent::RemoveClaimed) {
                None => return Ok(()),
                Some(Ok(_)) => break,
                Some(Err(_)) => {}
            }
        }
        let result = async {
            let containers = self.store.containers_of(id);
            let removals = containers.iter().map(|c| self.remove_container(c.record.id.as_str()));
            futures::future::try_join_all(removals).await?;
            self.teardown_pod(id).await
        }
        .await;
        match result {
            Ok(()) => {
                self.usage.forget_pod(id);
                self.store.forget_pod(id);
                self.forget_damage_of(id);
                info!(pod = %id, "pod removed");
                Ok(())
            }
            Err(error) => {
                self.store.pod_event(id, PodEvent::RemoveFailed);
                Err(error)
            }
        }
    }

    /// Asks a container to end, and kills it after `grace`. Success when it has ended, was never
    /// started, or is not known.
    pub async fn stop_container(self: &Arc<Self>, id: &str, grace: Duration) -> Result<()> {
        match self.store.find_container(id) {
            Some(container) => {
                self.wait_until_known(&container).await?;
                self.stop(&container.record.id, grace).await
            }
            None => self.refuse_damaged_container(id),
        }
    }

    /// Waits until it is known whether the container runs. The caller may ask again when it is not known in
    /// time; whoever stops the pod need not wait.
    async fn wait_until_known(&self, container: &Container) -> Result<()> {
        let (pod, id) = (&container.record.pod, &container.record.id);
        let known = |now: Option<&Container>| match now.map(|now| &now.phase) {
            Some(ContainerPhase::Unknown { .. }) => None,
            _ => Some(()),
        };
        timeout(SETTLE_TIME, self.store.wait_container(id, known)).await.map_err(|_| {
            Error::Deadline(format!(
                "container {id}: whether it runs is not known yet, since the shim of pod {pod} has not answered \
                 this daemon; call again, or stop the pod, which ends it by force"
            ))
        })
    }

    /// Stops a container of which it is known whether it runs; of any other the pod is stopped as well.
    pub(super) async fn stop(self: &Arc<Self>, id: &ContainerId, grace: Duration) -> Result<()> {
        let settled = |container: Option<&Container>| match container.map(|c| &c.phase) {
            Some(ContainerPhase::Starting | ContainerPhase::Creating) => None,
            _ => Some(()),
        };
        let pod = self.store.container(id).and_then(|container| self.store.pod(&container.record.pod));
        match pod.and_then(|pod| pod.live) {
            None => self.store.wait_container(id, settled).await,
            Some(live) => tokio::select! {
                // A shim that says nothing keeps only who waits for it.
                biased;
                () = self.store.wait_container(id, settled) => {}
                silent = live.silent() => return Err(silent.into()),
            },
        }
        let deadline = Instant::now() + grace.min(LONGEST_GRACE);
        match self.store.container_event(id, ContainerEvent::StopClaimed(deadline)) {
            Some(Ok(_)) => {}
            // Not running: nothing to stop.
            Some(Err(_)) | None => return Ok(()),
        }
        let runtime = Arc::clone(self);
        let key = id.clone();
        self.under_way.stop.join(id.clone(), || async move { runtime.end(&key).await }).await
    }

    /// Signals the container, waits for its exit until the deadline, which may move closer, and kills it.
    async fn end(self: Arc<Self>, id: &ContainerId) -> Result<()> {
        let Some(container) = self.store.container(id) else { return Ok(()) };
        let live = || self.store.pod(&container.record.pod).and_then(|pod| pod.live);
        let Some(asked) = live() else { return self.end_orphan(&container).await };
        if deadline(&container.phase).is_some_and(|deadline| deadline > Instant::now()) {
            // One that cannot be sent leaves the container its grace, and the KILL after it.
            if let Err(error) = asked.signal(id, container.record.stop_signal, SignalTo::Init).await {
                warn!(container = %id, signal = container.record.stop_signal, %error, "stop signal not sent");
            }
            if self.ended_in_time(id).await {
                return Ok(());
            }
        }
        // Meanwhile it may be another one, or gone.
        let Some(live) = live() else { return self.end_orphan(&container).await };
        match live.signal(id, libc::SIGKILL, SignalTo::All).await {
            // Whoever notices that as well does the same.
            Err(LaunchError::Gone { .. }) => return self.end_orphan(&container).await,
            Err(LaunchError::NotRunning { .. }) if self.exited_meanwhile(id) => return Ok(()),
            Err(silent @ (LaunchError::Silent { .. } | LaunchError::Lost { .. })) => {
                self.kill_cgroup(&container).await?;
                return Err(Error::Deadline(format!(
                    "container {id}: its processes were killed, and how it ended is not known yet: {silent}"
                )));
            }
            sent => sent?,
        }
        if timeout(KILL_TIME, self.exited_or_gone(id)).await.is_ok() {
            return Ok(());
        }
        let cgroups = self.cgroups.clone();
        let waiting =
            blocking("container processes", move || Ok(waits::of(&cgroups, &container.record.cgroup)));
        Err(Error::Deadline(format!(
            "container {id}: killed, but the kernel has not ended it within {} s: {}; it ends when what it waits \
             for (a hung mount or device?) answers; call again",
            KILL_TIME.as_secs(),
            waiting.await?
        )))
    }

    fn exited_meanwhile(&self, id: &ContainerId) -> bool {
        self.store.container(id).is_none_or(|container| container.phase.run().is_none())
    }

    /// Whether the container ended before its deadline.
    async fn ended_in_time(&self, id: &ContainerId) -> bool {
        loop {
            let Some(container) = self.store.container(id) else { return true };
            let Some(deadline) = deadline(&container.phase) else { return true };
            if deadline <= Instant::now() {
                return false;
            }
            let moved = self.store.wait_container(id, |now| match now.map(|now| now.phase.clone()) {
                Some(phase) if phase == container.phase => None,
                _ => Some(()),
            });
            tokio::select! {
                () = moved => {}
                () = sleep_until(deadline) => return false,
            }
        }
    }

    async fn exited_or_gone(&self, id: &ContainerId) {
        let over = |container: Option<&Container>| match container {
            Some(container) if container.phase.run().is_some() => None,
            _ => Some(()),
        };
        self.store.wait_container(id, over).await;
    }

    /// Ends a container whose shim is gone, or ends. Whoever has ended it or has noticed that commits what it has
    /// recorded.
    async fn end_orphan(self: &Arc<Self>, container: &Container) -> Result<()> {
        self.kill_cgroup(container).await?;
        if timeout(KILL_TIME, self.exited_or_gone(&container.record.id)).await.is_err() {
            self.commit_unattended(container, "its shim was gone when it was stopped".to_owned()).await;
        }
        Ok(())
    }

    /// Ends a container whose shim is gone, of which nobody else knows.
    pub(super) async fn end_unattended_container(
        self: &Arc<Self>,
        container: &Container,
        why: &str,
    ) -> Result<()> {
        self.kill_cgroup(container).await?;
        self.commit_unattended(container, why.to_owned()).await;
        Ok(())
    }

    async fn kill_cgroup(&self, container: &Container) -> Result<()> {
        let (cgroups, cgroup) = (self.cgroups.clone(), container.record.cgroup.clone());
        blocking("container processes", move || {
            if cgroups.exists(&cgroup) { cgroups.kill(&cgroup).map_err(Error::from) } else { Ok(()) }
        })
        .await
    }

    /// Removes a container, killing it first if it runs. Success when it is not known.
    pub async fn remove_container(self: &Arc<Self>, id: &str) -> Result<()> {
        let Some(container) = self.store.find_container(id) else {
            return self.remove_damaged_container(id).await;
        };
        let id = container.record.id.clone();
        let runtime = Arc::clone(self);
        self.under_way.remove.join(id.clone(), || async move { runtime.drop_container(&id).await }).await
    }

    async fn drop_container(self: Arc<Self>, id: &ContainerId) -> Result<()> {
        if let Some(container) = self.store.container(id) {
            self.wait_until_known(&container).await?;
        }
        self.stop(id, Duration::ZERO).await?;
        if self
            .store
            .container(id)
            .is_some_and(|container| matches!(container.phase, ContainerPhase::Exited(_)))
        {
            // What its exit record says must be kept before that goes: a removal may be cut short.
            self.status_kept(id).await;
        }
        let container = match self.store.container_event(id, ContainerEvent::RemoveClaimed) {
            None => return Ok(()),
            Some(claim) => claim.map_err(|error| Error::Precondition(format!("container {id}: {error}")))?,
        };
        match self.teardown_container(&container.record).await {
            Ok(()) => {
                self.forget_container(id);
                Ok(())
            }
            Err(error) => {
                self.store.container_event(id, ContainerEvent::RemoveFailed);
                Err(error)
            }
        }
    }
}

fn deadline(phase: &ContainerPhase) -> Option<Instant> {
    match phase {
        ContainerPhase::Stopping { deadline, .. } => Some(*deadline),
        _ => None,
    }
}
