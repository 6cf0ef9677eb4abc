//! How containers end, and what is said of it.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::time::{Duration, Instant};

use podhold_integration::{
    configs::{self, Parts, log_file},
    log, rig,
    rig::{PROBE, Rig},
};
use podhold_proto::cri::{ContainerState, NamespaceMode, PodSandboxConfig, Signal};
use tonic::Code;

const SOON: Duration = Duration::from_secs(10);

async fn pod(rig: &Rig, name: &str) -> (PodSandboxConfig, String) {
    let config = rig.pod(name);
    let pod = rig.cri().run_pod(&config).await.unwrap();
    (config, pod)
}

#[tokio::test]
async fn an_exit_code_is_kept_with_its_times_and_reason() {
    let rig = rig!();
    let (config, pod) = pod(&rig, "codes").await;
    for (words, code, reason) in [(vec!["exit", "0"], 0, "Completed"), (vec!["exit", "3"], 3, "Error")] {
        let id = rig.probe(&pod, &config, &format!("c{code}"), &words).await;
        let status = rig.cri().ended(&id, SOON).await.unwrap();
        assert_eq!((status.exit_code, status.reason.as_str()), (code, reason), "{words:?}");
        let times = [status.created_at, status.started_at, status.finished_at];
        assert!(times[0] > 0 && times.is_sorted(), "{times:?}");
    }
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_container_that_listens_to_its_stop_signal_ends_by_itself() {
    let rig = rig!();
    let (config, pod) = pod(&rig, "polite").await;
    let id = rig.probe(&pod, &config, "polite", &["catch", "7"]).await;
    log::wait_for(&log_file(&config, "polite"), "ready").await;
    rig.cri().stop(&id, 30).await.unwrap();
    assert_eq!(rig.cri().status(&id).await.unwrap().exit_code, 7);
    let lines = log::lines(&log_file(&config, "polite"), "stdout").unwrap();
    assert_eq!(lines, ["ready", "caught SIGTERM"]);
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn the_stop_signal_is_the_images_or_else_term() {
    let rig = rig!();
    let image = format!("{}/probe:user", podhold_integration::rig::REGISTRY);
    rig.cri().pull(&image).await.unwrap();
    let (config, pod) = pod(&rig, "signals").await;
    let id = rig.run(&pod, &config, &configs::container("usr1", &image, &["catch", "0"])).await;
    log::wait_for(&log_file(&config, "usr1"), "ready").await;
    rig.cri().stop(&id, 30).await.unwrap();
    log::wait_for(&log_file(&config, "usr1"), "caught SIGUSR1").await;
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

/// Where it is not pid 1 of its namespace, the kernel does as the signal says.
#[tokio::test]
async fn a_container_ended_by_a_signal_has_128_and_the_signal_as_its_code() {
    let rig = rig!();
    let mut config = rig.pod("signalled");
    config.namespaces().pid = NamespaceMode::Pod.into();
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let run = async |name: &str, word: &str| {
        let mut container = configs::container(name, PROBE, &[word]);
        container.namespaces().pid = NamespaceMode::Pod.into();
        rig.run(&pod, &config, &container).await
    };
    let sleeper = run("sleeper", "sleep").await;
    rig.cri().stop(&sleeper, 30).await.unwrap();
    assert_eq!(rig.cri().status(&sleeper).await.unwrap().exit_code, 143);
    let aborts = run("aborts", "abort").await;
    assert_eq!(rig.cri().ended(&aborts, SOON).await.unwrap().exit_code, 134);
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

/// Real-time signals begin at 34 for programs; systemd in a container ends at SIGRTMIN+3.
#[tokio::test]
async fn a_stop_signal_of_the_real_time_range_ends_a_container() {
    let rig = rig!();
    let image = format!("{}/probe:realtime", podhold_integration::rig::REGISTRY);
    rig.cri().pull(&image).await.unwrap();
    let mut config = rig.pod("realtime");
    config.namespaces().pid = NamespaceMode::Pod.into();
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let signals = [("image", Signal::RuntimeDefault, 37), ("request", Signal::Sigrtminplus5, 39)];
    for (name, signal, number) in signals {
        let mut container = configs::container(name, &image, &["sleep"]);
        container.stop_signal = signal.into();
        container.namespaces().pid = NamespaceMode::Pod.into();
        let id = rig.run(&pod, &config, &container).await;
        assert_eq!(rig.cri().status(&id).await.unwrap().state(), ContainerState::ContainerRunning);
        rig.cri().stop(&id, 30).await.unwrap();
        assert_eq!(rig.cri().status(&id).await.unwrap().exit_code, 128 + number, "{name}");
    }
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_container_that_does_not_listen_is_killed_when_its_grace_is_over() {
    let rig = rig!();
    let (config, pod) = pod(&rig, "stubborn").await;
    let id = rig.probe(&pod, &config, "stubborn", &["ignore"]).await;
    log::wait_for(&log_file(&config, "stubborn"), "ready").await;
    let began = Instant::now();
    rig.cri().stop(&id, 2).await.unwrap();
    let took = began.elapsed();
    assert_eq!(rig.cri().status(&id).await.unwrap().exit_code, 137);
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(6), "{took:?}");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_later_stop_shortens_the_grace_of_one_under_way() {
    let rig = rig!();
    let (config, pod) = pod(&rig, "hurry").await;
    let id = rig.probe(&pod, &config, "stubborn", &["ignore"]).await;
    log::wait_for(&log_file(&config, "stubborn"), "ready").await;
    let began = Instant::now();
    let (patient, hasty) = tokio::join!(rig.cri().stop(&id, 300), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        rig.cri().stop(&id, 0).await
    });
    patient.unwrap();
    hasty.unwrap();
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn pause_reaps_what_falls_to_it() {
    let rig = rig!();
    let mut config = rig.pod("zombies");
    config.namespaces().pid = NamespaceMode::Pod.into();
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mut container =
        configs::container("parent", PROBE, &["zombies", "20", "+", "print", "done", "+", "sleep"]);
    container.namespaces().pid = NamespaceMode::Pod.into();
    let id = rig.run(&pod, &config, &container).await;
    log::wait_for(&log_file(&config, "parent"), "done").await;
    let mut seen = String::new();
    for _ in 0..20 {
        seen = rig.cri().exec_well(&id, &["/probe", "processes"]).await.unwrap();
        if seen.trim().ends_with("zombies=0") {
            break;
        }
    }
    assert_eq!(seen.trim(), "processes=3 zombies=0");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_failed_start_leaves_the_container_exited_with_128_and_start_error() {
    let rig = rig!();
    let (config, pod) = pod(&rig, "failures").await;
    for (name, command) in [("missing", "/no/such/program"), ("no-program", "/etc/passwd")] {
        let mut container = configs::container(name, PROBE, &[]);
        container.command = vec![command.into()];
        let id = rig.cri().create(&pod, &config, &container).await.unwrap();
        let refusal = rig.cri().start(&id).await.unwrap_err();
        assert!(refusal.message().contains(command), "the message names the command: {refusal}");
        let status = rig.cri().status(&id).await.unwrap();
        assert_eq!(status.state(), ContainerState::ContainerExited);
        assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"), "{status:?}");
        rig.cri().remove(&id).await.unwrap();
        assert_eq!(rig.cri().status(&id).await.unwrap_err().code(), Code::NotFound);
    }
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn ending_a_pod_ends_what_runs_in_it() {
    let rig = rig!();
    let (config, pod) = pod(&rig, "whole").await;
    for name in ["one", "two"] {
        rig.probe(&pod, &config, name, &["ignore"]).await;
    }
    let began = Instant::now();
    rig.cri().remove_pod(&pod).await.unwrap();
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    rig.finish().await;
}
