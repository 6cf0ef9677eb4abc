//! Pods in scopes of systemd's: on a machine that it runs, with `PODHOLD_TEST_DRIVER=systemd`.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use podhold_integration::{
    cgroup::{self, Driver},
    configs::{self, resources},
    needs::elsewhere,
    processes, rig,
    rig::{BUSYBOX, Rig},
};
use podhold_proto::cri::*;

/// Longer than anything takes under emulation.
const SOON: Duration = Duration::from_secs(120);

fn is_here() -> bool {
    let here = *cgroup::DRIVER == Driver::Systemd;
    if !here {
        elsewhere("it needs PODHOLD_TEST_DRIVER=systemd where systemd runs");
    }
    here
}

/// Asks again where another test has systemd executed anew just now.
fn systemctl(words: &[&str]) -> String {
    let deadline = Instant::now() + SOON;
    loop {
        let output = Command::new("systemctl").args(words).output().unwrap();
        let away = String::from_utf8_lossy(&output.stderr).contains("Failed to connect");
        if !away || Instant::now() >= deadline {
            assert!(output.status.success(), "systemctl {words:?}: {output:?}");
            return String::from_utf8(output.stdout).unwrap();
        }
        std::thread::yield_now();
    }
}

fn scope(pod: &str) -> String {
    format!("podhold-{pod}.scope")
}

fn sleeper(name: &str) -> ContainerConfig {
    let mut container = configs::container(name, BUSYBOX, &["100000"]);
    container.command = vec!["/bin/sleep".into()];
    resources(&mut container).memory_limit_in_bytes = 64 << 20;
    container
}

/// What the kernel has of a pod and its container: their limits of memory, and what is handed down to them.
fn kernel(rig: &Rig, pod: &str, container: &str) -> [String; 3] {
    let of_pod = PathBuf::from("/sys/fs/cgroup").join(rig.pod_cgroup(pod));
    let read = |file: PathBuf| fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file:?}: {error}"));
    [
        read(of_pod.join("memory.max")),
        read(of_pod.join("cgroup.subtree_control")),
        read(of_pod.join(container).join("memory.max")),
    ]
}

#[tokio::test]
async fn a_pod_is_one_scope_and_systemd_may_be_reloaded_and_executed_anew() {
    if !is_here() {
        return;
    }
    let mut rig = rig!();
    let mut config = rig.pod("one");
    config.linux.as_mut().unwrap().resources =
        Some(LinuxContainerResources { memory_limit_in_bytes: 128 << 20, ..Default::default() });
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let id = rig.run(&pod, &config, &sleeper("one")).await;
    let told = systemctl(&[
        "show",
        "--property=ActiveState,Delegate,Slice,OOMPolicy,TasksMax,ControlGroup",
        &scope(&pod),
    ]);
    for line in ["ActiveState=active", "Delegate=yes", "OOMPolicy=continue", "TasksMax=infinity"] {
        assert!(told.lines().any(|told| told == line), "{line}: {told}");
    }
    assert!(told.contains(&format!("Slice={}", rig.cgroup)), "{told}");
    let before = kernel(&rig, &pod, &id);
    assert_eq!([before[0].trim(), before[2].trim()], ["134217728", "67108864"]);
    for controller in ["cpu", "cpuset", "io", "memory", "pids", "hugetlb"] {
        assert!(before[1].split_whitespace().any(|one| one == controller), "{controller}: {}", before[1]);
    }
    let inside = processes::in_cgroup(&format!("{}/{id}", rig.pod_cgroup(&pod)));
    assert_eq!(inside.len(), 1, "the container is in its cgroup");

    systemctl(&["daemon-reload"]);
    // Has it write what it knows of the slice and all beneath it.
    systemctl(&["set-property", "--runtime", &rig.cgroup, "CPUWeight=50"]);
    let mut other = rig.pod("two");
    other.linux.as_mut().unwrap().resources = None;
    let again = std::thread::spawn(|| systemctl(&["daemon-reexec"]));
    let second = rig.cri().run_pod(&other).await.unwrap();
    again.join().unwrap();
    rig.run(&second, &other, &sleeper("two")).await;
    assert_eq!(kernel(&rig, &pod, &id), before);
    rig.crash_and_restart().await;
    assert_eq!(rig.cri().exec_well(&id, &["echo", "well"]).await.unwrap(), "well\n");
    assert_eq!(kernel(&rig, &pod, &id), before);
    for pod in [&pod, &second] {
        rig.cri().end_pod(pod).await.unwrap();
        let left = systemctl(&["list-units", "--all", "--plain", "--no-legend", &scope(pod)]);
        assert_eq!(left, "", "a removed pod leaves no unit");
    }
    rig.finish().await;
}

#[tokio::test]
async fn a_scope_that_is_stopped_takes_its_pod_with_it_and_no_other() {
    if !is_here() {
        return;
    }
    let rig = rig!();
    let (config, other) = (rig.pod("stopped"), rig.pod("other"));
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let stays = rig.cri().run_pod(&other).await.unwrap();
    let id = rig.run(&pod, &config, &sleeper("one")).await;
    let bystander = rig.run(&stays, &other, &sleeper("one")).await;
    systemctl(&["stop", "--no-block", &scope(&pod)]);
    let ended = rig.cri().ended(&id, SOON).await.unwrap();
    assert!([137, 143].contains(&ended.exit_code), "{ended:?}");
    let deadline = tokio::time::Instant::now() + SOON;
    while rig.cri().pod_status(&pod).await.unwrap().state() != PodSandboxState::SandboxNotready {
        assert!(tokio::time::Instant::now() < deadline, "the pod is told as ready");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let log = podhold_integration::daemon::log(&rig.places);
    let words = format!("systemd stops {}", scope(&pod));
    assert!(log.contains(&words), "the log does not say {words:?}");
    assert_eq!(rig.cri().status(&bystander).await.unwrap().state(), ContainerState::ContainerRunning);
    for pod in [&pod, &stays] {
        rig.cri().end_pod(pod).await.unwrap();
    }
    rig.finish().await;
}
