//! Limits are in force, and what they do can be seen.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::time::Duration;

use podhold_integration::{
    cgroup,
    configs::{self, log_file, resources},
    log, rig,
    rig::{BUSYBOX, PROBE},
};
use podhold_proto::cri::{ContainerStatsRequest, LinuxContainerResources, UpdateContainerResourcesRequest};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_container_over_its_memory_is_killed_and_said_to_be_oom_killed() {
    let rig = rig!();
    let config = rig.pod("memory");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mut container = configs::container("eater", PROBE, &["eat", "200"]);
    resources(&mut container).memory_limit_in_bytes = 64 << 20;
    // No swap beyond the memory.
    resources(&mut container).memory_swap_limit_in_bytes = 64 << 20;
    let id = rig.run(&pod, &config, &container).await;
    let ended = rig.cri().ended(&id, SOON).await.unwrap();
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"), "{ended:?}");
    let within = rig.probe(&pod, &config, "within", &["print", "fits"]).await;
    assert_eq!(rig.cri().ended(&within, SOON).await.unwrap().reason, "Completed");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

/// The pids limit is the pod's in Kubernetes: the kubelet writes it to the pod's cgroup. A container's own
/// comes from `unified`, on cgroup v2 only; here the test is the kubelet.
#[tokio::test]
async fn a_fork_bomb_stays_inside_its_limit() {
    let rig = rig!();
    let mut config = rig.pod("forks");
    let (parent, directory) = cgroup::DRIVER.given(&rig.cgroup, "limited");
    config.linux.as_mut().unwrap().cgroup_parent = parent;
    let Some(pids) = cgroup::directory("pids", &directory) else {
        podhold_integration::needs::skipped("needs the pids controller");
        return;
    };
    cgroup::make(&directory, "pids");
    std::fs::write(pids.join("pids.max"), "30").unwrap();
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let id = rig.probe(&pod, &config, "bomb", &["fork-bomb"]).await;
    let line = log::wait_for_start(&[log_file(&config, "bomb")], "stopped after ").await;
    let count: usize = line.split(' ').nth(2).unwrap().parse().unwrap();
    assert!((5..30).contains(&count), "{line}");
    // The pod is full, and everything else goes on.
    assert!(rig.cri().status(&id).await.is_ok());
    rig.cri().stop(&id, 0).await.unwrap();
    assert_eq!(rig.cri().status(&id).await.unwrap().exit_code, 137);
    rig.cri().end_pod(&pod).await.unwrap();
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let _ = std::fs::remove_dir(hierarchy.path().join(&directory));
    }
    let _ = std::fs::remove_dir(&pids);
    rig.finish().await;
}

#[tokio::test]
async fn a_quota_slows_a_container_down_and_the_stats_show_it() {
    let rig = rig!();
    let config = rig.pod("processor");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mut container = configs::container("spinner", PROBE, &["spin"]);
    resources(&mut container).cpu_period = 100_000;
    resources(&mut container).cpu_quota = 20_000;
    let id = rig.run(&pod, &config, &container).await;
    let used = async || {
        let request = ContainerStatsRequest { container_id: id.clone() };
        let stats =
            rig.cri().runtime.clone().container_stats(request).await.unwrap().into_inner().stats.unwrap();
        let cpu = stats.cpu.unwrap();
        (cpu.timestamp, cpu.usage_core_nano_seconds.unwrap().value)
    };
    let (began, first) = used().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (ended, last) = used().await;
    let share = (last - first) as f64 / (ended - began) as f64;
    assert!(share > 0.02 && share < 0.4, "it used {share} of a processor, and may use 0.2");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn an_update_is_in_force_and_is_reported() {
    let rig = rig!();
    let config = rig.pod("update");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mut container = configs::container("one", PROBE, &["sleep"]);
    resources(&mut container).memory_limit_in_bytes = 64 << 20;
    let id = rig.run(&pod, &config, &container).await;
    let limit = async || {
        let resources = rig.cri().status(&id).await.unwrap().resources.unwrap().linux.unwrap();
        (resources.memory_limit_in_bytes, resources.cpu_shares)
    };
    assert_eq!(limit().await, (64 << 20, 102));
    let linux = LinuxContainerResources { memory_limit_in_bytes: 128 << 20, ..Default::default() };
    let request = UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(linux),
        ..Default::default()
    };
    rig.cri().runtime.clone().update_container_resources(request).await.unwrap();
    assert_eq!(limit().await, (128 << 20, 102));
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn an_update_before_the_start_is_in_force_at_the_start() {
    let rig = rig!();
    let config = rig.pod("early");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mut container = configs::container("one", BUSYBOX, &["1000"]);
    container.command = vec!["/bin/sleep".into()];
    resources(&mut container).memory_limit_in_bytes = 64 << 20;
    let id = rig.cri().create(&pod, &config, &container).await.unwrap();
    let linux = LinuxContainerResources { memory_limit_in_bytes: 96 << 20, ..Default::default() };
    let request = UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(linux),
        ..Default::default()
    };
    rig.cri().runtime.clone().update_container_resources(request).await.unwrap();
    rig.cri().start(&id).await.unwrap();
    // cgroup version 1, then 2.
    let read = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes memory.max 2>/dev/null; true";
    let limit = rig.cri().exec_well(&id, &["sh", "-c", read]).await.unwrap();
    assert_eq!(limit.trim(), (96 << 20).to_string());
    let reported = rig.cri().status(&id).await.unwrap().resources.unwrap().linux.unwrap();
    assert_eq!((reported.memory_limit_in_bytes, reported.cpu_shares), (96 << 20, 102));
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

/// The values of a process's limit on open files, soft and hard.
fn open_files(limits: &str) -> [u64; 2] {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let mut words = line.split_whitespace().map(|word| word.parse().unwrap());
    [(); 2].map(|()| words.next().unwrap())
}

/// Pids of processes, as this test sees them, one of whose words is `word`.
fn with_word(word: &str) -> Vec<u32> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let has = |pid: &u32| {
        let words = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split('\0').any(|it| it == word)
    };
    pids.filter(has).collect()
}

#[tokio::test]
async fn the_daemon_may_open_what_the_host_allows_and_containers_what_the_daemon_was_given() {
    let own = || open_files(&std::fs::read_to_string("/proc/self/limits").unwrap());
    let [_, hard] = own();
    // Lower than any default, and enough for the other tests of this process.
    let soft = 1000.min(hard);
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    let rig = rig!();
    let config = rig.pod("files");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    // The daemon; shim and logger.
    for word in [rig.places.config(), rig.places.run()] {
        let pids = with_word(word.to_str().unwrap());
        assert!(!pids.is_empty(), "nobody runs with {word:?}");
        for pid in pids {
            let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
            assert_eq!(open_files(&limits), [hard, hard], "of {pid}, with {word:?}");
        }
    }
    let mut container = configs::container("one", BUSYBOX, &["-c", "cat /proc/self/limits; sleep 1000"]);
    container.command = vec!["/bin/sh".into()];
    let id = rig.run(&pod, &config, &container).await;
    let line = log::wait_for_start(&[log_file(&config, "one")], "Max open files").await;
    assert_eq!(open_files(&line), [soft, hard], "of a container");
    let limits = rig.cri().exec_well(&id, &["cat", "/proc/self/limits"]).await.unwrap();
    assert_eq!(open_files(&limits), [soft, hard], "of an exec'd command");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}
