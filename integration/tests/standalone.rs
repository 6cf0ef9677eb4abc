//! `podhold run` and `podhold image`: no daemon, and nothing left afterwards.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{collections::BTreeMap, fs};

use nix::sys::signal::Signal;
use podhold_integration::{
    alone::{self, SOON, manifest, script, until_said, words},
    fuse::HangingMount,
    machine::Output,
    rig,
    rig::{BUSYBOX, REGISTRY, Rig},
};
use podhold_proto::cri::PodSandboxState;

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
    // Its containers run on: what is theirs stays.
    let runs = rig.machine.directory().join("alone/run/runs");
    let theirs = || fs::read_dir(&runs).map_or(0, Iterator::count);
    rig.machine.run(words(&rig, &["doctor"], &["--fix"])).await.unwrap();
    assert_eq!(theirs(), 1, "the directories of a pod that runs are removed");
    let next = serde_json::json!({"restartPolicy": "Never", "containers": [script("app", "echo again")]});
    let output = run(&rig, &next).await;
    assert!(output.code == 0 && output.stdout.contains("again"), "{output:?}");
    assert!(output.stderr.contains(&pod.join("pod.json").display().to_string()), "{output:?}");
    assert_eq!(fs::read_dir(&pods).map_or(0, Iterator::count), 0, "the damaged pod is left");
    assert_eq!(theirs(), 0, "its directories are left");
    rig.finish().await;
}

/// What doctor finds of pods whose run was killed, which is one thing.
async fn left_over_pods(rig: &Rig, options: &[&str]) -> serde_json::Value {
    let said = rig.machine.run(words(rig, &["doctor"], &[&["--json"], options].concat())).await.unwrap();
    let answer: serde_json::Value =
        serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:?}"));
    let all = answer["findings"].as_array().unwrap().iter();
    let pods: Vec<_> = all.filter(|finding| finding["check"] == "left-over pods").cloned().collect();
    assert_eq!(pods.len(), 1, "{answer:#}");
    pods[0].clone()
}

#[tokio::test]
async fn doctor_names_a_pod_whose_run_was_killed_and_removes_it() {
    let rig = rig!();
    let spec = serde_json::json!({
        "restartPolicy": "Never", "containers": [script("app", "echo up; exec sleep 1000")],
    });
    let path = manifest(&rig, &spec).display().to_string();
    let log = rig.machine.directory().join("killed.log");
    let pid = rig.machine.spawn(&words(&rig, &["run"], &[&path]), BTreeMap::new(), &log).await.unwrap();
    until_said(&log, "up").await;
    assert_eq!(left_over_pods(&rig, &[]).await["verdict"], "works", "its run is alive");
    rig.machine.signal(pid, Signal::SIGKILL).await.unwrap();
    rig.machine.wait(pid).await.unwrap();
    let left = left_over_pods(&rig, &[]).await;
    let text = |field: &str| left[field].as_str().unwrap_or_default().to_owned();
    assert_eq!(text("verdict"), "degraded", "{left:#}");
    for word in ["default/alone", "of its processes run", "alone/state"] {
        assert!(text("found").contains(word), "{word}: {left:#}");
    }
    for word in ["podhold rm --force", "podhold doctor --fix", "--state-dir"] {
        assert!(text("mend").contains(word), "{word}: {left:#}");
    }
    assert_eq!(left_over_pods(&rig, &["--fix"]).await["verdict"], "works");
    let pods = rig.machine.directory().join("alone/state/pods");
    assert_eq!(fs::read_dir(&pods).map_or(0, Iterator::count), 0, "its records are left");
    rig.finish().await;
}

#[tokio::test]
async fn doctor_names_a_pod_to_be_kept_whose_run_was_killed_and_stops_it() {
    let rig = rig!();
    let spec = serde_json::json!({
        "restartPolicy": "Never", "containers": [script("app", "echo up; exec sleep 1000")],
    });
    let path = manifest(&rig, &spec).display().to_string();
    let log = rig.machine.directory().join("kept.log");
    let command = words(&rig, &["run"], &["--keep", &path]);
    let pid = rig.machine.spawn(&command, BTreeMap::new(), &log).await.unwrap();
    until_said(&log, "up").await;
    rig.machine.signal(pid, Signal::SIGKILL).await.unwrap();
    rig.machine.wait(pid).await.unwrap();
    let left = left_over_pods(&rig, &[]).await;
    assert_eq!(left["verdict"], "degraded", "{left:#}");
    assert!(left["mend"].as_str().unwrap_or_default().starts_with("podhold stop"), "{left:#}");
    assert_eq!(left_over_pods(&rig, &["--fix"]).await["verdict"], "works");
    let pods = rig.machine.directory().join("alone/state/pods");
    assert_eq!(fs::read_dir(&pods).map_or(0, Iterator::count), 1, "what was to be kept is removed");
    let removed = rig.machine.run(words(&rig, &["rm"], &["alone"])).await.unwrap();
    assert_eq!(removed.code, 0, "it was stopped: {removed:?}");
    rig.finish().await;
}

#[tokio::test]
async fn a_daemons_directories_are_refused_and_its_pods_left_alone() {
    let mut rig = rig!();
    let config = rig.pod("kept");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    rig.daemon.stop(&rig.machine).await.unwrap();
    let spec = serde_json::json!({"restartPolicy": "Never", "containers": [script("app", "echo ran")]});
    let path = manifest(&rig, &spec);
    let (run, state) = (rig.places.run(), rig.places.state());
    let program = podhold_integration::programs::built("podhold");
    let mut command = vec!["timeout".to_owned(), "-k5".to_owned(), "60".to_owned()];
    command.extend([program.display().to_string(), "run".to_owned()]);
    for (flag, value) in [("--config", rig.places.config()), ("--run-dir", run), ("--state-dir", state)] {
        command.extend([flag.to_owned(), value.display().to_string()]);
    }
    command.push(path.display().to_string());
    let refused = rig.machine.run(command).await.unwrap();
    assert!(refused.code == 3 && !refused.stdout.contains("ran"), "{refused:?}");
    for word in ["holds pods of a daemon", "kept", "--state-dir"] {
        assert!(refused.stderr.contains(word), "{word}: {refused:?}");
    }
    rig.restart_stopped().await;
    let status = rig.cri().pod_status(&pod).await.unwrap();
    assert_eq!(status.state(), PodSandboxState::SandboxReady, "{status:?}");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_host_path_that_hangs_is_an_error_and_not_a_wait() {
    let rig = rig!();
    let mount = HangingMount::start(&rig.machine, &rig.machine.directory().join("hung")).await.unwrap();
    mount.hang(&rig.machine).await.unwrap();
    let app = |more| alone::script_with("app", "echo ran", more);
    let spec = |path: serde_json::Value, container| {
        serde_json::json!({
            "restartPolicy": "Never", "containers": [container], "volumes": [{"name": "v", "hostPath": path}],
        })
    };
    let typed =
        spec(serde_json::json!({"path": mount.path, "type": "Directory"}), app(serde_json::json!({})));
    let mounts = serde_json::json!([{"name": "v", "mountPath": "/v", "subPath": "file"}]);
    let part =
        spec(serde_json::json!({"path": mount.path}), app(serde_json::json!({"volumeMounts": mounts})));
    for (spec, field) in
        [(typed, "spec.volumes[0].hostPath.path"), (part, "spec.containers[0].volumeMounts[0].subPath")]
    {
        let output = run(&rig, &spec).await;
        assert!(output.code == 3 && !output.stdout.contains("ran"), "{output:?}");
        assert!(output.stderr.contains(field) && output.stderr.contains("hangs"), "{output:?}");
    }
    mount.answer(&rig.machine).await.unwrap();
    mount.end(&rig.machine).await.unwrap();
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
