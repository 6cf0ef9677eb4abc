//! Undoes a pod or a container, whatever of it there is. Idempotent: it serves a failed start, Remove and
//! recovery alike, because every name derives from the id.

use std::{path::Path, sync::Arc};

use podhold_cgroups::CgroupPath;
use podhold_image::Snapshots;
use podhold_sandbox::{ContainerId, Layout, PodId, netns};
use tracing::warn;

use super::{Runtime, blocking, files, volumes::Place};
use crate::{
    error::{Error, Result},
    state::{ContainerRecord, PodRecord},
};

impl Runtime {
    /// Ends the pod's processes and takes down its network. What is on disk stays.
    pub(super) async fn halt_pod(self: &Arc<Self>, record: &PodRecord) -> Result<()> {
        let id = &record.id;
        // Taken away first: the end of the shim is then no news to whoever watches it.
        let live = self.store.change_pod(id, |pod| pod.live.take()).flatten();
        let network = async { self.cni.del(id).await.map_err(Error::from) };
        let processes = async {
            match live {
                Some(live) => live.close().await.map_err(Error::from),
                None => self.kill_leftovers(record).await,
            }
        };
        let (network, processes) = tokio::join!(network, processes);
        if let Err(error) = processes {
            warn!(pod = %id, %error, "shim not closed; its processes are killed");
            self.kill_leftovers(record).await?;
        }
        network?;
        let path = self.layout.netns(id);
        blocking("network namespace", move || netns::remove(&path).map_err(Error::doing("network namespace")))
            .await
    }

    /// Ends whatever runs in the pod's own cgroups, and a shim that cannot be talked to.
    async fn kill_leftovers(&self, record: &PodRecord) -> Result<()> {
        if !self.is_of_earlier_boot(record)
            && let Ok(open) = self.launcher.reopen_pod(&record.id).await
            && let Err(error) = open.pod.close().await
        {
            warn!(pod = %record.id, %error, "shim not closed");
        }
        let cgroups = self.cgroups.clone();
        let mut leaves = vec![record.pause_cgroup()];
        leaves.extend(self.store.containers_of(&record.id).iter().map(|c| c.record.cgroup.clone()));
        blocking("pod processes", move || {
            for leaf in leaves.iter().filter(|leaf| cgroups.exists(leaf)) {
                cgroups.kill(leaf)?;
            }
            Ok(())
        })
        .await
    }

    /// Undoes the pod wholly. Its containers must have been undone before.
    pub(super) async fn teardown_pod(self: &Arc<Self>, id: &PodId) -> Result<()> {
        let Some(pod) = self.store.pod(id) else { return Ok(()) };
        self.halt_pod(&pod.record).await?;
        self.clear_pod(&pod.record).await?;
        let path = self.layout.pod_state(id);
        blocking("pod", move || remove_tree(&path)).await
    }

    /// Undoes all of a halted pod but what its record and its files are.
    pub(super) async fn clear_pod(self: &Arc<Self>, record: &PodRecord) -> Result<()> {
        let record = record.clone();
        let owned = self.cgroups_to_remove(&record).await?;
        let layout = self.layout.clone();
        let cgroups = self.cgroups.clone();
        let snapshots = self.images.snapshots();
        let own = self.cgroup_parent.child(record.id.as_str());
        blocking("pod", move || {
            clear_run(&layout, &record.id, snapshots.as_ref())?;
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
    /// the same one, that pod inherits them.
    async fn cgroups_to_remove(&self, record: &PodRecord) -> Result<Vec<CgroupPath>> {
        let Some(top) = &record.owned_cgroup else { return Ok(Vec::new()) };
        let pods = self.store.pods();
        let heir = pods.iter().find(|pod| pod.record.id != record.id && pod.record.cgroup == record.cgroup);
        if let Some(heir) = heir {
            let inherited = PodRecord { owned_cgroup: Some(top.clone()), ..(*heir.record).clone() };
            self.keep_pod(&inherited).await?;
            self.store.change_pod(&inherited.id.clone(), |pod| pod.record = Arc::new(inherited));
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

    /// Undoes a container wholly.
    pub(super) async fn teardown_container(self: &Arc<Self>, record: &ContainerRecord) -> Result<()> {
        let (pod, id) = (record.pod.clone(), record.id.clone());
        let live = self.store.pod(&pod).and_then(|pod| pod.live);
        if let Some(live) = live {
            live.delete(&id).await?;
        }
        self.clear_container(record).await?;
        let path = self.layout.container_state(&pod, &id);
        let runtime = Arc::clone(self);
        blocking("container", move || {
            let _no_writer = runtime.status_files.lock().expect("no code panics while it holds this");
            remove_tree(&path)
        })
        .await
    }

    /// Undoes all of a container that no shim has but its record.
    pub(super) async fn clear_container(self: &Arc<Self>, record: &ContainerRecord) -> Result<()> {
        let (pod, id) = (record.pod.clone(), record.id.clone());
        let layout = self.layout.clone();
        let cgroups = self.cgroups.clone();
        let snapshots = self.images.snapshots();
        let cgroup = record.cgroup.clone();
        let volumes: Vec<usize> = record.volumes.keys().copied().collect();
        blocking("container", move || {
            if cgroups.exists(&cgroup) {
                cgroups.kill(&cgroup)?;
                cgroups.remove(&cgroup)?;
            }
            let snapshots = snapshots.as_ref();
            Place { layout: &layout, snapshots, pod: &pod, container: &id }.undo(volumes)?;
            let rootfs = layout.rootfs(&pod, &id);
            snapshots.unmount(&rootfs).map_err(Error::doing("container root"))?;
            snapshots.remove(id.as_str()).map_err(Error::doing("container root"))?;
            remove_tree(&layout.bundle(&pod, &id))
        })
        .await
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
        Place { layout, snapshots, pod, container: &id }.undo([])?;
        snapshots.unmount(&layout.rootfs(pod, &id)).map_err(Error::doing("container root"))?;
        snapshots.remove(id.as_str()).map_err(Error::doing("container root"))?;
    }
    Ok(())
}

/// Removes a directory of ours with all that is in it. Success when it is not there. Never goes through
/// a mount, beneath which other people's files are.
pub(super) fn remove_tree(path: &Path) -> Result<()> {
    let mounts =
        std::fs::read_to_string("/proc/self/mountinfo").map_err(Error::doing("reading the mounts"))?;
    let beneath = |line: &&str| line.split(' ').nth(4).is_some_and(|at| Path::new(at).starts_with(path));
    if let Some(mount) = mounts.lines().find(beneath).and_then(|line| line.split(' ').nth(4)) {
        return Err(Error::Precondition(format!(
            "{} cannot be removed: {mount} is still mounted",
            path.display()
        )));
    }
    let removed = std::fs::remove_dir_all(path).or_else(|error| match error.kind() {
        // Damaged: something else is in its place.
        std::io::ErrorKind::NotADirectory => std::fs::remove_file(path),
        _ => Err(error),
    });
    match removed {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::failed(format!("removing {}", path.display()), &error)),
    }
}
