//! `podhold doctor`: each fault is named with its cost and its mend, and what is left over can be removed.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;

use podhold_integration::{
    configs::log_file,
    daemon::{Places, configuration},
    log,
    machine::Output,
    programs, rig,
    rig::Rig,
};
use podhold_proto::cri::ContainerState;
use serde_json::Value;

/// What pods that are gone would be called.
const LOST: &str = "00000000000000000000000000000000000000000000000000000000000d0c70";

async fn doctor(rig: &Rig, places: &Places, rest: &[&str]) -> Output {
    let words = ["timeout", "120"].map(str::to_owned).into_iter();
    let program = programs::built("podhold").display().to_string();
    let words = words.chain([program, "doctor".to_owned()]);
    let words = words.chain(["--config".to_owned(), places.config().display().to_string()]);
    rig.machine.run(words.chain(rest.iter().map(|word| (*word).to_owned()))).await.unwrap()
}

fn findings(output: &Output) -> Vec<Value> {
    let answer: Value =
        serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    assert_eq!(answer["fit"], output.code == 0, "{answer}");
    answer["findings"].as_array().unwrap().clone()
}

/// The verdicts of one check.
fn verdicts<'a>(findings: &'a [Value], check: &str) -> Vec<&'a str> {
    let found = findings.iter().filter(|finding| finding["check"] == check);
    found.map(|finding| finding["verdict"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn faults_are_named_and_what_is_left_over_can_be_removed() {
    let rig = rig!();
    let well = doctor(&rig, &rig.places, &[]).await;
    assert_eq!(well.code, 0, "{well:?}");
    assert!(well.stdout.contains("a daemon answers"), "{}", well.stdout);

    let places = Places::new(&rig.machine.directory().join("alone"));
    places.make().unwrap();
    let parent = format!("{}-alone", rig.cgroup);
    fs::write(places.config(), configuration(&places, &parent)).unwrap();
    let missing = r#"{"cniVersion": "1.0.0", "name": "x", "plugins": [{"type": "no-such-plugin"}]}"#;
    let list = places.cni().join("10-x.conflist");
    fs::write(&list, missing).unwrap();
    places.mirror("registry.example", "127.0.0.1:9").unwrap();
    let run = places.run().display().to_string();
    let script = format!(
        "set -e
         umask 077
         mkdir -p {run}/netns {run}/pods/{LOST}/shm {run}/bridge
         touch {run}/netns/{LOST}
         mount --bind /proc/self/ns/net {run}/netns/{LOST}
         mount -t tmpfs -o size=64k doctor {run}/pods/{LOST}/shm
         echo '{{}}' > {run}/bridge/{LOST}.json
         if [ -f /sys/fs/cgroup/cgroup.controllers ]; then at=/sys/fs/cgroup; else at=/sys/fs/cgroup/memory; fi
         mkdir -p $at/{parent}/{LOST}"
    );
    rig.machine.run_well(["sh", "-c", &script]).await.unwrap();

    let left_over = [
        "left-over mounts",
        "left-over run directories",
        "left-over network namespaces",
        "left-over addresses",
        "left-over cgroups",
    ];
    let ill = doctor(&rig, &places, &["--json"]).await;
    assert_eq!(ill.code, 1, "{ill:?}");
    let found = findings(&ill);
    assert_eq!(verdicts(&found, "pod network"), ["broken"]);
    assert_eq!(verdicts(&found, "registry mirror"), ["degraded"]);
    let network = found.iter().find(|finding| finding["check"] == "pod network").unwrap();
    assert!(network["found"].as_str().unwrap().contains("no-such-plugin"), "{network}");
    for check in left_over {
        assert!(verdicts(&found, check).contains(&"degraded"), "{check}: {found:?}");
    }
    for finding in found.iter().filter(|finding| finding["verdict"] != "works") {
        assert_ne!((&finding["cost"], &finding["mend"]), (&Value::from(""), &Value::from("")), "{finding}");
    }

    fs::remove_file(&list).unwrap();
    let mended = doctor(&rig, &places, &["--json", "--fix"]).await;
    assert_eq!(mended.code, 0, "{mended:?}");
    let found = findings(&mended);
    for check in left_over {
        assert!(!verdicts(&found, check).contains(&"broken"), "{check}: {found:?}");
        let left = found.iter().filter(|finding| finding["check"] == check);
        let left: Vec<&str> = left.map(|finding| finding["found"].as_str().unwrap()).collect();
        assert!(!left.iter().any(|found| found.contains(LOST)), "{check}: {left:?}");
    }
    let refused = doctor(&rig, &rig.places, &["--fix"]).await;
    assert_ne!(refused.code, 0, "a daemon has these directories: {refused:?}");
    rig.finish().await;
}

#[tokio::test]
async fn a_pod_that_lives_without_records_is_no_leak() {
    let mut rig = rig!();
    let config = rig.pod("alive");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let client = rig.probe(&pod, &config, "app", &["serve", "80", "here"]).await;
    log::wait_for(&log_file(&config, "app"), "listening on 80").await;
    rig.daemon.kill(&rig.machine).await.unwrap();
    let (records, aside) = (rig.places.state().join("pods").join(&pod), rig.places.state().join("aside"));
    fs::rename(&records, &aside).unwrap();
    let left = doctor(&rig, &rig.places, &["--json", "--fix"]).await;
    assert_eq!(left.code, 0, "{left:?}");
    assert!(left.stderr.contains("its shim lives"), "{left:?}");
    let found = findings(&left);
    assert_eq!(verdicts(&found, "left-over run directories"), ["degraded"], "{found:?}");
    fs::rename(&aside, &records).unwrap();
    rig.restart_stopped().await;
    assert_eq!(rig.cri().status(&client).await.unwrap().state(), ContainerState::ContainerRunning);
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}
