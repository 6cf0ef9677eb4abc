//! What pods that are gone have left, for whoever asks to have it removed: the run directory, addresses, cgroups.
//!
//! Invariant: only what has the name of a pod of ours and no directory in the state directory goes. A cgroup
//! parent may be shared with others, so a cgroup has to have a name as long as our ids are.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use podhold_cgroups::{CgroupPath, Cgroups};
use podhold_sandbox::{Layout, PodId, launch::LaunchError};
use tracing::{info, warn};

use super::names;
use crate::{
    error::Result,
    runtime::{Runtime, blocking},
};

/// Length of the ids that we make.
const ID_LENGTH: usize = 64;

impl Runtime {
    /// Removes what pods that are gone have left, as recovery does after a reboot, and their cgroups. One whose
    /// shim lives is not gone, though its records are.
    pub async fn sweep(self: &Arc<Self>) -> Result<()> {
        let mut alive = BTreeSet::new();
        for pod in self.lost_pods()? {
            match self.launcher.reopen_pod(&pod).await {
                Err(LaunchError::Gone { .. }) => self.remove_damaged_pod(pod.as_str()).await?,
                _ => {
                    warn!(%pod, "its records are gone and its shim lives; left alone, remove it with crictl rmp -f");
                    alive.insert(pod);
                }
            }
        }
        self.give_back_addresses().await;
        self.sweep_run_directory(alive.clone()).await;
        let runtime = Arc::clone(self);
        blocking("cgroup", move || {
            let (cgroups, parent) = (&runtime.cgroups, &runtime.cgroup_parent);
            for pod in lost_cgroups(cgroups, parent, &runtime.layout)?.difference(&alive) {
                info!(%pod, "cgroup left over; removed");
                let lost = parent.child(pod.as_str());
                cgroups.kill(&lost)?;
                cgroups.remove(&lost)?;
            }
            Ok(())
        })
        .await
    }

    /// The pods that have a run directory and nothing in the state directory.
    fn lost_pods(&self) -> Result<Vec<PodId>> {
        let found = names(&self.layout.pods_run())?;
        let pods = found.iter().filter_map(|name| PodId::parse(name).ok());
        Ok(pods.filter(|pod| self.layout.pod_state(pod).symlink_metadata().is_err()).collect())
    }
}

/// The pods that have a cgroup in any hierarchy and nothing in the state directory.
pub(crate) fn lost_cgroups(
    cgroups: &Cgroups,
    parent: &CgroupPath,
    layout: &Layout,
) -> Result<BTreeSet<PodId>> {
    let hierarchies = cgroups.version_1_directories(parent).into_iter().map(|(_, path)| path);
    let unified = Path::new("/sys/fs/cgroup").join(parent.relative());
    let mut lost = BTreeSet::new();
    for place in hierarchies.chain([unified]) {
        let pods = names(&place)?.into_iter().filter(|name| is_id(name) && place.join(name).is_dir());
        let pods = pods.filter_map(|name| PodId::parse(&name).ok());
        lost.extend(pods.filter(|pod| layout.pod_state(pod).symlink_metadata().is_err()));
    }
    Ok(lost)
}

fn is_id(name: &str) -> bool {
    name.len() == ID_LENGTH && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}
