//! `podhold run` and `podhold image`: no daemon, and nothing left afterwards.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{collections::BTreeMap, fs};

use nix::sys::signal::Signal;
use podhold_integration::{
    alone::{self, SOON, manifest, script, until_said, words},
    machine::Output,
    rig,
    rig::{BUSYBOX, REGISTRY, Rig},
};

async fn run(rig: &Rig, spec: &serde_json::Value) -> Output {
    alone::run(rig, &[], spec).await
}

async fn image(rig: &Rig, rest: &[&str]) -> Output {
    rig.machine.run(words(rig, &["image"], rest)).await.unwrap()
}

#[tokio::test]
async fn an_init_container_that_fails_gives_the_exit_code_and_no_app_is_started() {
    let rig = rig!();
    let spec = serde_json::json!({
        "restartPolicy": "Never",
        "initContainers": [script("first", "echo first ran"), script("second", "exit 7")],
        "containers": [script("app", "echo app ran")],
    });
    let output = run(&rig, &spec).await;
    let said = format!("{}{}", output.stdout, output.stderr);
    assert_eq!(output.code, 7, "{said}");
    assert!(said.contains("first ran") && said.contains("second") && !said.contains("app ran"), "{said}");
    rig.finish().await;
}

#[tokio::test]
async fn an_app_container_that_fails_gives_the_exit_code_when_all_have_ended() {
    let rig = rig!();
    let spec = serde_json::json!({
        "restartPolicy": "Never",
        "containers": [script("fails", "exit 9"), script("goes-on", "sleep 1; echo went on")],
    });
    let output = run(&rig, &spec).await;
    let said = format!("{}{}", output.stdout, output.stderr);
    assert_eq!(output.code, 9, "{said}");
    assert!(said.contains("went on"), "{said}");
    assert!(output.stderr.contains("fails") && output.stderr.contains('9'), "it says who failed: {said}");
    rig.finish().await;
}

#[tokio::test]
async fn an_interrupt_or_a_term_removes_everything_and_exits_with_128_and_the_signal() {
    let rig = rig!();
    for (signal, expected) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let spec = serde_json::json!({
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 20,
            "containers": [script("app", "trap 'echo asked to end; exit 0' TERM; echo up; while :; do sleep 0.05; done")],
        });
        let path = manifest(&rig, &spec).display().to_string();
        let log = rig.machine.directory().join(format!("{signal}.log"));
        let pid = rig.machine.spawn(&words(&rig, &["run"], &[&path]), BTreeMap::new(), &log).await.unwrap();
        until_said(&log, "up").await;
        rig.machine.signal(pid, signal).await.unwrap();
        let code = tokio::time::timeout(SOON, rig.machine.wait(pid)).await.unwrap().unwrap();
        assert_eq!(code, expected, "{signal}: {:?}", fs::read_to_string(&log));
        until_said(&log, "stopping").await;
    }
    let pods = rig.machine.directory().join("alone/state/pods");
    assert_eq!(fs::read_dir(&pods).map_or(0, Iterator::count), 0, "records of pods are left");
    rig.finish().await;
}

#[tokio::test]
async fn a_damaged_pod_of_an_earlier_run_is_removed_by_the_next() {
    let rig = rig!();
    let spec = serde_json::json!({
        "restartPolicy": "Never",
        "containers": [script("app", "echo up; exec sleep 1000")],
    });
    let path = manifest(&rig, &spec).display().to_string();
    let log = rig.machine.directory().join("killed.log");
    let pid = rig.machine.spawn(&words(&rig, &["run"], &[&path]), BTreeMap::new(), &log).await.unwrap();
    until_said(&log, "up").await;
    rig.machine.signal(pid, Signal::SIGKILL).await.unwrap();
    rig.machine.wait(pid).await.unwrap();
    let pods = rig.machine.directory().join("alone/state/pods");
    let pod = fs::read_dir(&pods).unwrap().flatten().next().expect("its record is left").path();
    fs::write(pod.join("pod.json"), "damaged").unwrap();
    let next = serde_json::json!({"restartPolicy": "Never", "containers": [script("app", "echo again")]});
    let output = run(&rig, &next).await;
    assert!(output.code == 0 && output.stdout.contains("again"), "{output:?}");
    assert!(output.stderr.contains(&pod.join("pod.json").display().to_string()), "{output:?}");
    assert_eq!(fs::read_dir(&pods).map_or(0, Iterator::count), 0, "the damaged pod is left");
    rig.finish().await;
}

#[tokio::test]
async fn a_field_it_does_not_know_is_refused_by_its_path_before_anything_is_done() {
    let rig = rig!();
    let mut container = script("app", "echo app ran");
    container["livenessProob"] = serde_json::json!({});
    let output = run(&rig, &serde_json::json!({"containers": [container]})).await;
    assert!(!matches!(output.code, 0 | 124), "{output:?}");
    assert!(output.stderr.contains("spec.containers[0].livenessProob"), "{output:?}");
    assert!(!output.stdout.contains("app ran"), "{output:?}");
    assert_eq!(output.code, 2, "{output:?}");
    assert!(!rig.machine.directory().join("alone/state").exists(), "something was begun");
    rig.finish().await;
}

#[tokio::test]
async fn images_are_pulled_listed_and_removed_without_a_daemon() {
    let rig = rig!();
    let pulled = image(&rig, &["pull", BUSYBOX]).await;
    assert_eq!(pulled.code, 0, "{pulled:?}");
    assert!(pulled.stdout.starts_with("sha256:"), "it prints the image's id: {pulled:?}");
    let id = pulled.stdout.trim().trim_start_matches("sha256:");
    let listed = image(&rig, &["ls"]).await;
    let line =
        listed.stdout.lines().find(|line| line.starts_with(BUSYBOX)).unwrap_or_else(|| panic!("{listed:?}"));
    assert!(line.contains(&id[..12]) && line.contains("MB"), "{line}");
    let unknown = format!("{REGISTRY}/nosuch:1");
    for verb in ["pull", "rm"] {
        let refused = image(&rig, &[verb, &unknown]).await;
        assert!(refused.code != 0 && refused.stderr.contains("nosuch"), "{verb}: {refused:?}");
    }
    let removed = image(&rig, &["rm", BUSYBOX]).await;
    assert_eq!(removed.code, 0, "{removed:?}");
    let listed = image(&rig, &["ls"]).await;
    assert!(listed.code == 0 && !listed.stdout.contains("busybox"), "{listed:?}");
    rig.finish().await;
}

#[tokio::test]
async fn a_pod_can_have_users_of_its_own() {
    let rig = rig!();
    let look = "set -- $(cat /proc/self/uid_map); test $2 -ge 2147483648 && echo $1 $3; stat -c %u:%g /data";
    let mut container = script("app", look);
    container["volumeMounts"] = serde_json::json!([{"name": "data", "mountPath": "/data"}]);
    let spec = serde_json::json!({
        "restartPolicy": "Never",
        "hostUsers": false,
        "volumes": [{"name": "data", "emptyDir": {}}],
        "containers": [container],
    });
    let output = run(&rig, &spec).await;
    let said = format!("{}{}", output.stdout, output.stderr);
    assert_eq!(output.code, 0, "{said}");
    assert!(said.contains("0 65536") && said.contains("0:0"), "{said}");
    rig.finish().await;
}
