//! A network plugin that outlives the daemon that has started it is waited for, or ended: no DEL meets an
//! ADD that is still at work.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use podhold_integration::{daemon::Daemon, rig, rig::Rig};
use tokio::time::{Instant, sleep};

const LONG: Duration = Duration::from_secs(60);

/// Lets plugins take long, and so has one of an earlier daemon waited for long.
async fn give_time(rig: &mut Rig) {
    let config = fs::read_to_string(rig.places.config()).unwrap();
    let config = config.replace("timeout_seconds = 10", "timeout_seconds = 60");
    fs::write(rig.places.config(), config).unwrap();
    rig.restart().await;
}

/// Puts a plugin of ours behind the bridge that is at work in ADD until the file `go` is there, and then
/// makes something that only its DEL takes away.
fn add_slow_plugin(rig: &Rig) {
    let directory = rig.machine.directory().display();
    let script = format!(
        "#!/bin/sh\ncd {directory}\ninput=$(cat)\n\
         case $CNI_COMMAND in\n\
         ADD) echo begun >> slow.log; while [ ! -e go ]; do sleep 0.05; done\n\
              echo made > made-$CNI_CONTAINERID; echo ended >> slow.log\n\
              echo '{{\"cniVersion\":\"1.0.0\",\"interfaces\":[{{\"name\":\"eth0\",\"sandbox\":\"/x\"}}],\"ips\":[{{\"address\":\"10.88.0.200/16\",\"interface\":0}}]}}' ;;\n\
         DEL) echo del >> slow.log; rm -f made-$CNI_CONTAINERID ;;\nesac\n"
    );
    let program = rig.places.plugins().join("slow");
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let path = rig.places.cni().join("10-podhold.conflist");
    let mut list: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    list["plugins"].as_array_mut().unwrap().push(serde_json::json!({"type": "slow"}));
    fs::write(rig.places.cni().join("new"), list.to_string()).unwrap();
    fs::rename(rig.places.cni().join("new"), rig.places.cni().join("00-slow.conflist")).unwrap();
}

fn said(rig: &Rig) -> Vec<String> {
    let text = fs::read_to_string(rig.machine.directory().join("slow.log")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Waits until `done`; there is no event for what a stranger's child does.
async fn until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not within {LONG:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Kills the daemon while the plugin is at work in ADD, and starts it again.
async fn crash_in_add(rig: &mut Rig, name: &str) {
    let (cri, config) = (rig.cri().clone(), rig.pod(name));
    let call = tokio::spawn(async move { cri.run_pod(&config).await });
    until("ADD", || said(rig).iter().any(|line| line == "begun")).await;
    rig.daemon.kill(&rig.machine).await.unwrap();
    assert!(call.await.unwrap().is_err());
    rig.daemon = Daemon::start(&rig.machine, &rig.places).await.unwrap();
}

async fn undone(rig: &Rig) {
    let state = rig.places.state();
    let empty = |path: &Path| fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    until("the half-made pod undone", || empty(&state.join("pods")) && empty(&state.join("cni"))).await;
}

#[tokio::test]
async fn del_waits_for_an_add_that_outlived_its_daemon() {
    let mut rig = rig!();
    // Long enough for the slowest machine: it is not to be ended here.
    give_time(&mut rig).await;
    add_slow_plugin(&rig);
    crash_in_add(&mut rig, "late").await;
    // Time in which a DEL that does not wait would be run.
    sleep(Duration::from_secs(2)).await;
    assert_eq!(said(&rig), ["begun"]);
    assert!(rig.cri().list_pods().await.unwrap().is_empty(), "it answers meanwhile");
    fs::write(rig.machine.directory().join("go"), "").unwrap();
    undone(&rig).await;
    assert_eq!(said(&rig), ["begun", "ended", "del"]);
    let names: Vec<_> =
        fs::read_dir(rig.machine.directory()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().starts_with("made-")), "{names:?}");
    let pod = rig.cri().run_pod(&rig.pod("late")).await.unwrap();
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn an_add_that_never_ends_is_ended_after_its_time() {
    let mut rig = rig!();
    // Its time is ten seconds; those before it in the list have enough of it on any machine.
    add_slow_plugin(&rig);
    crash_in_add(&mut rig, "endless").await;
    undone(&rig).await;
    assert_eq!(said(&rig), ["begun", "del"], "the plugin was killed, and then DEL was run");
    rig.finish().await;
}
