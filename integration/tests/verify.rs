//! `podhold image verify`: what has changed in a layer is told with its path, and only that layer is fetched again,
//! beneath the feet of nobody.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use podhold_integration::{
    configs,
    machine::Output,
    programs, rig,
    rig::{self as stand, Rig},
};

const LAYERS: &str = "127.0.0.1:5000/layers:1";
/// It has files with holes, and hard links to files of layers below.
const NASTY: &str = "127.0.0.1:5000/nasty:1";

/// Runs `podhold image verify`: by the daemon where it runs, else on its state.
async fn verify(rig: &Rig, words: &[&str]) -> Output {
    let (program, config) = (programs::built("podhold"), rig.places.config());
    let program = [program.display().to_string(), "image".into(), "verify".into(), "--config".into()];
    let words = words.iter().map(|word| (*word).to_owned());
    let all: Vec<String> = program.into_iter().chain([config.display().to_string()]).chain(words).collect();
    rig.machine.run(all).await.unwrap()
}

fn places(rig: &Rig) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(rig.places.state().join("images/layers")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// The only layer that has the file, with that file.
fn with(rig: &Rig, name: &str) -> (PathBuf, PathBuf) {
    let mut found = places(rig).into_iter().filter(|place| place.join("fs").join(name).is_file());
    let place = found.next().unwrap();
    (place.clone(), place.join("fs").join(name))
}

/// Changes one byte, as a disk does: nothing else tells.
fn rot(file: &Path) {
    let time = fs::metadata(file).unwrap().modified().unwrap();
    let mut bytes = fs::read(file).unwrap();
    bytes[2] ^= 0x10;
    fs::write(file, bytes).unwrap();
    fs::File::open(file).unwrap().set_modified(time).unwrap();
}

#[tokio::test]
async fn what_has_changed_is_told_and_fetched_again_while_a_container_goes_on() {
    let mut rig = rig!();
    rig.cri().pull(LAYERS).await.unwrap();
    rig.cri().pull(NASTY).await.unwrap();
    let config = rig.pod("verified");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mut container = configs::container("reader", LAYERS, &["-c", "sleep 100000"]);
    container.command = vec!["/bin/sh".into()];
    let container = rig.run(&pod, &config, &container).await;
    rig.cri().exec_well(&container, &["/bin/cat", "/data/owned"]).await.unwrap();
    let good = verify(&rig, &[]).await;
    assert!(good.code == 0 && good.stdout.contains(" 0 not right"), "{good:?}");
    assert_eq!(rig.daemon.stop(&rig.machine).await.unwrap(), 0);
    let good = verify(&rig, &[]).await;
    assert!(good.code == 0 && good.stdout.contains(" 0 not right"), "{good:?}");

    let before = places(&rig);
    let (rotten, file) = with(&rig, "data/changed-too");
    rot(&file);
    let (torn, file) = with(&rig, "data/owned");
    fs::remove_file(&file).unwrap();
    for (words, code) in
        [(&[][..], 1), (&[LAYERS][..], 1), (&["127.0.0.1:5000/probe:1"][..], 0), (&["nobody:1"][..], 1)]
    {
        assert_eq!(verify(&rig, words).await.code, code, "{words:?}");
    }
    let told = verify(&rig, &[LAYERS]).await;
    for words in [
        "/data/changed: other content (also /data/changed-too)",
        "/data/owned: is missing",
        LAYERS,
        "--repair",
    ] {
        assert!(format!("{}{}", told.stdout, told.stderr).contains(words), "{words}: {told:?}");
    }
    assert_eq!(places(&rig), before, "nothing is changed unasked");

    let mended = verify(&rig, &["--repair"]).await;
    assert!(mended.code == 0 && mended.stdout.contains("2 fetched again, 0 not right"), "{mended:?}");
    let after = places(&rig);
    assert!(after.is_superset(&before), "the container has them mounted");
    assert_eq!(after.len(), before.len() + 2, "only what was wrong is fetched again");
    let good = verify(&rig, &[]).await;
    assert!(good.code == 0 && good.stdout.contains(" 0 not right"), "{good:?}");

    rig.restart_stopped().await;
    rig.cri().exec_well(&container, &["/bin/cat", "/etc/passwd"]).await.unwrap();
    let mut second = configs::container("second", LAYERS, &["-c", "sleep 100000"]);
    second.command = vec!["/bin/sh".into()];
    let second = rig.run(&pod, &config, &second).await;
    assert_eq!(rig.cri().exec_well(&second, &["/bin/cat", "/data/owned"]).await.unwrap(), "mine\n");
    rig.cri().end_pod(&pod).await.unwrap();
    let left = places(&rig);
    assert!(!left.contains(&rotten) && !left.contains(&torn), "nobody has them mounted any more");
    assert_eq!(left.len(), before.len());
    rig.finish().await;
}

#[tokio::test]
async fn a_layer_that_cannot_be_fetched_again_stays_as_it_is() {
    let mut rig = rig!();
    rig.cri().pull(LAYERS).await.unwrap();
    assert_eq!(rig.daemon.stop(&rig.machine).await.unwrap(), 0);
    let (_, file) = with(&rig, "data/owned");
    rot(&file);
    // A change of the note itself is noticed too.
    let (place, _) = with(&rig, "data/changed-too");
    rot(&place.join("tree"));
    let before = places(&rig);
    let hosts = rig.places.hosts().join(stand::REGISTRY).join("hosts.toml");
    let right = fs::read(&hosts).unwrap();
    fs::write(&hosts, "server = \"http://127.0.0.1:9\"\n").unwrap();
    let told = verify(&rig, &["--repair"]).await;
    assert!(told.code == 1 && told.stdout.matches("not fetched again").count() == 2, "{told:?}");
    assert!(told.stdout.contains("what was noted of the layer is damaged itself"), "{told:?}");
    assert_eq!(places(&rig), before);
    fs::write(&hosts, right).unwrap();
    let mended = verify(&rig, &["--repair", LAYERS]).await;
    assert!(mended.code == 0 && mended.stdout.contains("2 fetched again, 0 not right"), "{mended:?}");
    assert_eq!(places(&rig).len(), before.len(), "nobody had them mounted");
    rig.restart_stopped().await;
    let (_, file) = with(&rig, "data/owned");
    rot(&file);
    let told = verify(&rig, &[]).await;
    assert!(told.code == 1 && told.stdout.contains("/data/owned: other content"), "by the daemon: {told:?}");
    let mended = verify(&rig, &["--repair"]).await;
    assert!(mended.code == 0 && mended.stdout.contains("1 fetched again, 0 not right"), "{mended:?}");
    assert_eq!(places(&rig).len(), before.len());
    rig.finish().await;
}
