//! What pods and containers use. Read when asked for, never in the background.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use podhold_cgroups::Stats;
use podhold_sandbox::{
    ContainerId, PodId,
    netns::{self, InterfaceStats},
};
use tracing::debug;

use super::{Runtime, blocking};
use crate::{
    error::{Error, Result},
    state::{Container, Pod},
};

/// Shortest time over which a CPU rate means something.
const SHORTEST_WINDOW: Duration = Duration::from_millis(100);
/// How long the size of a writable layer is believed: counting it walks a directory tree.
const LAYER_AGE: Duration = Duration::from_secs(10);

/// What a container uses.
#[derive(Debug, Clone)]
pub struct ContainerUsage {
    /// The container.
    pub container: Container,
    /// When it was read.
    pub at: SystemTime,
    /// What its cgroup counts.
    pub stats: Stats,
    /// Processor time per second since it was last asked for, in billionths of a core.
    pub nano_cores: Option<u64>,
    /// Bytes and inodes of its writable layer.
    pub layer: Option<podhold_image::Usage>,
}

/// What a pod uses.
#[derive(Debug, Clone)]
pub struct PodUsage {
    /// The pod.
    pub pod: Pod,
    /// When it was read.
    pub at: SystemTime,
    /// What its cgroup counts.
    pub stats: Stats,
    /// Processor time per second since it was last asked for, in billionths of a core.
    pub nano_cores: Option<u64>,
    /// Its network interfaces but loopback; empty on the host's network.
    pub interfaces: Vec<InterfaceStats>,
    /// How many processes run in it.
    pub processes: u64,
    /// Its running containers.
    pub containers: Vec<ContainerUsage>,
}

/// Earlier readings.
#[derive(Debug, Default)]
pub(super) struct Memory {
    cpu: Mutex<HashMap<String, CpuReading>>,
    layers: Mutex<HashMap<ContainerId, (Instant, podhold_image::Usage)>>,
}

/// Two points between which a rate was computed.
#[derive(Debug, Clone, Copy)]
struct CpuReading {
    at: Instant,
    usage_ns: u64,
    rate: Option<u64>,
}

impl Runtime {
    /// What a running container uses.
    pub async fn container_usage(self: &Arc<Self>, id: &str) -> Result<ContainerUsage> {
        let container = self.known_container(id)?;
        let runtime = Arc::clone(self);
        blocking("container statistics", move || {
            let (id, phase) = (container.record.id.clone(), container.phase.name());
            runtime.read_container(container).ok_or_else(|| {
                Error::Precondition(format!("container {id} is {phase}; only a running one uses anything"))
            })
        })
        .await
    }

    /// What the running ones of these containers use.
    pub async fn containers_usage(self: &Arc<Self>, of: Vec<Container>) -> Result<Vec<ContainerUsage>> {
        let runtime = Arc::clone(self);
        blocking("container statistics", move || {
            Ok(of.into_iter().filter_map(|container| runtime.read_container(container)).collect())
        })
        .await
    }

    /// What a pod uses.
    pub async fn pod_usage(self: &Arc<Self>, id: &str) -> Result<PodUsage> {
        let pod = self.known_pod(id)?;
        let runtime = Arc::clone(self);
        blocking("pod statistics", move || {
            let id = pod.record.id.clone();
            runtime
                .read_pod(pod)
                .ok_or_else(|| Error::Precondition(format!("pod {id} is stopped and uses nothing")))
        })
        .await
    }

    /// What the running ones of these pods use.
    pub async fn pods_usage(self: &Arc<Self>, of: Vec<Pod>) -> Result<Vec<PodUsage>> {
        let runtime = Arc::clone(self);
        blocking("pod statistics", move || {
            Ok(of.into_iter().filter_map(|pod| runtime.read_pod(pod)).collect())
        })
        .await
    }

    /// Bytes and inodes of the writable layers of all containers.
    pub async fn writable_layers(self: &Arc<Self>) -> Result<podhold_image::Usage> {
        let runtime = Arc::clone(self);
        blocking("writable layers", move || {
            let snapshots = runtime.images.snapshots();
            let mut sum = podhold_image::Usage::default();
            for container in runtime.store.containers() {
                let id = &container.record.id;
                if let Some(usage) = runtime.usage.layer(id, || snapshots.usage(id.as_str()).ok()) {
                    sum.bytes += usage.bytes;
                    sum.inodes += usage.inodes;
                }
            }
            Ok(sum)
        })
        .await
    }

    /// Blocks. `None` when it does not run (any more).
    fn read_container(&self, container: Container) -> Option<ContainerUsage> {
        container.phase.run()?;
        let id = container.record.id.clone();
        let stats = match self.cgroups.stats(&container.record.cgroup) {
            Ok(stats) => stats,
            Err(error) => {
                debug!(container = %id, %error, "no statistics");
                return None;
            }
        };
        let nano_cores = stats.cpu.usage_ns.and_then(|usage| self.usage.rate(id.as_str(), usage));
        let snapshots = self.images.snapshots();
        let layer = self.usage.layer(&id, || snapshots.usage(id.as_str()).ok());
        Some(ContainerUsage { container, at: SystemTime::now(), stats, nano_cores, layer })
    }

    /// Blocks. `None` when it does not run (any more).
    fn read_pod(&self, pod: Pod) -> Option<PodUsage> {
        pod.live.as_ref()?;
        let stats = self.cgroups.stats(&pod.record.cgroup).ok()?;
        let id = pod.record.id.clone();
        let nano_cores = stats.cpu.usage_ns.and_then(|usage| self.usage.rate(id.as_str(), usage));
        let interfaces = if pod.record.host_network() { Vec::new() } else { self.interfaces(&id) };
        let containers = self.store.containers_of(&id);
        let containers = containers.into_iter().filter_map(|c| self.read_container(c)).collect();
        let processes = self.cgroups.procs(&pod.record.cgroup).map_or(0, |pids| pids.len() as u64);
        Some(PodUsage { pod, at: SystemTime::now(), stats, nano_cores, interfaces, processes, containers })
    }

    fn interfaces(&self, pod: &PodId) -> Vec<InterfaceStats> {
        let path: PathBuf = self.layout.netns(pod);
        match netns::interface_stats(&path) {
            Ok(all) => all.into_iter().filter(|interface| interface.name != "lo").collect(),
            Err(error) => {
                debug!(pod = %pod, %error, "no network statistics");
                Vec::new()
            }
        }
    }
}

impl Memory {
    /// The rate since the last reading that is old enough.
    fn rate(&self, id: &str, usage_ns: u64) -> Option<u64> {
        let now = Instant::now();
        let mut all = self.cpu.lock().expect("no code panics while it holds the readings");
        let Some(last) = all.get_mut(id) else {
            all.insert(id.to_owned(), CpuReading { at: now, usage_ns, rate: None });
            return None;
        };
        let window = now.duration_since(last.at);
        if window < SHORTEST_WINDOW {
            return last.rate;
        }
        let used = u128::from(usage_ns.saturating_sub(last.usage_ns));
        let rate = u64::try_from(used * 1_000_000_000 / window.as_nanos().max(1)).ok();
        *last = CpuReading { at: now, usage_ns, rate };
        rate
    }

    /// The size of a writable layer, counted anew when the last count is too old.
    fn layer(
        &self,
        id: &ContainerId,
        count: impl FnOnce() -> Option<podhold_image::Usage>,
    ) -> Option<podhold_image::Usage> {
        let known = self.layers.lock().expect("no code panics while it holds the sizes").get(id).copied();
        if let Some((at, usage)) = known
            && at.elapsed() < LAYER_AGE
        {
            return Some(usage);
        }
        let usage = count()?;
        self.layers
            .lock()
            .expect("no code panics while it holds the sizes")
            .insert(id.clone(), (Instant::now(), usage));
        Some(usage)
    }

    /// Forgets a container's readings.
    pub(super) fn forget(&self, id: &ContainerId) {
        self.cpu.lock().expect("no code panics while it holds the readings").remove(id.as_str());
        self.layers.lock().expect("no code panics while it holds the sizes").remove(id);
    }

    /// Forgets a pod's readings.
    pub(super) fn forget_pod(&self, id: &PodId) {
        self.cpu.lock().expect("no code panics while it holds the readings").remove(id.as_str());
    }
}
