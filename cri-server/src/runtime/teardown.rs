//! Undoes a pod or a container, whatever of it there is. Idempotent: it serves a failed start, Remove and
//! recovery alike, because every name derives from the id.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use podhold_cgroups::CgroupPath;
use podhold_image::Snapshots;
use podhold_sandbox::{ContainerId, Layout, PodId, netns};
use rustix::{
    fs::{Dir, Mode, OFlags, ResolveFlags},
    io::Errno,
};
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
        if let Ok(open) = self.launcher.reopen_pod(&record.id).await
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
        let record = pod.record;
        self.halt_pod(&record).await?;
        let owned = self.cgroups_to_remove(&record).await?;
        let layout = self.layout.clone();
        let cgroups = self.cgroups.clone();
        let snapshots = self.images.snapshots();
        let own = self.cgroup_parent.child(id.as_str());
        blocking("pod", move || {
            files::unmount_shm(&layout.pod_shm(&record.id))?;
            drop_strays(&layout, &record.id, snapshots.as_ref())?;
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
            remove_tree(&layout.pod_run(&record.id))?;
            remove_tree(&layout.pod_state(&record.id))
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
        let layout = self.layout.clone();
        let cgroups = self.cgroups.clone();
        let snapshots = self.images.snapshots();
        let cgroup = record.cgroup.clone();
        let volumes: Vec<usize> = record.volumes.keys().copied().collect();
        let runtime = Arc::clone(self);
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
            remove_tree(&layout.bundle(&pod, &id))?;
            let _no_writer = runtime.status_files.lock().expect("no code panics while it holds this");
            remove_tree(&layout.container_state(&pod, &id))
        })
        .await
    }

    /// Forgets what is kept in memory of a container.
    pub(super) fn forget_container(&self, id: &ContainerId) {
        self.usage.forget(id);
        self.store.forget_container(id);
    }
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
/// a mount, beneath which other people's files are: one that is met keeps everything.
fn remove_tree(path: &Path) -> Result<()> {
    let looking = || format!("looking through {}", path.display());
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::failed(looking(), &Errno::INVAL));
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mount = match rustix::fs::open(parent, flags, Mode::empty()) {
        Ok(parent) => first_mount(parent.as_fd(), Path::new(name)).map_err(Error::doing(looking()))?,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(Error::failed(looking(), &error)),
    };
    if let Some(mount) = mount {
        let mount = parent.join(mount);
        let (path, mount) = (path.display(), mount.display());
        return Err(Error::Precondition(format!("{path} cannot be removed: {mount} is still mounted")));
    }
    match std::fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::failed(format!("removing {}", path.display()), &error)),
    }
}

/// A mount point at `name` in `parent` or beneath it. Found by walking our few directories: the table of
/// mounts grows with every pod.
fn first_mount(parent: BorrowedFd<'_>, name: &Path) -> std::result::Result<Option<PathBuf>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    let here = match rustix::fs::openat2(parent, name, flags, Mode::empty(), inside) {
        Ok(here) => here,
        Err(Errno::XDEV) => return Ok(Some(name.to_owned())),
        // Nothing is beneath a file or a link.
        Err(Errno::NOTDIR | Errno::LOOP | Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    for entry in Dir::read_from(&here)? {
        let entry = entry?;
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        let child = Path::new(OsStr::from_bytes(entry.file_name().to_bytes()));
        if let Some(mount) = first_mount(here.as_fd(), child)? {
            return Ok(Some(name.join(mount)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_with_a_mount_is_kept_whole_and_one_without_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        std::fs::write(tree.join("a/file"), "x").unwrap();
        std::os::unix::fs::symlink("/proc", tree.join("a/link")).unwrap();
        remove_tree(&tree.join("missing/tree")).unwrap();
        if rustix::process::geteuid().is_root() {
            let at = tree.join("a/b");
            let none = rustix::mount::MountFlags::empty();
            rustix::mount::mount("tmpfs", &at, "tmpfs", none, None).unwrap();
            std::fs::write(at.join("foreign"), "x").unwrap();
            let refused = remove_tree(&tree).map_err(|error| error.to_string());
            let whole = at.join("foreign").exists() && tree.join("a/file").exists();
            let beneath = remove_tree(&at);
            rustix::mount::unmount(&at, rustix::mount::UnmountFlags::DETACH).unwrap();
            assert!(refused.is_err_and(|why| why.contains(&format!("{} is still mounted", at.display()))));
            assert!(whole && beneath.is_err());
        } else {
            println!("SKIPPED: mounting needs root");
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }
}
