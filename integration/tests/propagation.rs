//! What is mounted later, on either side of a volume, and what is mounted beneath it already.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{fs, path::PathBuf};

use podhold_integration::{
    configs::{self, security},
    rig,
    rig::{BUSYBOX, Rig},
};
use podhold_proto::cri::{ContainerConfig, Mount, MountPropagation, PodSandboxConfig};
use tonic::Code;

const KINDS: [(&str, MountPropagation); 3] = [
    ("private", MountPropagation::PropagationPrivate),
    ("slave", MountPropagation::PropagationHostToContainer),
    ("shared", MountPropagation::PropagationBidirectional),
];

/// A directory that is a mount of its own in the machine, with this propagation.
async fn mounted(rig: &Rig, name: &str, propagation: &str) -> PathBuf {
    let directory = rig.machine.directory().join("volumes").join(name);
    fs::create_dir_all(directory.join("from-host")).unwrap();
    fs::create_dir_all(directory.join("from-container")).unwrap();
    fs::write(directory.join("file"), "below\n").unwrap();
    let path = directory.display().to_string();
    rig.machine.run_well(["mount", "--bind", &path, &path]).await.unwrap();
    rig.machine.run_well(["mount", propagation, &path]).await.unwrap();
    directory
}

async fn unmount(rig: &Rig, directory: &std::path::Path) {
    let path = directory.display().to_string();
    // Twice where something is mounted beneath: the first is lazy.
    rig.machine.run_well(["umount", "-l", &path]).await.unwrap();
}

fn with(source: &std::path::Path, target: &str, propagation: MountPropagation) -> Mount {
    Mount {
        host_path: source.display().to_string(),
        container_path: target.to_owned(),
        propagation: propagation.into(),
        ..Default::default()
    }
}

fn shell(name: &str, mounts: Vec<Mount>) -> ContainerConfig {
    let mut config = configs::container(name, BUSYBOX, &["1000"]);
    config.command = vec!["/bin/sleep".into()];
    config.mounts = mounts;
    security(&mut config).privileged = true;
    config
}

async fn privileged_pod(rig: &Rig) -> (String, PodSandboxConfig) {
    let mut config = rig.pod("propagation");
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
    (rig.cri().run_pod(&config).await.unwrap(), config)
}

/// Whether the container sees a file that the host mounts, and the host one that the container mounts.
async fn seen(rig: &Rig, container: &str, source: &std::path::Path, target: &str) -> (bool, bool) {
    let at = source.join("from-host").display().to_string();
    rig.machine.run_well(["mount", "-t", "tmpfs", "none", &at]).await.unwrap();
    rig.machine.run_well(["touch", &format!("{at}/here")]).await.unwrap();
    let look = format!("test -e {target}/from-host/here");
    let by_container = rig.cri().exec(container, &["/bin/sh", "-c", &look]).await.unwrap().exit_code == 0;
    let inside = format!("{target}/from-container");
    let make = format!("mount -t tmpfs none {inside} && touch {inside}/here");
    rig.cri().exec_well(container, &["/bin/sh", "-c", &make]).await.unwrap();
    let listed = source.join("from-container").display().to_string();
    let listed = rig.machine.run_well(["ls", &listed]).await.unwrap();
    rig.cri().exec_well(container, &["umount", &inside]).await.unwrap();
    rig.machine.run_well(["umount", &at]).await.unwrap();
    (by_container, listed.contains("here"))
}

#[tokio::test]
async fn mounts_are_propagated_as_asked_also_in_one_container() {
    let rig = rig!();
    let source = mounted(&rig, "single", "--make-rshared").await;
    let (pod, config) = privileged_pod(&rig).await;
    let expected = |kind: &str| match kind {
        "private" => (false, false),
        "slave" => (true, false),
        _ => (true, true),
    };
    // The first container of a pod among them.
    for (kind, propagation) in KINDS.into_iter().rev() {
        let id = rig.run(&pod, &config, &shell(kind, vec![with(&source, "/volume", propagation)])).await;
        assert_eq!(seen(&rig, &id, &source, "/volume").await, expected(kind), "{kind}");
        assert_eq!(rig.cri().status(&id).await.unwrap().mounts[0].propagation(), propagation);
    }
    let mut sources = Vec::new();
    for (kind, _) in KINDS {
        sources.push(mounted(&rig, kind, "--make-rshared").await);
    }
    let mounts =
        KINDS.iter().zip(&sources).map(|((kind, how), source)| with(source, &format!("/{kind}"), *how));
    let id = rig.run(&pod, &config, &shell("mixed", mounts.collect())).await;
    for ((kind, _), source) in KINDS.iter().zip(&sources) {
        assert_eq!(seen(&rig, &id, source, &format!("/{kind}")).await, expected(kind), "{kind} among others");
    }
    // The pod's own files are there as ever, and nothing of ours is mounted on the host.
    rig.cri().exec_well(&id, &["sh", "-c", "test -s /etc/hosts && touch /dev/shm/x"]).await.unwrap();
    let table = rig.machine.run_well(["cat", "/proc/self/mountinfo"]).await.unwrap();
    assert!(!table.contains(".mounts"), "{table}");
    rig.cri().end_pod(&pod).await.unwrap();
    for source in sources.iter().chain([&source]) {
        assert_eq!(fs::read_to_string(source.join("file")).unwrap(), "below\n", "volumes are never removed");
        unmount(&rig, source).await;
    }
    rig.finish().await;
}

#[tokio::test]
async fn propagation_from_a_mount_that_has_none_is_refused() {
    let rig = rig!();
    let private = mounted(&rig, "private", "--make-rprivate").await;
    let shared = mounted(&rig, "shared", "--make-rshared").await;
    let slave = mounted(&rig, "slave", "--make-rshared").await;
    // A second place of a shared mount, made a slave of the first.
    let receiver = rig.machine.directory().join("volumes/receiver");
    fs::create_dir_all(&receiver).unwrap();
    let path = receiver.display().to_string();
    rig.machine.run_well(["mount", "--bind", &slave.display().to_string(), &path]).await.unwrap();
    rig.machine.run_well(["mount", "--make-rslave", &path]).await.unwrap();
    let (pod, config) = privileged_pod(&rig).await;
    let [_, (_, to_container), (_, both)] = KINDS;
    for (source, propagation, works) in [
        (&private, to_container, false),
        (&private, both, false),
        (&receiver, to_container, true),
        (&receiver, both, false),
        (&shared, both, true),
    ] {
        let container = shell("one", vec![with(source, "/volume", propagation)]);
        match rig.cri().create(&pod, &config, &container).await {
            Ok(id) => {
                assert!(works, "{} {propagation:?}", source.display());
                rig.cri().remove(&id).await.unwrap();
            }
            Err(refusal) => {
                assert!(!works && refusal.code() == Code::FailedPrecondition, "{refusal}");
                let words = refusal.message();
                assert!(words.contains("mounts[0].propagation") && words.contains("make-rshared"), "{words}");
            }
        }
    }
    rig.cri().end_pod(&pod).await.unwrap();
    for source in [&receiver, &slave, &shared, &private] {
        unmount(&rig, source).await;
    }
    rig.finish().await;
}

#[tokio::test]
async fn read_only_reaches_what_is_mounted_beneath_only_when_recursive() {
    let rig = rig!();
    let source = mounted(&rig, "deep", "--make-rprivate").await;
    let beneath = source.join("from-host").display().to_string();
    rig.machine.run_well(["mount", "-t", "tmpfs", "none", &beneath]).await.unwrap();
    let (pod, config) = privileged_pod(&rig).await;
    let plain = Mount { readonly: true, ..with(&source, "/volume", MountPropagation::PropagationPrivate) };
    let recursive = Mount { recursive_read_only: true, ..plain.clone() };
    for (name, mount, refused) in [("plain", &plain, false), ("recursive", &recursive, true)] {
        let mut container = shell(name, vec![mount.clone()]);
        security(&mut container).privileged = false;
        let id = rig.run(&pod, &config, &container).await;
        for (path, refused) in [("/volume/new", true), ("/volume/from-host/new", refused)] {
            let done = rig.cri().exec(&id, &["touch", path]).await.unwrap();
            let said = String::from_utf8_lossy(&done.stderr).into_owned();
            assert_eq!(done.exit_code != 0, refused, "{name} {path}: {said}");
            assert!(!refused || said.contains("Read-only"), "{name} {path}: {said}");
        }
    }
    for (what, mount) in [
        ("writable", Mount { readonly: false, ..recursive.clone() }),
        ("slave", Mount { propagation: 1, ..recursive.clone() }),
        ("shared", Mount { propagation: 2, ..recursive.clone() }),
    ] {
        let refusal = rig.cri().create(&pod, &config, &shell("odd", vec![mount])).await.expect_err(what);
        assert_eq!(refusal.code(), Code::InvalidArgument, "{what}: {refusal}");
        assert!(refusal.message().contains("mounts[0].recursive_read_only"), "{what}: {refusal}");
    }
    rig.cri().end_pod(&pod).await.unwrap();
    rig.machine.run_well(["umount", &beneath]).await.unwrap();
    unmount(&rig, &source).await;
    rig.finish().await;
}
