//! The state directory's disk has no byte, or no inode, left.

use podhold_integration::{
    daemon::Places,
    rig,
    rig::{REGISTRY, Rig},
};
use tonic::Code;

use super::{
    Bystander,
    place::{Kind, Place},
    runtime_ready, says, sleeper, until,
};

/// Records, half-made layers and snapshots of what is not there (any more).
async fn leftovers(rig: &Rig, place: &Place, known: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for directory in ["pods", "images/ingest", "images/trash", "images/snapshots", "cni"] {
        found.extend(place.list(rig, directory).await);
    }
    found.retain(|name| !known.iter().any(|id| name.starts_with(id)));
    found
}

#[tokio::test]
async fn a_full_disk_stops_what_is_new_and_nothing_else() {
    let mut rig = rig!();
    let place = Place::under(&mut rig, Places::state, Kind::Disk(96)).await;
    let (stays, goes) = (Bystander::start(&rig, "stays").await, Bystander::start(&rig, "goes").await);
    let known = [&stays.pod, &stays.ticker, &stays.catcher, &goes.pod, &goes.ticker, &goes.catcher];
    let known = known.map(String::as_str);
    let state = place.path().display().to_string();
    let (config, container) = (rig.pod("new"), sleeper("new"));
    place.fill(&rig).await;

    let full = [state.as_str(), "No space left on device", "free space"];
    says(rig.cri().run_pod(&config).await, Code::ResourceExhausted, &full);
    says(rig.cri().create(&stays.pod, &stays.config, &container).await, Code::ResourceExhausted, &full);
    let image = format!("{REGISTRY}/layers:1");
    says(rig.cri().pull(&image).await, Code::ResourceExhausted, &full);
    until("nothing half-made is left", || async { leftovers(&rig, &place, &known).await.is_empty() }).await;

    let ready = runtime_ready(&rig).await;
    assert!(ready.status && ready.reason == "StateDirectoryFull", "{ready:?}");
    assert!(ready.message.contains(&state), "{ready:?}");
    assert_eq!(rig.cri().list_pods().await.unwrap().len(), 2);
    stays.goes_on(&rig).await;
    stays.catcher_ends(&rig).await;
    assert_eq!(rig.cri().exec_well(&stays.ticker, &["echo", "well"]).await.unwrap(), "well\n");

    // Also for a daemon that is started now.
    rig.crash_and_restart().await;
    stays.goes_on(&rig).await;
    stays.catcher_has_ended(&rig).await;
    assert_eq!(runtime_ready(&rig).await.reason, "StateDirectoryFull");
    rig.cri().remove(&stays.catcher).await.unwrap();
    goes.goes_on(&rig).await;
    // What is removed makes a little room: it is filled up as it goes.
    rig.cri().stop_pod(&goes.pod).await.unwrap();
    rig.cri().remove_pod(&goes.pod).await.unwrap();
    assert_eq!(rig.cri().list_pods().await.unwrap().len(), 1);

    place.free(&rig).await;
    let pod = rig.cri().run_pod(&config).await.unwrap();
    rig.run(&pod, &config, &container).await;
    rig.cri().pull(&image).await.unwrap();
    assert_eq!(runtime_ready(&rig).await.reason, "");
    for pod in [&pod, &stays.pod] {
        rig.cri().end_pod(pod).await.unwrap();
    }
    until("nothing is left", || async { leftovers(&rig, &place, &[]).await.is_empty() }).await;
    place.leave(&mut rig).await;
    rig.finish().await;
}

#[tokio::test]
async fn a_disk_without_inodes_is_a_full_one() {
    let mut rig = rig!();
    let place = Place::under(&mut rig, Places::state, Kind::Inodes(400)).await;
    let stays = Bystander::start(&rig, "stays").await;
    let (config, container) = (rig.pod("new"), sleeper("new"));
    place.fill_inodes(&rig).await;

    let full = ["No space left on device", "inodes"];
    says(rig.cri().run_pod(&config).await, Code::ResourceExhausted, &full);
    says(rig.cri().create(&stays.pod, &stays.config, &container).await, Code::ResourceExhausted, &full);
    says(rig.cri().pull(&format!("{REGISTRY}/layers:1")).await, Code::ResourceExhausted, &full);
    let ready = runtime_ready(&rig).await;
    assert!(ready.status && ready.message.contains("inodes"), "{ready:?}");
    stays.goes_on(&rig).await;
    stays.catcher_ends(&rig).await;
    rig.cri().remove(&stays.catcher).await.unwrap();

    place.free(&rig).await;
    let pod = rig.cri().run_pod(&config).await.unwrap();
    for pod in [&pod, &stays.pod] {
        rig.cri().end_pod(pod).await.unwrap();
    }
    place.leave(&mut rig).await;
    rig.finish().await;
}
