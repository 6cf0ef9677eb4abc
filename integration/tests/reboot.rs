//! The host is booted anew: pods are down and can be removed, what they had is given back at once.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use nix::sys::signal::Signal;
use podhold_integration::{
    configs::{self, log_file},
    log, rig,
    rig::{PROBE, Rig, RunDirectory},
    soak::truth,
};
use podhold_proto::cri::{ContainerState, PodSandboxState, PortMapping};

const LONG: Duration = Duration::from_secs(60);

/// Gives the network a pool of addresses that outlives the machine, as a disk does; its directory.
fn lasting_pool(rig: &mut Rig) -> PathBuf {
    rig.expect_gone("/var/lib/cni");
    let pool = rig.machine.directory().join("ipam");
    let path = rig.places.cni().join("10-podhold.conflist");
    let mut list: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    list["plugins"][0]["ipam"]["dataDir"] = pool.display().to_string().into();
    let new = rig.places.cni().join("new");
    fs::write(&new, list.to_string()).unwrap();
    fs::rename(new, path).unwrap();
    pool.join("podhold-it")
}

/// The addresses that are given out.
fn leased(pool: &Path) -> Vec<IpAddr> {
    let entries = fs::read_dir(pool).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Names in a directory; a missing one is empty.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Waits until `done`; there is no event for what a daemon does in the background.
async fn until(what: &str, done: impl Fn() -> bool) -> Duration {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < LONG, "{what}: not within {LONG:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    begun.elapsed()
}

/// Waits until nothing is left of pods but their records.
async fn given_back(rig: &Rig, pool: &Path) -> Duration {
    let (run, images) = (rig.places.run(), rig.places.state().join("images"));
    let begun = Instant::now();
    until("addresses", || leased(pool).is_empty()).await;
    let addresses = begun.elapsed();
    until("writable layers", || names(&images.join("snapshots")).is_empty()).await;
    until("run directory", || names(&run.join("pods")).is_empty()).await;
    until("namespaces", || names(&run.join("netns")).is_empty()).await;
    until("records of networks", || names(&rig.places.state().join("cni")).is_empty()).await;
    addresses
}

fn half_made(rig: &Rig, pod: &str) {
    let path = rig.places.state().join("pods").join(pod).join("pod.json");
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    record["data"]["complete"] = false.into();
    fs::write(path, record.to_string()).unwrap();
}

#[tokio::test]
async fn after_a_reboot_pods_are_down_and_nothing_of_them_is_held() {
    let mut rig = rig!();
    let pool = lasting_pool(&mut rig);
    let mut config = rig.pod("ended");
    config.port_mappings = vec![PortMapping { container_port: 80, host_port: 8099, ..Default::default() }];
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let ended = rig.probe(&pod, &config, "ended", &["exit", "7"]).await;
    assert_eq!(rig.cri().ended(&ended, LONG).await.unwrap().exit_code, 7);
    let running = rig.probe(&pod, &config, "running", &["sleep"]).await;
    let second = rig.pod("second");
    let other = rig.cri().run_pod(&second).await.unwrap();
    let created = configs::container("created", PROBE, &["sleep"]);
    let created = rig.cri().create(&other, &second, &created).await.unwrap();
    let cut = rig.cri().run_pod(&rig.pod("cut")).await.unwrap();
    assert_eq!(leased(&pool).len(), 6, "two families, three pods");
    // Its status is on disk by then: written behind the back of who waits.
    let status =
        rig.places.state().join("pods").join(&pod).join("containers").join(&running).join("status.json");
    until("status", || fs::read_to_string(&status).is_ok_and(|text| !text.contains("\"started_at\":null")))
        .await;
    half_made(&rig, &cut);

    let back = rig.reboot(RunDirectory::Lost).await;
    let pods = rig.cri().list_pods().await.unwrap();
    for listed in pods.iter().filter(|listed| listed.id != cut) {
        assert_eq!(listed.state(), PodSandboxState::SandboxNotready);
    }
    assert!(pods.iter().any(|listed| listed.id == pod) && pods.iter().any(|listed| listed.id == other));
    for (id, code, reason) in [(&ended, 7, "Error"), (&running, 255, "Unknown"), (&created, 255, "Unknown")] {
        let status = rig.cri().status(id).await.unwrap();
        assert_eq!(status.state(), ContainerState::ContainerExited);
        assert_eq!((status.exit_code, status.reason.as_str()), (code, reason));
        assert!(status.finished_at >= status.started_at, "{status:?}");
        assert_eq!(status.message.contains("rebooted"), code == 255, "{}", status.message);
    }
    let addresses = given_back(&rig, &pool).await;
    println!("the daemon was back after {back:?}, all addresses {addresses:?} later");
    assert!(rig.cri().pod_status(&cut).await.is_err(), "what was half made is undone");
    let new = rig.cri().run_pod(&rig.pod("new")).await.unwrap();
    for each in [&pod, &other, &new] {
        rig.cri().end_pod(each).await.unwrap();
    }
    rig.leave_what_stays().await;
    rig.finish().await;
}

#[tokio::test]
async fn a_run_directory_of_an_earlier_boot_is_believed_in_exits_alone() {
    let mut rig = rig!();
    let pool = lasting_pool(&mut rig);
    let config = rig.pod("kept");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mut ids = Vec::new();
    for name in ["whole", "torn", "running"] {
        ids.push(rig.probe(&pod, &config, name, &["catch", "9"]).await);
        log::wait_for(&log_file(&config, name), "ready").await;
    }
    let ends = [truth::pid(&rig, &ids[0]).await.unwrap(), truth::pid(&rig, &ids[1]).await.unwrap()];
    rig.daemon.kill(&rig.machine).await.unwrap();
    // Seen by the shim alone.
    for pid in ends {
        rig.machine.signal(pid, Signal::SIGTERM).await.unwrap();
    }
    let bundles = rig.places.run().join("pods").join(&pod).join("containers");
    let exit = |id: &str| bundles.join(id).join("exit.json");
    until("exits", || exit(&ids[0]).exists() && exit(&ids[1]).exists()).await;
    fs::write(exit(&ids[1]), [0; 64]).unwrap();
    // Nobody knows of this one any more.
    fs::create_dir_all(rig.places.run().join("pods/stray/containers/lost/rootfs")).unwrap();
    fs::write(rig.places.run().join("netns/stray"), "").unwrap();

    rig.reboot(RunDirectory::Kept).await;
    let codes = [(9, ""), (255, "exit.json"), (255, "rebooted")];
    for (id, (code, word)) in ids.iter().zip(codes) {
        let status = rig.cri().status(id).await.unwrap();
        assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, code), "{status:?}");
        assert!(status.message.contains(word), "{}", status.message);
    }
    given_back(&rig, &pool).await;
    // What it said of the earlier boot is kept.
    rig.crash_and_restart().await;
    assert_eq!(rig.cri().status(&ids[0]).await.unwrap().exit_code, 9);
    assert_eq!(rig.cri().pod_status(&pod).await.unwrap().state(), PodSandboxState::SandboxNotready);
    let next = configs::pod("kept-again", &rig.places.pod_logs());
    let again = rig.cri().run_pod(&next).await.unwrap();
    let runs = rig.probe(&again, &next, "runs", &["catch", "5"]).await;
    // Made in this boot, it is left alone by whoever comes next.
    rig.crash_and_restart().await;
    assert_eq!(rig.cri().status(&runs).await.unwrap().state(), ContainerState::ContainerRunning);
    rig.cri().stop(&runs, 10).await.unwrap();
    log::wait_for(&log_file(&next, "runs"), "caught SIGTERM").await;
    for each in [&pod, &again] {
        rig.cri().end_pod(each).await.unwrap();
    }
    rig.leave_what_stays().await;
    rig.finish().await;
}

#[tokio::test]
async fn the_addresses_of_a_hundred_pods_are_back_soon() {
    const PODS: usize = 100;
    let mut rig = rig!();
    let pool = lasting_pool(&mut rig);
    let pods: Vec<String> = stream::iter(0..PODS)
        .map(|n| {
            let (cri, config) = (rig.cri().clone(), rig.pod(&format!("many-{n}")));
            async move { cri.run_pod(&config).await.unwrap() }
        })
        .buffer_unordered(8)
        .collect()
        .await;
    assert_eq!(leased(&pool).len(), 2 * PODS);
    let back = rig.reboot(RunDirectory::Lost).await;
    let asked = Instant::now();
    assert_eq!(rig.cri().list_pods().await.unwrap().len(), PODS);
    let answered = asked.elapsed();
    let begun = Instant::now();
    while !leased(&pool).is_empty() {
        assert!(begun.elapsed() < 5 * LONG, "{} addresses are still given out", leased(&pool).len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!(
        "{PODS} pods: the daemon was back after {back:?}, a list took {answered:?}, all addresses were back {:?} later",
        begun.elapsed()
    );
    stream::iter(&pods).for_each_concurrent(8, async |pod| rig.cri().end_pod(pod).await.unwrap()).await;
    rig.leave_what_stays().await;
    rig.finish().await;
}

/// A plugin of ours that speaks 1.1 and logs its calls; `on_gc` is what it does at GC.
fn collecting_network(rig: &Rig, on_gc: &str) -> PathBuf {
    let log = rig.machine.directory().join("collector.log");
    let script = format!(
        "#!/bin/sh\ninput=$(cat)\necho \"$CNI_COMMAND $CNI_CONTAINERID $(echo \"$input\" | grep -o 'cni.dev/valid-attachments.*')\" >> {}\n\
         case $CNI_COMMAND in\n\
         ADD) echo '{{\"cniVersion\":\"1.1.0\",\"interfaces\":[{{\"name\":\"eth0\",\"sandbox\":\"'$CNI_NETNS'\"}}],\"ips\":[{{\"address\":\"10.99.0.2/24\",\"interface\":0}}]}}' ;;\n\
         GC) {on_gc} ;;\nesac\n",
        log.display()
    );
    let program = rig.places.plugins().join("collector");
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let list = r#"{"cniVersion":"1.1.0","name":"collected","plugins":[{"type":"collector"}]}"#;
    fs::write(rig.places.cni().join("new"), list).unwrap();
    fs::rename(rig.places.cni().join("new"), rig.places.cni().join("00-collected.conflist")).unwrap();
    log
}

#[tokio::test]
async fn plugins_collect_what_is_nobodys_after_a_reboot_and_hold_no_pod_up() {
    let mut rig = rig!();
    let said = collecting_network(&rig, "sleep 1000");
    let pod = rig.cri().run_pod(&rig.pod("old")).await.unwrap();
    let lost = rig.cri().run_pod(&rig.pod("lost")).await.unwrap();
    // Its record did not reach the disk: nothing but GC can give back what it had.
    fs::remove_file(rig.places.state().join("cni").join(format!("{lost}.json"))).unwrap();
    rig.reboot(RunDirectory::Lost).await;
    let lines = || fs::read_to_string(&said).unwrap();
    until("GC", || lines().contains("GC ")).await;
    // It hangs, and is given up.
    let new = rig.cri().run_pod(&rig.pod("new")).await.unwrap();
    let text = lines();
    let gc = text.lines().find(|line| line.starts_with("GC ")).unwrap();
    assert!(gc.contains("valid-attachments") && !gc.contains(&pod) && !gc.contains(&lost), "{gc}");
    assert!(text.contains(&format!("DEL {pod}")) && !text.contains(&format!("DEL {lost}")), "{text}");
    for each in [&pod, &lost, &new] {
        rig.cri().end_pod(each).await.unwrap();
    }
    fs::remove_file(rig.places.cni().join("00-collected.conflist")).unwrap();
    rig.leave_what_stays().await;
    rig.finish().await;
}
