//! Looks again at what could not be used: what was put back is taken up as if the daemon had just started, and
//! what is gone is forgotten.

use std::{sync::Arc, time::Duration};

use podhold_sandbox::{
    ContainerId, PodId,
    launch::Exit,
    record::{self, RecordError},
};
use tokio::time::timeout;
use tracing::{info, warn};

use super::load::check_directory;
use crate::{
    error::Result,
    runtime::{Runtime, blocking},
    state::{ContainerStatusRecord, Damage, Hidden},
};

/// How long who asks waits for the shim of a pod that was taken up.
const PATIENCE: Duration = Duration::from_secs(2);

impl Runtime {
    /// Looks again at everything that is damaged. Costs nothing when nothing is.
    pub async fn look_again(self: &Arc<Self>) {
        if self.store.damaged().is_empty() {
            return;
        }
        // What is taken up is taken up wholly, whether who asks stays or goes away.
        let runtime = Arc::clone(self);
        if let Err(error) = tokio::spawn(async move { runtime.look_at_damaged().await }).await {
            warn!(%error, "what is damaged was not looked at again");
        }
    }

    async fn look_at_damaged(self: &Arc<Self>) {
        let _turn = self.looking.lock().await;
        // While one of them is removed, all are as they were last found.
        let Ok(_nobody_removes) = self.healing.try_lock() else { return };
        let networks: Vec<_> = self.cni.damaged().await.into_iter().map(|(pod, _)| pod).collect();
        for damage in self.store.damaged() {
            let done = match damage.hides.clone() {
                Hidden::Pod(id) => self.take_up_pod(id).await,
                Hidden::Container(pod, id) => self.take_up_container(pod, id).await,
                // Archives are looked at when a daemon starts.
                Hidden::Archive => Ok(()),
                Hidden::Nothing => {
                    let networks = networks.clone();
                    self.forget_healed(damage.clone(), networks).await
                }
            };
            if let Err(error) = done {
                warn!(path = %damage.path.display(), %error, "not looked at again");
            }
        }
    }

    async fn take_up_pod(self: &Arc<Self>, id: PodId) -> Result<()> {
        let (runtime, key) = (Arc::clone(self), id.clone());
        let loaded = blocking("damaged pod", move || {
            let places = [runtime.layout.pod_state(&key), runtime.layout.pod_run(&key)];
            let gone = places.iter().all(|place| place.symlink_metadata().is_err());
            if gone || matches!(runtime.read_pod_record(&key), Ok(Some(_))) {
                // Its network's record may be damaged still, and is looked at by itself.
                runtime.forget_damage_beneath(&key);
                return Ok(!gone && runtime.load_pod(key.as_str()).is_some());
            }
            Ok(false)
        });
        if !loaded.await? {
            return Ok(());
        }
        info!(pod = %id, "it was damaged and can be used again");
        let runtime = Arc::clone(self);
        let known = tokio::spawn(async move {
            if runtime.is_released(&id) {
                runtime.recover_pod(id.clone()).await;
                runtime.release(id).await;
            } else {
                runtime.recover_pod(id).await;
            }
        });
        let _in_time = timeout(PATIENCE, known).await;
        Ok(())
    }

    async fn take_up_container(self: &Arc<Self>, pod: PodId, id: ContainerId) -> Result<()> {
        // Of a damaged pod it comes back with that.
        if self.store.pod(&pod).is_none() {
            return Ok(());
        }
        let (runtime, owner, key) = (Arc::clone(self), pod.clone(), id.clone());
        let loaded = blocking("damaged container", move || {
            let places = [runtime.layout.container_state(&owner, &key), runtime.layout.bundle(&owner, &key)];
            let gone = places.iter().all(|place| place.symlink_metadata().is_err());
            // Nothing is found through a directory that cannot be used itself.
            let all = runtime.layout.pod_state(&owner).join("containers");
            let entered = all.symlink_metadata().is_err() || check_directory(all).is_ok();
            let loads = || {
                matches!(runtime.is_in_its_place(&owner, &key), Ok(true))
                    && runtime.load_container(&owner, &key).is_ok()
            };
            if !entered || (!gone && !loads()) {
                return Ok(false);
            }
            runtime.forget_damage_of_container(&key);
            Ok(!gone)
        });
        if !loaded.await? {
            return Ok(());
        }
        info!(container = %id, "it was damaged and can be used again");
        let Some(container) = self.store.container(&id) else { return Ok(()) };
        let settled = self.store.pod(&pod).filter(|pod| pod.wait.is_none() || pod.ended);
        let Some(now) = settled else { return Ok(()) };
        let Some(live) = now.live else {
            // What was ended with the shim was what was known of the pod: this was not.
            let why = "its shim was gone when its record was put back";
            return self.end_unattended_container(&container, why).await;
        };
        if let Err(reason) = self.fold_one(live.as_ref(), container).await {
            warn!(container = %id, %reason, "not known whether it runs; asked again in the background");
            self.ask_for_container(id);
        }
        Ok(())
    }

    /// Forgets damages that hid nothing, once they are no more.
    async fn forget_healed(self: &Arc<Self>, damage: Damage, networks: Vec<PodId>) -> Result<()> {
        let runtime = Arc::clone(self);
        blocking("damaged file", move || {
            let (kind, id) = damage.object();
            let is_read = |error: Option<RecordError>| error.is_none_or(|error| error.is_missing());
            let healed = match (kind, damage.path.file_name().and_then(|name| name.to_str())) {
                ("network", _) => networks.iter().all(|pod| pod.as_str() != id),
                ("container", Some("status.json")) => {
                    is_read(record::read::<ContainerStatusRecord>(&damage.path).err())
                }
                ("container", Some("exit.json")) => is_read(record::read::<Exit>(&damage.path).err()),
                ("container" | "pod", _) => damage.path.symlink_metadata().is_err(),
                // Those of the whole host are read when a daemon starts.
                _ => false,
            };
            if healed {
                runtime.store.forget_damaged(|known| *known == damage);
            }
            Ok(())
        })
        .await
    }
}
