//! What metrics ask for beyond statistics: numbers from cgroups, /proc and the file system of the writable
//! layers. Read when asked for, within bounds.

use std::{collections::HashMap, fs, os::unix::fs::MetadataExt, path::Path, sync::Arc, time::Duration};

use podhold_cgroups::{CgroupPath, Details, Stats};
use podhold_sandbox::netns::InterfaceStats;
use tokio::time::timeout;
use tracing::debug;

use super::{Runtime, blocking};
use crate::{
    error::Result,
    state::{Container, Pod},
};

/// Descriptors whose kind is looked at, for each container: counting sockets reads a link for each.
const MOST_LINKS: usize = 10_000;
/// Processes whose descriptors are counted, for each container.
const MOST_PROCESSES: usize = 10_000;

/// How long the file system of the writable layers may take to tell its size.
const PATIENCE: Duration = Duration::from_secs(1);

/// Numbers of a cgroup.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// As statistics have them.
    pub stats: Stats,
    /// More of them.
    pub details: Details,
    /// Processes killed for want of memory.
    pub oom_kills: Option<u64>,
    /// Processes in it and beneath it.
    pub processes: u64,
    /// `/dev` paths of the devices in `details`.
    pub device_names: HashMap<(u32, u32), String>,
}

/// A container's numbers.
#[derive(Debug)]
pub struct ContainerReading {
    /// The container.
    pub container: Container,
    /// Its cgroup's.
    pub reading: Reading,
    /// What its processes have open.
    pub open: Open,
    /// Soft limit of open files of its first process; `None` when unlimited.
    pub most_open_files: Option<u64>,
    /// Its writable layer.
    pub layer: Option<podhold_image::Usage>,
}

/// A pod's numbers.
#[derive(Debug)]
pub struct PodReading {
    /// The pod.
    pub pod: Pod,
    /// Its cgroup's.
    pub reading: Reading,
    /// Its network interfaces but loopback.
    pub interfaces: Vec<InterfaceStats>,
    /// Its running containers.
    pub containers: Vec<ContainerReading>,
    /// Where writable layers are.
    pub disk: Option<Disk>,
}

/// What processes have open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Open {
    /// File descriptors.
    pub descriptors: u64,
    /// Sockets among them; a lower bound where there are more than 10,000 descriptors.
    pub sockets: u64,
}

/// A file system.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    /// Its device.
    pub device: String,
    /// Its size.
    pub bytes: u64,
    /// Its inodes.
    pub inodes: u64,
    /// Those that are free.
    pub inodes_free: u64,
}

impl Runtime {
    /// The numbers of all pods that run.
    pub async fn metrics(self: &Arc<Self>) -> Result<Vec<PodReading>> {
        let root = self.images.snapshots().root().to_owned();
        // A disk that does not answer is left out, and keeps nobody.
        let found = timeout(PATIENCE, blocking("metrics", move || Ok(disk(&root)))).await;
        let disk = found.unwrap_or(Ok(None))?;
        let pods = self.store.pods().into_iter().map(|pod| (pod, disk.clone())).collect();
        self.side_by_side("metrics", pods, Self::read_pod_metrics).await
    }

    /// Blocks. `None` when it does not run (any more).
    fn read_pod_metrics(&self, (pod, disk): (Pod, Option<Disk>)) -> Option<PodReading> {
        pod.live.as_ref()?;
        let (reading, _) = self.read_cgroup(&pod.record.counting_cgroup())?;
        let interfaces = self.interfaces(&pod);
        let containers = self.store.containers_of(&pod.record.id).into_iter();
        let containers = containers.filter_map(|container| self.read_container_metrics(container)).collect();
        Some(PodReading { pod, reading, interfaces, containers, disk })
    }

    fn read_container_metrics(&self, container: Container) -> Option<ContainerReading> {
        let run = container.phase.run()?;
        let (reading, processes) = self.read_cgroup(&container.record.cgroup)?;
        let layer = self.layer_usage(&container.record.id);
        let most_open_files = most_open_files(run.pid);
        Some(ContainerReading { reading, open: open_by(&processes), most_open_files, layer, container })
    }

    fn read_cgroup(&self, cgroup: &CgroupPath) -> Option<(Reading, Vec<u32>)> {
        let read = || {
            let processes = self.cgroups.procs(cgroup)?;
            let details = self.cgroups.details(cgroup)?;
            let reading = Reading {
                stats: self.cgroups.stats(cgroup)?,
                device_names: details.devices.iter().map(|io| device_name(io.major, io.minor)).collect(),
                details,
                oom_kills: self.cgroups.oom_kills(cgroup).ok(),
                processes: processes.len() as u64,
            };
            Ok::<_, podhold_cgroups::CgroupError>((reading, processes))
        };
        read().inspect_err(|error| debug!(cgroup = %cgroup, %error, "no metrics")).ok()
    }
}

/// The `/dev` path of a block device; its numbers when it has none.
fn device_name(major: u32, minor: u32) -> ((u32, u32), String) {
    let link = fs::read_link(format!("/sys/dev/block/{major}:{minor}"));
    let name = link.ok().and_then(|link| Some(format!("/dev/{}", link.file_name()?.to_str()?)));
    ((major, minor), name.unwrap_or_else(|| format!("{major}:{minor}")))
}

/// What these processes have open. One that ends meanwhile has nothing open.
fn open_by(processes: &[u32]) -> Open {
    let mut open = Open::default();
    let mut links = 0;
    for pid in processes.iter().take(MOST_PROCESSES) {
        let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for entry in entries.flatten() {
            open.descriptors += 1;
            links += 1;
            let socket =
                |target: std::path::PathBuf| target.as_os_str().as_encoded_bytes().starts_with(b"socket:");
            if links <= MOST_LINKS && fs::read_link(entry.path()).is_ok_and(socket) {
                open.sockets += 1;
            }
        }
    }
    open
}

/// The soft limit of open files, from `/proc/PID/limits` (proc(5)).
fn most_open_files(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The file system that holds `path`.
fn disk(path: &Path) -> Option<Disk> {
    let stat = rustix::fs::statvfs(path).ok()?;
    let device = fs::metadata(path).ok()?.dev();
    let numbers = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let source = mounts.lines().find_map(|line| {
        let (place, what) = line.split_once(" - ")?;
        (place.split(' ').nth(2)? == numbers).then(|| what.split(' ').nth(1).map(str::to_owned))?
    });
    Some(Disk {
        device: source.unwrap_or(numbers),
        bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        inodes: stat.f_files,
        inodes_free: stat.f_ffree,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_has_open_is_counted() {
        let me = [std::process::id()];
        let before = open_by(&me);
        let _held = std::os::unix::net::UnixStream::pair().unwrap();
        let after = open_by(&me);
        // Other tests of this process open and close files as well.
        assert!(before.descriptors > 0 && after.sockets >= 2 && after.sockets <= after.descriptors);
        assert!(most_open_files(me[0]).is_none_or(|most| most > 0));
        assert_eq!(open_by(&[0]), Open::default(), "a process that is not there");
        assert!(disk(Path::new("/")).is_some_and(|disk| disk.bytes > 0 && !disk.device.is_empty()));
    }
}
