//! What a container sees and feels of its limits on cgroup version 2.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::HashMap;

use podhold_integration::{
    cgroup,
    configs::{self, log_file, resources},
    log,
    needs::elsewhere,
    rig,
    rig::{BUSYBOX, PROBE, Rig},
};
use podhold_proto::cri::*;
use tonic::Code;

fn is_here() -> bool {
    let here = cgroup::is_unified();
    if !here {
        elsewhere("it needs pure cgroup version 2");
    }
    here
}

fn unified(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// What of its cgroup a container reads.
async fn seen(rig: &Rig, id: &str, name: &str) -> String {
    let text = rig.cri().exec_well(id, &["cat", &format!("/sys/fs/cgroup/{name}")]).await.unwrap();
    text.trim_end().to_owned()
}

#[tokio::test]
async fn limits_are_what_the_container_reads_of_its_own_cgroup_and_cannot_change() {
    if !is_here() {
        return;
    }
    let rig = rig!();
    let config = rig.pod("limits");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mut container = configs::container("one", BUSYBOX, &["100000"]);
    container.command = vec!["/bin/sleep".into()];
    *resources(&mut container) = LinuxContainerResources {
        cpu_shares: 1024,
        cpu_quota: 25_000,
        cpu_period: 50_000,
        cpuset_cpus: "0".into(),
        memory_limit_in_bytes: 64 << 20,
        memory_swap_limit_in_bytes: 64 << 20,
        hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: 4 << 20 }],
        unified: unified(&[
            ("memory.high", "50331648"),
            ("memory.low", "1048576"),
            ("memory.oom.group", "1"),
            ("pids.max", "20"),
        ]),
        ..Default::default()
    };
    let id = rig.run(&pod, &config, &container).await;
    for (name, value) in [
        ("memory.max", "67108864"),
        ("memory.swap.max", "0"),
        ("memory.high", "50331648"),
        ("memory.low", "1048576"),
        ("memory.oom.group", "1"),
        ("pids.max", "20"),
        ("cpu.max", "25000 50000"),
        ("cpu.weight", "100"),
        ("cpuset.cpus.effective", "0"),
        ("hugetlb.2MB.max", "4194304"),
    ] {
        assert_eq!(seen(&rig, &id, name).await, value, "{name}");
    }
    assert_eq!(rig.cri().exec_well(&id, &["cat", "/proc/self/cgroup"]).await.unwrap(), "0::/\n");
    let write = "echo max > /sys/fs/cgroup/memory.max";
    let refused = rig.cri().exec(&id, &["sh", "-c", write]).await.unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Read-only"), "{refused:?}");

    // What the workload may use less than is refused, and kills nobody.
    let update = |linux: LinuxContainerResources| {
        let (cri, container_id) = (rig.cri().clone(), id.clone());
        let request =
            UpdateContainerResourcesRequest { container_id, linux: Some(linux), ..Default::default() };
        async move { cri.runtime.clone().update_container_resources(request).await.map(drop) }
    };
    let higher =
        LinuxContainerResources { unified: unified(&[("memory.high", "max")]), ..Default::default() };
    update(higher).await.unwrap();
    assert_eq!(seen(&rig, &id, "memory.high").await, "max");
    for key in ["cgroup.procs", "../cgroup.kill", "memory.no-such-file", "nonsense", "memory/x.y"] {
        let limits = LinuxContainerResources { unified: unified(&[(key, "1")]), ..Default::default() };
        let refusal = update(limits).await.expect_err(key);
        assert_eq!(refusal.code(), Code::InvalidArgument, "{key}: {refusal}");
        assert!(refusal.message().contains(key), "{key}: {refusal}");
    }
    let request = ContainerStatsRequest { container_id: id.clone() };
    let stats = rig.cri().runtime.clone().container_stats(request).await.unwrap().into_inner().stats.unwrap();
    assert!(stats.cpu.unwrap().psi.is_some() && stats.memory.unwrap().psi.is_some());
    assert!(stats.io.unwrap().psi.is_some());
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_fork_bomb_stops_at_its_containers_own_limit() {
    if !is_here() {
        return;
    }
    let rig = rig!();
    let config = rig.pod("forks");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mut bomb = configs::container("bomb", PROBE, &["fork-bomb"]);
    resources(&mut bomb).unified = unified(&[("pids.max", "30")]);
    let id = rig.run(&pod, &config, &bomb).await;
    let line = log::wait_for_start(&[log_file(&config, "bomb")], "stopped after ").await;
    let count: usize = line.split(' ').nth(2).unwrap().parse().unwrap();
    assert!((5..30).contains(&count), "{line}");
    let beside = rig.probe(&pod, &config, "beside", &["print", "well"]).await;
    let deadline = std::time::Duration::from_secs(120);
    assert_eq!(rig.cri().ended(&beside, deadline).await.unwrap().exit_code, 0, "its pod has no limit");
    rig.cri().stop(&id, 0).await.unwrap();
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}
