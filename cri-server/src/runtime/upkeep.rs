//! What is looked after while nobody asks: a thread that may block is always there, and what a disk that is
//! full or read-only has left undone is done when it can be.
//!
//! Removing and stopping must not need a disk that can be written: the processes, mounts, cgroups and the
//! network are gone then, the object is forgotten, and its files are on the list here. A daemon that is
//! started before they could be deleted lists the object again, stopped, to be removed again.
//!
//! Tokio's pool of blocking threads shrinks to nothing when idle. At a limit on tasks (pids.max)
//! `spawn_blocking` then panics in its caller; with one thread left it queues. Hence the regular knock.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::Duration,
};

use podhold_sandbox::{ContainerId, PodId};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

use super::Runtime;
use crate::{
    error::{Error, Result},
    exhausted,
};

/// How often; shorter than the time after which tokio lets an idle thread go (10 s).
const EVERY: Duration = Duration::from_secs(4);
/// How long a thread may take to come.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is left to be done on disk.
#[derive(Debug, Default)]
pub(super) struct Undone {
    list: Mutex<List>,
}

#[derive(Debug, Default)]
struct List {
    /// Networks of pods that were stopped.
    networks: BTreeSet<PodId>,
    /// Files of pods that were removed.
    pods: BTreeSet<PodId>,
    /// Files of containers that were removed: their pod, the indices of their image volumes.
    containers: BTreeMap<ContainerId, (PodId, Vec<usize>)>,
    /// Pods whose record says less than is known.
    records: BTreeSet<PodId>,
    /// Containers whose status file says less than is known.
    statuses: BTreeSet<ContainerId>,
    /// Could not be made, and could not be undone then either.
    half_made_pods: BTreeSet<PodId>,
    half_made_containers: BTreeSet<ContainerId>,
    /// What has been said of the above: each is said once.
    said: BTreeSet<String>,
}

impl List {
    fn is_empty(&self) -> bool {
        let Self { networks, pods, containers, records, statuses, .. } = self;
        let pods_done = networks.is_empty() && pods.is_empty() && records.is_empty();
        let containers_done = containers.is_empty() && statuses.is_empty();
        pods_done && containers_done && self.half_made_pods.is_empty() && self.half_made_containers.is_empty()
    }
}

impl Undone {
    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().expect("no code panics while it holds this")
    }

    /// Puts a pod's network on the list when a disk that is read-only kept it from being taken down.
    pub(super) fn network(&self, pod: &PodId, result: Result<()>) -> Result<()> {
        self.unless(result, exhausted::is_read_only, ("network", pod.as_str()), |list| {
            list.networks.insert(pod.clone());
        })
    }

    /// Puts a pod's files on the list when a disk that is read-only kept them from being deleted.
    pub(super) fn pod(&self, pod: &PodId, result: Result<()>) -> Result<()> {
        self.unless(result, exhausted::is_read_only, ("files of the pod", pod.as_str()), |list| {
            list.pods.insert(pod.clone());
        })
    }

    /// Puts a container's files on the list when a disk that is read-only kept them from being deleted.
    pub(super) fn container(
        &self,
        pod: &PodId,
        id: &ContainerId,
        volumes: &[usize],
        result: Result<()>,
    ) -> Result<()> {
        self.unless(result, exhausted::is_read_only, ("files of the container", id.as_str()), |list| {
            list.containers.insert(id.clone(), (pod.clone(), volumes.to_owned()));
        })
    }

    /// Puts a pod's record on the list when its disk took no change.
    pub(super) fn record(&self, pod: &PodId, result: Result<()>) -> Result<()> {
        self.unless(result, exhausted::is_disk, ("record of the pod", pod.as_str()), |list| {
            list.records.insert(pod.clone());
        })
    }

    /// Puts a container's status file on the list when its disk took no change; false for other troubles.
    pub(super) fn status(&self, id: &ContainerId, words: &str) -> bool {
        let disk = exhausted::is_disk(words);
        if disk {
            self.lock().statuses.insert(id.clone());
        }
        disk
    }

    /// Puts a pod on the list that could be neither made nor undone since something was used up. Nobody was
    /// told its id.
    pub(super) fn half_made_pod(&self, id: &PodId, error: &Error) {
        if exhausted::of(&error.to_string()).is_some() {
            self.lock().half_made_pods.insert(id.clone());
        }
    }

    /// The same for a container.
    pub(super) fn half_made_container(&self, id: &ContainerId, error: &Error) {
        if exhausted::of(&error.to_string()).is_some() {
            self.lock().half_made_containers.insert(id.clone());
        }
    }

    fn unless(
        &self,
        result: Result<()>,
        mine: impl Fn(&str) -> bool,
        (what, id): (&str, &str),
        remember: impl FnOnce(&mut List),
    ) -> Result<()> {
        match result {
            Err(error) if mine(&error.to_string()) => {
                let mut list = self.lock();
                remember(&mut list);
                if list.said.insert(format!("{what} {id}")) {
                    drop(list);
                    warn!(id, %error, "{what} left on disk; done when the disk can be written");
                }
                Ok(())
            }
            other => other,
        }
    }
}

impl Runtime {
    /// Begins to look after things, until the runtime is dropped.
    pub(super) fn look_after(self: &Arc<Self>) {
        let runtime = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut ticks = interval(EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut short = false;
            loop {
                ticks.tick().await;
                if Weak::strong_count(&runtime) == 0 {
                    return;
                }
                // It panics when there is no thread at all and none can be made.
                let come = match std::panic::catch_unwind(|| tokio::task::spawn_blocking(|| ())) {
                    Ok(knock) => timeout(PATIENCE, knock).await.is_ok(),
                    Err(_) => false,
                };
                match (come, short) {
                    (false, false) => warn!(
                        "no thread for work that may block: the limit on tasks (pids.max, TasksMax) or memory \
                         is reached, or all of them wait for disks that hang; calls wait until there is one"
                    ),
                    (true, true) => info!("there are threads for work that may block again"),
                    _ => {}
                }
                short = !come;
                let Some(runtime) = runtime.upgrade().filter(|_| come) else { continue };
                // Why it cannot be kept up is told by Status, and by the next pod.
                let _told_elsewhere = runtime.networks.keep_up().await;
                runtime.catch_up().await;
                runtime.look_again().await;
            }
        });
    }

    /// Tries once what is on the list; what cannot be done is on it again.
    async fn catch_up(self: &Arc<Self>) {
        let list = {
            let mut list = self.undone.lock();
            let said = std::mem::take(&mut list.said);
            let taken = std::mem::take(&mut *list);
            // Kept as long as anything is left.
            list.said = if taken.is_empty() { BTreeSet::new() } else { said };
            taken
        };
        if list.is_empty() {
            return;
        }
        let List { networks, pods, containers, records, statuses, .. } = list;
        for id in list.half_made_containers {
            if let Err(error) = self.remove_container(id.as_str()).await {
                self.undone.half_made_container(&id, &error);
            }
        }
        for id in list.half_made_pods {
            if let Err(error) = self.remove_pod(id.as_str()).await {
                self.undone.half_made_pod(&id, &error);
            }
        }
        for id in statuses {
            self.keep_status(&id);
        }
        for id in records {
            let kept = self.undone.record(&id, self.rewrite_pod_record(&id).await);
            tell(id.as_str(), kept);
        }
        for id in networks {
            let gone = self.networks.del(&id).await.map_err(Error::from);
            tell(id.as_str(), self.undone.network(&id, gone));
        }
        for (id, (pod, volumes)) in containers {
            let cleared = self.delete_container_files(&pod, &id, &volumes).await;
            tell(id.as_str(), self.undone.container(&pod, &id, &volumes, cleared));
        }
        for id in pods {
            let cleared = self.delete_pod_files(&id).await;
            tell(id.as_str(), self.undone.pod(&id, cleared));
        }
    }
}

fn tell(id: &str, result: Result<()>) {
    match result {
        Ok(()) => tracing::debug!(id, "what was left on disk was tried again"),
        Err(error) => warn!(id, %error, "what was left on disk is given up; the next start finds it"),
    }
}
