//! Pods.

use podhold_integration::kills::Verb;

use super::kill_at_every_step_of;

#[tokio::test]
async fn a_pod_that_is_made_while_the_daemon_dies_is_whole_or_gone() {
    kill_at_every_step_of(&[Verb::RunPod]).await;
}

#[tokio::test]
async fn a_pod_with_users_of_its_own_that_is_made_while_the_daemon_dies_is_whole_or_gone() {
    kill_at_every_step_of(&[Verb::RunUserPod]).await;
}

#[tokio::test]
async fn a_pod_with_a_host_port_and_a_cgroup_of_the_kubelets_is_whole_or_gone() {
    kill_at_every_step_of(&[Verb::RunPlacedPod, Verb::RemovePlacedPod]).await;
}

#[tokio::test]
async fn a_pod_that_is_ended_while_the_daemon_dies_ends_with_the_next_call() {
    kill_at_every_step_of(&[Verb::StopPod, Verb::RemovePod, Verb::RemoveStoppedPod]).await;
}
