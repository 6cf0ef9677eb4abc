//! The storm and the long run in their short forms; `make soak` runs the long ones.

use std::time::Duration;

use podhold_integration::{
    rig,
    soak::{cycles, storm},
};

/// `PODHOLD_SEED`, or always the same.
fn seed() -> u64 {
    let text = std::env::var("PODHOLD_SEED").ok();
    text.map_or(4, |text| text.parse().unwrap_or_else(|_| panic!("PODHOLD_SEED={text} is not a number")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "each run takes other ways, and what it finds is not always what was changed: make soak"]
async fn whatever_many_clients_do_to_the_same_pods_every_answer_is_true_and_nothing_is_left() {
    let mut rig = rig!();
    let plan = storm::Plan {
        clients: 64,
        names: 8,
        kills_for: Duration::from_secs(15),
        kill_within: Duration::from_secs(4),
        calm_for: Duration::from_secs(9),
        // A daemon of some seconds has not yet made all it keeps for good.
        tolerance: 16 << 10,
        seed: seed(),
    };
    println!("{}", storm::run(&mut rig, plan).await);
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_many_pods_the_daemon_and_the_machine_are_as_before() {
    let rig = rig!();
    let plan = cycles::Plan {
        cycles: 300,
        warm_up: 100,
        at_once: 8,
        bridge_every: 20,
        looks: 1,
        tolerance: 12 << 10,
    };
    println!("{}", cycles::run(&rig, plan).await);
    rig.finish().await;
}
