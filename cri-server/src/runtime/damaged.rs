//! Pods and containers whose records cannot be used: who asks for one is told why, and Remove undoes it by
//! the names that derive from its id.
//!
//! Invariant: nothing beneath a directory that is not ours is followed; what stands in the place of one is
//! unlinked.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::SystemTime};

use podhold_cgroups::{CgroupPath, Place};
use podhold_proto::cri;
use podhold_sandbox::{ContainerId, Layout, PodId, launch::LaunchError};
use tracing::{error, info};

use super::{Runtime, blocking, recover::names, tree::remove_tree};
use crate::{
    error::{Error, Result},
    state::{Container, ContainerRecord, Damage, Hidden, Pod, PodRecord},
};

impl Runtime {
    /// Keeps and tells, once, that something on disk cannot be used.
    pub(super) fn report_damage(&self, path: PathBuf, reason: String, hides: Hidden) {
        let damage = Damage { path, reason, hides };
        if self.store.add_damage(damage.clone()) {
            let Damage { path, reason, hides } = damage;
            error!(path = %path.display(), reason, ?hides, "damaged; left alone");
        }
    }

    /// A container by id or unique beginning of one.
    pub fn known_container(&self, id: &str) -> Result<Container> {
        let found = self.store.find_container(id);
        found.map_or_else(
            || {
                Err(self
                    .refuse_damaged_container(id)
                    .err()
                    .unwrap_or_else(|| Error::not_found("container", id)))
            },
            Ok,
        )
    }

    /// A pod by id or unique beginning of one.
    pub fn known_pod(&self, id: &str) -> Result<Pod> {
        let found = self.store.find_pod(id);
        found.map_or_else(
            || Err(self.refuse_damaged_pod(id).err().unwrap_or_else(|| Error::not_found("pod", id))),
            Ok,
        )
    }

    /// The full id of a damaged pod, what is wrong with it, and the mend; `None` when there is none of this id.
    pub fn damage_of_pod(&self, id: &str) -> Option<(PodId, String)> {
        self.store.find_damaged_pod(id).map(|(id, damage)| (id, damage.words()))
    }

    /// The full id of a damaged container, what is wrong with it, and the mend; `None` when there is none of
    /// this id.
    pub fn damage_of_container(&self, id: &str) -> Option<(ContainerId, String)> {
        self.store.find_damaged_container(id).map(|(_, id, damage)| (id, damage.words()))
    }

    /// Refuses what cannot be done to a damaged pod; success when there is none of this id.
    pub(super) fn refuse_damaged_pod(&self, id: &str) -> Result<()> {
        self.damage_of_pod(id).map_or(Ok(()), |(_, words)| Err(Error::Precondition(words)))
    }

    /// Refuses what cannot be done to a damaged container; success when there is none of this id.
    pub(super) fn refuse_damaged_container(&self, id: &str) -> Result<()> {
        self.damage_of_container(id).map_or(Ok(()), |(_, words)| Err(Error::Precondition(words)))
    }

    /// Of a pod that is gone.
    pub(super) fn forget_damage_of(&self, pod: &PodId) {
        let networks = self.networks.records(pod);
        self.forget_damage_beneath(pod);
        self.store
            .forget_damaged(|damage| damage.hides == Hidden::Nothing && networks.contains(&damage.path));
    }

    /// As [`forget_damage_of`](Self::forget_damage_of), of what its records are read for: not of its network.
    pub(super) fn forget_damage_beneath(&self, pod: &PodId) {
        let (state, run) = (self.layout.pod_state(pod), self.layout.pod_run(pod));
        self.store.forget_damaged(|damage| match &damage.hides {
            Hidden::Pod(hidden) | Hidden::Container(hidden, _) => hidden == pod,
            Hidden::Archive => false,
            Hidden::Nothing => damage.path.starts_with(&state) || damage.path.starts_with(&run),
        });
    }

    pub(super) fn forget_damage_of_container(&self, id: &ContainerId) {
        self.store.forget_damaged(|damage| match &damage.hides {
            Hidden::Container(_, hidden) => hidden == id,
            Hidden::Pod(_) | Hidden::Archive => false,
            Hidden::Nothing => damage.path.iter().any(|part| part == id.as_str()),
        });
    }

    /// Removes a damaged pod with all that is its. Success when there is none of this id.
    pub(super) async fn remove_damaged_pod(self: &Arc<Self>, id: &str) -> Result<()> {
        let Some((id, _)) = self.damage_of_pod(id) else { return Ok(()) };
        let runtime = Arc::clone(self);
        let work = || {
            let id = id.clone();
            async move { runtime.discard_damaged(&id).await }
        };
        self.under_way.remove_pod.join(id.clone(), work).await
    }

    async fn discard_damaged(self: Arc<Self>, id: &PodId) -> Result<()> {
        let _nobody_takes_it_up = self.healing.lock().await;
        let cgroup = self.cgroup_of(id).await?;
        let record = pod_by_name(id, cgroup);
        self.halt_pod(&record).await?;
        let (layout, pod) = (self.layout.clone(), id.clone());
        let containers = blocking("damaged pod", move || {
            let found = container_names(&layout, &pod);
            unlink_strangers(&[
                layout.pod_run(&pod).join("containers"),
                layout.pod_run(&pod),
                layout.pod_state(&pod).join("containers"),
                layout.pod_state(&pod),
            ])?;
            Ok(found)
        });
        for container in containers.await? {
            let container = container_by_name(&record, &container);
            self.clear_container(&container).await?;
        }
        self.clear_pod(&record).await?;
        let path = self.layout.pod_state(id);
        blocking("damaged pod", move || remove_tree(&path)).await?;
        self.forget_damage_of(id);
        info!(pod = %id, "damaged pod removed");
        Ok(())
    }

    /// Removes a damaged container with all that is its. Success when there is none of this id.
    pub(super) async fn remove_damaged_container(self: &Arc<Self>, id: &str) -> Result<()> {
        let Some((pod, id, _)) = self.store.find_damaged_container(id) else { return Ok(()) };
        let runtime = Arc::clone(self);
        let work = || {
            let id = id.clone();
            async move { runtime.drop_damaged(&pod, &id).await }
        };
        self.under_way.remove.join(id.clone(), work).await
    }

    async fn drop_damaged(self: Arc<Self>, pod: &PodId, id: &ContainerId) -> Result<()> {
        let _nobody_takes_it_up = self.healing.lock().await;
        let record = match self.store.pod(pod) {
            Some(pod) => (*pod.record).clone(),
            None => pod_by_name(pod, self.cgroup_of(pod).await?),
        };
        let strangers = [self.layout.bundle(pod, id), self.layout.container_state(pod, id)];
        blocking("damaged container", move || unlink_strangers(&strangers)).await?;
        let container = container_by_name(&record, id);
        let containers = self.layout.pod_state(pod).join("containers");
        self.end_in_shim(pod, id).await?;
        if is_directory(&self.layout.pod_state(pod)) && is_directory(&containers) {
            self.teardown_container(&container).await?;
        } else {
            self.clear_container(&container).await?;
        }
        self.forget_container(id);
        info!(container = %id, "damaged container removed");
        Ok(())
    }

    /// Has the pod's shim, if there is one, end the container and forget it: it would write what it sees of
    /// the end into a directory that is being removed.
    async fn end_in_shim(&self, pod: &PodId, id: &ContainerId) -> Result<()> {
        if let Some(known) = self.store.pod(pod) {
            return match known.live {
                Some(live) => live.delete(id).await.map_err(Error::from),
                None => Ok(()),
            };
        }
        match self.launcher.reopen_pod(pod).await {
            Ok(open) => open.pod.delete(id).await.map_err(Error::from),
            Err(LaunchError::Gone { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The cgroup that has this pod's pause in it, or its scope; the usual one when there is none.
    async fn cgroup_of(&self, pod: &PodId) -> Result<CgroupPath> {
        let cgroups = self.cgroups.clone();
        let name = format!("pause-{pod}");
        let otherwise = cgroups.driver().pod(Place::Beneath(&self.cgroup_parent), pod.as_str());
        blocking("cgroup", move || {
            let own = otherwise.child(&name);
            if cgroups.exists(&own) {
                return Ok(otherwise);
            }
            let found = cgroups.find(&name).and_then(|found| found.parent());
            // Pause may be gone with its cgroup, and the pod's scope be there.
            let scope = || otherwise.scope().and_then(|scope| cgroups.find(scope.name()));
            Ok(found.or_else(scope).unwrap_or(otherwise))
        })
        .await
    }
}

/// What is known of a pod by its id alone.
fn pod_by_name(id: &PodId, cgroup: CgroupPath) -> PodRecord {
    PodRecord {
        id: id.clone(),
        config: cri::PodSandboxConfig::default(),
        runtime_handler: String::new(),
        created_at: SystemTime::UNIX_EPOCH,
        cgroup,
        owned_cgroup: None,
        complete: true,
        ips: Vec::new(),
        boot: None,
        limits: None,
    }
}

/// What is known of a container by its id alone.
fn container_by_name(pod: &PodRecord, id: &ContainerId) -> ContainerRecord {
    ContainerRecord {
        id: id.clone(),
        pod: pod.id.clone(),
        config: cri::ContainerConfig::default(),
        image_id: String::new(),
        image_ref: String::new(),
        created_at: SystemTime::UNIX_EPOCH,
        log_path: None,
        cgroup: pod.cgroup.child(id.as_str()),
        user: cri::LinuxContainerUser::default(),
        stop_signal: libc::SIGKILL,
        volumes: BTreeMap::new(),
    }
}

/// The containers that a pod has a directory of, of either kind.
pub(super) fn container_names(layout: &Layout, pod: &PodId) -> Vec<ContainerId> {
    let places = [layout.pod_state(pod), layout.pod_run(pod)];
    let ours = places.iter().filter(|place| {
        let containers = place.join("containers");
        is_directory(place) && is_directory(&containers)
    });
    let all = ours.flat_map(|place| names(&place.join("containers")).unwrap_or_default());
    let mut ids: Vec<ContainerId> = all.filter_map(|name| ContainerId::parse(&name).ok()).collect();
    ids.sort();
    ids.dedup();
    ids
}

fn is_directory(path: &std::path::Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.is_dir())
}

/// Unlinks what is there and is no directory, so that nothing is found through it.
fn unlink_strangers(places: &[PathBuf]) -> Result<()> {
    // The outermost first: what is beneath a link is not ours.
    let mut places = places.to_vec();
    places.sort();
    for place in places {
        if place.symlink_metadata().is_ok_and(|found| !found.is_dir()) {
            remove_tree(&place)?;
        }
    }
    Ok(())
}
