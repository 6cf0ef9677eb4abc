//! The state directory's disk takes no change: remounted by an administrator, or by the kernel after an error.

use podhold_integration::{daemon::Places, rig};
use podhold_proto::cri::PodSandboxState;
use tonic::Code;

use super::{
    Bystander,
    place::{Kind, Place},
    runtime_ready, says, sleeper, until,
};

#[tokio::test]
async fn a_read_only_disk_lets_pods_be_stopped_and_removed() {
    let mut rig = rig!();
    let place = Place::under(&mut rig, Places::state, Kind::Disk(96)).await;
    let (stays, goes) = (Bystander::start(&rig, "stays").await, Bystander::start(&rig, "goes").await);
    let state = place.path().display().to_string();
    let config = rig.pod("new");
    place.remount(&rig, "ro").await;

    let ready = runtime_ready(&rig).await;
    assert!(!ready.status && ready.reason == "StateDirectoryReadOnly", "{ready:?}");
    assert!(ready.message.contains(&state) && ready.message.contains("remount"), "{ready:?}");
    let words = [state.as_str(), "Read-only file system", "remount"];
    says(rig.cri().run_pod(&config).await, Code::FailedPrecondition, &words);
    let refused = rig.cri().create(&stays.pod, &stays.config, &sleeper("new")).await;
    says(refused, Code::FailedPrecondition, &words);
    stays.goes_on(&rig).await;
    goes.catcher_ends(&rig).await;
    rig.cri().remove(&goes.catcher).await.unwrap();
    rig.cri().end_pod(&goes.pod).await.unwrap();
    assert_eq!(rig.cri().list_pods().await.unwrap().len(), 1);

    // A daemon that is started now sees the files of the removed pod, and lets it be removed again.
    rig.crash_and_restart().await;
    stays.goes_on(&rig).await;
    let again = rig.cri().pod_status(&goes.pod).await.unwrap();
    assert_eq!(again.state(), PodSandboxState::SandboxNotready);
    rig.cri().end_pod(&goes.pod).await.unwrap();
    stays.catcher_ends(&rig).await;
    rig.cri().remove(&stays.catcher).await.unwrap();
    assert_eq!(rig.cri().list_pods().await.unwrap().len(), 1);
    assert_eq!(place.list(&rig, "pods").await.len(), 2);

    place.remount(&rig, "rw").await;
    until("what was removed is deleted", || async {
        place.list(&rig, "pods").await == [stays.pod.clone()]
            && place.list(&rig, "images/snapshots").await == [stays.ticker.clone()]
            && place.list(&rig, "cni").await.iter().filter(|name| name.ends_with(".json")).count() == 1
    })
    .await;
    assert!(runtime_ready(&rig).await.status);
    let pod = rig.cri().run_pod(&config).await.unwrap();
    for pod in [&pod, &stays.pod] {
        rig.cri().end_pod(pod).await.unwrap();
    }
    place.leave(&mut rig).await;
    rig.finish().await;
}
