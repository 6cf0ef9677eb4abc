//! Images as volumes: read-only, complete, kept while they are used, gone afterwards.

#![allow(clippy::unwrap_used, reason = "a test")]

use podhold_integration::{
    configs, rig,
    rig::{BUSYBOX, PROBE, REGISTRY, Rig},
};
use podhold_proto::cri::{ContainerConfig, ImageSpec, Mount, StatusRequest};
use tonic::Code;

fn volume(image: &str, target: &str) -> Mount {
    Mount {
        container_path: target.to_owned(),
        readonly: true,
        image: Some(ImageSpec {
            image: image.to_owned(),
            user_specified_image: "as the pod says".into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn sub(image: &str, target: &str, path: &str) -> Mount {
    Mount { image_sub_path: path.to_owned(), ..volume(image, target) }
}

fn shell(mounts: Vec<Mount>) -> ContainerConfig {
    let mut config = configs::container("shell", BUSYBOX, &["1000"]);
    config.command = vec!["/bin/sleep".into()];
    config.mounts = mounts;
    config
}

async fn fails(rig: &Rig, container: &str, script: &str, words: &str) {
    let done = rig.cri().exec(container, &["/bin/sh", "-c", script]).await.unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.exit_code != 0 && said.contains(words), "{script}: {} {said:?}", done.exit_code);
}

#[tokio::test]
async fn an_image_is_mounted_whole_or_in_part_and_named_in_the_status() {
    let rig = rig!();
    let layers = rig.cri().pull(&format!("{REGISTRY}/layers:1")).await.unwrap();
    let probe = rig.cri().pull(PROBE).await.unwrap();
    let config = rig.pod("volumes");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let bound = Mount { mount_options: vec!["noexec".into(), "nosuid".into()], ..volume(&layers, "/bound") };
    let mounts = vec![
        volume(&layers, "/mnt/layers"),
        volume(PROBE, "/mnt/probe"),
        sub(&layers, "/mnt/data", "data"),
        sub(&layers, "/mnt/emptied", "./data/emptied/"),
        bound,
    ];
    let id = rig.run(&pod, &config, &shell(mounts)).await;
    for (path, text) in [
        ("/mnt/layers/data/changed", "new\n"),
        ("/mnt/layers/data/one", "same file\n"),
        ("/mnt/data/link", "same file\n"),
        ("/mnt/emptied/left", "seen\n"),
    ] {
        // The link is absolute: it leads to the container's own /data, where there is nothing.
        let done = rig.cri().exec(&id, &["cat", path]).await.unwrap();
        match path.ends_with("link") {
            true => assert_ne!(done.exit_code, 0),
            false => assert_eq!(String::from_utf8_lossy(&done.stdout), text, "{path}"),
        }
    }
    fails(&rig, &id, "cat /mnt/layers/data/hidden", "No such file").await;
    fails(&rig, &id, "touch /mnt/layers/new", "Read-only").await;
    fails(&rig, &id, "echo x > /mnt/data/changed", "Read-only").await;
    fails(&rig, &id, "mount -o remount,rw /mnt/layers", "").await;
    rig.cri().exec_well(&id, &["/mnt/probe/probe", "exit", "0"]).await.unwrap();
    rig.cri().exec_well(&id, &["/mnt/layers/bin/true"]).await.unwrap();
    fails(&rig, &id, "/bound/bin/true", "Permission denied").await;
    let mounts = rig.cri().status(&id).await.unwrap().mounts;
    let told: Vec<_> = mounts.iter().map(|mount| mount.image.clone().unwrap()).collect();
    assert_eq!(told[0].image_ref, layers, "what the pull has answered");
    assert_eq!((told[1].image.as_str(), told[1].image_ref.as_str()), (PROBE, probe.as_str()));
    assert_eq!(told[2].user_specified_image, "as the pod says");
    assert_eq!(mounts[2].image_sub_path, "data");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_mounted_image_outlives_its_removal_and_the_daemon() {
    let mut rig = rig!();
    let layers = rig.cri().pull(&format!("{REGISTRY}/layers:1")).await.unwrap();
    let config = rig.pod("kept");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let id = rig.run(&pod, &config, &shell(vec![volume(&layers, "/image")])).await;
    rig.cri().remove_image(&layers).await.unwrap();
    for _ in 0..2 {
        assert_eq!(rig.cri().exec_well(&id, &["cat", "/image/data/changed"]).await.unwrap(), "new\n");
        let mounts = rig.cri().status(&id).await.unwrap().mounts;
        assert_eq!(mounts[0].image.as_ref().unwrap().image_ref, layers);
        rig.crash_and_restart().await;
    }
    rig.cri().stop(&id, 0).await.unwrap();
    rig.cri().remove(&id).await.unwrap();
    let refusal = rig.cri().create(&pod, &config, &shell(vec![volume(&layers, "/image")])).await.unwrap_err();
    assert_eq!(refusal.code(), Code::NotFound, "{refusal}");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn an_image_volume_that_cannot_be_is_refused_and_leaves_nothing() {
    let rig = rig!();
    let layers = format!("{REGISTRY}/layers:1");
    rig.cri().pull(&layers).await.unwrap();
    let config = rig.pod("refused");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let of = |change: fn(&mut Mount)| {
        let mut mount = volume(&layers, "/image");
        change(&mut mount);
        mount
    };
    let cases = [
        (of(|m| m.image.as_mut().unwrap().image = "nosuch:1".into()), Code::NotFound, "nosuch:1"),
        (of(|m| m.readonly = false), Code::InvalidArgument, "mounts[1].readonly"),
        (of(|m| m.host_path = "/tmp".into()), Code::InvalidArgument, "mounts[1].host_path"),
        (of(|m| m.propagation = 2), Code::InvalidArgument, "mounts[1].propagation"),
        (of(|m| m.image_sub_path = "nosuch".into()), Code::InvalidArgument, "does not exist"),
        (of(|m| m.image_sub_path = "data/one".into()), Code::InvalidArgument, "not a directory"),
        (of(|m| m.image_sub_path = "data/link".into()), Code::InvalidArgument, "not a directory"),
        (of(|m| m.image_sub_path = "../..".into()), Code::InvalidArgument, "image_sub_path"),
        (of(|m| m.image_sub_path = "/data".into()), Code::InvalidArgument, "image_sub_path"),
        (of(|m| m.image_sub_path = "a".repeat(5000)), Code::InvalidArgument, "image_sub_path"),
        (of(|m| m.image = None), Code::InvalidArgument, "host_path"),
    ];
    for (mount, code, words) in cases {
        let refusal = rig.cri().create(&pod, &config, &shell(vec![volume(BUSYBOX, "/good"), mount])).await;
        let refusal = refusal.expect_err(words);
        assert_eq!(refusal.code(), code, "{refusal}");
        assert!(refusal.message().contains(words), "no {words} in {refusal}");
        let message = refusal.message();
        assert!(message.len() < 6000, "{} bytes", message.len());
    }
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn the_status_says_what_mounts_can_do() {
    let rig = rig!();
    let status = rig.cri().runtime.clone().status(StatusRequest::default()).await.unwrap().into_inner();
    assert!(status.features.unwrap().mount_options);
    for handler in status.runtime_handlers {
        assert!(handler.features.unwrap().recursive_read_only_mounts, "handler {:?}", handler.name);
    }
    rig.finish().await;
}
