//! Undoes a pod or a container, whatever of it there is. Idempotent: it serves a failed start, Remove and
//! recovery alike, because every name derives from the id.

use std::{sync::Arc, time::Duration};

use podhold_cgroups::CgroupPath;
use podhold_image::Snapshots;
use podhold_sandbox::{
    ContainerId, Layout, PodId,
    launch::{LaunchError, LivePod},
    netns,
};
use tokio::time::timeout;
use tracing::warn;

use super::{
    Runtime, blocking,
    damaged::container_names,
    files,
    tree::{remove_recorded, remove_tree},
    volumes::Place,
};
use crate::{
    error::{Error, Result},
    state::{ContainerRecord, Pod, PodPhase, PodRecord},
};

/// How long the removal of a container waits for the end of its pod's shim.
const CLOSE_TIME: Duration = Duration::from_secs(30);

impl Runtime {
    /// Ends the pod's processes and takes down its network. What is on disk stays.
    pub(super) async fn halt_pod(self: &Arc<Self>, record: &PodRecord) -> Result<()> {
        let id = &record.id;
        // Taken away first: the end of the shim is then no news to whoever watches it.
        let live = self.store.change_pod(id, |pod| pod.live.take()).flatten();
        let ended = live.is_none() && self.store.pod(id).is_some_and(|pod| pod.ended);
        let network = async { self.networks.del(id).await.map_err(Error::from) };
        let processes = async {
            match live {
                Some(live) => self.close_shim(record, live.as_ref()).await,
                None if ended => Ok(()),
                None => self.kill_leftovers(record).await,
            }
        };
        let (network, processes) = tokio::join!(network, processes);
        processes?;
        self.store.change_pod(id, |pod| pod.ended = true);
        self.undone.network(id, network)?;
        let path = self.layout.netns(id);
        blocking("network namespace", move || netns::remove(&path).map_err(Error::doing("network namespace")))
            .await
    }

    /// Has the shim end the pod; ends what it has not ended, and a shim that does not answer.
    async fn close_shim(self: &Arc<Self>, record: &PodRecord, live: &dyn LivePod) -> Result<()> {
        let Err(error) = live.close().await else { return Ok(()) };
        warn!(pod = %record.id, %error, "shim not closed; its processes are killed");
        if !matches!(error, LaunchError::Silent { .. } | LaunchError::Gone { .. }) {
            // It attends to its containers as long as there are any.
            self.kill_processes(record).await?;
        }
        self.end_unattended(record).await
    }

    /// Ends whatever runs of the pod, and a shim that nobody talks to.
    async fn kill_leftovers(self: &Arc<Self>, record: &PodRecord) -> Result<()> {
        if !self.is_of_earlier_boot(record) {
            match self.launcher.reopen_pod(&record.id).await {
                Ok(open) => {
                    self.close_shim(record, open.pod.as_ref()).await?;
                    return self.settle_ended(record).await;
                }
                Err(LaunchError::Gone { .. }) => {}
                Err(error) => {
                    warn!(pod = %record.id, %error, "shim cannot be talked to; it is killed");
                }
            }
        }
        self.end_unattended(record).await
    }

    /// Ends what is left of a pod, and commits the exits of its containers: nobody is left who could tell
    /// how they have ended.
    async fn end_unattended(self: &Arc<Self>, record: &PodRecord) -> Result<()> {
        self.end_unheld(record).await?;
        self.settle_ended(record).await
    }

    /// Commits how the containers of a pod have ended whose shim has ended.
    async fn settle_ended(self: &Arc<Self>, record: &PodRecord) -> Result<()> {
        let (runtime, id) = (Arc::clone(self), record.id.clone());
        blocking("exits", move || {
            runtime.fold_unstarted(&id);
            Ok(())
        })
        .await?;
        self.settle_unheld(&record.id, "its shim was gone, or did not answer and was killed").await;
        Ok(())
    }

    /// Ends what is left of a pod whose shim is dead, or is to be: first whatever still makes processes,
    /// then those in the pod's own cgroups, then the logger, which has their last words by then.
    pub(super) async fn end_unheld(&self, record: &PodRecord) -> Result<()> {
        let ended = self.launcher.end_holder(&record.id).await;
        let killed = self.kill_processes(record).await;
        self.launcher.end_logs(&record.id).await?;
        ended?;
        killed
    }

    /// Ends whatever runs in the pod's own cgroups.
    async fn kill_processes(&self, record: &PodRecord) -> Result<()> {
        let mut leaves = vec![record.pause_cgroup()];
        leaves.extend(self.store.containers_of(&record.id).iter().map(|c| c.record.cgroup.clone()));
        leaves.extend(self.damaged_leaves(record).await?);
        // Each waits for the kernel by itself: one that does not end keeps no other alive.
        let kills = leaves.into_iter().map(|leaf| {
            let cgroups = self.cgroups.clone();
            let kill =
                move || if cgroups.exists(&leaf) { cgroups.kill(&leaf).map_err(Error::from) } else { Ok(()) };
            blocking("pod processes", kill)
        });
        let killed: Result<Vec<()>> = futures::future::join_all(kills).await.into_iter().collect();
        killed.map(drop)
    }

    /// The cgroups of the pod's containers whose records cannot be used: they may run.
    async fn damaged_leaves(&self, record: &PodRecord) -> Result<Vec<CgroupPath>> {
        let (layout, id) = (self.layout.clone(), record.id.clone());
        let mut found = blocking("containers", move || Ok(container_names(&layout, &id))).await?;
        found.retain(|container| self.store.container(container).is_none());
        Ok(found.iter().map(|container| record.cgroup.child(container.as_str())).collect())
    }

    /// Undoes the pod wholly. Its containers must have been undone before.
    pub(super) async fn teardown_pod(self: &Arc<Self>, id: &PodId) -> Result<()> {
        let Some(pod) = self.store.pod(id) else { return Ok(()) };
        self.halt_pod(&pod.record).await?;
        self.clear_pod(&pod.record).await?;
        let deleted = self.delete_pod_files(id).await;
        self.undone.pod(id, deleted)
    }

    /// Deletes what the state directory has of a pod that is gone.
    pub(super) async fn delete_pod_files(&self, id: &PodId) -> Result<()> {
        let record = self.layout.pod_record(id);
        blocking("pod", move || remove_recorded(&record)).await
    }

    /// Undoes all of a halted pod but what its record and its files are.
    pub(super) async fn clear_pod(self: &Arc<Self>, record: &PodRecord) -> Result<()> {
        // As it is now: it may have inherited a cgroup meanwhile.
        let known = self.store.pod(&record.id).map(|pod| pod.record);
        let record = known.map_or_else(|| record.clone(), |known| (*known).clone());
        let owned = self.cgroups_to_remove(&record).await?;
        let layout = self.layout.clone();
        let cgroups = self.cgroups.clone();
        let snapshots = self.images.snapshots();
        let own = self.cgroup_parent.child(record.id.as_str());
        let scope = record.cgroup.scope();
        blocking("pod", move || {
            // Containers that could be used are gone by now: these are of damaged ones.
            for container in container_names(&layout, &record.id) {
                let leaf = record.cgroup.child(container.as_str());
                if cgroups.exists(&leaf) {
                    cgroups.kill(&leaf)?;
                    cgroups.remove(&leaf)?;
                }
            }
            clear_run(&layout, &record.id, snapshots.as_ref())?;
            if let Some(scope) = scope {
                return cgroups.end_scope(&scope).map_err(Error::from);
            }
            cgroups.remove(&record.pause_cgroup())?;
            if record.cgroup == own {
                // Nobody else has anything in it: what a process that was killed late has made goes too.
                if cgroups.exists(&own) {
                    cgroups.kill(&own)?;
                }
                cgroups.remove(&own)?;
            }
            for cgroup in owned {
                cgroups.prune(&cgroup)?;
            }
            Ok(())
        })
        .await
    }

    /// The cgroups that were made for this pod and go with it, innermost first. While another pod is in
    /// the same one, that pod inherits them. One that is being removed as well may have looked already: then
    /// both try, and the last succeeds.
    async fn cgroups_to_remove(&self, record: &PodRecord) -> Result<Vec<CgroupPath>> {
        let Some(top) = record.owned_cgroup.as_ref().filter(|top| top.scope().is_none()) else {
            return Ok(Vec::new());
        };
        let mut others = self.store.pods();
        others.retain(|pod| pod.record.id != record.id && pod.record.cgroup == record.cgroup);
        let stays = others.iter().position(|pod| pod.phase != PodPhase::Removing);
        let heirs = stays.map_or(&others[..], |stays| &others[stays..=stays]);
        for heir in heirs {
            self.store.change_pod(&heir.record.id, |pod| {
                let inherited = PodRecord { owned_cgroup: Some(top.clone()), ..(*pod.record).clone() };
                pod.record = Arc::new(inherited);
            });
        }
        if let Some(stays) = stays {
            let id = &others[stays].record.id;
            // Removing must not need a disk that can be written: it is known here, and written later.
            let kept = self.rewrite_pod_record(id).await;
            self.undone.record(id, kept)?;
            return Ok(Vec::new());
        }
        let mut owned = Vec::new();
        for cgroup in std::iter::successors(Some(record.cgroup.clone()), CgroupPath::parent) {
            let last = cgroup == *top;
            owned.push(cgroup);
            if last {
                break;
            }
        }
        Ok(owned)
    }

    /// Writes what is known of a pod by now. One that is removed meanwhile stays removed.
    pub(super) async fn rewrite_pod_record(&self, id: &PodId) -> Result<()> {
        let Some(pod) = self.store.pod(id) else { return Ok(()) };
        self.keep_pod(&pod.record).await?;
        match self.store.pod(id) {
            Some(_) => Ok(()),
            None => self.delete_pod_files(id).await,
        }
    }

    /// Undoes a container wholly.
    pub(super) async fn teardown_container(self: &Arc<Self>, record: &ContainerRecord) -> Result<()> {
        let live = self.store.pod(&record.pod).and_then(|pod| pod.live);
        if let Some(live) = live {
            match live.delete(&record.id).await {
                // What it would have ended is ended below.
                Ok(()) | Err(LaunchError::Gone { .. }) => {}
                // A shim that ends with its pod does nothing else any more. What it ends is nobody's afterwards.
                Err(error) if self.store.pod(&record.pod).is_some_and(|pod| pod.live.is_none()) => {
                    let stopped = |pod: Option<&Pod>| match pod {
                        Some(pod) if pod.phase == PodPhase::Stopping => None,
                        _ => Some(()),
                    };
                    timeout(CLOSE_TIME, self.store.wait_pod(&record.pod, stopped))
                        .await
                        .map_err(|_| error)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        let volumes = self.unmount_container(record).await?;
        let deleted = self.delete_container_files(&record.pod, &record.id, &volumes).await;
        self.undone.container(&record.pod, &record.id, &volumes, deleted)
    }

    /// Undoes all of a container that no shim has but its record.
    pub(super) async fn clear_container(self: &Arc<Self>, record: &ContainerRecord) -> Result<()> {
        let volumes = self.unmount_container(record).await?;
        let (runtime, pod, id) = (Arc::clone(self), record.pod.clone(), record.id.clone());
        blocking("container", move || runtime.forget_snapshots(&pod, &id, &volumes)).await
    }

    /// Ends what a container has in the kernel and in the run directory; answers the indices of its image
    /// volumes.
    async fn unmount_container(self: &Arc<Self>, record: &ContainerRecord) -> Result<Vec<usize>> {
        let (pod, id, cgroup) = (record.pod.clone(), record.id.clone(), record.cgroup.clone());
        let mut volumes: Vec<usize> = record.volumes.keys().copied().collect();
        let runtime = Arc::clone(self);
        blocking("container", move || {
            let Self { layout, cgroups, .. } = runtime.as_ref();
            if cgroups.exists(&cgroup) {
                cgroups.kill(&cgroup)?;
                cgroups.remove(&cgroup)?;
            }
            let snapshots = runtime.images.snapshots();
            let place = Place { layout, snapshots: snapshots.as_ref(), pod: &pod, container: &id };
            volumes.extend(place.unmount()?);
            snapshots.unmount(&layout.rootfs(&pod, &id)).map_err(Error::doing("container root"))?;
            remove_tree(&layout.bundle(&pod, &id))?;
            Ok(volumes)
        })
        .await
    }

    /// Deletes what the state directory has of a container that is gone.
    pub(super) async fn delete_container_files(
        self: &Arc<Self>,
        pod: &PodId,
        id: &ContainerId,
        volumes: &[usize],
    ) -> Result<()> {
        let (runtime, pod, id, volumes) = (Arc::clone(self), pod.clone(), id.clone(), volumes.to_owned());
        blocking("container", move || runtime.delete_files_of(&pod, &id, &volumes)).await
    }

    /// As [`delete_container_files`](Self::delete_container_files), here and now. Blocks.
    pub(super) fn delete_files_of(&self, pod: &PodId, id: &ContainerId, volumes: &[usize]) -> Result<()> {
        self.forget_snapshots(pod, id, volumes)?;
        let _no_writer = self.status_files.lock().expect("no code panics while it holds this");
        remove_recorded(&self.layout.container_record(pod, id))
    }

    fn forget_snapshots(&self, pod: &PodId, id: &ContainerId, volumes: &[usize]) -> Result<()> {
        let snapshots = self.images.snapshots();
        let place = Place { layout: &self.layout, snapshots: snapshots.as_ref(), pod, container: id };
        place.forget(volumes.iter().copied())?;
        snapshots.remove(id.as_str()).map_err(Error::doing("container root"))
    }

    /// Forgets what is kept in memory of a container.
    pub(super) fn forget_container(&self, id: &ContainerId) {
        self.usage.forget(id);
        self.store.forget_container(id);
        self.forget_damage_of_container(id);
    }
}

/// Undoes what a pod that does not run has in the run directory. Blocks.
pub(super) fn clear_run(layout: &Layout, pod: &PodId, snapshots: &dyn Snapshots) -> Result<()> {
    files::unmount_shm(&layout.pod_shm(pod))?;
    drop_strays(layout, pod, snapshots)?;
    remove_tree(&layout.pod_run(pod))
}

/// Undoes containers of the pod that nobody knows, since their records could not be read.
fn drop_strays(layout: &Layout, pod: &PodId, snapshots: &dyn Snapshots) -> Result<()> {
    for name in super::recover::names(&layout.pod_run(pod).join("containers"))? {
        let Ok(id) = ContainerId::parse(&name) else { continue };
        let place = Place { layout, snapshots, pod, container: &id };
        place.forget(place.unmount()?)?;
        snapshots.unmount(&layout.rootfs(pod, &id)).map_err(Error::doing("container root"))?;
        snapshots.remove(id.as_str()).map_err(Error::doing("container root"))?;
    }
    Ok(())
}
