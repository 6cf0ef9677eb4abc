//! Limits that change: all of an update or none of it, clear refusals, and pods as a whole.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{fs, path::PathBuf};

use podhold_integration::{
    cgroup,
    configs::{self, log_file, resources},
    log, rig,
    rig::{PROBE, Rig},
};
use podhold_proto::cri::*;
use tonic::{Code, Status};

async fn update(rig: &Rig, id: &str, linux: LinuxContainerResources) -> Result<(), Status> {
    let request =
        UpdateContainerResourcesRequest { container_id: id.into(), linux: Some(linux), ..Default::default() };
    rig.cri().runtime.clone().update_container_resources(request).await.map(drop)
}

async fn reported(rig: &Rig, id: &str) -> LinuxContainerResources {
    rig.cri().status(id).await.unwrap().resources.unwrap().linux.unwrap()
}

fn file(controller: &str, cgroup: &str, name: &str) -> PathBuf {
    cgroup::directory(controller, cgroup).expect("the controller").join(name)
}

/// What the kernel has, as version 1 tells it: quota in 100 ms and memory, with -1 for no limit.
fn kernel(cgroup: &str) -> (i64, i64) {
    let (quota, memory) = match cgroup::is_unified() {
        true => (file("cpu", cgroup, "cpu.max"), file("memory", cgroup, "memory.max")),
        false => (file("cpu", cgroup, "cpu.cfs_quota_us"), file("memory", cgroup, "memory.limit_in_bytes")),
    };
    let [quota, memory] = [quota, memory].map(|file| {
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let word = text.split_whitespace().next().unwrap_or_default().to_owned();
        if word == "max" { -1 } else { word.parse().unwrap() }
    });
    (quota, memory)
}

/// How much of the processors it gets beside others.
fn share(cgroup: &str) -> String {
    let name = if cgroup::is_unified() { "cpu.weight" } else { "cpu.shares" };
    fs::read_to_string(file("cpu", cgroup, name)).unwrap()
}

#[tokio::test]
async fn an_update_that_is_refused_changes_nothing() {
    let rig = rig!();
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
    let cgroup = format!("{}/{id}", rig.pod_cgroup(&pod));
    let before = (kernel(&cgroup), share(&cgroup), reported(&rig, &id).await);
    assert_eq!(before.0, (50_000, 256 << 20));
    assert_eq!(before.1.trim(), if cgroup::is_unified() { "59" } else { "512" });
    type Limits = LinuxContainerResources;
    // On version 1 there is none; on version 2 the cgroup itself is ours.
    let unified = if cgroup::is_unified() { "cgroup.freeze" } else { "memory.high" };
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
        ("unified", Limits { unified: [(unified.into(), "1".into())].into(), ..Default::default() }),
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
        let now = (kernel(&cgroup), share(&cgroup), reported(&rig, &id).await);
        assert_eq!(now, before, "{field}");
    }
    assert_eq!(rig.cri().status(&id).await.unwrap().state(), ContainerState::ContainerRunning);
    let smaller = Limits { memory_limit_in_bytes: 128 << 20, cpuset_cpus: "0".into(), ..Default::default() };
    update(&rig, &id, smaller).await.unwrap();
    assert_eq!((kernel(&cgroup), share(&cgroup)), ((50_000, 128 << 20), before.1));
    assert_eq!(fs::read_to_string(file("cpuset", &cgroup, "cpuset.cpus")).unwrap().trim(), "0");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

/// The cgroup of a kubelet's pod; answers the hierarchies of version 1 in which it was made.
fn make_for_kubelet(parent: &str) -> Vec<PathBuf> {
    if cgroup::is_unified() {
        cgroup::make(parent, "memory");
        return Vec::new();
    }
    let hierarchies: Vec<_> = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|e| e.path()).collect();
    for hierarchy in &hierarchies {
        fs::create_dir_all(hierarchy.join(parent)).unwrap();
    }
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let all = fs::read_to_string(format!("/sys/fs/cgroup/cpuset/{name}")).unwrap();
        fs::write(file("cpuset", parent, name), all.trim()).unwrap();
    }
    hierarchies
}

#[tokio::test]
async fn a_pod_of_its_own_cgroup_is_limited_with_its_overhead_and_a_kubelets_is_left_alone() {
    let mut rig = rig!();
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
    let cgroup = rig.pod_cgroup(&pod);
    assert_eq!(kernel(&cgroup), (50_000, 72 << 20));
    rig.probe(&pod, &own, "within", &["sleep"]).await;

    let mut of_kubelet = own.clone();
    of_kubelet.metadata.as_mut().unwrap().uid = "kubelets".into();
    let (name, parent) = cgroup::DRIVER.given(&rig.cgroup, "kubelets");
    of_kubelet.linux.as_mut().unwrap().cgroup_parent = name;
    let hierarchies = make_for_kubelet(&parent);
    let limit = if cgroup::is_unified() { "memory.max" } else { "memory.limit_in_bytes" };
    fs::write(file("memory", &parent, limit), "104857600").unwrap();
    let other = rig.cri().run_pod(&of_kubelet).await.unwrap();

    for (id, memory) in [(&pod, 128 << 20), (&other, 128 << 20)] {
        let request = UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: id.clone(),
            overhead: None,
            resources: limits(memory, 80_000),
        };
        rig.cri().runtime.clone().update_pod_sandbox_resources(request).await.unwrap();
    }
    assert_eq!(kernel(&cgroup), (90_000, 136 << 20), "what it was told, and the overhead it had");
    assert_eq!(kernel(&parent), (-1, 100 << 20), "the kubelet's own numbers");
    rig.crash_and_restart().await;
    assert_eq!(rig.cri().run_pod(&own).await.unwrap(), pod, "the same pod, however it was updated");
    assert_eq!(kernel(&cgroup), (90_000, 136 << 20));
    rig.cri().stop_pod(&pod).await.unwrap();
    let late = UpdatePodSandboxResourcesRequest { pod_sandbox_id: pod.clone(), ..Default::default() };
    let late = rig.cri().runtime.clone().update_pod_sandbox_resources(late).await.unwrap_err();
    assert_eq!(late.code(), Code::FailedPrecondition, "{late}");
    rig.cri().end_pod(&other).await.unwrap();
    rig.cri().remove_pod(&pod).await.unwrap();
    for hierarchy in &hierarchies {
        fs::remove_dir(hierarchy.join(&parent)).unwrap();
    }
    if hierarchies.is_empty() && *cgroup::DRIVER == cgroup::Driver::Cgroupfs {
        fs::remove_dir(file("memory", &parent, "")).unwrap();
    }
    rig.finish().await;
}
