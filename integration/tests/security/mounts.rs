//! What links in an image or in a shared volume do to mounts.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use podhold_integration::{
    configs::{self, security},
    images::hostile::VICTIM,
    rig,
    rig::Rig,
};
use podhold_proto::cri::Mount;
use tonic::Code;

use super::{attempt, busybox, hostile, mount_points, shell};

fn volume(rig: &Rig, name: &str) -> PathBuf {
    let directory = rig.machine.directory().join("volumes").join(name);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("file"), "payload\n").unwrap();
    directory
}

fn writable(host: &Path, container: &str) -> Mount {
    Mount { readonly: false, ..configs::mount(host, container) }
}

/// A mount whose target lies behind a link ends inside the container's root, and nothing is made or mounted
/// outside.
#[tokio::test]
async fn cve_2021_30465_a_mount_behind_a_link_stays_in_the_root() {
    let rig = rig!();
    let image = hostile("links");
    rig.cri().pull(&image).await.unwrap();
    let (shared, payload) = (volume(&rig, "shared"), volume(&rig, "payload"));
    let outside = rig.machine.directory().join("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, shared.join("absolute")).unwrap();
    symlink(format!("{}{}", "../".repeat(20), outside.display()), shared.join("relative")).unwrap();
    let before = rig.machine.run_well(["cat", "/proc/self/mountinfo"]).await.unwrap();
    let config = rig.pod("links");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    for (index, target) in
        ["/vol/absolute/deep", "/vol/relative/deep", "/vol/absolute", "/to-host/deep", "/to-host"]
            .into_iter()
            .enumerate()
    {
        let mut container = shell(&format!("link{index}"), &image);
        container.mounts = vec![writable(&shared, "/vol"), configs::mount(&payload, target)];
        if let Ok(id) = rig.cri().run(&pod, &config, &container).await {
            let inside = attempt(&rig, &id, &format!("cat {target}/file")).await;
            assert_eq!(inside, (true, "payload\n".to_owned()), "{target} is not where it was asked for");
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{target} made something on the host");
        assert!(!fs::exists(VICTIM).unwrap(), "{target} made {VICTIM} on the host");
    }
    let after = rig.machine.run_well(["cat", "/proc/self/mountinfo"]).await.unwrap();
    let of_host = |table: &str| table.lines().filter(|line| !line.contains("/run/")).count();
    assert_eq!(of_host(&after), of_host(&before), "something is mounted on the host: {after}");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

/// The same while another container of the pod exchanges the target and a link as fast as it can.
#[tokio::test]
async fn cve_2021_30465_a_mount_whose_target_is_swapped_for_a_link_stays_in_the_root() {
    let rig = rig!();
    let (shared, payload) = (volume(&rig, "shared"), volume(&rig, "payload"));
    let outside = rig.machine.directory().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::create_dir_all(shared.join("target/deep")).unwrap();
    symlink(&outside, shared.join("link")).unwrap();
    let config = rig.pod("race");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mut swapper =
        configs::container("swapper", podhold_integration::rig::PROBE, &["swap", "/vol/target", "/vol/link"]);
    swapper.mounts = vec![writable(&shared, "/vol")];
    let swapper = rig.run(&pod, &config, &swapper).await;
    let mut started = 0;
    for round in 0..20 {
        let mut container = busybox(&format!("round{round}"));
        container.mounts = vec![writable(&shared, "/vol"), configs::mount(&payload, "/vol/target/deep/here")];
        let Ok(id) = rig.cri().run(&pod, &config, &container).await else { continue };
        started += 1;
        // It ended behind the target or behind the link: both are in the root.
        let points = mount_points(&rig, &id).await;
        assert!(
            points.iter().any(|point| point.ends_with("/deep/here")),
            "the mount is not inside: {points:?}"
        );
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "round {round} made something on the host");
        rig.cri().stop(&id, 0).await.unwrap();
    }
    assert!(started > 0, "no container has started: nothing was tried");
    assert!(
        rig.cri().status(&swapper).await.unwrap().state()
            == podhold_proto::cri::ContainerState::ContainerRunning
    );
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

/// `/proc` is the kernel's: no mount lies over a part of it, not even behind a link of the image or of a
/// volume, so that writes meant for the kernel reach it.
#[tokio::test]
async fn cve_2025_52881_no_mount_lies_over_proc() {
    let rig = rig!();
    let image = hostile("links");
    rig.cri().pull(&image).await.unwrap();
    let (shared, payload) = (volume(&rig, "shared"), volume(&rig, "payload"));
    symlink("/proc/self", shared.join("self")).unwrap();
    symlink("/proc/sys/kernel", shared.join("kernel")).unwrap();
    let config = rig.pod("proc");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let fake = payload.join("file");
    for (index, (source, target)) in [
        (&fake, "/proc/sys/kernel/shmmax"),
        (&payload, "/proc"),
        (&payload, "/proc/self/attr"),
        (&fake, "/to-proc/shmmax"),
        (&payload, "/to-self/attr"),
        (&payload, "/vol/self/attr"),
        (&fake, "/vol/kernel/shmmax"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut container = shell(&format!("proc{index}"), &image);
        container.mounts = vec![writable(&shared, "/vol"), configs::mount(source, target)];
        let refusal = match rig.cri().create(&pod, &config, &container).await {
            Err(refusal) => refusal,
            Ok(id) => rig.cri().start(&id).await.expect_err(target),
        };
        assert_ne!(refusal.code(), Code::Internal, "{target}: {refusal}");
        assert!(refusal.message().contains("/proc"), "{target}: {refusal}");
    }
    // What the request itself masks and protects lies there, of course.
    let id = rig.run(&pod, &config, &busybox("usual")).await;
    let points = mount_points(&rig, &id).await;
    assert!(points.iter().any(|point| point == "/proc/sys"), "{points:?}");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

/// An image whose `/dev`, `/proc` or `/sys` is a link gets nothing made where it leads, which before the root
/// is changed is the host.
#[tokio::test]
async fn cve_2021_30465_a_system_directory_that_is_a_link_makes_nothing_on_the_host() {
    let rig = rig!();
    let config = rig.pod("system");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let _ = fs::remove_dir_all(VICTIM);
    fs::create_dir(VICTIM).unwrap();
    fs::write(Path::new(VICTIM).join("ptmx"), "kept").unwrap();
    let mut answers = Vec::new();
    for tag in ["dev-link", "proc-link", "sys-link"] {
        rig.cri().pull(&hostile(tag)).await.unwrap();
        let answer = rig.cri().run(&pod, &config, &shell(tag, &hostile(tag))).await;
        let names: Vec<_> = fs::read_dir(VICTIM).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        answers.push((tag, answer, names));
    }
    let kept = fs::read_to_string(Path::new(VICTIM).join("ptmx"));
    fs::remove_dir_all(VICTIM).unwrap();
    for (tag, answer, names) in answers {
        assert_eq!(names, ["ptmx"], "{tag} made something on the host");
        assert_eq!(answer.expect_err(tag).code(), Code::FailedPrecondition, "{tag}");
    }
    assert_eq!(kept.unwrap(), "kept", "a file of the host was replaced");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

/// A mask is the kernel's null device, and the console the container's own terminal, whatever links stand for
/// both in a volume at `/dev`.
#[tokio::test]
async fn cve_2025_31133_cve_2025_52565_mask_and_console_are_the_kernels_own() {
    let rig = rig!();
    let devices = volume(&rig, "dev");
    symlink("/proc/sys/kernel/core_pattern", devices.join("null")).unwrap();
    symlink("/vol/file", devices.join("console")).unwrap();
    let target = volume(&rig, "target");
    let config = rig.pod("mask");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    for (index, place) in ["/dev", "//dev/.", "/dev/"].into_iter().enumerate() {
        let mut container = busybox(&format!("forged{index}"));
        container.tty = true;
        container.mounts = vec![writable(&devices, place), writable(&target, "/vol")];
        security(&mut container).masked_paths = vec!["/etc/group".into()];
        // What is forged is in its place only once the kernel's own has been used.
        let id = rig.run(&pod, &config, &container).await;
        assert_eq!(attempt(&rig, &id, "cat /etc/group").await, (true, String::new()), "{place}: not masked");
        let points = mount_points(&rig, &id).await;
        let reached = points.iter().any(|point| point.starts_with("/vol/") || point.contains("core_pattern"));
        assert!(!reached, "{place}: something is mounted where a link led: {points:?}");
        rig.cri().remove(&id).await.unwrap();
        let made = fs::read_dir(&devices).unwrap().count();
        assert_eq!(made, 3, "{place}: something was made in the volume");
    }
    let mut container = busybox("plain");
    container.tty = true;
    container.mounts = vec![writable(&target, "/vol")];
    security(&mut container).masked_paths = vec!["/etc/group".into(), "/home".into(), "/vol/file".into()];
    let id = rig.run(&pod, &config, &container).await;
    let shown = attempt(&rig, &id, "cat /etc/group /vol/file; ls -A /home").await;
    assert_eq!(shown, (true, String::new()), "a masked path shows something");
    assert!(!attempt(&rig, &id, "touch /home/x").await.0, "a masked directory takes files");
    let points = mount_points(&rig, &id).await;
    assert!(points.iter().any(|point| point == "/dev/console"), "{points:?}");
    assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "payload\n");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}
