//! The pause process is killed.

use podhold_integration::{daemon::Daemon, processes, rig};
use podhold_proto::cri::*;
use tokio::time::timeout;

use crate::{Kind, Pod, SOON};

#[tokio::test]
async fn a_pod_without_pause_is_not_ready_and_its_containers_are_ended() {
    let rig = rig!();
    for kind in [Kind::Ordinary, Kind::SharedPid, Kind::Users] {
        let pod = Pod::start(&rig, "unheld", kind, 3).await;
        let network = rig.cri().pod_status(&pod.id).await.unwrap().network.unwrap();
        let answer = rig.cri().runtime.clone().get_container_events(GetEventsRequest::default()).await;
        let mut events = answer.unwrap().into_inner();
        processes::murder(processes::holders(&pod.id).pause);
        pod.not_ready(&rig).await;
        // By the kernel with the PID namespace, or by the daemon: seen by the shim in any case.
        pod.all_ended(&rig, 137, "Error").await;
        let mut told = Vec::new();
        while told.len() < 4 {
            let event = timeout(SOON, events.message()).await.expect("an event").unwrap().unwrap();
            assert_eq!(event.container_event_type(), ContainerEventType::ContainerStoppedEvent);
            told.push(event.container_id);
        }
        assert!(pod.containers.iter().chain([&pod.id]).all(|id| told.contains(id)), "{told:?}");
        let reserved = format!("/var/lib/cni/networks/podhold-it/{}", network.ip);
        assert_eq!(rig.machine.run(["test", "-e", &reserved]).await.unwrap().code, 0);
        pod.end(&rig).await;
        assert_eq!(rig.machine.run(["test", "-e", &reserved]).await.unwrap().code, 1);
    }
    rig.finish().await;
}

#[tokio::test]
async fn a_pause_that_dies_while_the_daemon_is_away_is_found_dead() {
    let mut rig = rig!();
    for kind in [Kind::Ordinary, Kind::SharedPid] {
        let pod = Pod::start(&rig, "away", kind, 2).await;
        let holders = processes::holders(&pod.id);
        rig.daemon.kill(&rig.machine).await.unwrap();
        processes::murder(holders.pause);
        processes::gone(holders.pause).await;
        rig.daemon = Daemon::start(&rig.machine, &rig.places).await.unwrap();
        pod.not_ready(&rig).await;
        pod.all_ended(&rig, 137, "Error").await;
        pod.end(&rig).await;
    }
    rig.finish().await;
}
