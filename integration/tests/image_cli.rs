//! `podhold image …`, with a daemon and without one: the same words, and archives that other tools make and
//! read.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{fs, path::PathBuf, time::Duration};

use podhold_integration::{
    daemon::{self, configuration},
    machine::Output,
    programs, require, rig,
    rig::{PROBE, REGISTRY, Rig},
};
use tokio::time::{Instant, interval};

/// How long what a daemon does in the background may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who does what is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Daemon,
    Alone,
}

fn path(rig: &Rig, name: &str) -> PathBuf {
    rig.machine.directory().join(name)
}

async fn image(rig: &Rig, by: By, rest: &[&str]) -> Output {
    let mut words = vec![programs::built("podhold").display().to_string(), "image".to_owned()];
    words.extend(rest.iter().map(|word| (*word).to_owned()));
    match by {
        By::Daemon => words.extend(["--config".to_owned(), rig.places.config().display().to_string()]),
        By::Alone => {
            let config = path(rig, "alone.toml");
            fs::write(&config, configuration(&rig.places, &format!("{}-alone", rig.cgroup))).unwrap();
            for (option, place) in [
                ("--config", config),
                ("--run-dir", path(rig, "alone/run")),
                ("--state-dir", path(rig, "alone/state")),
            ] {
                words.extend([option.to_owned(), place.display().to_string()]);
            }
        }
    }
    rig.machine.run(&words).await.unwrap()
}

async fn well(rig: &Rig, by: By, rest: &[&str]) -> String {
    let output = image(rig, by, rest).await;
    assert_eq!(output.code, 0, "{by:?} {rest:?}: {output:?}");
    output.stdout
}

async fn refused(rig: &Rig, by: By, rest: &[&str]) -> String {
    let output = image(rig, by, rest).await;
    assert_ne!(output.code, 0, "{by:?} {rest:?}: {output:?}");
    output.stderr
}

async fn inspected(rig: &Rig, by: By, name: &str) -> serde_json::Value {
    let text = well(rig, by, &["inspect", name]).await;
    serde_json::from_str::<serde_json::Value>(&text).unwrap()[0].clone()
}

async fn skopeo(rig: &Rig, words: &[&str]) -> String {
    let environment = format!("TMPDIR={}", rig.machine.directory().display());
    let tool = ["env", environment.as_str(), "skopeo", "--insecure-policy"];
    rig.machine.run_well(tool.iter().chain(words)).await.unwrap()
}

#[tokio::test]
async fn every_action_says_the_same_with_a_daemon_and_without() {
    let rig = rig!();
    let tag = format!("{REGISTRY}/multi:2");
    let mut said = Vec::new();
    for by in [By::Daemon, By::Alone] {
        let archive = path(&rig, &format!("{by:?}.tar")).display().to_string();
        let mut words = Vec::new();
        let id = well(&rig, by, &["pull", &tag]).await.trim().to_owned();
        assert!(id.starts_with("sha256:"), "{id}");
        let pulled = inspected(&rig, by, &tag).await;
        assert_eq!(pulled["id"], id.as_str());
        words.push(well(&rig, by, &["tag", &id, "mine/app:2"]).await);
        words.push(well(&rig, by, &["inspect", "mine/app:2"]).await);
        words.push(well(&rig, by, &["export", &tag, "--output", &archive]).await);
        words.push(well(&rig, by, &["rm", &tag]).await);
        words.push(refused(&rig, by, &["inspect", &id]).await);
        words.push(refused(&rig, by, &["rm", "mine/app:2"]).await);
        words.push(refused(&rig, by, &["export", &id, "--output", "/nowhere/x"]).await);
        let imported = well(&rig, by, &["import", &archive]).await;
        assert!(imported.contains(&tag) && imported.contains("skipped"), "{imported}");
        assert_eq!(inspected(&rig, by, &tag).await, pulled, "an import is what the pull was");
        let list = well(&rig, by, &["ls"]).await;
        assert!(list.contains(&tag), "{list}");
        assert!(well(&rig, by, &["ls", "-q"]).await.contains(&id));
        let json: serde_json::Value = serde_json::from_str(&well(&rig, by, &["ls", "--json"]).await).unwrap();
        assert!(json.as_array().unwrap().iter().any(|image| image["id"] == id.as_str()), "{json}");
        match by {
            // It would take the images of the rig as well.
            By::Daemon => drop(well(&rig, by, &["rm", &id]).await),
            By::Alone => {
                let pruned = well(&rig, by, &["prune"]).await;
                assert!(pruned.contains(&id), "{pruned}");
            }
        }
        words.push(refused(&rig, by, &["inspect", &id]).await);
        words.push(refused(&rig, by, &["import", "/no/such.tar"]).await);
        fs::write(path(&rig, "broken.tar"), b"no archive").unwrap();
        words.push(refused(&rig, by, &["import", &path(&rig, "broken.tar").display().to_string()]).await);
        said.push(words);
    }
    assert_eq!(said[0], said[1]);
    assert_eq!(
        fs::read(path(&rig, "Daemon.tar")).unwrap(),
        fs::read(path(&rig, "Alone.tar")).unwrap(),
        "an export is the same bytes"
    );
    // The state directory of a daemon is not opened beside it.
    let state = rig.places.state().display().to_string();
    let said = image(&rig, By::Daemon, &["ls", "--state-dir", &state]).await;
    assert!(said.code != 0 && said.stderr.contains("locked"), "{said:?}");
    rig.finish().await;
}

#[tokio::test]
async fn archives_of_skopeo_are_imported_and_ours_are_read_by_it() {
    require!(root, program "skopeo");
    let rig = rig!();
    let source = format!("docker://{REGISTRY}/probe:user");
    let tag = format!("{REGISTRY}/probe:user");
    rig.cri().pull(&tag).await.unwrap();
    let pulled = inspected(&rig, By::Daemon, &tag).await;
    let exported = path(&rig, "exported.tar").display().to_string();
    well(&rig, By::Daemon, &["export", &tag, "-o", &exported]).await;
    let seen = skopeo(&rig, &["inspect", "--raw", &format!("oci-archive:{exported}")]).await;
    assert!(seen.contains(pulled["id"].as_str().unwrap()), "{seen}");
    let seen = skopeo(&rig, &["inspect", "--config", "--raw", &format!("docker-archive:{exported}")]).await;
    assert!(seen.contains("rootfs"), "{seen}");
    for (kind, name) in [("oci-archive", "oci.tar"), ("docker-archive", "docker.tar"), ("oci", "layout")] {
        let place = path(&rig, name).display().to_string();
        let to = format!("{kind}:{place}:{}", if kind == "docker-archive" { "team/app:1" } else { "1" });
        skopeo(&rig, &["copy", "--src-tls-verify=false", &source, &to]).await;
        well(&rig, By::Daemon, &["rm", pulled["id"].as_str().unwrap()]).await;
        well(&rig, By::Daemon, &["import", &place, "--tag", &tag]).await;
        let found = inspected(&rig, By::Daemon, &tag).await;
        assert_eq!(found["id"], pulled["id"], "{kind}");
        assert_eq!(found["layers"], pulled["layers"], "{kind}");
        if kind != "docker-archive" {
            assert_eq!(found["digests"], pulled["digests"], "{kind}");
        }
    }
    rig.finish().await;
}

#[tokio::test]
async fn archives_in_a_directory_are_there_after_the_start_and_a_damaged_one_stops_nothing() {
    let mut rig = rig!();
    let tag = format!("{REGISTRY}/multi:2");
    let shelf = path(&rig, "shelf");
    fs::create_dir(&shelf).unwrap();
    let archive = shelf.join("multi.tar").display().to_string();
    well(&rig, By::Daemon, &["pull", &tag]).await;
    let pulled = inspected(&rig, By::Daemon, &tag).await;
    well(&rig, By::Daemon, &["export", &tag, "--output", &archive]).await;
    let whole = fs::read(&archive).unwrap();
    fs::write(shelf.join("half.tar"), &whole[..whole.len() / 2]).unwrap();
    fs::write(shelf.join("multi.tar.sha256"), "not for us").unwrap();
    well(&rig, By::Daemon, &["rm", &tag]).await;
    let config = fs::read_to_string(rig.places.config()).unwrap();
    let config = config.replace("[image]\n", &format!("[image]\npreload_dir = {shelf:?}\n"));
    fs::write(rig.places.config(), config).unwrap();
    let count = |rig: &Rig| daemon::log(&rig.places).matches("image imported").count();
    for (start, imports) in [("first", 1), ("second", 1), ("after a removal", 2)] {
        rig.restart().await;
        let deadline = Instant::now() + PATIENCE;
        let mut ticks = interval(Duration::from_millis(100));
        // Both, in the order of their names: the damaged one is told of when the other is begun.
        while image(&rig, By::Daemon, &["inspect", &tag]).await.code != 0 {
            ticks.tick().await;
            assert!(Instant::now() < deadline, "{start}: not there: {}", daemon::log(&rig.places));
        }
        assert_eq!(inspected(&rig, By::Daemon, &tag).await, pulled, "{start}");
        let request = podhold_proto::cri::StatusRequest { verbose: true };
        let status = rig.cri().runtime.clone().status(request).await.unwrap().into_inner();
        let info: serde_json::Value = serde_json::from_str(&status.info["info"]).unwrap();
        let damaged = info["damaged"].as_array().unwrap().iter().find(|damage| damage["id"] == "half.tar");
        let damaged = damaged.unwrap_or_else(|| panic!("{start}: {info}"));
        assert_eq!(damaged["kind"], "archive", "{damaged}");
        assert!(damaged["reason"].as_str().unwrap().contains("truncated"), "{damaged}");
        assert!(damaged["mend"].as_str().unwrap().contains("podhold image import"), "{damaged}");
        assert!(daemon::log(&rig.places).contains("multi.tar.sha256"), "{start}");
        assert_eq!(count(&rig), imports, "{start}");
        if start == "second" {
            well(&rig, By::Daemon, &["rm", &tag]).await;
        }
    }
    fs::write(rig.places.config(), configuration(&rig.places, &rig.cgroup)).unwrap();
    well(&rig, By::Daemon, &["rm", &tag]).await;
    fs::remove_file(rig.places.state().join("preloaded.json")).unwrap();
    rig.finish().await;
}

/// Runs a command of podhold in a shell, as `"$@"` of the script.
async fn in_shell(rig: &Rig, script: &str, rest: &[&str]) -> Output {
    let mut words: Vec<String> = ["sh", "-c", script, "sh"].map(str::to_owned).into();
    words.push(programs::built("podhold").display().to_string());
    words.extend(rest.iter().map(|word| (*word).to_owned()));
    rig.machine.run(&words).await.unwrap()
}

#[tokio::test]
async fn what_nobody_reads_ends_quietly_and_a_full_disk_is_an_error() {
    let rig = rig!();
    let config = rig.places.config().display().to_string();
    let commands: [&[&str]; 8] = [
        &["image", "ls", "--config", &config],
        &["image", "ls", "--quiet", "--config", &config],
        &["image", "inspect", PROBE, "--config", &config],
        &["image", "verify", "--config", &config],
        &["image", "export", PROBE, "--output", "-", "--config", &config],
        &["config", "check", "--config", &config],
        &["config", "default"],
        &["--help"],
    ];
    // The reader is gone before the command begins: it tells so by the FIFO.
    let fifo = path(&rig, "gone").display().to_string();
    let unread = format!(
        "mkfifo {fifo}; {{ cat {fifo}; \"$@\"; echo \"code $?\" >&2; }} | {{ exec <&-; : > {fifo}; }}; rm {fifo}"
    );
    for command in commands {
        let full = in_shell(&rig, "exec \"$@\" > /dev/full", command).await;
        assert_eq!(full.code, 1, "{command:?}: {full:?}");
        let said = "podhold: standard output: No space left on device";
        assert!(full.stderr.contains(said) && !full.stderr.contains("panicked"), "{command:?}: {full:?}");
        let nowhere = in_shell(&rig, &unread, command).await;
        let said: Vec<&str> = nowhere.stderr.lines().filter(|line| !line.contains(" MB")).collect();
        assert_eq!(said, ["code 141"], "{command:?}: {nowhere:?}");
        let both = in_shell(&rig, "exec \"$@\" > /dev/full 2> /dev/full", command).await;
        assert_eq!(both.code, 1, "{command:?}: {both:?}");
    }
    rig.finish().await;
}

#[tokio::test]
async fn what_the_store_says_it_takes_is_what_is_on_disk() {
    let rig = rig!();
    let tag = format!("{REGISTRY}/layers:1");
    let archive = path(&rig, "layers.tar").display().to_string();
    well(&rig, By::Daemon, &["pull", &tag]).await;
    well(&rig, By::Daemon, &["export", &tag, "--output", &archive]).await;
    well(&rig, By::Daemon, &["rm", &tag]).await;
    well(&rig, By::Daemon, &["import", &archive]).await;
    let request = podhold_proto::cri::ImageFsInfoRequest {};
    let told = rig.cri().images.clone().image_fs_info(request).await.unwrap().into_inner();
    let told = &told.image_filesystems[0];
    let (told_bytes, told_inodes) =
        (told.used_bytes.unwrap_or_default().value, told.inodes_used.unwrap_or_default().value);
    let images = rig.places.state().join("images");
    let du = |options: &str| {
        let script = format!(
            "du -c {options} {0}/layers/* {0}/blobs/* {0}/images/* | tail -1 | cut -f1",
            images.display()
        );
        ["sh".to_owned(), "-c".to_owned(), script]
    };
    let bytes: u64 = rig.machine.run_well(du("-s -B1")).await.unwrap().trim().parse().unwrap();
    let inodes: u64 = rig.machine.run_well(du("-s --inodes")).await.unwrap().trim().parse().unwrap();
    println!("told {told_bytes} bytes and {told_inodes} inodes; du finds {bytes} and {inodes}");
    assert_eq!(told_inodes, inodes);
    assert!(told_bytes.abs_diff(bytes) <= bytes / 50 + 65536, "told {told_bytes}, du finds {bytes}");
    well(&rig, By::Daemon, &["rm", &tag]).await;
    rig.finish().await;
}

#[tokio::test]
async fn an_endpoint_without_a_daemon_is_an_error_and_not_another_place() {
    let rig = rig!();
    let nowhere = path(&rig, "nowhere.sock").display().to_string();
    let said = refused(&rig, By::Daemon, &["ls", "--endpoint", &nowhere]).await;
    assert!(said.contains("nowhere.sock") && said.contains("no daemon"), "{said}");
    let socket = rig.places.socket().display().to_string();
    assert!(well(&rig, By::Alone, &["ls", "--endpoint", &socket]).await.contains(PROBE));
    rig.finish().await;
}
