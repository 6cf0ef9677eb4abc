//! ListMetricDescriptors, ListPodSandboxMetrics and its stream: readings as metrics. Pure but for the call
//! that reads.

use std::time::SystemTime;

use podhold_cgroups::{Pressure, Stats};
use podhold_proto::cri;
use tonic::Status;

use super::{
    Batches, Service,
    families::{self as f, ALL, Family},
    lists::batches,
};
use crate::runtime::{ContainerReading, Disk, PodReading, Reading};

/// The kernel's period of CPU quotas, microseconds.
const DEFAULT_PERIOD: u64 = 100_000;
/// The kernel's CPU weight.
const DEFAULT_SHARES: u64 = 1024;

/// What can be asked for.
pub(super) fn described() -> cri::ListMetricDescriptorsResponse {
    cri::ListMetricDescriptorsResponse { descriptors: ALL.iter().map(Family::descriptor).collect() }
}

impl Service {
    pub(super) async fn list_metrics(&self) -> Result<cri::ListPodSandboxMetricsResponse, Status> {
        let readings = self.runtime.metrics().await?;
        Ok(cri::ListPodSandboxMetricsResponse { pod_metrics: readings.iter().map(of_pod).collect() })
    }

    pub(super) async fn stream_metrics(
        &self,
    ) -> Result<Batches<cri::StreamPodSandboxMetricsResponse>, Status> {
        let readings = self.runtime.metrics().await?;
        Ok(batches(readings.into_iter().map(|pod| of_pod(&pod)), |pod_sandbox_metrics| {
            cri::StreamPodSandboxMetricsResponse { pod_sandbox_metrics }
        }))
    }
}

/// Metrics of one object, in the making.
struct Metrics {
    labels: Vec<String>,
    made: Vec<cri::Metric>,
}

impl Metrics {
    /// Adds a value with the labels that the family has beyond the usual ones; nothing when it is not
    /// known.
    fn with(&mut self, family: &Family, labels: &[&str], value: Option<u64>) {
        let Some(value) = value else { return };
        debug_assert_eq!(family.labels.len(), labels.len(), "{}", family.name);
        let labels = self.labels.iter().cloned().chain(labels.iter().map(|label| (*label).to_owned()));
        self.made.push(cri::Metric {
            name: family.name.to_owned(),
            timestamp: 0,
            metric_type: family.kind.into(),
            label_values: labels.collect(),
            value: Some(cri::UInt64Value { value }),
        });
    }

    fn add(&mut self, family: &Family, value: Option<u64>) {
        self.with(family, &[], value);
    }

    fn cpu(&mut self, reading: &Reading) {
        let cpu = &reading.stats.cpu;
        let seconds = |ns: Option<u64>| ns.map(|ns| ns / 1_000_000_000);
        self.with(&f::CPU_USAGE, &["total"], seconds(cpu.usage_ns));
        self.add(&f::CPU_USER, seconds(reading.details.cpu_user_ns));
        self.add(&f::CPU_SYSTEM, seconds(reading.details.cpu_system_ns));
        self.add(&f::CPU_PERIODS, cpu.periods);
        self.add(&f::CPU_THROTTLED_PERIODS, cpu.throttled_periods);
        self.add(&f::CPU_THROTTLED, seconds(cpu.throttled_ns));
    }

    fn memory(&mut self, reading: &Reading) {
        let memory = &reading.stats.memory;
        for (family, value) in [
            (&f::MEMORY_CACHE, memory.cache),
            (&f::MEMORY_RSS, memory.rss),
            (&f::MEMORY_KERNEL, memory.kernel),
            (&f::MEMORY_MAPPED, memory.mapped_file),
            (&f::MEMORY_ACTIVE_FILE, memory.active_file),
            (&f::MEMORY_INACTIVE_FILE, memory.inactive_file),
            (&f::MEMORY_USAGE, memory.usage),
            (&f::MEMORY_WORKING_SET, memory.working_set),
            (&f::MEMORY_SWAP, reading.stats.swap.usage),
            (&f::MEMORY_MAX, reading.details.memory_peak),
            (&f::MEMORY_FAILCNT, reading.details.memory_limit_hits),
            (&f::OOM_EVENTS, reading.oom_kills),
        ] {
            self.add(family, value);
        }
        for scope in ["container", "hierarchy"] {
            self.with(&f::MEMORY_FAILURES, &["pgfault", scope], memory.page_faults);
            self.with(&f::MEMORY_FAILURES, &["pgmajfault", scope], memory.major_page_faults);
        }
        for huge in &reading.details.hugepages {
            self.with(&f::HUGETLB, &[&huge.page_size], Some(huge.usage));
            self.with(&f::HUGETLB_MAX, &[&huge.page_size], huge.peak);
        }
    }

    fn pressure(&mut self, stats: &Stats) {
        for (pressure, waiting, stalled) in [
            (&stats.cpu.pressure, &f::PSI_CPU_WAITING, &f::PSI_CPU_STALLED),
            (&stats.memory.pressure, &f::PSI_MEMORY_WAITING, &f::PSI_MEMORY_STALLED),
            (&stats.io_pressure, &f::PSI_IO_WAITING, &f::PSI_IO_STALLED),
        ] {
            let seconds = |total: fn(&Pressure) -> u64| pressure.as_ref().map(|p| total(p) / 1_000_000);
            self.add(waiting, seconds(|pressure| pressure.some.total_us));
            self.add(stalled, seconds(|pressure| pressure.full.total_us));
        }
    }

    fn devices(&mut self, reading: &Reading) {
        for io in &reading.details.devices {
            let (major, minor) = (io.major.to_string(), io.minor.to_string());
            let name = reading.device_names.get(&(io.major, io.minor)).map_or("", String::as_str);
            for (operation, bytes) in [("Read", io.read_bytes), ("Write", io.write_bytes)] {
                self.with(&f::BLKIO, &[name, &major, &minor, operation], Some(bytes));
            }
            self.with(&f::FS_READ_BYTES, &[name], Some(io.read_bytes));
            self.with(&f::FS_READS, &[name], Some(io.reads));
            self.with(&f::FS_WRITE_BYTES, &[name], Some(io.write_bytes));
            self.with(&f::FS_WRITES, &[name], Some(io.writes));
        }
    }

    fn tasks(&mut self, reading: &Reading) {
        let pids = &reading.stats.pids;
        self.add(&f::PROCESSES, Some(reading.processes));
        self.add(&f::THREADS, pids.threads);
        self.add(&f::THREADS_MAX, Some(pids.limit.unwrap_or(0)));
    }

    fn times(&mut self, started: Option<SystemTime>) {
        self.add(&f::LAST_SEEN, Some(seconds(SystemTime::now())));
        self.add(&f::START_TIME, started.map(seconds));
    }

    fn disk(&mut self, disk: &Disk, layer: Option<podhold_image::Usage>) {
        let device = disk.device.as_str();
        self.with(&f::FS_INODES, &[device], Some(disk.inodes));
        self.with(&f::FS_INODES_FREE, &[device], Some(disk.inodes_free));
        self.with(&f::FS_LIMIT, &[device], Some(disk.bytes));
        self.with(&f::FS_USAGE, &[device], layer.map(|layer| layer.bytes));
    }

    fn limits(&mut self, limits: &cri::LinuxContainerResources) {
        let set = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
        self.add(&f::SPEC_CPU_PERIOD, Some(set(limits.cpu_period).unwrap_or(DEFAULT_PERIOD)));
        self.add(&f::SPEC_CPU_QUOTA, set(limits.cpu_quota));
        self.add(&f::SPEC_CPU_SHARES, Some(set(limits.cpu_shares).unwrap_or(DEFAULT_SHARES)));
        self.add(&f::SPEC_MEMORY_LIMIT, Some(set(limits.memory_limit_in_bytes).unwrap_or(0)));
        self.add(&f::SPEC_MEMORY_RESERVATION, Some(0));
        self.add(&f::SPEC_MEMORY_SWAP, Some(set(limits.memory_swap_limit_in_bytes).unwrap_or(0)));
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn of_pod(pod: &PodReading) -> cri::PodSandboxMetrics {
    let record = &pod.pod.record;
    let metadata = record.config.metadata.clone().unwrap_or_default();
    let labels = |container: &str, cgroup: &str, image: &str, id: &str| {
        [container, cgroup, image, id, &metadata.namespace, &metadata.name].map(str::to_owned).to_vec()
    };
    let mut metrics = Metrics {
        labels: labels("", record.counting_cgroup().as_str(), "", record.id.as_str()),
        made: Vec::new(),
    };
    metrics.cpu(&pod.reading);
    metrics.memory(&pod.reading);
    metrics.pressure(&pod.reading.stats);
    metrics.tasks(&pod.reading);
    metrics.times(Some(record.created_at));
    for link in &pod.interfaces {
        for (family, value) in [
            (&f::NET_RX_BYTES, link.rx_bytes),
            (&f::NET_RX_ERRORS, link.rx_errors),
            (&f::NET_RX_DROPPED, link.rx_dropped),
            (&f::NET_RX_PACKETS, link.rx_packets),
            (&f::NET_TX_BYTES, link.tx_bytes),
            (&f::NET_TX_ERRORS, link.tx_errors),
            (&f::NET_TX_DROPPED, link.tx_dropped),
            (&f::NET_TX_PACKETS, link.tx_packets),
        ] {
            metrics.with(family, &[&link.name], Some(value));
        }
    }
    let of_container = |reading: &ContainerReading| {
        let record = &reading.container.record;
        let name = record.config.metadata.as_ref().map_or("", |metadata| metadata.name.as_str());
        let image = record.config.image.clone().unwrap_or_default();
        let asked =
            if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image };
        let labels = labels(name, record.cgroup.as_str(), &asked, record.id.as_str());
        cri::ContainerMetrics {
            container_id: record.id.to_string(),
            metrics: of_container(labels, reading, pod.disk.as_ref()),
        }
    };
    cri::PodSandboxMetrics {
        pod_sandbox_id: record.id.to_string(),
        container_metrics: pod.containers.iter().map(of_container).collect(),
        metrics: metrics.made,
    }
}

fn of_container(labels: Vec<String>, of: &ContainerReading, disk: Option<&Disk>) -> Vec<cri::Metric> {
    let mut metrics = Metrics { labels, made: Vec::with_capacity(64) };
    metrics.cpu(&of.reading);
    metrics.memory(&of.reading);
    metrics.pressure(&of.reading.stats);
    metrics.devices(&of.reading);
    metrics.tasks(&of.reading);
    metrics.times(of.container.phase.run().map(|run| run.started_at));
    metrics.limits(&of.container.resources);
    metrics.add(&f::FILE_DESCRIPTORS, Some(of.open.descriptors));
    metrics.add(&f::SOCKETS, Some(of.open.sockets));
    metrics.with(&f::ULIMITS, &["max_open_files"], of.most_open_files);
    if let Some(disk) = disk {
        metrics.disk(disk, of.layer);
    }
    metrics.made
}
