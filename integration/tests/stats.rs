//! What is reported of use: numbers that fit what the containers do, and filters that count.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{collections::HashMap, time::Duration};

use podhold_integration::{configs::log_file, log, rig, rig::Rig};
use podhold_proto::cri::*;

const EATEN: u64 = 50 << 20;

async fn pod_stats(rig: &Rig, pod: &str) -> PodSandboxStats {
    let request = PodSandboxStatsRequest { pod_sandbox_id: pod.to_owned() };
    rig.cri().runtime.clone().pod_sandbox_stats(request).await.unwrap().into_inner().stats.unwrap()
}

async fn list_pods(rig: &Rig, filter: PodSandboxStatsFilter) -> Vec<String> {
    let request = ListPodSandboxStatsRequest { filter: Some(filter) };
    let stats = rig.cri().runtime.clone().list_pod_sandbox_stats(request).await.unwrap().into_inner().stats;
    let name = |stats: PodSandboxStats| stats.attributes.unwrap().metadata.unwrap().name;
    let mut names: Vec<String> = stats.into_iter().map(name).collect();
    names.sort();
    names
}

async fn list(rig: &Rig, filter: ContainerStatsFilter) -> Vec<ContainerStats> {
    let request = ListContainerStatsRequest { filter: Some(filter) };
    let answer = rig.cri().runtime.clone().list_container_stats(request).await.unwrap();
    let mut stats = answer.into_inner().stats;
    stats.sort_by_key(name);
    stats
}

fn name(stats: &ContainerStats) -> String {
    stats.attributes.as_ref().unwrap().metadata.as_ref().unwrap().name.clone()
}

fn value(number: Option<UInt64Value>) -> u64 {
    number.expect("the number is given").value
}

fn processor(stats: Option<&CpuUsage>) -> (i64, u64) {
    let cpu = stats.expect("use of the processor is given");
    (cpu.timestamp, value(cpu.usage_core_nano_seconds))
}

/// Memory holds what was eaten, and no number is larger than one it is part of.
fn plausible(memory: &MemoryUsage, what: &str) {
    let (used, set, resident) =
        (value(memory.usage_bytes), value(memory.working_set_bytes), value(memory.rss_bytes));
    assert!((EATEN..3 * EATEN).contains(&resident), "{what}: {memory:?}");
    assert!(set >= EATEN && set <= used && used < 4 * EATEN, "{what}: {memory:?}");
    assert!(memory.timestamp > 0, "{what}: {memory:?}");
}

#[tokio::test]
async fn memory_that_a_container_eats_shows_in_its_stats_and_its_pods() {
    let rig = rig!();
    let config = rig.pod("eats");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    rig.probe(&pod, &config, "eater", &["eat", "50"]).await;
    rig.probe(&pod, &config, "idle", &["sleep"]).await;
    log::wait_for(&log_file(&config, "eater"), "ate 50 MiB").await;
    let of_pod = ContainerStatsFilter { pod_sandbox_id: pod.clone(), ..Default::default() };
    let stats = list(&rig, of_pod).await;
    assert_eq!(stats.iter().map(name).collect::<Vec<_>>(), ["eater", "idle"]);
    plausible(stats[0].memory.as_ref().unwrap(), "eater");
    let idle = value(stats[1].memory.as_ref().unwrap().working_set_bytes);
    assert!(idle < EATEN / 2, "a container that sleeps uses {idle} bytes");
    for stats in &stats {
        let cpu = stats.cpu.as_ref().unwrap();
        assert!(cpu.usage_nano_cores.is_some(), "a rate from the first question on: {cpu:?}");
        let memory = stats.memory.as_ref().unwrap();
        assert!(memory.page_faults.is_some() && memory.major_page_faults.is_some(), "{memory:?}");
        assert!(stats.swap.is_some() && stats.io.is_some() && stats.writable_layer.is_some(), "{stats:?}");
    }
    let layer = stats[0].writable_layer.as_ref().expect("the writable layer is measured");
    assert!(layer.timestamp > 0 && layer.fs_id.is_some(), "{layer:?}");

    let whole = pod_stats(&rig, &pod).await;
    let attributes = whole.attributes.unwrap();
    assert_eq!(
        (&attributes.id, attributes.metadata, attributes.labels),
        (&pod, config.metadata, config.labels)
    );
    let linux = whole.linux.unwrap();
    plausible(linux.memory.as_ref().unwrap(), "pod");
    assert_eq!(linux.containers.len(), 2);
    let processes = value(linux.process.unwrap().process_count);
    assert_eq!(processes, 3, "pause and two containers");
    let link = linux.network.unwrap().default_interface.unwrap();
    assert_eq!(link.name, "eth0");
    assert!(link.rx_errors.is_some() && link.tx_errors.is_some(), "{link:?}");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn use_of_the_processor_grows_in_a_container_that_spins_and_in_its_pod() {
    let rig = rig!();
    let config = rig.pod("spins");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let id = rig.probe(&pod, &config, "spinner", &["spin"]).await;
    log::wait_for(&log_file(&config, "spinner"), "spinning").await;
    let used = async || {
        let whole = pod_stats(&rig, &pod).await.linux.unwrap();
        let one = list(&rig, ContainerStatsFilter { id: id.clone(), ..Default::default() }).await;
        (processor(whole.cpu.as_ref()), processor(one[0].cpu.as_ref()))
    };
    let before = used().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let after = used().await;
    for (before, after) in [(before.0, after.0), (before.1, after.1)] {
        let share = (after.1 - before.1) as f64 / (after.0 - before.0) as f64;
        // Other programs run here too: it does not get the whole processor. Pods have two threads at most.
        assert!(share > 0.02 && share < 1.5, "{before:?} {after:?}");
    }
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn stats_are_listed_as_their_filters_say() {
    let rig = rig!();
    let (mut one, two) = (rig.pod("one"), rig.pod("two"));
    one.labels.insert("tier".into(), "front".into());
    let first = rig.cri().run_pod(&one).await.unwrap();
    let second = rig.cri().run_pod(&two).await.unwrap();
    let web = rig.probe(&first, &one, "web", &["sleep"]).await;
    rig.probe(&second, &two, "db", &["sleep"]).await;
    let label = |key: &str, value: &str| HashMap::from([(key.to_owned(), value.to_owned())]);

    let all = PodSandboxStatsFilter::default();
    assert_eq!(list_pods(&rig, all.clone()).await, ["one", "two"]);
    let by_id = PodSandboxStatsFilter { id: second.clone(), ..all.clone() };
    assert_eq!(list_pods(&rig, by_id).await, ["two"]);
    let front = PodSandboxStatsFilter { label_selector: label("tier", "front"), ..all.clone() };
    assert_eq!(list_pods(&rig, front).await, ["one"]);
    let neither = PodSandboxStatsFilter { id: second.clone(), label_selector: label("tier", "front") };
    assert_eq!(list_pods(&rig, neither).await, [""; 0]);

    let all = ContainerStatsFilter::default();
    let names = async |filter| list(&rig, filter).await.iter().map(name).collect::<Vec<_>>();
    assert_eq!(names(all.clone()).await, ["db", "web"]);
    assert_eq!(names(ContainerStatsFilter { id: web.clone(), ..all.clone() }).await, ["web"]);
    let of_second = ContainerStatsFilter { pod_sandbox_id: second.clone(), ..all.clone() };
    assert_eq!(names(of_second).await, ["db"]);
    let named =
        ContainerStatsFilter { label_selector: label("io.kubernetes.container.name", "web"), ..all.clone() };
    assert_eq!(names(named).await, ["web"]);
    let neither = ContainerStatsFilter { id: web, pod_sandbox_id: second.clone(), ..all };
    assert_eq!(names(neither).await, [""; 0]);
    rig.cri().end_pod(&first).await.unwrap();
    rig.cri().end_pod(&second).await.unwrap();
    rig.finish().await;
}
