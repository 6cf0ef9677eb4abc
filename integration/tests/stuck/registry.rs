//! Registries that never answer, or a few bytes at a time.

use std::fs;

use podhold_integration::{bad_registry, rig, rig::REGISTRY};
use tokio::time::timeout;
use tonic::Code;

use super::{BOUNDED, others_go_on};

#[tokio::test]
async fn a_registry_that_hangs_fails_its_pulls_in_time_and_no_others() {
    let mut rig = rig!();
    let text = fs::read_to_string(rig.places.config()).unwrap();
    fs::write(rig.places.config(), text.replace("[image]\n", "[image]\nstall_timeout_seconds = 3\n"))
        .unwrap();
    rig.restart().await;
    rig.places.allow_plain_http(bad_registry::ADDRESS).unwrap();
    bad_registry::start(&rig.machine).await.unwrap();
    let stuck = async |repository: &str, words: &str| {
        let image = format!("{}/{repository}:1", bad_registry::ADDRESS);
        let pulled = timeout(BOUNDED, rig.cri().pull(&image)).await;
        let refusal = pulled.unwrap_or_else(|_| panic!("{image}: no answer")).expect_err(&image);
        assert_eq!(refusal.code(), Code::Unavailable, "{refusal}");
        for word in [image.as_str(), bad_registry::ADDRESS, words] {
            assert!(refusal.message().contains(word), "{word:?} is not in {:?}", refusal.message());
        }
    };
    tokio::join!(stuck("silent", "no answer"), stuck("trickling", "stalls"), async {
        others_go_on(&rig, "beside").await;
        rig.cri().pull(&format!("{REGISTRY}/layers:1")).await.unwrap();
    });
    rig.finish().await;
}
