//! Boots a disk that a power cut has left, and says what is wrong with what the daemon makes of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use podhold_proto::cri::StatusRequest;
use serde_json::Value;

use super::{
    life::{Effect, Step},
    stage::{Booted, IMAGES, Stage, until},
    tree::{self, Tree},
};

/// Layers as a clean pull makes them, by chain id.
pub type Truth = BTreeMap<String, Tree>;

/// What was found after one power cut.
#[derive(Debug, Default, Clone)]
pub struct Verdict {
    /// Images that were there.
    pub images: usize,
    /// Something was reported as damaged, and gone at the next start.
    pub reported: bool,
    /// A layer or image that claims to be whole and is not.
    pub wrong: Vec<String>,
    /// An image that was told to be there and is not, or told to be gone and is there.
    pub untrue: Vec<String>,
    /// What a new pull, a removal or a new start does not mend.
    pub stays: Vec<String>,
}

impl Verdict {
    /// Everything that must not be, in words.
    pub fn faults(&self) -> impl Iterator<Item = &String> {
        self.wrong.iter().chain(&self.untrue).chain(&self.stays)
    }
}

/// What a clean pull of all images makes.
///
/// # Panics
/// When it fails.
pub async fn truth(stage: &mut Stage) -> Truth {
    let empty = fs::read(stage.machine.directory().join("empty")).expect("read the empty disk");
    let booted = stage.boot(&empty, "noatime").await.unwrap_or_else(|error| panic!("{error}"));
    for image in IMAGES {
        booted.daemon.cri.pull(image).await.expect("pull");
    }
    let truth = layers(stage)
        .into_iter()
        .map(|(chain, place)| (chain, tree::read(&place).expect("read a layer")))
        .collect();
    stage.halt(booted).await;
    truth
}

/// Boots `disk`, which a cut after `moment` events has left.
///
/// # Panics
/// When the machine fails.
pub async fn judge(
    stage: &mut Stage,
    disk: &[u8],
    options: &str,
    (steps, moment): (&[Step], usize),
    truth: &Truth,
) -> Verdict {
    let mut verdict = Verdict::default();
    let booted = match stage.boot(disk, options).await {
        Ok(booted) => booted,
        Err(error) => {
            verdict.stays.push(format!("no daemon starts: {error}"));
            stage.unmount().await;
            return verdict;
        }
    };
    let mut right = BTreeSet::new();
    verdict.wrong.extend(wrong_layers(stage, truth, &mut right));
    let present = names(&booted).await;
    verdict.images = present.len();
    verdict.wrong.extend(incomplete(stage, &present));
    verdict.untrue.extend(untrue(&present, steps, moment));
    let damage = damaged(&booted).await;
    heal(&booted, &mut verdict).await;
    let wrong = wrong_layers(stage, truth, &mut right);
    verdict.stays.extend(wrong.into_iter().map(|what| format!("after a new pull: {what}")));
    verdict.stays.extend(left(stage).await);
    stage.halt(booted).await;
    if !damage.is_empty() {
        verdict.reported = true;
        let again = read_back(stage).await;
        verdict.stays.extend(again.into_iter().map(|what| format!("still reported: {what}")));
    }
    verdict
}

/// Starts once more on the disk as the daemon has left it; what is still reported.
async fn read_back(stage: &mut Stage) -> Vec<String> {
    let disk = fs::read(stage.machine.directory().join("cut")).expect("read the disk");
    match stage.boot(&disk, "noatime").await {
        Ok(booted) => {
            let damage = damaged(&booted).await;
            stage.halt(booted).await;
            damage
        }
        Err(error) => {
            stage.unmount().await;
            vec![error]
        }
    }
}

/// All layers that claim to be complete: chain id and place.
fn layers(stage: &Stage) -> Vec<(String, PathBuf)> {
    let place = stage.state_on_the_host().join("images/layers");
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    let read = |path: PathBuf| {
        let record: Value = serde_json::from_slice(&fs::read(path.join("layer.json")).ok()?).ok()?;
        Some((record["chain"].as_str()?.to_owned(), path.join("fs")))
    };
    entries.filter_map(|entry| read(entry.path())).collect()
}

/// Layers that are not as they should be; those in `right` have been looked at before.
fn wrong_layers(stage: &Stage, truth: &Truth, right: &mut BTreeSet<PathBuf>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (chain, place) in layers(stage) {
        if right.contains(&place) {
            continue;
        }
        let differences = match (tree::read(&place), truth.get(&chain)) {
            (Ok(tree), Some(truth)) => tree::differences(&tree, truth),
            (Ok(_), None) => vec!["no image has it".to_owned()],
            (Err(error), _) => vec![error.to_string()],
        };
        // The daemon deletes meanwhile what belongs to no image; it takes that away as a whole first.
        let gone = !place.exists();
        if differences.is_empty() {
            right.insert(place);
        } else if gone {
            continue;
        } else {
            let count = differences.len();
            wrong.push(format!("layer {chain}: {count} differences: {:?}", &differences[..count.min(3)]));
        }
    }
    wrong
}

/// Which of the images are there.
async fn names(booted: &Booted) -> BTreeSet<&'static str> {
    let images = booted.daemon.cri.list_images().await.expect("list images");
    let tags: Vec<String> = images.into_iter().flat_map(|image| image.repo_tags).collect();
    IMAGES.into_iter().filter(|name| tags.iter().any(|tag| tag == name)).collect()
}

/// Images that are listed and of which a layer is not there.
fn incomplete(stage: &Stage, present: &BTreeSet<&str>) -> Vec<String> {
    let chains: BTreeSet<String> = layers(stage).into_iter().map(|(chain, _)| chain).collect();
    let place = stage.state_on_the_host().join("images/images");
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    let records =
        entries.filter_map(|entry| serde_json::from_slice::<Value>(&fs::read(entry.path()).ok()?).ok());
    let mut words = Vec::new();
    for record in records {
        let tags = record["tags"].as_array().into_iter().flatten();
        let tag = tags.filter_map(|tag| tag["name"].as_str()).find(|tag| present.contains(tag));
        let Some(tag) = tag else { continue };
        let layers = record["layers"].as_array().into_iter().flatten().filter_map(Value::as_str);
        words.extend(
            layers.filter(|layer| !chains.contains(*layer)).map(|layer| format!("{tag} lacks layer {layer}")),
        );
    }
    words
}

/// What was answered before the cut and is not so.
fn untrue(present: &BTreeSet<&str>, steps: &[Step], moment: usize) -> Vec<String> {
    let mut words = Vec::new();
    for image in IMAGES {
        let about = |step: &&Step| matches!(step.effect, Effect::Brings(name) | Effect::Removes(name) if name == image);
        let begun = steps.iter().filter(about).rfind(|step| step.begun < moment);
        let Some(step) = begun.filter(|step| step.ended <= moment) else { continue };
        let there = present.contains(image);
        if there != (step.effect == Effect::Brings(image)) {
            let found = if there { "is there" } else { "is not there" };
            words.push(format!("{image} {found} after {} was answered", step.name));
        }
    }
    words
}

/// What the daemon says cannot be used.
async fn damaged(booted: &Booted) -> Vec<String> {
    let request = StatusRequest { verbose: true };
    let answer = booted.daemon.cri.runtime.clone().status(request).await.expect("ask for the status");
    let info = answer.into_inner().info.remove("info").unwrap_or_default();
    let info: Value = serde_json::from_str(&info).expect("the status is JSON");
    info["damaged"].as_array().into_iter().flatten().map(ToString::to_string).collect()
}

/// Does what a kubelet does after a boot: pulls images, ends pods.
async fn heal(booted: &Booted, verdict: &mut Verdict) {
    let cri = &booted.daemon.cri;
    for image in IMAGES {
        if let Err(status) = cri.pull(image).await {
            verdict.stays.push(format!("pull {image}: {status}"));
        }
    }
    let there = names(booted).await;
    verdict
        .stays
        .extend(IMAGES.iter().filter(|name| !there.contains(*name)).map(|name| format!("no {name}")));
    for pod in cri.list_pods().await.expect("list pods") {
        if let Err(status) = cri.end_pod(&pod.id).await {
            verdict.stays.push(format!("end pod {}: {status}", pod.id));
        }
    }
}

/// What is left of pods and containers that no list has.
async fn left(stage: &Stage) -> Vec<String> {
    let state = stage.state_on_the_host();
    let look = || {
        let places =
            ["pods", "cni", "images/snapshots", "images/trash", "images/ingest"].map(|name| state.join(name));
        let entries = places.iter().flat_map(|place| fs::read_dir(place).into_iter().flatten().flatten());
        // The lock of the network's garbage collection is there for good.
        entries.map(|entry| entry.path()).filter(|path| !path.ends_with("GC.lock")).collect::<Vec<_>>()
    };
    let mut found = look();
    // It is deleted in the background.
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    until("what is left", || {
        found = look();
        found.is_empty() || tokio::time::Instant::now() > deadline
    })
    .await;
    found.iter().map(|path| format!("left: {}", path.display())).collect()
}
