//! The manifests of `examples/` run as they are, without a network outside, and show what they say.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use nix::sys::signal::Signal;
use podhold_integration::{
    alone::{SOON, until_said, words},
    machine::Output,
    rig,
    rig::{BUSYBOX, Rig},
};

/// The image that they name.
const IMAGE: &str = "docker.io/library/busybox:1.37";

fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name);
    assert!(path.exists(), "{} is missing", path.display());
    path.display().to_string()
}

async fn run(rig: &Rig, name: &str) -> Output {
    let limited = ["timeout".to_owned(), "90".to_owned()];
    let all = limited.into_iter().chain(words(rig, &["run"], &[&example(name)]));
    rig.machine.run(all).await.unwrap()
}

/// One after another, since each is a pod of its own with the same directories.
#[tokio::test]
async fn each_example_shows_what_it_says() {
    let rig = rig!();
    rig.machine.run_well(words(&rig, &["image"], &["pull", BUSYBOX])).await.unwrap();
    rig.machine.run_well(words(&rig, &["image"], &["tag", BUSYBOX, IMAGE])).await.unwrap();
    let all: [(&str, i32, &[&str]); 8] = [
        ("init-order.yaml", 0, &["wrote the first line", "the order was first second"]),
        ("sidecar.yaml", 0, &["the page says: hello from the sidecar", "the app has ended"]),
        (
            "probes-and-restart.yaml",
            0,
            &["the page is gone", "liveness probe failed", "this is the second time"],
        ),
        ("hooks.yaml", 124, &["postStart", "activeDeadlineSeconds", "preStop", "asked to end"]),
        ("shared-volume.yaml", 0, &["read: a word"]),
        (
            "config-and-secret.yaml",
            0,
            &["hello, the file says: colour = blue", "the password has 11 letters, and mode 400"],
        ),
        ("user-namespace.yaml", 0, &["user 0 here is user", "and owns its file: 0:0"]),
        ("limits.yaml", 137, &["taking 200 MB", "OOMKilled"]),
    ];
    for (name, code, expected) in all {
        let output = run(&rig, name).await;
        let said = format!("{}{}", output.stdout, output.stderr);
        assert_eq!(output.code, code, "{name}: {said}");
        for word in expected {
            assert!(said.contains(word), "{name}: no {word:?} in {said}");
        }
    }
    // The server: from the pods' bridge to the host's port, until it is told to end.
    let log = rig.machine.directory().join("ports.log");
    let pid = rig
        .machine
        .spawn(&words(&rig, &["run"], &[&example("ports.yaml")]), BTreeMap::new(), &log)
        .await
        .unwrap();
    until_said(&log, "ready 1/1").await;
    let page =
        rig.machine.run(["busybox", "wget", "-q", "-O", "-", "http://10.88.0.1:18080/"]).await.unwrap();
    assert_eq!(page.stdout, "hello from the pod\n", "{page:?} {:?}", fs::read_to_string(&log));
    rig.machine.signal(pid, Signal::SIGINT).await.unwrap();
    let code = tokio::time::timeout(SOON, rig.machine.wait(pid)).await.unwrap().unwrap();
    assert_eq!(code, 130, "{:?}", fs::read_to_string(&log));
    let listed = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")).unwrap();
    let names = listed.flatten().map(|entry| entry.file_name().into_string().unwrap());
    let found: BTreeSet<String> = names.filter(|name| name.ends_with(".yaml")).collect();
    let run = all.iter().map(|(name, ..)| *name).chain(["ports.yaml"]).map(str::to_owned);
    assert_eq!(found, run.collect(), "an example that nobody runs");
    rig.finish().await;
}
