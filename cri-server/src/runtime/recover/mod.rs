//! Comes back after the daemon was away: reads the records, dials all shims at once, folds what they say
//! into the store, and undoes what is half made. After a reboot there is nobody to ask: what pods of the
//! earlier boot had is given back.
//!
//! A record that cannot be used harms one object, and is reported. What may take long is done in the
//! background: the daemon answers before.

mod boot;
mod load;
mod orphans;
mod shims;

use std::{fs, path::Path, sync::Arc};

use podhold_sandbox::{PodId, launch::LaunchError, record};
use tracing::{error, info, warn};

pub(super) use self::boot::Boot;
use super::{Runtime, blocking};
use crate::{
    error::{Error, Result},
    state::{Container, ContainerEvent, ContainerPhase, ContainerStatusRecord, Hidden, PodEvent, PodPhase},
};

impl Runtime {
    /// Finds what an earlier daemon left.
    pub(super) async fn recover(self: &Arc<Self>) -> Result<()> {
        let runtime = Arc::clone(self);
        let pods = blocking("records", move || runtime.load()).await?;
        for (pod, damage) in self.cni.damaged().await {
            let path = self.layout.cni_cache().join(format!("{pod}.json"));
            self.report_damage(path, crate::error::chain(&damage), Hidden::Nothing);
        }
        for (path, reason) in self.images.damaged() {
            self.report_damage(path, reason, Hidden::Nothing);
        }
        let count = pods.len();
        let earlier: Vec<PodId> = pods.iter().filter(|id| self.is_released(id)).cloned().collect();
        futures::future::join_all(pods.into_iter().map(|id| self.recover_pod(id))).await;
        let runtime = Arc::clone(self);
        let orphans = blocking("orphans", move || Ok(runtime.orphans())).await?;
        self.clean_up(earlier, orphans);
        if count > 0 {
            info!(pods = count, "recovered");
        }
        Ok(())
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
            Ok(()) => {}
            Err(LaunchError::Gone { .. }) => {
                info!(pod = %id, "pod does not run");
                let runtime = Arc::clone(self);
                let folded = blocking("exits", move || {
                    runtime.store.containers_of(&id).into_iter().for_each(|dead| runtime.fold_dead(dead));
                    Ok(())
                });
                if let Err(error) = folded.await {
                    error!(%error, "exits not read");
                }
            }
            Err(reason) => {
                warn!(pod = %id, reason = %reason, "shim does not answer; asked again in the background");
                self.keep_asking(id);
            }
        }
    }

    /// Undoes a pod whose making was cut short. Whoever asks for the same pod meanwhile joins, and is told
    /// to ask again.
    fn undo_half_made(self: &Arc<Self>, id: PodId) {
        warn!(pod = %id, "was half made; undone");
        let runtime = Arc::clone(self);
        tokio::spawn(async move {
            let undoing = Arc::clone(&runtime);
            let key = id.clone();
            let work = || async move {
                match undoing.teardown_pod(&key).await {
                    Ok(()) => undoing.store.forget_pod(&key),
                    Err(reason) => {
                        error!(pod = %key, error = %reason, "not undone; remove it");
                        undoing.store.pod_event(&key, PodEvent::RunFailed);
                    }
                }
                Err(Error::Precondition(format!("pod {key} was half made and is undone; ask again")))
            };
            let _told: Result<()> = runtime.under_way.run.join(id, work).await;
        });
    }

    /// A container that no shim knows: how it ended is on disk, or nobody knows, or it was never started. Blocks.
    pub(super) fn fold_dead(self: &Arc<Self>, container: Container) {
        if container.phase != ContainerPhase::Unknown {
            return;
        }
        let (pod, id) = (&container.record.pod, &container.record.id);
        let status = record::read::<ContainerStatusRecord>(&self.layout.container_status(pod, id));
        let (started, started_at) = match status {
            Ok(status) => (status.started_at.is_some(), status.started_at),
            Err(error) if error.is_missing() => (false, None),
            // One that may have run is not said to be new.
            Err(_) => (true, None),
        };
        let earlier = self.store.pod(pod).is_some_and(|pod| self.is_of_earlier_boot(&pod.record));
        if earlier {
            let when = if started { "since it was started" } else { "before it was known to be started" };
            self.commit_recorded_exit(&container, started_at, &format!("the host was rebooted {when}"));
        } else if started || self.layout.exit_record(pod, id).symlink_metadata().is_ok() {
            self.end_unattended(container, "the host or its shim ended while nobody looked".to_owned());
        } else {
            self.store.container_event(id, ContainerEvent::NeverStarted);
        }
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
