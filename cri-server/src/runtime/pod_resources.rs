//! UpdatePodSandboxResources, and the limits of pod cgroups that are Podhold's own.
//!
//! The kubelet makes a pod's cgroup and limits it before it tells; then the numbers are information. A
//! cgroup that Podhold has made for the pod is limited by nobody else.

use std::sync::Arc;

use oci_spec::runtime::LinuxResources;
use podhold_proto::cri;

use super::{Runtime, blocking, flight::to_its_end};
use crate::{
    error::{Error, Result},
    spec::resources,
    state::{PodLimits, PodPhase, PodRecord},
};

impl Runtime {
    /// Takes note of a pod's new overhead and resources (CRI `LinuxPodSandboxConfig`), and applies them to
    /// a cgroup that is its own. What is `None` stays.
    pub async fn update_pod(
        self: &Arc<Self>,
        id: &str,
        overhead: Option<cri::LinuxContainerResources>,
        resources: Option<cri::LinuxContainerResources>,
    ) -> Result<()> {
        let (runtime, id) = (Arc::clone(self), id.to_owned());
        to_its_end(async move { runtime.update_pod_limits(&id, overhead, resources).await }).await
    }

    async fn update_pod_limits(
        &self,
        id: &str,
        overhead: Option<cri::LinuxContainerResources>,
        resources: Option<cri::LinuxContainerResources>,
    ) -> Result<()> {
        let updating = self.known_pod(id)?.updating;
        let _turn = updating.lock().await;
        let pod = self.known_pod(id)?;
        let id = pod.record.id.clone();
        if pod.phase != PodPhase::Ready {
            let reason = format!("pod {id} is {}; its limits cannot be changed", pod.phase.name());
            return Err(Error::Precondition(reason));
        }
        let now = pod.record.current_limits();
        let updated =
            PodLimits { overhead: overhead.or(now.overhead), resources: resources.or(now.resources) };
        let record = PodRecord { limits: Some(updated), ..(*pod.record).clone() };
        if let Some(limits) = limits(&record)? {
            self.cgroups.check(&self.cgroup_parent, &limits)?;
            self.limit_pod(&record, limits).await?;
        }
        let changed = self.store.change_pod(&id, |pod| {
            pod.record = Arc::new(PodRecord { limits: record.limits, ..(*pod.record).clone() });
            Arc::clone(&pod.record)
        });
        let record = changed.ok_or_else(|| Error::not_found("pod", id.as_str()))?;
        self.keep_pod(&record).await
    }

    /// Limits the pod's cgroup if it is Podhold's own.
    pub(super) async fn limit_pod(&self, record: &PodRecord, limits: LinuxResources) -> Result<()> {
        if record.owned_cgroup.is_none() {
            return Ok(());
        }
        let (cgroups, cgroup) = (self.cgroups.clone(), record.cgroup.clone());
        blocking("pod limits", move || {
            cgroups.create(&cgroup)?;
            cgroups.set(&cgroup, &limits).map_err(Error::from)
        })
        .await
    }
}

/// A pod's limits: those of its containers together, and its overhead. `None` when none are given.
pub(super) fn limits(record: &PodRecord) -> Result<Option<LinuxResources>> {
    let limits = record.current_limits();
    resources::of_pod(limits.overhead.as_ref(), limits.resources.as_ref())
}
