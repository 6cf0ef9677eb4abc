//! The metrics there are: names, types and labels as cAdvisor has them, so that dashboards and alerts go
//! on to work. Data only.
//!
//! Values of the CRI are whole numbers, so counters named in seconds are in whole seconds.

use podhold_proto::cri::{MetricDescriptor, MetricType};

/// The labels that each metric begins with, as a kubelet with cAdvisor gives them: the container's name
/// (empty for the pod as a whole), its cgroup, its image, its id, and the pod.
pub(super) const BASE: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

/// A metric with all its label values.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) kind: MetricType,
    /// Labels after [`BASE`].
    pub(super) labels: &'static [&'static str],
    help: &'static str,
}

impl Family {
    /// The family as ListMetricDescriptors gives it.
    pub(super) fn descriptor(&self) -> MetricDescriptor {
        let labels = BASE.iter().chain(self.labels);
        MetricDescriptor {
            name: self.name.to_owned(),
            help: self.help.to_owned(),
            label_keys: labels.map(|label| (*label).to_owned()).collect(),
        }
    }
}

macro_rules! families {
    ($($family:ident $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(pub(super) const $family: Family = Family {
            name: $name,
            kind: MetricType::$kind,
            labels: &[$($label),*],
            help: $help,
        };)*
        /// All of them.
        pub(super) const ALL: &[Family] = &[$($family),*];
    };
}

families! {
    BLKIO Counter "container_blkio_device_usage_total" ["device", "major", "minor", "operation"]
        "Bytes moved to and from block devices.";
    CPU_PERIODS Counter "container_cpu_cfs_periods_total" []
        "CPU quota periods that have passed.";
    CPU_THROTTLED_PERIODS Counter "container_cpu_cfs_throttled_periods_total" []
        "CPU quota periods in which the quota was used up.";
    CPU_THROTTLED Counter "container_cpu_cfs_throttled_seconds_total" []
        "Seconds spent waiting for CPU quota.";
    CPU_SYSTEM Counter "container_cpu_system_seconds_total" []
        "Seconds of CPU time used in the kernel.";
    CPU_USAGE Counter "container_cpu_usage_seconds_total" ["cpu"]
        "Seconds of CPU time used, all CPUs together.";
    CPU_USER Counter "container_cpu_user_seconds_total" []
        "Seconds of CPU time used in user mode.";
    FILE_DESCRIPTORS Gauge "container_file_descriptors" []
        "Open file descriptors of all processes.";
    FS_INODES_FREE Gauge "container_fs_inodes_free" ["device"]
        "Free inodes of the file system that holds writable layers.";
    FS_INODES Gauge "container_fs_inodes_total" ["device"]
        "Inodes of the file system that holds writable layers.";
    FS_LIMIT Gauge "container_fs_limit_bytes" ["device"]
        "Size in bytes of the file system that holds writable layers.";
    FS_READ_BYTES Counter "container_fs_reads_bytes_total" ["device"]
        "Bytes read from block devices.";
    FS_READS Counter "container_fs_reads_total" ["device"]
        "Read operations on block devices.";
    FS_USAGE Gauge "container_fs_usage_bytes" ["device"]
        "Bytes taken by the writable layer.";
    FS_WRITE_BYTES Counter "container_fs_writes_bytes_total" ["device"]
        "Bytes written to block devices.";
    FS_WRITES Counter "container_fs_writes_total" ["device"]
        "Write operations on block devices.";
    HUGETLB_MAX Gauge "container_hugetlb_max_usage_bytes" ["pagesize"]
        "The most bytes of huge pages ever in use.";
    HUGETLB Gauge "container_hugetlb_usage_bytes" ["pagesize"]
        "Bytes of huge pages in use.";
    LAST_SEEN Gauge "container_last_seen" []
        "When these values were read, seconds since 1970.";
    MEMORY_CACHE Gauge "container_memory_cache" []
        "Bytes of page cache.";
    MEMORY_FAILCNT Counter "container_memory_failcnt" []
        "How often the memory limit was hit.";
    MEMORY_FAILURES Counter "container_memory_failures_total" ["failure_type", "scope"]
        "Page faults, and those among them that read from disk.";
    MEMORY_KERNEL Gauge "container_memory_kernel_usage" []
        "Bytes of kernel memory.";
    MEMORY_MAPPED Gauge "container_memory_mapped_file" []
        "Bytes of mapped files.";
    MEMORY_MAX Gauge "container_memory_max_usage_bytes" []
        "The most bytes of memory ever in use.";
    MEMORY_RSS Gauge "container_memory_rss" []
        "Bytes of anonymous memory.";
    MEMORY_SWAP Gauge "container_memory_swap" []
        "Bytes of swap in use.";
    MEMORY_ACTIVE_FILE Gauge "container_memory_total_active_file_bytes" []
        "Bytes of page cache used lately.";
    MEMORY_INACTIVE_FILE Gauge "container_memory_total_inactive_file_bytes" []
        "Bytes of page cache not used lately.";
    MEMORY_USAGE Gauge "container_memory_usage_bytes" []
        "Bytes of memory in use, page cache included.";
    MEMORY_WORKING_SET Gauge "container_memory_working_set_bytes" []
        "Bytes of memory in use without the page cache not used lately.";
    NET_RX_BYTES Counter "container_network_receive_bytes_total" ["interface"]
        "Bytes received.";
    NET_RX_ERRORS Counter "container_network_receive_errors_total" ["interface"]
        "Receive errors.";
    NET_RX_DROPPED Counter "container_network_receive_packets_dropped_total" ["interface"]
        "Received packets that were dropped.";
    NET_RX_PACKETS Counter "container_network_receive_packets_total" ["interface"]
        "Packets received.";
    NET_TX_BYTES Counter "container_network_transmit_bytes_total" ["interface"]
        "Bytes sent.";
    NET_TX_ERRORS Counter "container_network_transmit_errors_total" ["interface"]
        "Send errors.";
    NET_TX_DROPPED Counter "container_network_transmit_packets_dropped_total" ["interface"]
        "Packets that were dropped instead of sent.";
    NET_TX_PACKETS Counter "container_network_transmit_packets_total" ["interface"]
        "Packets sent.";
    OOM_EVENTS Counter "container_oom_events_total" []
        "Processes killed for want of memory.";
    PSI_CPU_STALLED Counter "container_pressure_cpu_stalled_seconds_total" []
        "Seconds in which all tasks waited for a CPU.";
    PSI_CPU_WAITING Counter "container_pressure_cpu_waiting_seconds_total" []
        "Seconds in which some task waited for a CPU.";
    PSI_IO_STALLED Counter "container_pressure_io_stalled_seconds_total" []
        "Seconds in which all tasks waited for input or output.";
    PSI_IO_WAITING Counter "container_pressure_io_waiting_seconds_total" []
        "Seconds in which some task waited for input or output.";
    PSI_MEMORY_STALLED Counter "container_pressure_memory_stalled_seconds_total" []
        "Seconds in which all tasks waited for memory.";
    PSI_MEMORY_WAITING Counter "container_pressure_memory_waiting_seconds_total" []
        "Seconds in which some task waited for memory.";
    PROCESSES Gauge "container_processes" []
        "Processes.";
    SOCKETS Gauge "container_sockets" []
        "Open sockets of all processes.";
    SPEC_CPU_PERIOD Gauge "container_spec_cpu_period" []
        "The CPU quota's period in microseconds.";
    SPEC_CPU_QUOTA Gauge "container_spec_cpu_quota" []
        "The CPU quota in microseconds of each period.";
    SPEC_CPU_SHARES Gauge "container_spec_cpu_shares" []
        "The CPU weight against other containers.";
    SPEC_MEMORY_LIMIT Gauge "container_spec_memory_limit_bytes" []
        "The memory limit in bytes; 0 is none.";
    SPEC_MEMORY_RESERVATION Gauge "container_spec_memory_reservation_limit_bytes" []
        "The memory reservation in bytes; 0 is none.";
    SPEC_MEMORY_SWAP Gauge "container_spec_memory_swap_limit_bytes" []
        "The limit of memory and swap together in bytes; 0 is none.";
    START_TIME Gauge "container_start_time_seconds" []
        "When it was started, seconds since 1970.";
    THREADS Gauge "container_threads" []
        "Threads of all processes.";
    THREADS_MAX Gauge "container_threads_max" []
        "The most threads allowed; 0 is no limit.";
    ULIMITS Gauge "container_ulimits_soft" ["ulimit"]
        "Soft resource limits of the first process; a limit that is not there has no value.";
}
