//! Containers.

use podhold_integration::kills::Verb;

use super::kill_at_every_step_of;

#[tokio::test]
async fn a_container_that_is_created_while_the_daemon_dies_is_whole_or_gone() {
    kill_at_every_step_of(&[Verb::Create, Verb::CreateWithVolume, Verb::CreateInUserPod]).await;
}

#[tokio::test]
async fn a_container_that_is_updated_started_or_stopped_while_the_daemon_dies_is_told_as_it_is() {
    kill_at_every_step_of(&[
        Verb::UpdateCreated,
        Verb::UpdateRunning,
        Verb::Start,
        Verb::Stop,
        Verb::StopByForce,
    ])
    .await;
}

#[tokio::test]
async fn a_container_that_is_removed_while_the_daemon_dies_goes_with_the_next_call() {
    kill_at_every_step_of(&[Verb::Remove, Verb::RemoveEnded, Verb::RemoveWithVolume]).await;
}
