//! GetContainerEvents: what happens to pods and containers is told, in order, with the state as it was
//! then.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::time::Duration;

use podhold_integration::{configs, rig, rig::PROBE, rig::Rig};
use podhold_proto::cri::*;
use tokio::time::timeout;
use tonic::{Code, Streaming};

const SOON: Duration = Duration::from_secs(20);

async fn listen(rig: &Rig) -> Streaming<ContainerEventResponse> {
    let mut runtime = rig.cri().runtime.clone();
    let answer = runtime.get_container_events(GetEventsRequest::default());
    timeout(SOON, answer).await.expect("a stream is answered at once").unwrap().into_inner()
}

async fn next(events: &mut Streaming<ContainerEventResponse>) -> ContainerEventResponse {
    timeout(SOON, events.message()).await.expect("an event").unwrap().expect("the stream goes on")
}

fn state_of(event: &ContainerEventResponse, container: &str) -> Option<ContainerState> {
    event.containers_statuses.iter().find(|status| status.id == container).map(ContainerStatus::state)
}

#[tokio::test]
async fn the_lives_of_pods_and_containers_are_told() {
    use ContainerEventType as E;
    let rig = rig!();
    let mut events = listen(&rig).await;
    let mut second = listen(&rig).await;
    let config = rig.pod("told");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let one = rig.probe(&pod, &config, "one", &["exit", "3"]).await;
    rig.cri().ended(&one, SOON).await.unwrap();
    let two = rig.probe(&pod, &config, "two", &["sleep"]).await;
    rig.cri().remove(&one).await.unwrap();
    let three =
        rig.cri().create(&pod, &config, &configs::container("three", PROBE, &["sleep"])).await.unwrap();
    rig.cri().end_pod(&pod).await.unwrap();

    let expected = [
        (&pod, E::ContainerCreatedEvent),
        (&pod, E::ContainerStartedEvent),
        (&one, E::ContainerCreatedEvent),
        (&one, E::ContainerStartedEvent),
        (&one, E::ContainerStoppedEvent),
        (&two, E::ContainerCreatedEvent),
        (&two, E::ContainerStartedEvent),
        (&one, E::ContainerDeletedEvent),
        (&three, E::ContainerCreatedEvent),
        (&two, E::ContainerStoppedEvent),
        (&pod, E::ContainerStoppedEvent),
    ];
    let mut last = 0;
    for (id, kind) in expected {
        let event = next(&mut events).await;
        assert_eq!((&event.container_id, event.container_event_type()), (id, kind));
        assert!(event.created_at >= last, "in order");
        last = event.created_at;
        let status = event.pod_sandbox_status.clone().expect("the pod's status");
        assert_eq!((&status.id, &status.metadata), (&pod, &config.metadata));
        let ready = kind != E::ContainerStoppedEvent || *id != pod;
        let stopping = *id == two && kind == E::ContainerStoppedEvent;
        if !stopping {
            assert_eq!(status.state() == PodSandboxState::SandboxReady, ready, "{kind:?}");
        }
        let state = state_of(&event, id);
        match kind {
            E::ContainerDeletedEvent => assert_eq!(state, None),
            _ if *id == pod => assert_eq!(state, None),
            E::ContainerCreatedEvent => assert_eq!(state, Some(ContainerState::ContainerCreated)),
            E::ContainerStartedEvent => {
                let state = state.unwrap();
                let ran = [ContainerState::ContainerRunning, ContainerState::ContainerExited];
                assert!(ran.contains(&state), "{state:?}");
            }
            E::ContainerStoppedEvent => assert_eq!(state, Some(ContainerState::ContainerExited)),
        }
        if *id == one && kind == E::ContainerStoppedEvent {
            assert_eq!(event.containers_statuses[0].exit_code, 3);
        }
        let told_twice = next(&mut second).await;
        assert_eq!((told_twice.container_id, told_twice.created_at), (event.container_id, event.created_at));
    }
    let mut deleted = [next(&mut events).await, next(&mut events).await, next(&mut events).await];
    assert!(deleted.iter().all(|event| event.container_event_type() == E::ContainerDeletedEvent));
    assert_eq!(deleted[2].container_id, pod, "the pod goes last");
    deleted[..2].sort_by_key(|event| event.container_id == three);
    assert_eq!((&deleted[0].container_id, &deleted[1].container_id), (&two, &three));
    rig.finish().await;
}

#[tokio::test]
async fn readers_do_not_keep_the_daemon_from_ending_and_are_told() {
    let mut rig = rig!();
    let config = rig.pod("stays");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mut events = listen(&rig).await;
    let begun = std::time::Instant::now();
    rig.restart().await;
    assert!(begun.elapsed() < SOON);
    let end = timeout(SOON, events.message()).await.unwrap().unwrap_err();
    assert_eq!(end.code(), Code::Unavailable, "{end}");
    let mut events = listen(&rig).await;
    rig.cri().end_pod(&pod).await.unwrap();
    for kind in [ContainerEventType::ContainerStoppedEvent, ContainerEventType::ContainerDeletedEvent] {
        let event = next(&mut events).await;
        assert_eq!((event.container_id.as_str(), event.container_event_type()), (pod.as_str(), kind));
    }
    rig.finish().await;
}
