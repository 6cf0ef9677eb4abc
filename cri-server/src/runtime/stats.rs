//! What pods and containers use. Read when asked for, never in the background.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use podhold_cgroups::Stats;
use podhold_sandbox::{
    ContainerId, PodId,
    netns::{self, InterfaceStats},
};
use tracing::debug;

use super::{Runtime, blocking, layers::Layers};
use crate::{
    error::{Error, Result},
    state::{Container, Pod},
};

/// Shortest time over which a CPU rate means something.
const SHORTEST_WINDOW: Duration = Duration::from_millis(100);

/// Fewer objects than this are not worth another thread.
const LEAST_PART: usize = 8;
/// Age up to which the time since its start is the window of an object's first CPU rate.
const YOUNG: Duration = Duration::from_secs(60);
/// The interface that CNI makes first in each pod.
const DEFAULT_INTERFACE: &str = "eth0";

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
    layers: Layers,
}

/// Two points between which a rate was computed.
#[derive(Debug, Clone, Copy)]
struct CpuReading {
    at: Instant,
    usage_ns: u64,
    rate: Option<u64>,
}

impl CpuReading {
    /// Within the shortest window nothing changes, so that many who ask do not spoil it for each other;
    /// an object that is younger has a first rate all the same.
    fn next(self, now: Instant, usage_ns: u64) -> Self {
        let window = now.duration_since(self.at);
        let short = window < SHORTEST_WINDOW;
        if window.is_zero() || (short && self.rate.is_some()) {
            return self;
        }
        let used = u128::from(usage_ns.saturating_sub(self.usage_ns));
        let rate = u64::try_from(used * 1_000_000_000 / window.as_nanos()).ok();
        if short { Self { rate, ..self } } else { Self { at: now, usage_ns, rate } }
    }
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

    /// What the running ones of these containers use, in their order.
    pub async fn containers_usage(self: &Arc<Self>, of: Vec<Container>) -> Result<Vec<ContainerUsage>> {
        self.side_by_side("container statistics", of, Self::read_container).await
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

    /// What the running ones of these pods use, in their order.
    pub async fn pods_usage(self: &Arc<Self>, of: Vec<Pod>) -> Result<Vec<PodUsage>> {
        self.side_by_side("pod statistics", of, Self::read_pod).await
    }

    /// Reads many on several processors: the kernel takes its time for each.
    pub(super) async fn side_by_side<Of: Send + 'static, Usage: Send + 'static>(
        self: &Arc<Self>,
        operation: &'static str,
        of: Vec<Of>,
        read: fn(&Self, Of) -> Option<Usage>,
    ) -> Result<Vec<Usage>> {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let part = of.len().div_ceil(processors).max(LEAST_PART);
        let mut of = of.into_iter();
        let mut parts = Vec::new();
        loop {
            let part: Vec<Of> = of.by_ref().take(part).collect();
            if part.is_empty() {
                break;
            }
            let runtime = Arc::clone(self);
            // Begun here, awaited below.
            parts.push(tokio::spawn(blocking(operation, move || {
                Ok(part.into_iter().filter_map(|one| read(&runtime, one)).collect::<Vec<Usage>>())
            })));
        }
        let mut all = Vec::new();
        for part in parts {
            all.extend(part.await.map_err(Error::doing(operation))??);
        }
        Ok(all)
    }

    /// Bytes and inodes of the writable layers of all containers.
    pub async fn writable_layers(self: &Arc<Self>) -> Result<podhold_image::Usage> {
        let runtime = Arc::clone(self);
        blocking("writable layers", move || {
            let mut sum = podhold_image::Usage::default();
            for container in runtime.store.containers() {
                if let Some(usage) = runtime.layer_usage(&container.record.id) {
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
        let run = container.phase.run()?;
        let id = container.record.id.clone();
        let stats = match self.cgroups.usage(&container.record.cgroup) {
            Ok(stats) => stats,
            Err(error) => {
                debug!(container = %id, %error, "no statistics");
                return None;
            }
        };
        let used = stats.cpu.usage_ns;
        let nano_cores = used.and_then(|usage| self.usage.rate(id.as_str(), usage, run.started_at));
        let layer = self.layer_usage(&id);
        Some(ContainerUsage { container, at: SystemTime::now(), stats, nano_cores, layer })
    }

    /// Blocks. `None` when it does not run (any more).
    fn read_pod(&self, pod: Pod) -> Option<PodUsage> {
        pod.live.as_ref()?;
        let stats = self.cgroups.usage(&pod.record.counting_cgroup()).ok()?;
        let id = pod.record.id.clone();
        let used = stats.cpu.usage_ns;
        let nano_cores = used.and_then(|usage| self.usage.rate(id.as_str(), usage, pod.record.created_at));
        let interfaces = self.interfaces(&pod);
        let containers = self.store.containers_of(&id);
        let containers = containers.into_iter().filter_map(|c| self.read_container(c)).collect();
        let processes = self.cgroups.procs(&pod.record.cgroup).map_or(0, |pids| pids.len() as u64);
        Some(PodUsage { pod, at: SystemTime::now(), stats, nano_cores, interfaces, processes, containers })
    }

    /// The size of a container's writable layer, counted lately. Blocks.
    pub(super) fn layer_usage(&self, id: &ContainerId) -> Option<podhold_image::Usage> {
        let (snapshots, key) = (self.images.snapshots(), id.to_string());
        self.usage.layers.size(id, move || snapshots.usage(&key).ok())
    }

    /// The pod's interfaces but loopback, the one the network made first; none on the host's network.
    pub(super) fn interfaces(&self, pod: &Pod) -> Vec<InterfaceStats> {
        if pod.record.host_network() {
            return Vec::new();
        }
        let pause = pod.live.as_ref().map_or(0, |live| live.pause_pid());
        match netns::interface_stats_of(pause, &self.layout.netns(&pod.record.id)) {
            Ok(mut all) => {
                all.retain(|interface| interface.name != "lo");
                all.sort_by_key(|interface| interface.name != DEFAULT_INTERFACE);
                all
            }
            Err(error) => {
                debug!(pod = %pod.record.id, %error, "no network statistics");
                Vec::new()
            }
        }
    }
}

impl Memory {
    /// The rate since the last reading that is old enough; for a young object's first, since its start.
    fn rate(&self, id: &str, usage_ns: u64, begun: SystemTime) -> Option<u64> {
        let now = Instant::now();
        let mut all = self.cpu.lock().expect("no code panics while it holds the readings");
        let last = match all.get(id) {
            Some(last) => *last,
            None => {
                let age = begun.elapsed().ok().filter(|age| *age < YOUNG);
                let at = age.and_then(|age| now.checked_sub(age)).unwrap_or(now);
                CpuReading { at, usage_ns: if at < now { 0 } else { usage_ns }, rate: None }
            }
        };
        let next = last.next(now, usage_ns);
        all.insert(id.to_owned(), next);
        next.rate
    }

    /// Forgets a container's readings.
    pub(super) fn forget(&self, id: &ContainerId) {
        self.cpu.lock().expect("no code panics while it holds the readings").remove(id.as_str());
        self.layers.forget(id);
    }

    /// Forgets a pod's readings.
    pub(super) fn forget_pod(&self, id: &PodId) {
        self.cpu.lock().expect("no code panics while it holds the readings").remove(id.as_str());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_of_the_time_since_the_last_reading_that_is_old_enough() {
        let memory = Memory::default();
        let begun = SystemTime::now() - Duration::from_secs(10);
        let since_start = memory.rate("young", 5_000_000_000, begun).unwrap();
        assert!((499_000_000..=500_000_000).contains(&since_start), "{since_start}");
        assert_eq!(memory.rate("young", 6_000_000_000, begun), Some(since_start), "asked again at once");
        let long_ago = SystemTime::now() - Duration::from_secs(3600);
        assert_eq!(memory.rate("old", 5_000_000_000, long_ago), None, "nobody knows its last minute");
        let start = Instant::now();
        let first = CpuReading { at: start, usage_ns: 100, rate: None };
        let second = first.next(start + Duration::from_secs(2), 1_000_000_100);
        assert_eq!(second.rate, Some(500_000_000));
        assert_eq!(second.next(start + Duration::from_secs(4), 0).rate, Some(0), "a counter that fell back");
    }
}
