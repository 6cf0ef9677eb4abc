//! What belongs to nobody, since the daemon ended while it was made or its record was lost.

use std::{collections::HashSet, sync::Arc};

use podhold_sandbox::{ContainerId, PodId};
use tokio::task::JoinSet;
use tracing::{error, warn};

use super::names;
use crate::runtime::{Runtime, damaged::container_names, volumes};

impl Runtime {
    /// Takes down the networks of pods whose records were lost; after a reboot also of those whose records
    /// are damaged, since they do not run.
    pub(super) async fn give_back_addresses(self: &Arc<Self>) {
        let lost = self.cni.cached().into_iter().filter(|pod| {
            let damaged = self.store.pod(pod).is_none() && self.damage_of_pod(pod.as_str()).is_some();
            let lost = self.layout.pod_state(pod).symlink_metadata().is_err();
            // One that is damaged may run, unless the host was rebooted.
            if damaged { self.boot.rebooted } else { lost }
        });
        let mut given_back = JoinSet::new();
        for pod in lost {
            let runtime = Arc::clone(self);
            given_back.spawn(async move {
                warn!(%pod, "has a network and no record; its network is taken down");
                if let Err(error) = runtime.cni.del(&pod).await {
                    warn!(%pod, %error, "network not taken down");
                }
            });
        }
        given_back.join_all().await;
    }

    /// The snapshots of no container, left by a create that was cut short. Blocks.
    pub(super) fn orphans(&self) -> Vec<String> {
        // By directory, not by record: a container whose record cannot be used may still run.
        let places = [self.layout.pods_state(), self.layout.pods_run()];
        let names = places.iter().flat_map(|place| names(place).unwrap_or_default());
        let pods: HashSet<PodId> = names.filter_map(|name| PodId::parse(&name).ok()).collect();
        // Of a damaged pod not even the directories may be where they were.
        let containers_of = |pod: &PodId| container_names(&self.layout, pod);
        let known: HashSet<ContainerId> = pods.iter().flat_map(containers_of).collect();
        let mut keys = self.images.snapshots().keys();
        keys.retain(|key| {
            let owner = ContainerId::parse(key).ok().or_else(|| volumes::owner(key));
            owner.is_some_and(|id| !known.contains(&id))
        });
        keys
    }

    /// Undoes snapshots that are nobody's.
    pub(super) async fn drop_orphans(self: &Arc<Self>, keys: Vec<String>) {
        let snapshots = self.images.snapshots();
        let layout = self.layout.clone();
        let dropped = tokio::task::spawn_blocking(move || {
            let names = names(&layout.pods_state()).unwrap_or_default();
            let pods: Vec<PodId> = names.iter().filter_map(|name| PodId::parse(name).ok()).collect();
            for key in keys {
                let Some(id) = ContainerId::parse(&key).ok().or_else(|| volumes::owner(&key)) else {
                    continue;
                };
                warn!(container = %key, "belongs to no container; undone");
                let index = key.split_once('.').map(|(_, index)| index.to_owned());
                let place = |pod: &PodId| match &index {
                    Some(index) => layout.volumes(pod, &id).join(index),
                    None => layout.rootfs(pod, &id),
                };
                let mounted = pods.iter().map(place).find(|place| place.exists());
                if let Some(Err(error)) = mounted.map(|mounted| snapshots.unmount(&mounted)) {
                    warn!(container = %key, %error, "root filesystem not unmounted");
                    continue;
                }
                if let Err(error) = snapshots.remove(&key) {
                    warn!(container = %key, %error, "root filesystem not removed");
                }
            }
        });
        // A command that has what it wants ends before; the next start undoes them.
        if let Err(error) = dropped.await
            && !error.is_cancelled()
        {
            error!(%error, "orphans not undone");
        }
    }
}
