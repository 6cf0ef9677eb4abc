//! Images.

use podhold_integration::kills::Verb;

use super::kill_at_every_step_of;

#[tokio::test]
async fn an_image_that_is_pulled_while_the_daemon_dies_is_whole_or_absent() {
    kill_at_every_step_of(&[Verb::Pull]).await;
}
