//! Reboots: whether the host was booted anew since a pod was made, and what is given back then.
//!
//! Every pod's record names the boot it was made in. Of an earlier one nothing runs: no shim is dialled,
//! whatever lies in the run directory. Only exit records from there are believed, since a container ends
//! once and its record is written whole or cannot be read.

use std::{collections::BTreeSet, fs, sync::Arc, time::Instant};

use podhold_sandbox::{Layout, PodId, netns, record};
use serde::{Deserialize, Serialize};
use tokio::{sync::Semaphore, task::JoinSet};
use tracing::{info, warn};

use super::{super::teardown, names};
use crate::{
    error::{Error, Result},
    runtime::{Runtime, blocking},
    state::{Hidden, PodPhase, PodRecord},
};

/// Where the kernel says which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// How many pods are given back at once: each runs network plugins.
const AT_ONCE: usize = 8;

/// The boot this daemon lives in.
#[derive(Debug)]
pub(in crate::runtime) struct Boot {
    /// As the kernel names it.
    pub(in crate::runtime) id: String,
    /// Whether the last daemon here lived in another one.
    pub(super) rebooted: bool,
    /// Why that cannot be told.
    damage: Option<String>,
}

/// What is kept of the last boot.
#[derive(Serialize, Deserialize)]
struct BootRecord {
    id: String,
}

impl Boot {
    /// Reads which boot this is and which one the last daemon lived in, and keeps the former. Blocks.
    pub(in crate::runtime) fn of_this_host(layout: &Layout) -> Result<Self> {
        let id = fs::read_to_string(BOOT_ID).map_err(Error::doing(format!("reading {BOOT_ID}")))?;
        let (id, path) = (id.trim().to_owned(), layout.boot_record());
        let (known, damage) = match record::read::<BootRecord>(&path) {
            Ok(record) => (Some(record.id), None),
            Err(error) if error.is_missing() => (None, None),
            Err(error) => (None, Some(crate::error::chain(&error))),
        };
        // Synced before any pod is made: a loss of power must be known for a reboot.
        if known.as_ref() != Some(&id)
            && let Err(error) = record::write_synced(&path, &BootRecord { id: id.clone() })
        {
            warn!(%error, "boot not kept; the next daemon cannot tell a reboot by it");
        }
        let rebooted = known.is_some_and(|known| known != id);
        if rebooted {
            info!(boot = id, "the host was rebooted");
        }
        Ok(Self { id, rebooted, damage })
    }
}

impl Runtime {
    /// Whether a pod was made before the host was booted.
    pub(in crate::runtime) fn is_of_earlier_boot(&self, record: &PodRecord) -> bool {
        match &record.boot {
            Some(boot) => *boot != self.boot.id,
            None => self.boot.rebooted,
        }
    }

    /// Whether a pod is of an earlier boot, and whole: half-made ones are undone.
    pub(super) fn is_released(&self, id: &PodId) -> bool {
        let pod = self.store.pod(id);
        pod.is_some_and(|pod| pod.phase != PodPhase::Creating && self.is_of_earlier_boot(&pod.record))
    }

    /// In the background: gives back what pods of an earlier boot and what is nobody's had.
    pub(super) fn clean_up(self: &Arc<Self>, earlier: Vec<PodId>, orphans: Vec<String>) {
        if let Some(reason) = self.boot.damage.clone() {
            self.report_damage(self.layout.boot_record(), reason, Hidden::Nothing);
        }
        let runtime = Arc::clone(self);
        tokio::spawn(async move {
            let (begun, count) = (Instant::now(), earlier.len());
            tokio::join!(
                runtime.release_all(earlier),
                runtime.give_back_addresses(),
                runtime.drop_orphans(orphans)
            );
            runtime.drop_blank().await;
            if count > 0 {
                let ms = begun.elapsed().as_millis();
                info!(pods = count, ms, "given back what pods of an earlier boot had");
            }
            if runtime.boot.rebooted {
                runtime.sweep_run_directory(BTreeSet::new()).await;
                if let Err(error) = runtime.networks.gc().await {
                    warn!(%error, "network plugins have not collected what is nobody's");
                }
            }
        });
    }

    async fn release_all(self: &Arc<Self>, pods: Vec<PodId>) {
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        let mut releases = JoinSet::new();
        for id in pods {
            let (runtime, turns) = (Arc::clone(self), Arc::clone(&turns));
            releases.spawn(async move {
                let _turn = turns.acquire().await;
                runtime.release(id).await;
            });
        }
        releases.join_all().await;
    }

    /// Gives back what a pod of an earlier boot had; its records stay. Who stops or removes the pod
    /// meanwhile waits for this.
    pub(super) async fn release(self: &Arc<Self>, id: PodId) {
        let (runtime, key) = (Arc::clone(self), id.clone());
        let work = || async move { runtime.give_back(&key).await };
        if let Err(error) = self.under_way.stop_pod.join(id.clone(), work).await {
            warn!(pod = %id, %error, "not all given back after a reboot; stopping or removing it tries again");
        }
    }

    async fn give_back(self: Arc<Self>, id: &PodId) -> Result<()> {
        let halted = Arc::clone(&self).halt(id).await;
        let mut result = halted;
        // Whoever removes it gives all back.
        if self.store.pod(id).is_none_or(|pod| pod.phase == PodPhase::Removing) {
            return result;
        }
        for container in self.store.containers_of(id) {
            let (runtime, key) = (Arc::clone(&self), container.record.id.clone());
            // What its exit record says must be kept before that goes.
            let kept = blocking("container status", move || {
                runtime.write_status(&key).map_err(Error::doing("container status"))
            });
            let cleared = match kept.await {
                Ok(()) => self.clear_container(&container.record).await,
                Err(error) => Err(error),
            };
            result = result.and(cleared);
        }
        let Some(pod) = self.store.pod(id) else { return result };
        let cleared = self.clear_pod(&pod.record).await;
        result.and(cleared)
    }

    /// Removes what an earlier boot left in a run directory that outlives reboots, of pods of which nothing
    /// else is known; not of those that are alive.
    pub(super) async fn sweep_run_directory(self: &Arc<Self>, alive: BTreeSet<PodId>) {
        let (layout, snapshots) = (self.layout.clone(), self.images.snapshots());
        let swept = blocking("run directory", move || {
            let mut found = names(&layout.pods_run())?;
            found.extend(names(&layout.netns_dir())?);
            for pod in found.iter().filter_map(|name| PodId::parse(name).ok()) {
                if alive.contains(&pod) || layout.pod_state(&pod).symlink_metadata().is_ok() {
                    continue;
                }
                info!(%pod, "left in the run directory by an earlier boot; removed");
                netns::remove(&layout.netns(&pod)).map_err(Error::doing("network namespace"))?;
                teardown::clear_run(&layout, &pod, snapshots.as_ref())?;
            }
            Ok(())
        });
        if let Err(error) = swept.await {
            warn!(%error, "run directory not swept");
        }
    }
}
