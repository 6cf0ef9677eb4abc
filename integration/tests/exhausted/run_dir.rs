//! The run directory, a tmpfs on every host, is full.

use podhold_integration::{daemon::Places, rig};
use tonic::Code;

use super::{
    Bystander,
    place::{Kind, Place},
    says, sleeper,
};

#[tokio::test]
async fn an_exit_is_told_though_it_cannot_be_recorded() {
    let mut rig = rig!();
    let place = Place::under(&mut rig, Places::run, Kind::Memory(2048)).await;
    let stays = Bystander::start(&rig, "stays").await;
    let run = place.path().display().to_string();
    place.fill(&rig).await;

    let full = [run.as_str(), "No space left on device"];
    let created = rig.cri().create(&stays.pod, &stays.config, &sleeper("new")).await;
    says(created, Code::ResourceExhausted, &full);
    // Its shim cannot say so in its log either, and lives.
    stays.catcher_ends(&rig).await;
    stays.goes_on(&rig).await;
    rig.crash_and_restart().await;
    stays.goes_on(&rig).await;
    stays.catcher_has_ended(&rig).await;
    rig.cri().remove(&stays.catcher).await.unwrap();

    place.free(&rig).await;
    rig.run(&stays.pod, &stays.config, &sleeper("new")).await;
    rig.cri().end_pod(&stays.pod).await.unwrap();
    place.leave(&mut rig).await;
    rig.finish().await;
}
