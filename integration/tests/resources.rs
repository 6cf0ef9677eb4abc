//! Limits that change: all of an update or none of it, clear refusals, and pods as a whole.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{fs, path::PathBuf};

use podhold_integration::{
    configs::{self, log_file, resources},
    log,
    needs::skipped,
    rig,
    rig::{PROBE, Rig},
};
use podhold_proto::cri::*;
use tonic::{Code, Status};

/// On cgroup v1, or hybrid.
fn on_version_1() -> bool {
    let there = fs::exists("/sys/fs/cgroup/memory/memory.limit_in_bytes").unwrap_or(false);
    if !there {
        skipped("needs the memory controller of cgroup v1");
    }
    there
}

async fn update(rig: &Rig, id: &str, linux: LinuxContainerResources) -> Result<(), Status> {
    let request =
        UpdateContainerResourcesRequest { container_id: id.into(), linux: Some(linux), ..Default::default() };
    rig.cri().runtime.clone().update_container_resources(request).await.map(drop)
}

async fn reported(rig: &Rig, id: &str) -> LinuxContainerResources {
    rig.cri().status(id).await.unwrap().resources.unwrap().linux.unwrap()
}

fn file(controller: &str, cgroup: &str, name: &str) -> PathBuf {
    PathBuf::from(format!("/sys/fs/cgroup/{controller}/{}/{name}", cgroup.trim_start_matches('/')))
}

fn number(controller: &str, cgroup: &str, name: &str) -> i64 {
    let file = file(controller, cgroup, name);
    let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    text.trim().parse().unwrap()
}

#[tokio::test]
async fn an_update_that_is_refused_changes_nothing() {
    let rig = rig!();
    if !on_version_1() {
        return;
    }
    let config = rig.pod("updated");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mut container = configs::container("eater", PROBE, &["eat", "50"]);
    *resources(&mut container) = LinuxContainerResources {
        cpu_shares: 512,
        cpu_quota: 50_000,
        memory_limit_in_bytes: 256 << 20,
        memory_swap_limit_in_bytes: 256 << 20,
        // As a kubelet sends them wherever there are huge pages.
        hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: 0 }],
        ..Default::default()
    };
    let id = rig.run(&pod, &config, &container).await;
    log::wait_for(&log_file(&config, "eater"), "ate 50 MiB").await;
    let cgroup = format!("{}/{pod}/{id}", rig.cgroup);
    let kernel = || {
        (
            number("cpu", &cgroup, "cpu.shares"),
            number("cpu", &cgroup, "cpu.cfs_quota_us"),
            number("memory", &cgroup, "memory.limit_in_bytes"),
        )
    };
    let before = (kernel(), reported(&rig, &id).await);
    assert_eq!(before.0, (512, 50_000, 256 << 20));
    type Limits = LinuxContainerResources;
    let table = [
        ("cpuset_cpus", Limits { cpu_shares: 700, cpuset_cpus: "4095".into(), ..Default::default() }),
        (
            "memory_limit_in_bytes",
            Limits {
                cpu_shares: 700,
                cpu_quota: 20_000,
                memory_limit_in_bytes: 16 << 20,
                memory_swap_limit_in_bytes: 16 << 20,
                ..Default::default()
            },
        ),
        ("unified", Limits { unified: [("memory.high".into(), "1".into())].into(), ..Default::default() }),
        ("memory_swap_limit_in_bytes", Limits { memory_swap_limit_in_bytes: 64 << 20, ..Default::default() }),
        (
            "hugepage_limits",
            Limits {
                hugepage_limits: vec![HugepageLimit { page_size: "4MB".into(), limit: 0 }],
                ..Default::default()
            },
        ),
    ];
    for (field, limits) in table {
        let refusal = update(&rig, &id, limits).await.expect_err(field);
        assert_eq!(refusal.code(), Code::InvalidArgument, "{field}: {refusal}");
        assert!(refusal.message().contains(field), "{field}: {refusal}");
        assert_eq!((kernel(), reported(&rig, &id).await), before, "{field}");
    }
    assert_eq!(rig.cri().status(&id).await.unwrap().state(), ContainerState::ContainerRunning);
    let smaller = Limits { memory_limit_in_bytes: 128 << 20, cpuset_cpus: "0".into(), ..Default::default() };
    update(&rig, &id, smaller).await.unwrap();
    assert_eq!(kernel(), (512, 50_000, 128 << 20));
    assert_eq!(fs::read_to_string(file("cpuset", &cgroup, "cpuset.cpus")).unwrap().trim(), "0");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_pod_of_its_own_cgroup_is_limited_with_its_overhead_and_a_kubelets_is_left_alone() {
    let mut rig = rig!();
    if !on_version_1() {
        return;
    }
    let limits = |memory: i64, quota: i64| {
        Some(LinuxContainerResources {
            memory_limit_in_bytes: memory,
            cpu_quota: quota,
            cpu_period: 100_000,
            ..Default::default()
        })
    };
    let mut own = rig.pod("own");
    let linux = own.linux.as_mut().unwrap();
    (linux.resources, linux.overhead) = (limits(64 << 20, 40_000), limits(8 << 20, 10_000));
    let pod = rig.cri().run_pod(&own).await.unwrap();
    let cgroup = format!("{}/{pod}", rig.cgroup);
    let kernel = |cgroup: &str| {
        let quota = number("cpu", cgroup, "cpu.cfs_quota_us");
        (number("memory", cgroup, "memory.limit_in_bytes"), quota)
    };
    assert_eq!(kernel(&cgroup), (72 << 20, 50_000));
    rig.probe(&pod, &own, "within", &["sleep"]).await;

    let mut of_kubelet = own.clone();
    of_kubelet.metadata.as_mut().unwrap().uid = "kubelets".into();
    let parent = format!("{}/kubelets", rig.cgroup);
    of_kubelet.linux.as_mut().unwrap().cgroup_parent = format!("/{parent}");
    let hierarchies: Vec<_> = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|e| e.path()).collect();
    for hierarchy in &hierarchies {
        fs::create_dir_all(hierarchy.join(&parent)).unwrap();
    }
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let all = fs::read_to_string(format!("/sys/fs/cgroup/cpuset/{name}")).unwrap();
        fs::write(file("cpuset", &parent, name), all.trim()).unwrap();
    }
    fs::write(file("memory", &parent, "memory.limit_in_bytes"), "104857600").unwrap();
    let other = rig.cri().run_pod(&of_kubelet).await.unwrap();

    for (id, memory) in [(&pod, 128 << 20), (&other, 128 << 20)] {
        let request = UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: id.clone(),
            overhead: None,
            resources: limits(memory, 80_000),
        };
        rig.cri().runtime.clone().update_pod_sandbox_resources(request).await.unwrap();
    }
    assert_eq!(kernel(&cgroup), (136 << 20, 90_000), "what it was told, and the overhead it had");
    assert_eq!(kernel(&parent), (100 << 20, -1), "the kubelet's own numbers");
    rig.crash_and_restart().await;
    assert_eq!(rig.cri().run_pod(&own).await.unwrap(), pod, "the same pod, however it was updated");
    assert_eq!(kernel(&cgroup), (136 << 20, 90_000));
    rig.cri().stop_pod(&pod).await.unwrap();
    let late = UpdatePodSandboxResourcesRequest { pod_sandbox_id: pod.clone(), ..Default::default() };
    let late = rig.cri().runtime.clone().update_pod_sandbox_resources(late).await.unwrap_err();
    assert_eq!(late.code(), Code::FailedPrecondition, "{late}");
    rig.cri().end_pod(&other).await.unwrap();
    rig.cri().remove_pod(&pod).await.unwrap();
    for hierarchy in &hierarchies {
        fs::remove_dir(hierarchy.join(&parent)).unwrap();
    }
    rig.finish().await;
}
