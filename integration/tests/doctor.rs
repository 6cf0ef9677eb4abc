//! `podhold doctor`: each fault is named with its cost and its mend, and what is left over can be removed.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;

use podhold_integration::{
    cgroup,
    configs::log_file,
    daemon::{Places, configuration},
    log,
    machine::Output,
    programs, require, rig,
    rig::Rig,
};
use podhold_proto::cri::ContainerState;
use serde_json::Value;

/// What pods that are gone would be called.
const LOST: &str = "00000000000000000000000000000000000000000000000000000000000d0c70";

/// In these directories alone: those of `podhold run` are the real host's.
async fn doctor(rig: &Rig, places: &Places, rest: &[&str]) -> Output {
    let path = |path: std::path::PathBuf| path.display().to_string();
    let options =
        [("--config", places.config()), ("--run-dir", places.run()), ("--state-dir", places.state())];
    let options = options.into_iter().flat_map(|(name, place)| [name.to_owned(), path(place)]);
    // It needs no other program.
    let words = ["timeout", "120", "env", "PATH=/nowhere"].map(str::to_owned).into_iter();
    let words = words.chain([path(programs::built("podhold")), "doctor".to_owned()]).chain(options);
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

/// What pods and daemons that are gone leave, of each kind.
async fn leave_everything(rig: &Rig, places: &Places, parent: &str) {
    let run = places.run().display().to_string();
    let lost = cgroup::DRIVER.pod(parent, LOST);
    let script = format!(
        "set -e
         umask 077
         mkdir -p {run}/netns {run}/pods/{LOST}/shm {run}/bridge
         touch {run}/netns/{LOST}
         mount --bind /proc/self/ns/net {run}/netns/{LOST}
         mount -t tmpfs -o size=64k doctor {run}/pods/{LOST}/shm
         echo '{{}}' > {run}/bridge/{LOST}.json
         if [ -f /sys/fs/cgroup/cgroup.controllers ]; then at=/sys/fs/cgroup; else at=/sys/fs/cgroup/memory; fi
         mkdir -p $at/{lost}
         ip link add podhold-0d0c0d0 type bridge
         ip link set podhold-0d0c0d0 alias 'podhold-0d0c0d0 10.214.0.0/22 - /nowhere/a state'
         nft add table inet podhold-0d0c0d0
         nft add table inet podhold-0d0c0d1"
    );
    rig.machine.run_well(["sh", "-c", &script]).await.unwrap();
}

#[tokio::test]
async fn faults_are_named_and_what_is_left_over_can_be_removed() {
    require!(program "nft", program "ip");
    let rig = rig!();
    let well = doctor(&rig, &rig.places, &[]).await;
    assert_eq!(well.code, 0, "{well:?}");
    assert!(well.stdout.contains("a daemon answers"), "{}", well.stdout);
    assert!(well.stdout.contains("works     built-in network"), "{}", well.stdout);
    // A pod of somebody else beneath the same cgroup, which that doctor knows nothing of.
    let config = rig.pod("theirs");
    let theirs = rig.cri().run_pod(&config).await.unwrap();
    let container = rig.probe(&theirs, &config, "app", &["serve", "80", "here"]).await;

    let places = Places::new(&rig.machine.directory().join("alone"));
    places.make().unwrap();
    let parent = rig.cgroup.clone();
    fs::write(places.config(), configuration(&places, &parent)).unwrap();
    let missing = r#"{"cniVersion": "1.0.0", "name": "x", "plugins": [{"type": "no-such-plugin"}]}"#;
    let list = places.cni().join("10-x.conflist");
    fs::write(&list, missing).unwrap();
    places.mirror("registry.example", "127.0.0.1:9").unwrap();
    places.mirror("by-name.example", "localhost:9").unwrap();
    leave_everything(&rig, &places, &parent).await;

    let left_over = [
        "left-over mounts",
        "left-over run directories",
        "left-over network namespaces",
        "left-over addresses",
        "left-over cgroups",
        "left-over networks",
    ];
    let ill = doctor(&rig, &places, &["--json"]).await;
    assert_eq!(ill.code, 1, "{ill:?}");
    let found = findings(&ill);
    assert_eq!(verdicts(&found, "pod network"), ["broken"]);
    assert_eq!(verdicts(&found, "registry mirror"), ["degraded"; 2]);
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
        assert!(
            !left.iter().any(|found| found.contains(LOST) || found.contains("0d0c0d")),
            "{check}: {left:?}"
        );
    }
    let state = rig.cri().status(&container).await.unwrap().state();
    assert_eq!(state, ContainerState::ContainerRunning, "a pod of others was ended");
    rig.cri().end_pod(&theirs).await.unwrap();
    let refused = doctor(&rig, &rig.places, &["--fix"]).await;
    assert_ne!(refused.code, 0, "a daemon has these directories: {refused:?}");
    rig.finish().await;
}

/// In a mount namespace in which the usual directories are empty, so that none of the real host is touched.
#[tokio::test]
async fn what_podhold_run_has_left_in_its_own_directories_is_found_too() {
    require!(program "unshare");
    let rig = rig!();
    let places = Places::new(&rig.machine.directory().join("alone"));
    places.make().unwrap();
    fs::write(places.config(), configuration(&places, &format!("{}-alone", rig.cgroup))).unwrap();
    let doctor = format!(
        "timeout 120 {} doctor --config {} --json",
        programs::built("podhold").display(),
        places.config().display()
    );
    let script = format!(
        "mount -t tmpfs doctor /run && mount -t tmpfs doctor /var/lib || exit 9
         umask 077
         mkdir -p /run/podhold-run/pods/{LOST} /var/lib/podhold-run
         {doctor}; echo; echo first
         {doctor} --fix; echo; echo second
         ls /run/podhold-run/pods"
    );
    let said = rig.machine.run(["unshare", "--mount", "sh", "-c", &script]).await.unwrap();
    let (first, rest) = said.stdout.split_once("\nfirst\n").unwrap_or_else(|| panic!("{said:?}"));
    let (second, left) = rest.split_once("\nsecond\n").unwrap_or_else(|| panic!("{said:?}"));
    let verdict = |answer: &str| {
        let answer: Value = serde_json::from_str(answer).unwrap_or_else(|error| panic!("{error}: {said:?}"));
        verdicts(answer["findings"].as_array().unwrap(), "left-over run directories").join(" ")
    };
    assert_eq!((verdict(first).as_str(), verdict(second).as_str()), ("degraded", "works"), "{said:?}");
    assert_eq!(left.trim(), "", "{said:?}");
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
