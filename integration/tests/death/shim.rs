//! The shim is killed.

use std::time::Duration;

use podhold_integration::{configs::log_file, daemon::Daemon, log, processes, rig, rig::Rig};
use podhold_proto::cri::*;
use tokio::time::timeout;

use crate::{Kind, Pod, SOON};

#[tokio::test]
async fn all_that_a_dead_shim_has_held_is_ended_and_reported() {
    let rig = rig!();
    for kind in [Kind::Ordinary, Kind::SharedPid, Kind::Users] {
        let pod = Pod::start(&rig, "held", kind, 5).await;
        let early = rig.run(&pod.id, &pod.config, &pod.container("early", &["exit", "3"])).await;
        rig.cri().ended(&early, SOON).await.unwrap();
        let (cri, within) = (rig.cri().clone(), pod.containers[0].clone());
        let exec = tokio::spawn(async move { cri.exec(&within, &["/probe", "ignore"]).await });
        let cgroup = rig.pod_cgroup(&pod.id);
        processes::until("pause, five containers, one exec", || processes::in_cgroup(&cgroup).len() == 7)
            .await;
        let answer = rig.cri().runtime.clone().get_container_events(GetEventsRequest::default()).await;
        let mut events = answer.unwrap().into_inner();
        let holders = processes::holders(&pod.id);

        processes::murder(holders.shim);
        timeout(SOON, exec).await.expect("an exec ends with its shim").unwrap().unwrap_err();
        pod.not_ready(&rig).await;
        pod.all_ended(&rig, 255, "Unknown").await;
        processes::gone(holders.pause).await;
        processes::gone(holders.logger).await;
        pod.nothing_runs(&rig).await;
        assert_eq!(rig.cri().status(&early).await.unwrap().exit_code, 3, "{kind:?}");
        let mut told: Vec<String> = Vec::new();
        while told.len() < 6 {
            let event = timeout(SOON, events.message()).await.expect("an event").unwrap().unwrap();
            assert_eq!(event.container_event_type(), ContainerEventType::ContainerStoppedEvent);
            told.push(event.container_id);
        }
        assert_eq!(told[0], pod.id, "the pod is not ready before anything else");
        assert!(pod.containers.iter().all(|container| told.contains(container)));
        pod.end(&rig).await;
    }
    rig.finish().await;
}

/// The pod and its containers are told in one answer: no container of a pod without shim runs, from the first
/// moment on.
#[tokio::test]
async fn no_container_of_a_dead_shim_is_said_to_run() {
    let rig = rig!();
    let pod = Pod::start(&rig, "told", Kind::Ordinary, 5).await;
    let shim = processes::holders(&pod.id).shim;
    processes::murder(shim);
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: false };
        let answer = rig.cri().runtime.clone().pod_sandbox_status(request).await.unwrap().into_inner();
        let states: Vec<ContainerState> = answer.containers_statuses.iter().map(|c| c.state()).collect();
        let ready = answer.status.unwrap().state() == PodSandboxState::SandboxReady;
        assert!(ready || !states.contains(&ContainerState::ContainerRunning), "{states:?}");
        let exec = rig.cri().exec(&pod.containers[0], &["/probe", "exit", "0"]).await.unwrap_err();
        assert!(!exec.message().contains("is running"), "{exec}");
        if states.iter().all(|state| *state == ContainerState::ContainerExited) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "they are not said to have ended: {states:?}");
    }
    pod.all_ended(&rig, 255, "Unknown").await;
    pod.nothing_runs(&rig).await;
    pod.end(&rig).await;
    rig.finish().await;
}

#[tokio::test]
async fn a_shim_that_dies_while_the_daemon_is_away_is_found_dead() {
    let mut rig = rig!();
    for kind in [Kind::Ordinary, Kind::SharedPid, Kind::Users] {
        let pod = Pod::start(&rig, "away", kind, 2).await;
        let early = rig.run(&pod.id, &pod.config, &pod.container("early", &["exit", "3"])).await;
        rig.cri().ended(&early, SOON).await.unwrap();
        let late = pod.container("late", &["pause", "2", "+", "exit", "4"]);
        let late = rig.run(&pod.id, &pod.config, &late).await;
        let exit =
            rig.places.run().join("pods").join(&pod.id).join("containers").join(&late).join("exit.json");
        let holders = processes::holders(&pod.id);
        rig.daemon.kill(&rig.machine).await.unwrap();
        // Seen by the shim alone.
        processes::until("the exit of the third", || exit.exists()).await;
        processes::murder(holders.shim);
        processes::gone(holders.pause).await;
        rig.daemon = Daemon::start(&rig.machine, &rig.places).await.unwrap();
        assert_eq!(pod.state(&rig).await, PodSandboxState::SandboxNotready);
        pod.all_ended(&rig, 255, "Unknown").await;
        pod.nothing_runs(&rig).await;
        assert_eq!(rig.cri().status(&early).await.unwrap().exit_code, 3, "{kind:?}");
        assert_eq!(rig.cri().ended(&late, SOON).await.unwrap().exit_code, 4, "{kind:?}");
        pod.end(&rig).await;
    }
    rig.finish().await;
}

/// At various moments of the start, which takes a few milliseconds.
#[tokio::test]
async fn a_shim_that_dies_in_a_start_leaves_nothing_half_made() {
    let rig = rig!();
    for delay in [0, 2, 4, 7, 11, 20] {
        let pod = Pod::start(&rig, "starting", Kind::Ordinary, 1).await;
        let container = pod.container("starts", &["ignore"]);
        let id = rig.cri().create(&pod.id, &pod.config, &container).await.unwrap();
        let holders = processes::holders(&pod.id);
        let (cri, starting) = (rig.cri().clone(), id.clone());
        let start = tokio::spawn(async move { cri.start(&starting).await });
        tokio::time::sleep(Duration::from_millis(delay)).await;
        processes::murder(holders.shim);
        let started = timeout(SOON, start).await.expect("a start ends with its shim").unwrap();
        pod.not_ready(&rig).await;
        pod.all_ended(&rig, 255, "Unknown").await;
        pod.nothing_runs(&rig).await;
        let status = rig.cri().status(&id).await.unwrap();
        // The pod was not ready before the start was claimed.
        if started.is_ok() || status.state() != ContainerState::ContainerCreated {
            let status = rig.cri().ended(&id, SOON).await.unwrap();
            assert!([255, 128].contains(&status.exit_code), "{started:?} {status:?}");
        }
        pod.end(&rig).await;
    }
    rig.finish().await;
}

async fn stubborn(rig: &Rig, name: &str) -> (Pod, String) {
    let pod = Pod::start(rig, name, Kind::Ordinary, 1).await;
    log::wait_for(&log_file(&pod.config, "c0"), "ready").await;
    let id = pod.containers[0].clone();
    (pod, id)
}

#[tokio::test]
async fn a_stop_is_finished_when_the_shim_dies_in_it() {
    let rig = rig!();
    let (pod, id) = stubborn(&rig, "stopping").await;
    let holders = processes::holders(&pod.id);
    let (cri, stopping) = (rig.cri().clone(), id.clone());
    let stop = tokio::spawn(async move { cri.stop(&stopping, 300).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    processes::murder(holders.shim);
    timeout(SOON, stop).await.expect("not after its grace").unwrap().unwrap();
    pod.all_ended(&rig, 255, "Unknown").await;
    pod.nothing_runs(&rig).await;
    pod.end(&rig).await;

    // And when it has died just before, and when the whole pod is stopped.
    let (pod, id) = stubborn(&rig, "stopped").await;
    processes::murder(processes::holders(&pod.id).shim);
    rig.cri().stop(&id, 300).await.unwrap();
    rig.cri().end_pod(&pod.id).await.unwrap();
    let (pod, _) = stubborn(&rig, "removed").await;
    processes::murder(processes::holders(&pod.id).shim);
    rig.cri().end_pod(&pod.id).await.unwrap();
    rig.finish().await;
}
