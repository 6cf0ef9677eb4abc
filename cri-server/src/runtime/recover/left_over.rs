//! What pods that are gone have left, for whoever asks to have it removed: the run directory, addresses, cgroups.
//!
//! Invariant: only what has the name of a pod of ours and no directory in the state directory goes. A cgroup
//! parent may be shared with others, also with another Podhold: a cgroup has to have a name as long as our ids
//! are, and one in which processes live is ours only where our run directory knows the pod.

use std::{collections::BTreeSet, fs, path::Path, sync::Arc};

use podhold_cgroups::{CgroupPath, Cgroups, Place, pod_of_scope};
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
    /// shim lives is not gone, though its records are. `others` are directories of others that may have pods
    /// beneath the same cgroup.
    pub async fn sweep(self: &Arc<Self>, others: &[Layout]) -> Result<()> {
        let mut alive = BTreeSet::new();
        // Before the traces go by which they are known.
        let (runtime, others) = (Arc::clone(self), others.to_vec());
        let cgroups = blocking("cgroup", move || {
            lost_cgroups(&runtime.cgroups, &runtime.cgroup_parent, &runtime.layout, &others)
        });
        let lost = cgroups.await?;
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
            for pod in lost.difference(&alive) {
                info!(%pod, "cgroup left over; removed");
                let lost = cgroups.driver().pod(Place::Beneath(parent), pod.as_str());
                if let Some(scope) = lost.scope() {
                    cgroups.end_scope(&scope)?;
                    continue;
                }
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

/// The pods that have a cgroup in any hierarchy and nothing in our state directory or that of `others`. A cgroup
/// with processes is somebody else's, unless our run directory knows the pod.
pub(crate) fn lost_cgroups(
    cgroups: &Cgroups,
    parent: &CgroupPath,
    layout: &Layout,
    others: &[Layout],
) -> Result<BTreeSet<PodId>> {
    let hierarchies = cgroups.version_1_directories(parent).into_iter().map(|(_, path)| path);
    let unified = Path::new("/sys/fs/cgroup").join(parent.relative());
    let is_there = |path: &Path| path.symlink_metadata().is_ok();
    let is_kept =
        |pod: &PodId| [layout].into_iter().chain(others).any(|layout| is_there(&layout.pod_state(pod)));
    let leaves_traces = |pod: &PodId| is_there(&layout.pod_run(pod)) || is_there(&layout.netns(pod));
    let (mut lost, mut occupied) = (BTreeSet::new(), BTreeSet::new());
    for place in hierarchies.chain([unified]) {
        for name in names(&place)?.into_iter().filter(|name| place.join(name).is_dir()) {
            let id = pod_of_scope(&name).unwrap_or(&name);
            let Some(pod) = PodId::parse(id).ok().filter(|_| is_id(id)) else { continue };
            if is_kept(&pod) {
                continue;
            }
            if !leaves_traces(&pod) && has_processes(&place.join(&name)) {
                occupied.insert(pod.clone());
            }
            lost.insert(pod);
        }
    }
    Ok(lost.difference(&occupied).cloned().collect())
}

/// Whether processes are in a cgroup or beneath it. What cannot be read has some.
fn has_processes(cgroup: &Path) -> bool {
    let procs = fs::read_to_string(cgroup.join("cgroup.procs"));
    let beneath = fs::read_dir(cgroup).into_iter().flatten().flatten();
    procs.map_or_else(|error| error.kind() != std::io::ErrorKind::NotFound, |procs| !procs.trim().is_empty())
        || beneath.map(|entry| entry.path()).any(|path| path.is_dir() && has_processes(&path))
}

fn is_id(name: &str) -> bool {
    name.len() == ID_LENGTH && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}
