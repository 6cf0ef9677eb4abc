//! Comes back after the daemon was away: reads the records, dials all shims at once, folds what they say
//! into the store, and undoes what is half made. After a reboot there is nobody to ask: what pods of the
//! earlier boot had is given back.
//!
//! A record that cannot be used harms one object, and is reported. What may take long is done in the
//! background: the daemon answers before.

mod blank;
mod boot;
mod healed;
mod left_over;
mod load;
mod orphans;
mod shims;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::{StreamExt, stream::FuturesUnordered};
use podhold_sandbox::{PodId, launch::LaunchError, record};
use tokio::time::timeout;
use tracing::{error, info, warn};

pub(super) use self::boot::Boot;
pub(crate) use self::left_over::lost_cgroups;
use super::{Runtime, blocking, flight::guarded};
use crate::{
    error::{Error, Result},
    state::{Container, ContainerEvent, ContainerPhase, ContainerStatusRecord, Hidden, PodEvent, PodPhase},
};

/// When no shim has answered for so long, those that have not are waited for in the background.
const LULL: Duration = Duration::from_secs(2);

impl Runtime {
    /// Finds what an earlier daemon left.
    pub(super) async fn recover(self: &Arc<Self>) -> Result<()> {
        let names = names(&self.layout.pods_state())?;
        let pods = self.side_by_side("records", names, |runtime, name| runtime.load_pod(&name)).await?;
        self.report_lost()?;
        let known = self::names(&self.layout.pods_state())?;
        let is_known = move |beginning: &str| known.iter().any(|name| name.starts_with(beginning));
        for damaged in self.networks.recover(is_known).await {
            self.report_damage(damaged.path, crate::error::chain(&damaged.error), Hidden::Nothing);
        }
        for (path, reason) in self.images.damaged() {
            self.report_damage(path, reason, Hidden::Nothing);
        }
        let count = pods.len();
        let earlier: Vec<PodId> = pods.iter().filter(|id| self.is_released(id)).cloned().collect();
        self.recover_pods(pods).await;
        let runtime = Arc::clone(self);
        let orphans = blocking("orphans", move || Ok(runtime.orphans())).await?;
        self.clean_up(earlier, orphans);
        if count > 0 {
            info!(pods = count, "recovered");
        }
        Ok(())
    }

    /// Asks all shims at once. One that is there and does not answer holds up nobody: when no other has
    /// answered for a while, it goes on being asked in the background.
    async fn recover_pods(self: &Arc<Self>, pods: Vec<PodId>) {
        let recover = |id| {
            let runtime = Arc::clone(self);
            tokio::spawn(async move { runtime.recover_pod(id).await })
        };
        let mut asked: FuturesUnordered<_> = pods.into_iter().map(recover).collect();
        while let Ok(next) = timeout(LULL, asked.next()).await {
            if next.is_none() {
                return;
            }
        }
        warn!(pods = asked.len(), "their shims do not answer yet; serving without them");
    }

    /// Asks the pod's shim for the truth.
    async fn recover_pod(self: &Arc<Self>, id: PodId) {
        let Some(pod) = self.store.pod(&id) else { return };
        if pod.phase == PodPhase::Creating {
            self.undo_half_made(id);
            return;
        }
        let asked = match self.is_of_earlier_boot(&pod.record) {
            true => Err(LaunchError::Gone { pod: id.clone() }),
            false => self.ask_shim(&id).await,
        };
        match asked {
            Ok(true) => {}
            // Asked again if whoever stops it fails.
            Ok(false) => self.keep_asking(id),
            Err(LaunchError::Gone { .. }) => {
                info!(pod = %id, "pod does not run");
                let runtime = Arc::clone(self);
                let folded = blocking("exits", move || {
                    runtime.fold_dead(&id);
                    Ok(())
                });
                if let Err(error) = folded.await {
                    error!(%error, "exits not read");
                }
            }
            Err(reason) => {
                warn!(pod = %id, reason = %reason, "shim does not answer; asked again in the background");
                self.still_waits(&id, reason.to_string());
                self.keep_asking(id);
            }
        }
    }

    /// Undoes a pod whose making was cut short. Whoever asks for the same pod meanwhile joins, and is told
    /// to ask again.
    fn undo_half_made(self: &Arc<Self>, id: PodId) {
        warn!(pod = %id, "was half made; undone");
        let (runtime, key) = (Arc::clone(self), id.clone());
        // Under way before anybody is served: a request would otherwise go on with what is half made.
        let _nobody_waits = self.under_way.run.take_off(id, || async move {
            match guarded(runtime.teardown_pod(&key)).await {
                Ok(()) => runtime.store.forget_pod(&key),
                Err(reason) => {
                    error!(pod = %key, error = %reason, "not undone; remove it");
                    runtime.store.pod_event(&key, PodEvent::RunFailed);
                    runtime.undone.half_made_pod(&key, &reason);
                }
            }
            Err(Error::Precondition(format!("pod {key} was half made and is undone; ask again")))
        });
    }

    /// A pod that does not run: how its containers ended is on disk, or nobody knows. Blocks.
    pub(super) fn fold_dead(self: &Arc<Self>, id: &PodId) {
        if self.store.pod(id).is_some_and(|pod| self.is_of_earlier_boot(&pod.record)) {
            return self.fold_rebooted(id);
        }
        self.store.pod_is_unheld(id);
        self.fold_unstarted(id);
        self.end_unheld_in_background(id, "the host or its shim ended while nobody looked".to_owned());
    }

    fn fold_rebooted(self: &Arc<Self>, id: &PodId) {
        for container in self.unknown_containers(id) {
            let (started, started_at) = self.start_kept(&container);
            let when = if started { "since it was started" } else { "before it was known to be started" };
            self.commit_recorded_exit(&container, started_at, &format!("the host was rebooted {when}"));
        }
    }

    /// Containers of a pod that does not run are as they were created, where no trace of a start is left.
    /// Blocks.
    pub(in crate::runtime) fn fold_unstarted(&self, id: &PodId) {
        for container in self.unknown_containers(id) {
            if !self.start_kept(&container).0
                && !self.left_traces(&container)
                && !self.cgroups.exists(&container.record.cgroup)
            {
                self.store.container_event(&container.record.id, ContainerEvent::NeverStarted);
            }
        }
    }

    fn unknown_containers(&self, id: &PodId) -> impl Iterator<Item = Container> + use<> {
        self.store
            .containers_of(id)
            .into_iter()
            .filter(|container| matches!(container.phase, ContainerPhase::Unknown { .. }))
    }

    /// Whether and when a container was started, as far as a daemon has lived to write that down.
    pub(super) fn start_kept(&self, container: &Container) -> (bool, Option<SystemTime>) {
        let path = self.layout.container_status(&container.record.pod, &container.record.id);
        match record::read::<ContainerStatusRecord>(&path) {
            Ok(status) => (status.started_at.is_some(), status.started_at),
            Err(error) if error.is_missing() => (false, None),
            // One that may have run is not said to be new.
            Err(_) => (true, None),
        }
    }

    /// Whether its bundle is not as it was created: it has ended, or was being removed.
    pub(super) fn left_traces(&self, container: &Container) -> bool {
        let (pod, id) = (&container.record.pod, &container.record.id);
        let is_there = |path: PathBuf| path.symlink_metadata().is_ok();
        is_there(self.layout.exit_record(pod, id)) || !is_there(self.layout.bundle(pod, id))
    }
}

/// Names in a directory. A missing directory is empty.
pub(super) fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::failed(format!("reading {}", dir.display()), &error)),
    };
    Ok(entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect())
}
