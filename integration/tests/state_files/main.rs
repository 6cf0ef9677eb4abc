//! Every file that the daemon reads, damaged in every way: it is reported with its path and the reason,
//! its object alone is affected, it can be put back, and it can be removed.

#![allow(clippy::unwrap_used, reason = "a test")]

mod damage;
mod host;

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use podhold_integration::{
    configs,
    daemon::{self, Daemon},
    rig,
    rig::{PROBE, Rig},
};
use podhold_proto::cri::{
    ContainerState, PodSandboxConfig, PodSandboxState, RemovePodSandboxRequest, StatusRequest,
};
use tonic::Code;

use damage::{Damage, Good, OF_DIRECTORIES, OF_RECORDS};

/// A pod with a container that runs.
struct Life {
    pod: String,
    container: String,
    started_at: i64,
}

impl Life {
    async fn start(rig: &Rig, config: &PodSandboxConfig) -> Self {
        let pod = rig.cri().run_pod(config).await.unwrap();
        let container = rig.probe(&pod, config, "runs", &["sleep"]).await;
        let started_at = rig.cri().status(&container).await.unwrap().started_at;
        Self { pod, container, started_at }
    }

    async fn many(rig: &Rig, count: usize) -> Vec<Self> {
        let mut all = Vec::new();
        for n in 0..count {
            all.push(Self::start(rig, &rig.pod(&format!("life-{n}"))).await);
        }
        all
    }

    fn state(&self, rig: &Rig) -> PathBuf {
        rig.places.state().join("pods").join(&self.pod)
    }

    fn container_state(&self, rig: &Rig) -> PathBuf {
        self.state(rig).join("containers").join(&self.container)
    }

    /// It is what it was, and nothing has noticed anything.
    async fn is_well(&self, rig: &Rig) {
        let pod = rig.cri().pod_status(&self.pod).await.unwrap();
        assert_eq!(pod.state(), PodSandboxState::SandboxReady, "{}", self.pod);
        let status = rig.cri().status(&self.container).await.unwrap();
        assert_eq!(status.state(), ContainerState::ContainerRunning, "{status:?}");
        assert_eq!(status.started_at, self.started_at);
    }
}

/// What the daemon says cannot be used: path and reason.
async fn damaged(rig: &Rig) -> Vec<(PathBuf, String)> {
    let request = StatusRequest { verbose: true };
    let answer = rig.cri().runtime.clone().status(request).await.unwrap().into_inner();
    let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).unwrap();
    let list = info["damaged"].as_array().unwrap().iter();
    list.map(|entry| (entry["path"].as_str().unwrap().into(), entry["reason"].as_str().unwrap().to_owned()))
        .collect()
}

async fn reported(rig: &Rig, path: &Path, how: Damage) -> String {
    let all = damaged(rig).await;
    let found = all.iter().find(|(damaged, _)| damaged == path);
    let (_, reason) = found.unwrap_or_else(|| panic!("{how:?} of {} is not in {all:?}", path.display()));
    assert!(!reason.is_empty());
    let log = daemon::log(&rig.places);
    assert!(log.contains(&path.display().to_string()), "{how:?} of {} is not in the log", path.display());
    reason.clone()
}

/// Each damaged object stands there once, with all that its owner needs.
async fn every_entry_is_whole(rig: &Rig, count: usize) {
    let request = StatusRequest { verbose: true };
    let answer = rig.cri().runtime.clone().status(request).await.unwrap().into_inner();
    let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).unwrap();
    let list = info["damaged"].as_array().unwrap();
    let text = |entry: &serde_json::Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    let objects: std::collections::BTreeSet<(String, String)> =
        list.iter().map(|entry| (text(entry, "kind"), text(entry, "id"))).collect();
    assert_eq!((list.len(), objects.len()), (count, count), "{list:#?}");
    for entry in list {
        assert!(["pod", "container"].contains(&text(entry, "kind").as_str()), "{entry:#}");
        assert!(text(entry, "mend").contains(&text(entry, "id")), "{entry:#}");
        assert!(!text(entry, "path").is_empty() && !text(entry, "reason").is_empty(), "{entry:#}");
    }
}

/// Ends the daemon, does something to its files, starts it again.
async fn meanwhile<T>(rig: &mut Rig, work: impl FnOnce(&Rig) -> T) -> T {
    rig.daemon.kill(&rig.machine).await.unwrap();
    let result = work(rig);
    rig.daemon = Daemon::start(&rig.machine, &rig.places).await.unwrap();
    result
}

/// Who asks for it by its id is told which file, what is wrong, and what can be done.
fn is_refusal(refusal: &tonic::Status, path: &Path, how: Damage) {
    assert_eq!(refusal.code(), Code::FailedPrecondition, "{how:?}: {refusal}");
    is_named(refusal.message(), path, how);
}

/// Its status says the same.
async fn pod_is_damaged(rig: &Rig, pod: &str, path: &Path, how: Damage) {
    let status = rig.cri().pod_status(pod).await.unwrap();
    assert_eq!(status.state(), PodSandboxState::SandboxNotready, "{how:?}");
    is_named(&status.annotations["podhold.io/damaged"], path, how);
}

async fn container_is_damaged(rig: &Rig, container: &str, path: &Path, how: Damage) {
    let status = rig.cri().status(container).await.unwrap();
    assert_eq!(
        (status.state(), status.reason.as_str()),
        (ContainerState::ContainerUnknown, "Damaged"),
        "{how:?}"
    );
    is_named(&status.message, path, how);
}

fn is_named(words: &str, path: &Path, how: Damage) {
    for part in [&path.display().to_string(), "damaged", "put that back", "remove"] {
        assert!(words.contains(part), "{how:?}: {part} is not in {words}");
    }
}

#[tokio::test]
async fn a_damaged_pod_is_named_harms_no_other_and_can_be_put_back_or_removed() {
    let mut rig = rig!();
    let began = Instant::now();
    let all = Life::many(&rig, OF_RECORDS.len() + 1).await;
    let (lives, beside) = all.split_at(OF_RECORDS.len());
    let path = |rig: &Rig, life: &Life| life.state(rig).join("pod.json");
    let harm = |rig: &Rig| -> Vec<Good> {
        lives.iter().zip(OF_RECORDS).map(|(life, how)| Good::damage(&path(rig, life), how)).collect()
    };
    let good = meanwhile(&mut rig, harm).await;
    beside[0].is_well(&rig).await;
    assert_eq!(rig.cri().list_pods().await.unwrap().len(), 1);
    for (life, how) in lives.iter().zip(OF_RECORDS) {
        let file = path(&rig, life);
        reported(&rig, &file, how).await;
        pod_is_damaged(&rig, &life.pod, &file, how).await;
        container_is_damaged(&rig, &life.container, &file, how).await;
        is_refusal(&rig.cri().stop_pod(&life.pod).await.unwrap_err(), &file, how);
    }
    every_entry_is_whole(&rig, 2 * OF_RECORDS.len()).await;
    // Without a restart.
    good.into_iter().for_each(Good::put_back);
    assert!(damaged(&rig).await.is_empty());
    for life in &all {
        life.is_well(&rig).await;
    }

    let good = meanwhile(&mut rig, harm).await;
    for (life, how) in lives.iter().zip(OF_RECORDS) {
        // A beginning of the id is as good as of any other pod.
        let short = &life.pod[..20];
        pod_is_damaged(&rig, short, &path(&rig, life), how).await;
        is_refusal(&rig.cri().stop_pod(short).await.unwrap_err(), &path(&rig, life), how);
        container_is_damaged(&rig, &life.container[..20], &path(&rig, life), how).await;
        rig.cri().remove_pod(short).await.unwrap_or_else(|status| panic!("{how:?}: {status}"));
        assert!(!damaged(&rig).await.iter().any(|(path, _)| path.starts_with(life.state(&rig))), "{how:?}");
        assert_eq!(rig.cri().pod_status(&life.pod).await.unwrap_err().code(), Code::NotFound);
        assert_eq!(rig.cri().status(&life.container).await.unwrap_err().code(), Code::NotFound);
    }
    good.iter().for_each(Good::forget);
    assert!(damaged(&rig).await.is_empty());
    beside[0].is_well(&rig).await;
    rig.cri().end_pod(&beside[0].pod).await.unwrap();
    println!("{} damages of pod records in {:?}", 2 * OF_RECORDS.len(), began.elapsed());
    rig.finish().await;
}

#[tokio::test]
async fn a_damaged_container_is_named_and_its_pod_goes_on() {
    let mut rig = rig!();
    let began = Instant::now();
    let config = rig.pod("one");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mut lives = Vec::new();
    for n in 0..=OF_RECORDS.len() {
        let container = rig.probe(&pod, &config, &format!("c{n}"), &["sleep"]).await;
        let started_at = rig.cri().status(&container).await.unwrap().started_at;
        lives.push(Life { pod: pod.clone(), container, started_at });
    }
    let beside = lives.pop().unwrap();
    let path = |rig: &Rig, life: &Life| life.container_state(rig).join("container.json");
    let harm = |rig: &Rig| -> Vec<Good> {
        lives.iter().zip(OF_RECORDS).map(|(life, how)| Good::damage(&path(rig, life), how)).collect()
    };
    let good = meanwhile(&mut rig, harm).await;
    beside.is_well(&rig).await;
    for (life, how) in lives.iter().zip(OF_RECORDS) {
        let file = path(&rig, life);
        reported(&rig, &file, how).await;
        container_is_damaged(&rig, &life.container, &file, how).await;
        is_refusal(&rig.cri().stop(&life.container, 0).await.unwrap_err(), &file, how);
    }
    every_entry_is_whole(&rig, OF_RECORDS.len()).await;
    good.into_iter().for_each(Good::put_back);
    assert!(damaged(&rig).await.is_empty());
    for life in &lives {
        life.is_well(&rig).await;
    }
    // What changes in a container's life: it is known all the same.
    let good: Vec<Good> = meanwhile(&mut rig, |rig| {
        let status = |life: &Life| life.container_state(rig).join("status.json");
        lives.iter().zip(OF_RECORDS).map(|(life, how)| Good::damage(&status(life), how)).collect()
    })
    .await;
    for (life, how) in lives.iter().zip(OF_RECORDS) {
        life.is_well(&rig).await;
        // It names nobody, so that of another one cannot be told.
        if how != Damage::AnotherId {
            reported(&rig, &life.container_state(&rig).join("status.json"), how).await;
        }
    }
    good.iter().for_each(Good::forget);

    let good = meanwhile(&mut rig, harm).await;
    for (life, how) in lives.iter().zip(OF_RECORDS) {
        rig.cri().remove(&life.container).await.unwrap_or_else(|status| panic!("{how:?}: {status}"));
        assert_eq!(rig.cri().status(&life.container).await.unwrap_err().code(), Code::NotFound);
    }
    good.iter().for_each(Good::forget);
    assert!(damaged(&rig).await.is_empty(), "{:?}", damaged(&rig).await);
    beside.is_well(&rig).await;
    rig.cri().end_pod(&pod).await.unwrap();
    println!("{} damages of container records in {:?}", 3 * OF_RECORDS.len(), began.elapsed());
    rig.finish().await;
}

#[tokio::test]
async fn what_stands_in_the_place_of_a_directory_is_not_entered() {
    let mut rig = rig!();
    let lives = Life::many(&rig, 3 * OF_DIRECTORIES.len()).await;
    // A pod's directory, that of its containers, that of a container.
    let place = |rig: &Rig, n: usize| match (n / OF_DIRECTORIES.len(), &lives[n]) {
        (0, life) => life.state(rig),
        (1, life) => life.state(rig).join("containers"),
        (_, life) => life.container_state(rig),
    };
    let harm = |rig: &Rig| -> Vec<Good> {
        let how = OF_DIRECTORIES.iter().cycle();
        (0..lives.len()).zip(how).map(|(n, how)| Good::damage(&place(rig, n), *how)).collect()
    };
    let good = meanwhile(&mut rig, harm).await;
    for (n, life) in lives.iter().enumerate() {
        let how = OF_DIRECTORIES[n % OF_DIRECTORIES.len()];
        reported(&rig, &place(&rig, n), how).await;
        container_is_damaged(&rig, &life.container, &place(&rig, n), how).await;
        let pod = rig.cri().pod_status(&life.pod).await.unwrap();
        let damaged = pod.annotations.contains_key("podhold.io/damaged");
        assert_eq!(damaged, n < OF_DIRECTORIES.len(), "{how:?}: {pod:?}");
    }
    meanwhile(&mut rig, |_| good.into_iter().for_each(Good::put_back)).await;
    for life in &lives {
        life.is_well(&rig).await;
    }
    let good = meanwhile(&mut rig, harm).await;
    for (n, life) in lives.iter().enumerate() {
        let how = OF_DIRECTORIES[n % OF_DIRECTORIES.len()];
        let removed = async {
            rig.cri().remove(&life.container).await?;
            rig.cri().remove_pod(&life.pod).await
        };
        removed.await.unwrap_or_else(|status| panic!("{how:?} of {}: {status}", place(&rig, n).display()));
    }
    // What a link led to was not ours to remove.
    for (n, good) in good.iter().enumerate() {
        assert!(good.is_whole(), "{}", place(&rig, n).display());
        good.forget();
    }
    rig.finish().await;
}

#[tokio::test]
async fn the_networks_record_can_be_damaged_and_nothing_is_leaked() {
    let mut rig = rig!();
    let mut lives = Vec::new();
    for n in 0..OF_RECORDS.len() {
        lives.push(rig.cri().run_pod(&rig.pod(&format!("net-{n}"))).await.unwrap());
    }
    let path = |rig: &Rig, pod: &str| rig.places.state().join("cni").join(format!("{pod}.json"));
    let good: Vec<Good> = meanwhile(&mut rig, |rig| {
        let locks = lives.iter().zip(OF_RECORDS);
        locks.for_each(|(pod, how)| {
            // What lies in a lock file is nothing to anybody; what it is, may be.
            if !matches!(how, Damage::AnotherId | Damage::OlderVersion | Damage::NewerVersion) {
                Good::damage(&path(rig, pod).with_extension("lock"), how).forget();
            }
        });
        lives.iter().zip(OF_RECORDS).map(|(pod, how)| Good::damage(&path(rig, pod), how)).collect()
    })
    .await;
    for (pod, how) in lives.iter().zip(OF_RECORDS) {
        reported(&rig, &path(&rig, pod), how).await;
        assert_eq!(rig.cri().pod_status(pod).await.unwrap().state(), PodSandboxState::SandboxReady);
        rig.cri().end_pod(pod).await.unwrap_or_else(|status| panic!("{how:?}: {status}"));
    }
    good.iter().for_each(Good::forget);
    rig.finish().await;
}

#[tokio::test]
async fn a_damaged_bundle_is_named_by_who_needs_it() {
    let rig = rig!();
    let config = rig.pod("bundles");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let bundles = rig.places.run().join("pods").join(&pod).join("containers");
    let runs = rig.probe(&pod, &config, "runs", &["sleep"]).await;
    for (n, how) in OF_RECORDS.into_iter().enumerate() {
        // It is no record: it has neither version nor id of ours.
        if matches!(how, Damage::AnotherId | Damage::OlderVersion | Damage::NewerVersion) {
            continue;
        }
        let created = configs::container(&format!("new-{n}"), PROBE, &["sleep"]);
        let created = rig.cri().create(&pod, &config, &created).await.unwrap();
        let (file, other) =
            (bundles.join(&created).join("config.json"), bundles.join(&runs).join("config.json"));
        Good::damage(&file, how).forget();
        let refusal = rig.cri().start(&created).await.expect_err(&format!("{how:?}"));
        assert!(refusal.message().contains("config.json"), "{how:?}: {refusal}");
        let good = Good::damage(&other, how);
        let refusal = rig.cri().exec(&runs, &["/probe", "exit", "0"]).await;
        let refusal = refusal.expect_err(&format!("{how:?}"));
        assert!(refusal.message().contains(&other.display().to_string()), "{how:?}: {refusal}");
        good.put_back();
        assert_eq!(rig.cri().exec(&runs, &["/probe", "exit", "0"]).await.unwrap().exit_code, 0);
        rig.cri().remove(&created).await.unwrap();
    }
    let request = RemovePodSandboxRequest { pod_sandbox_id: pod };
    rig.cri().runtime.clone().remove_pod_sandbox(request).await.unwrap();
    rig.finish().await;
}
