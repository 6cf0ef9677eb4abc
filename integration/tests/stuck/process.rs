//! Processes of a container that sleep in the kernel where no signal reaches them.

use podhold_integration::{fuse::HangingMount, rig};
use podhold_proto::cri::ContainerState;

use super::{deadline, others_go_on, reads_answer, shell, until, with_volume};

#[tokio::test]
async fn a_container_that_cannot_die_is_named_and_holds_up_nobody() {
    let mut rig = rig!();
    let mount = HangingMount::start(&rig.machine, &rig.machine.directory().join("volume")).await.unwrap();
    let config = rig.pod("undying");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let script = "while :; do cat /volume/file >/dev/null; done";
    let id = rig.run(&pod, &config, &with_volume(shell("reads", script), &mount.path)).await;
    mount.hang(&rig.machine).await.unwrap();
    // From then on no signal ends it.
    mount.holds_a_caller().await.unwrap();
    let status = async || rig.cri().status(&id).await.unwrap();

    let stop = deadline("stop", rig.cri().stop(&id, 0), [&id, "process "]);
    tokio::join!(stop, others_go_on(&rig, "beside"));
    // It is not said to have ended as long as it has not.
    assert_ne!(status().await.state(), ContainerState::ContainerExited);
    // Removing stops it, and says the same.
    let remove = deadline("remove", rig.cri().remove(&id), [&id]);
    let stop_pod = deadline("stop pod", rig.cri().stop_pod(&pod), [&id]);
    let remove_pod = deadline("remove pod", rig.cri().remove_pod(&pod), [&id]);
    tokio::join!(remove, stop_pod, remove_pod, reads_answer(&rig));

    rig.crash_and_restart().await;
    others_go_on(&rig, "after").await;
    assert_ne!(rig.cri().status(&id).await.unwrap().state(), ContainerState::ContainerExited);

    mount.answer(&rig.machine).await.unwrap();
    until("it has ended", async || rig.cri().stop(&id, 0).await.is_ok()).await;
    assert_eq!(rig.cri().ended(&id, super::SOON).await.unwrap().exit_code, 137);
    rig.cri().end_pod(&pod).await.unwrap();
    mount.end(&rig.machine).await.unwrap();
    rig.finish().await;
}
