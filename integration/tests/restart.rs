//! The daemon comes and goes; pods, logs and exit codes stay.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::time::Duration;

use podhold_integration::{configs::log_file, log, rig};
use podhold_proto::cri::{ContainerState, PodSandboxState};

const SOON: Duration = Duration::from_secs(10);

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

#[tokio::test]
async fn an_exit_while_the_daemon_is_away_keeps_its_code_and_its_log() {
    let mut rig = rig!();
    let config = rig.pod("away");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let words = ["pause", "1", "+", "lines", "1000", "100", "+", "exit", "9"];
    let id = rig.probe(&pod, &config, "ends", &words).await;
    rig.daemon.kill(&rig.machine).await.unwrap();
    log::wait_for_start(&[log_file(&config, "ends")], "999 ").await;
    rig.daemon = podhold_integration::daemon::Daemon::start(&rig.machine, &rig.places).await.unwrap();
    assert_eq!(rig.cri().ended(&id, SOON).await.unwrap().exit_code, 9);
    assert_eq!(log::lines(&log_file(&config, "ends"), "stdout").unwrap().len(), 1000);
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
