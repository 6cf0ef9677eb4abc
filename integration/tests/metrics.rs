//! Metrics have the names that cAdvisor's users know, the labels their descriptors say, and true values.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::{HashMap, HashSet};

use podhold_integration::{
    configs::{self, log_file, resources},
    log, rig,
    rig::{PROBE, Rig},
};
use podhold_proto::cri::*;

/// What a kubelet with cAdvisor shows, as the conformance suite expects it of a runtime.
const EXPECTED: [&str; 56] = [
    "container_blkio_device_usage_total",
    "container_cpu_cfs_periods_total",
    "container_cpu_cfs_throttled_periods_total",
    "container_cpu_cfs_throttled_seconds_total",
    "container_cpu_system_seconds_total",
    "container_cpu_usage_seconds_total",
    "container_cpu_user_seconds_total",
    "container_file_descriptors",
    "container_fs_inodes_free",
    "container_fs_inodes_total",
    "container_fs_limit_bytes",
    "container_fs_reads_bytes_total",
    "container_fs_reads_total",
    "container_fs_usage_bytes",
    "container_fs_writes_bytes_total",
    "container_fs_writes_total",
    "container_hugetlb_max_usage_bytes",
    "container_hugetlb_usage_bytes",
    "container_last_seen",
    "container_memory_cache",
    "container_memory_failcnt",
    "container_memory_failures_total",
    "container_memory_kernel_usage",
    "container_memory_mapped_file",
    "container_memory_max_usage_bytes",
    "container_memory_rss",
    "container_memory_swap",
    "container_memory_usage_bytes",
    "container_memory_working_set_bytes",
    "container_network_receive_bytes_total",
    "container_network_receive_errors_total",
    "container_network_receive_packets_dropped_total",
    "container_network_receive_packets_total",
    "container_network_transmit_bytes_total",
    "container_network_transmit_errors_total",
    "container_network_transmit_packets_dropped_total",
    "container_network_transmit_packets_total",
    "container_oom_events_total",
    "container_pressure_cpu_stalled_seconds_total",
    "container_pressure_cpu_waiting_seconds_total",
    "container_pressure_io_stalled_seconds_total",
    "container_pressure_io_waiting_seconds_total",
    "container_pressure_memory_stalled_seconds_total",
    "container_pressure_memory_waiting_seconds_total",
    "container_processes",
    "container_sockets",
    "container_spec_cpu_period",
    "container_spec_cpu_quota",
    "container_spec_cpu_shares",
    "container_spec_memory_limit_bytes",
    "container_spec_memory_reservation_limit_bytes",
    "container_spec_memory_swap_limit_bytes",
    "container_start_time_seconds",
    "container_threads",
    "container_threads_max",
    "container_ulimits_soft",
];

/// What depends on the machine: devices that are written to, cgroup v2.
const NOT_EVERYWHERE: [&str; 7] = [
    "container_blkio_",
    "container_fs_reads",
    "container_fs_writes",
    "container_hugetlb_",
    "container_pressure_",
    "container_spec_cpu_quota",
    "container_ulimits_soft",
];

async fn descriptors(rig: &Rig) -> HashMap<String, MetricDescriptor> {
    let request = ListMetricDescriptorsRequest {};
    let answer = rig.cri().runtime.clone().list_metric_descriptors(request).await.unwrap().into_inner();
    let count = answer.descriptors.len();
    let by_name: HashMap<_, _> = answer.descriptors.into_iter().map(|d| (d.name.clone(), d)).collect();
    assert_eq!(by_name.len(), count, "each name once");
    by_name
}

async fn metrics(rig: &Rig) -> Vec<PodSandboxMetrics> {
    let request = ListPodSandboxMetricsRequest {};
    rig.cri().runtime.clone().list_pod_sandbox_metrics(request).await.unwrap().into_inner().pod_metrics
}

/// The value of the metric without labels of its own, or with this first one.
fn value(metrics: &[Metric], name: &str, label: Option<&str>) -> u64 {
    let fits = |metric: &&Metric| {
        metric.name == name
            && label.is_none_or(|label| metric.label_values.iter().any(|value| value == label))
    };
    let metric = metrics.iter().find(fits).unwrap_or_else(|| panic!("no {name}: {metrics:?}"));
    metric.value.unwrap().value
}

#[tokio::test]
async fn metrics_are_those_of_cadvisor_and_fit_their_descriptors() {
    let rig = rig!();
    let config = rig.pod("measured");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mut eater = configs::container("eater", PROBE, &["eat", "50"]);
    *resources(&mut eater) = LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 80_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 128 << 20,
        ..Default::default()
    };
    let id = rig.run(&pod, &config, &eater).await;
    log::wait_for(&log_file(&config, "eater"), "ate 50 MiB").await;
    let descriptors = descriptors(&rig).await;
    for name in EXPECTED {
        let descriptor = descriptors.get(name).unwrap_or_else(|| panic!("no descriptor of {name}"));
        assert!(!descriptor.help.is_empty() && !descriptor.label_keys.is_empty(), "{descriptor:?}");
    }
    let all = metrics(&rig).await;
    assert_eq!(all.len(), 1);
    assert_eq!((&all[0].pod_sandbox_id, all[0].container_metrics.len()), (&pod, 1));
    let of_container = &all[0].container_metrics[0];
    assert_eq!(of_container.container_id, id);
    let mut seen = HashSet::new();
    let mut series = HashSet::new();
    for metric in all[0].metrics.iter().chain(&of_container.metrics) {
        let descriptor = descriptors.get(&metric.name).unwrap_or_else(|| panic!("{metric:?}"));
        assert_eq!(metric.label_values.len(), descriptor.label_keys.len(), "{metric:?}");
        let labels: HashMap<_, _> = descriptor.label_keys.iter().zip(&metric.label_values).collect();
        assert_eq!(labels[&"pod".to_owned()], "measured");
        assert_eq!(labels[&"namespace".to_owned()], "default");
        assert!(series.insert((metric.name.clone(), metric.label_values.clone())), "twice: {metric:?}");
        seen.insert(metric.name.as_str());
    }
    let missing: Vec<_> = descriptors
        .keys()
        .filter(|name| !seen.contains(name.as_str()))
        .filter(|name| !NOT_EVERYWHERE.iter().any(|beginning| name.starts_with(beginning)))
        .collect();
    assert!(missing.is_empty(), "no values of {missing:?}");

    let own = &of_container.metrics;
    let eaten = 50 << 20;
    assert!((eaten..3 * eaten).contains(&value(own, "container_memory_working_set_bytes", None)));
    assert!(value(&all[0].metrics, "container_memory_working_set_bytes", None) >= eaten);
    assert!(value(own, "container_memory_max_usage_bytes", None) >= eaten);
    assert_eq!(value(own, "container_spec_memory_limit_bytes", None), 128 << 20);
    assert_eq!(value(own, "container_spec_cpu_quota", None), 80_000);
    assert_eq!(value(own, "container_spec_cpu_shares", None), 512);
    assert_eq!(value(own, "container_processes", None), 1);
    assert_eq!(value(own, "container_threads", None), 1);
    assert_eq!(value(&all[0].metrics, "container_processes", None), 2, "pause and the container");
    assert!(value(own, "container_file_descriptors", None) >= 3);
    assert!(value(own, "container_fs_limit_bytes", None) > eaten);
    assert_eq!(value(own, "container_oom_events_total", None), 0);
    assert!(value(&all[0].metrics, "container_network_transmit_packets_total", Some("eth0")) < 1000);

    let request = StreamPodSandboxMetricsRequest {};
    let mut stream =
        rig.cri().runtime.clone().stream_pod_sandbox_metrics(request).await.unwrap().into_inner();
    let batch = stream.message().await.unwrap().unwrap().pod_sandbox_metrics;
    assert_eq!((batch.len(), &batch[0].pod_sandbox_id), (1, &pod));
    assert!(stream.message().await.unwrap().is_none());
    rig.cri().stop_pod(&pod).await.unwrap();
    assert!(metrics(&rig).await.is_empty(), "a stopped pod uses nothing");
    rig.cri().remove_pod(&pod).await.unwrap();
    rig.finish().await;
}
