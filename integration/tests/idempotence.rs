//! What is asked for twice happens once.

#![allow(clippy::unwrap_used, reason = "a test")]

use podhold_integration::{configs, rig, rig::PROBE};
use podhold_proto::cri::PodSandboxState;
use tonic::Code;

#[tokio::test]
async fn stop_and_remove_succeed_again_and_for_what_is_gone() {
    let rig = rig!();
    let config = rig.pod("twice");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let id = rig.probe(&pod, &config, "one", &["catch", "0"]).await;
    rig.cri().stop(&id, 5).await.unwrap();
    rig.cri().stop(&id, 5).await.unwrap();
    rig.cri().remove(&id).await.unwrap();
    rig.cri().remove(&id).await.unwrap();
    rig.cri().stop_pod(&pod).await.unwrap();
    rig.cri().stop_pod(&pod).await.unwrap();
    assert_eq!(rig.cri().pod_status(&pod).await.unwrap().state(), PodSandboxState::SandboxNotready);
    rig.cri().remove_pod(&pod).await.unwrap();
    rig.cri().remove_pod(&pod).await.unwrap();
    rig.cri().stop_pod(&pod).await.unwrap();
    assert_eq!(rig.cri().pod_status(&pod).await.unwrap_err().code(), Code::NotFound);
    rig.finish().await;
}

#[tokio::test]
async fn the_same_pod_asked_for_twice_is_one_pod() {
    let rig = rig!();
    let config = rig.pod("same");
    let (one, two) = tokio::join!(rig.cri().run_pod(&config), rig.cri().run_pod(&config));
    let pod = one.unwrap();
    assert_eq!(two.unwrap(), pod);
    assert_eq!(rig.cri().run_pod(&config).await.unwrap(), pod);
    let mut other = config.clone();
    other.hostname = "another".into();
    let refused = rig.cri().run_pod(&other).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert!(refused.message().contains("hostname"), "it names what differs: {refused}");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn the_same_container_asked_for_twice_is_one_container() {
    let rig = rig!();
    let config = rig.pod("containers");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let container = configs::container("one", PROBE, &["sleep"]);
    let create = || rig.cri().create(&pod, &config, &container);
    let (one, two) = tokio::join!(create(), create());
    let id = one.unwrap();
    assert_eq!(two.unwrap(), id);
    let mut other = container.clone();
    other.args.push("more".into());
    let refused = rig.cri().create(&pod, &config, &other).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert!(refused.message().contains("args"), "it names what differs: {refused}");
    let mut next = container.clone();
    next.metadata.as_mut().unwrap().attempt = 1;
    assert_ne!(rig.cri().create(&pod, &config, &next).await.unwrap(), id);
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}
