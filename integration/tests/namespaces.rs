//! What containers of a pod share, and what they do not.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;

use podhold_integration::{
    configs::{self, Parts, security},
    rig,
    rig::{PROBE, Rig},
};
use podhold_proto::cri::NamespaceMode;

/// The namespaces of a container, by name.
async fn namespaces(rig: &Rig, container: &str) -> BTreeMap<String, String> {
    let text = rig.cri().exec_well(container, &["/probe", "show", "namespaces"]).await.unwrap();
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs.map(|(name, link)| (name.to_owned(), link.to_owned())).collect()
}

/// The namespaces of the machine.
async fn host(rig: &Rig) -> BTreeMap<String, String> {
    let mut links = BTreeMap::new();
    for name in ["ipc", "mnt", "net", "pid", "uts"] {
        let link = rig.machine.run_well(["readlink", &format!("/proc/self/ns/{name}")]).await.unwrap();
        links.insert(name.to_owned(), link.trim().to_owned());
    }
    links
}

fn equal(one: &BTreeMap<String, String>, other: &BTreeMap<String, String>) -> Vec<String> {
    let of = |name: &str| (name.to_owned(), one.get(name) == other.get(name));
    let names = ["ipc", "mnt", "net", "pid", "uts"];
    names.map(of).into_iter().filter_map(|(name, same)| same.then_some(name)).collect()
}

#[tokio::test]
async fn containers_of_a_pod_share_network_ipc_and_host_name_only() {
    let rig = rig!();
    let config = rig.pod("shares");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let one = rig.probe(&pod, &config, "one", &["sleep"]).await;
    let two = rig.probe(&pod, &config, "two", &["sleep"]).await;
    let (one, two) = (namespaces(&rig, &one).await, namespaces(&rig, &two).await);
    assert_eq!(equal(&one, &two), ["ipc", "net", "uts"], "{one:?} {two:?}");
    assert_eq!(equal(&one, &host(&rig).await), [""; 0], "{one:?}");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn with_shared_processes_containers_see_each_other() {
    let rig = rig!();
    let mut config = rig.pod("processes");
    config.namespaces().pid = NamespaceMode::Pod.into();
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mut ids = Vec::new();
    for name in ["one", "two"] {
        let mut container = configs::container(name, PROBE, &["sleep"]);
        container.namespaces().pid = NamespaceMode::Pod.into();
        ids.push(rig.run(&pod, &config, &container).await);
    }
    let (one, two) = (namespaces(&rig, &ids[0]).await, namespaces(&rig, &ids[1]).await);
    assert_eq!(equal(&one, &two), ["ipc", "net", "pid", "uts"], "{one:?} {two:?}");
    let seen = rig.cri().exec_well(&ids[0], &["/probe", "processes"]).await.unwrap();
    // Pause, two containers, and the one that counts.
    assert_eq!(seen.trim(), "processes=4 zombies=0");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_container_can_join_the_processes_of_one_other() {
    let rig = rig!();
    let config = rig.pod("target");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let one = rig.probe(&pod, &config, "one", &["sleep"]).await;
    let mut container = configs::container("debugger", PROBE, &["sleep"]);
    container.namespaces().pid = NamespaceMode::Target.into();
    container.namespaces().target_id.clone_from(&one);
    let debugger = rig.run(&pod, &config, &container).await;
    let other = rig.probe(&pod, &config, "other", &["sleep"]).await;
    let (one, debugger) = (namespaces(&rig, &one).await, namespaces(&rig, &debugger).await);
    assert_eq!(one["pid"], debugger["pid"]);
    assert_ne!(one["pid"], namespaces(&rig, &other).await["pid"]);
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_pod_can_share_everything_with_the_host() {
    let rig = rig!();
    let mut config = rig.pod("host");
    config.hostname.clear();
    let shared = |options: &mut podhold_proto::cri::NamespaceOption| {
        options.network = NamespaceMode::Node.into();
        options.pid = NamespaceMode::Node.into();
        options.ipc = NamespaceMode::Node.into();
    };
    shared(config.namespaces());
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mut container = configs::container("one", PROBE, &["sleep"]);
    shared(container.namespaces());
    let one = rig.run(&pod, &config, &container).await;
    // A request that says nothing gets what the pod has.
    let mut container = configs::container("silent", PROBE, &["sleep"]);
    container.linux = None;
    let silent = rig.run(&pod, &config, &container).await;
    for container in [one, silent] {
        let seen = namespaces(&rig, &container).await;
        assert_eq!(equal(&seen, &host(&rig).await), ["ipc", "net", "pid", "uts"], "{seen:?}");
    }
    assert_eq!(rig.cri().pod_status(&pod).await.unwrap().network.unwrap_or_default().ip, "");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

/// Pause has nothing that a container which sees it could use.
#[tokio::test]
async fn pause_shows_nothing_of_the_host_through_proc() {
    let rig = rig!();
    let mut config = rig.pod("pause");
    config.namespaces().pid = NamespaceMode::Pod.into();
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mut container = configs::container("curious", podhold_integration::rig::BUSYBOX, &[]);
    container.command = vec!["/bin/sleep".into(), "1000".into()];
    container.namespaces().pid = NamespaceMode::Pod.into();
    // As much as a container can have without being privileged.
    security(&mut container).capabilities = Some(podhold_proto::cri::Capability {
        add_capabilities: vec!["SYS_PTRACE".into()],
        ..Default::default()
    });
    let id = rig.run(&pod, &config, &container).await;
    let look = "ls -A /proc/1/root/ 2>/dev/null; ls -A /proc/1/fd/ 2>/dev/null; ls -A /proc/1/cwd/ 2>/dev/null; true";
    let seen = rig.cri().exec_well(&id, &["/bin/sh", "-c", look]).await.unwrap();
    assert_eq!(seen, "", "pause shows: {seen}");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}
