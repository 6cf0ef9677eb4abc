//! The file system of the containers' logs is full.

use podhold_integration::{configs::log_file, rig, rig::Rig};
use tonic::Code;

use super::{
    place::{Kind, Place},
    says, shell, sleeper, until,
};

/// Says from time to time in a file, which is not on the full disk, how far it has come.
const NUMBERS: &str = "n=0; while :; do n=$((n+1)); echo number $n; \
                       [ $((n % 100)) = 0 ] && echo $n > /said && sleep 0.02; done";

/// More than its pipe and the logger's buffer hold.
const UNDER_WAY: u64 = 12_000;

/// The log's text entries; it is in the machine alone.
async fn entries(rig: &Rig, path: &std::path::Path) -> Vec<String> {
    let text = rig.machine.run_well(["cat", &path.display().to_string()]).await.unwrap();
    let whole = &text[..text.rfind('\n').map_or(0, |at| at + 1)];
    let entry = |line: &str| {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        assert!(words.len() == 4 && words[1] == "stdout" && words[2] == "F", "a torn line: {line:?}");
        words[3].to_owned()
    };
    whole.lines().map(entry).collect()
}

fn number(entry: &str) -> u64 {
    let number = entry.strip_prefix("number ").and_then(|number| number.parse().ok());
    number.unwrap_or_else(|| panic!("a torn line: {entry:?}"))
}

#[tokio::test]
async fn a_full_log_disk_loses_whole_lines_and_says_how_many() {
    let rig = rig!();
    // Enough for what is written before and after, which is little in so short a time.
    let place = Place::over(&rig, rig.places.pod_logs(), Kind::Memory(64 << 10)).await;
    let config = rig.pod("logs");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let id = rig.run(&pod, &config, &shell("numbers", NUMBERS)).await;
    let path = log_file(&config, "numbers");
    until("it writes", || async { entries(&rig, &path).await.len() > 100 }).await;
    place.fill(&rig).await;
    // Its last page takes some more.
    until("lines are lost", || async {
        let said = rig.cri().exec_well(&id, &["cat", "/said"]).await.unwrap();
        let written = entries(&rig, &path).await.len() as u64;
        said.trim().parse().is_ok_and(|said: u64| said > written + UNDER_WAY)
    })
    .await;
    let full = entries(&rig, &path).await.len();
    let status = rig.cri().status(&id).await.unwrap();
    assert_eq!(status.state(), podhold_proto::cri::ContainerState::ContainerRunning);

    place.free(&rig).await;
    until("it goes on", || async { entries(&rig, &path).await.len() > full + 100 }).await;
    rig.cri().stop(&id, 0).await.unwrap();
    let all = entries(&rig, &path).await;
    let told: Vec<usize> = (0..all.len()).filter(|at| all[*at].starts_with("[podhold: ")).collect();
    assert_eq!(told.len(), 1, "{:?}", told.iter().map(|at| &all[*at]).collect::<Vec<_>>());
    let words = &all[told[0]];
    assert!(words.ends_with("lost here: No space left on device (os error 28)]"), "{words}");
    let lost: u64 = words.split(' ').nth(1).unwrap().parse().unwrap();
    let (before, after) = (&all[..told[0]], &all[told[0] + 1..]);
    assert!(before.iter().zip(1..).all(|(entry, n)| number(entry) == n));
    let first = number(&after[0]);
    assert!(after.iter().zip(first..).all(|(entry, n)| number(entry) == n));
    assert_eq!(lost, first - 1 - before.len() as u64, "as many are lost as it says");

    rig.cri().end_pod(&pod).await.unwrap();
    let unmounted = ["umount".to_owned(), place.path().display().to_string()];
    rig.machine.run_well(unmounted).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_log_that_cannot_be_made_is_named() {
    let rig = rig!();
    let place = Place::over(&rig, rig.places.pod_logs(), Kind::Inodes(64)).await;
    let config = rig.pod("logs");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let id = rig.cri().create(&pod, &config, &sleeper("first")).await.unwrap();
    place.fill_inodes(&rig).await;
    let at = place.path().display().to_string();
    let full = [at.as_str(), "No space left on device"];
    says(rig.cri().create(&pod, &config, &sleeper("second")).await, Code::ResourceExhausted, &full);
    says(rig.cri().start(&id).await, Code::ResourceExhausted, &full);
    place.free(&rig).await;
    rig.run(&pod, &config, &sleeper("second")).await;
    rig.cri().end_pod(&pod).await.unwrap();
    rig.machine.run_well(["umount", &at]).await.unwrap();
    rig.finish().await;
}
