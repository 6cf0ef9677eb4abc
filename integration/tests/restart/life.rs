//! Containers run on, whatever ends the daemon and whatever comes after it.

use std::{
    fs,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use podhold_integration::{
    configs::{self, log_file, resources},
    daemon::Daemon,
    log, programs, rig,
    rig::{BUSYBOX, PROBE},
};
use podhold_proto::cri::{ContainerState, ContainerStatus, PodSandboxState};

use crate::SOON;

fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

#[tokio::test]
async fn a_crash_of_the_daemon_is_not_noticed_by_containers() {
    let mut rig = rig!();
    let config = rig.pod("survives");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let runs = rig.probe(&pod, &config, "runs", &["catch", "5"]).await;
    let before = rig.cri().status(&runs).await.unwrap();
    rig.crash_and_restart().await;
    let after = rig.cri().status(&runs).await.unwrap();
    assert_eq!(after.state(), ContainerState::ContainerRunning);
    assert_eq!((after.created_at, after.started_at), (before.created_at, before.started_at));
    assert_eq!(rig.cri().pod_status(&pod).await.unwrap().state(), PodSandboxState::SandboxReady);
    assert_eq!(rig.cri().exec(&runs, &["/probe", "exit", "3"]).await.unwrap().exit_code, 3);
    rig.cri().stop(&runs, 10).await.unwrap();
    assert_eq!(rig.cri().status(&runs).await.unwrap().exit_code, 5);
    log::wait_for(&log_file(&config, "runs"), "caught SIGTERM").await;
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

/// By TERM, by a crash, and into another build at another place.
#[tokio::test]
async fn output_and_processes_go_on_whatever_ends_the_daemon() {
    let mut rig = rig!();
    let config = rig.pod("goes-on");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let id = rig.probe(&pod, &config, "ticks", &["tick", "50"]).await;
    let before = rig.cri().status(&id).await.unwrap();
    let file = log_file(&config, "ticks");
    let build = rig.machine.directory().join("another-podhold");
    fs::copy(programs::built("podhold"), &build).unwrap();
    for (end, program) in [("TERM", programs::built("podhold")), ("KILL", build)] {
        match end {
            "TERM" => assert_eq!(rig.daemon.stop(&rig.machine).await.unwrap(), 0),
            _ => rig.daemon.kill(&rig.machine).await.unwrap(),
        }
        let so_far = log::lines(&file, "stdout").unwrap().len();
        // Line by line, with nobody there.
        log::wait_for_start(std::slice::from_ref(&file), &format!("{} ", so_far + 50)).await;
        rig.daemon = Daemon::start_program(&rig.machine, &rig.places, &program).await.unwrap();
        let after = rig.cri().status(&id).await.unwrap();
        assert_eq!(after.state(), ContainerState::ContainerRunning, "after {end}");
        assert_eq!((after.created_at, after.started_at), (before.created_at, before.started_at));
    }
    rig.cri().stop(&id, 30).await.unwrap();
    assert_eq!(rig.cri().status(&id).await.unwrap().exit_code, 0);
    let lines = log::lines(&file, "stdout").unwrap();
    let (last, lines) = lines.split_last().unwrap();
    assert_eq!(*last, format!("end {}", lines.len()));
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

fn eater(name: &str, first: &[&str]) -> podhold_proto::cri::ContainerConfig {
    let mut container = configs::container(name, PROBE, &[first, &["eat", "200"]].concat());
    resources(&mut container).memory_limit_in_bytes = 64 << 20;
    resources(&mut container).memory_swap_limit_in_bytes = 64 << 20;
    container
}

fn killed_for_memory(status: &ContainerStatus) {
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{status:?}");
}

#[tokio::test]
async fn an_exit_while_the_daemon_is_away_keeps_its_code_its_time_its_reason_and_its_log() {
    let mut rig = rig!();
    let config = rig.pod("away");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let early = rig.run(&pod, &config, &eater("early", &[])).await;
    killed_for_memory(&rig.cri().ended(&early, SOON).await.unwrap());
    let begun = Instant::now();
    let words = ["pause", "3", "+", "lines", "1000", "100", "+", "exit", "9"];
    let ends = rig.probe(&pod, &config, "ends", &words).await;
    let late = rig.run(&pod, &config, &eater("late", &["pause", "3", "+"])).await;
    rig.daemon.kill(&rig.machine).await.unwrap();
    let exit_of =
        |id: &str| rig.places.run().join("pods").join(&pod).join("containers").join(id).join("exit.json");
    let exits = [exit_of(&ends), exit_of(&late)];
    let left = now();
    // Then nothing is known of the order.
    let slow = begun.elapsed() >= Duration::from_secs(3);
    podhold_integration::processes::until("both exits", || exits.iter().all(|exit| exit.exists())).await;
    log::wait_for_start(&[log_file(&config, "ends")], "999 ").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let came_back = now();
    // Twice: what is known must not be forgotten the second time.
    for _ in 0..2 {
        rig.daemon = Daemon::start(&rig.machine, &rig.places).await.unwrap();
        let status = rig.cri().ended(&ends, SOON).await.unwrap();
        assert_eq!((status.exit_code, status.reason.as_str()), (9, "Error"));
        let between = left..came_back;
        assert!(slow || between.contains(&status.finished_at), "{between:?}: {}", status.finished_at);
        assert!(status.started_at < status.finished_at);
        killed_for_memory(&rig.cri().ended(&late, SOON).await.unwrap());
        killed_for_memory(&rig.cri().status(&early).await.unwrap());
        rig.daemon.kill(&rig.machine).await.unwrap();
    }
    rig.daemon = Daemon::start(&rig.machine, &rig.places).await.unwrap();
    assert_eq!(log::lines(&log_file(&config, "ends"), "stdout").unwrap().len(), 1000);
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

/// The grace is nobody's any more: the container runs, and can be stopped again.
#[tokio::test]
async fn a_stop_that_the_daemon_did_not_live_to_finish_can_be_repeated() {
    let mut rig = rig!();
    let config = rig.pod("stopping");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let deaf = "trap 'echo not yet' TERM; echo ready; while :; do sleep 0.2; done";
    let mut container = configs::container("stubborn", BUSYBOX, &["-c", deaf]);
    container.command = vec!["/bin/sh".into()];
    let id = rig.run(&pod, &config, &container).await;
    log::wait_for(&log_file(&config, "stubborn"), "ready").await;
    let (cri, stopped) = (rig.cri().clone(), id.clone());
    let stop = tokio::spawn(async move { cri.stop(&stopped, 300).await });
    log::wait_for(&log_file(&config, "stubborn"), "not yet").await;
    rig.daemon.kill(&rig.machine).await.unwrap();
    stop.await.unwrap().unwrap_err();
    rig.daemon = Daemon::start(&rig.machine, &rig.places).await.unwrap();
    assert_eq!(rig.cri().status(&id).await.unwrap().state(), ContainerState::ContainerRunning);
    rig.cri().stop(&id, 1).await.unwrap();
    assert_eq!(rig.cri().status(&id).await.unwrap().exit_code, 137);
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn everything_can_be_removed_after_a_crash() {
    let mut rig = rig!();
    let config = rig.pod("removed");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    rig.probe(&pod, &config, "runs", &["ignore"]).await;
    let created =
        podhold_integration::configs::container("created", podhold_integration::rig::PROBE, &["sleep"]);
    rig.cri().create(&pod, &config, &created).await.unwrap();
    rig.crash_and_restart().await;
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}
