//! Who owns what, inside and outside.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    time::Duration,
};

use podhold_integration::{
    configs::{self, security},
    rig,
    rig::{BUSYBOX, REGISTRY},
};
use podhold_proto::cri::{ImageSpec, Int64Value, Mount, MountPropagation};
use tonic::Code;

use super::{GIDS, LENGTH, UIDS, container, ids, ids_outside, mapped, pid, pod, sh, shell, volume};

#[tokio::test]
async fn root_in_the_pod_is_nobody_on_the_host() {
    let mut rig = rig!();
    let config = pod(&rig, "users");
    let id = rig.cri().run_pod(&config).await.unwrap();
    let one = rig.run(&id, &config, &shell("one")).await;
    let two = rig.run(&id, &config, &shell("two")).await;
    for container in [&one, &two] {
        let outside = ids_outside(&rig, pid(&rig, container).await).await;
        assert_eq!(outside, (UIDS.to_string(), GIDS.to_string()));
    }
    let map = sh(&rig, &one, "cat /proc/self/uid_map /proc/self/gid_map").await;
    let words: Vec<&str> = map.split_whitespace().collect();
    assert_eq!(words, ["0", "200000", "65536", "0", "400000", "65536"]);
    assert_eq!(sh(&rig, &one, "id -u; id -g; cat /proc/self/setgroups").await, "0\n0\nallow");
    // None of the host's groups came along: those would be 65534.
    assert_eq!(sh(&rig, &one, "id -G").await, "0");
    // One namespace for both, and not the host's.
    let of = "stat -Lc %i /proc/self/ns/user";
    assert_eq!(sh(&rig, &one, of).await, sh(&rig, &two, of).await);
    let host = rig.machine.run_well(["stat", "-Lc", "%i", "/proc/self/ns/user"]).await.unwrap();
    assert_ne!(sh(&rig, &one, of).await, host.trim());

    // The image looks as it should, and is the container's to change.
    assert_eq!(sh(&rig, &one, "stat -c %u:%g / /bin/busybox /etc/passwd /root").await, "0:0\n0:0\n0:0\n0:0");
    assert_eq!(
        sh(&rig, &one, "echo new >/etc/passwd && touch /root/mine && stat -c %u:%g /root/mine").await,
        "0:0"
    );
    assert_eq!(sh(&rig, &one, "chown 1000:2000 /root/mine && stat -c %u:%g /root/mine").await, "1000:2000");
    // So is what the pod provides.
    let files = "stat -c %u:%g /etc/hosts /etc/hostname /etc/resolv.conf /dev/shm /dev/pts/ptmx";
    assert_eq!(sh(&rig, &one, files).await, ["0:0"; 5].join("\n"));
    assert_eq!(
        sh(&rig, &one, "echo x >/dev/null && echo y >/dev/shm/y && echo z >>/etc/hosts; echo $?").await,
        "0"
    );
    assert_eq!(sh(&rig, &two, "cat /dev/shm/y").await, "y");
    assert_eq!(sh(&rig, &one, "cat /proc/sys/kernel/hostname").await, "users");
    // Nothing of the host's: not its files by way of proc, not its devices, not its settings.
    for forbidden in ["cat /proc/kcore", "echo 1 >/proc/sys/vm/swappiness", "mount -t tmpfs x /mnt"] {
        let done = rig.cri().exec(&one, &["/bin/sh", "-c", forbidden]).await.unwrap();
        assert_ne!(done.exit_code, 0, "{forbidden}");
    }

    rig.crash_and_restart().await;
    assert_eq!(sh(&rig, &one, "id -u; cat /root/mine; stat -c %u /root/mine").await, "0\n1000");
    let three = rig.run(&id, &config, &shell("three")).await;
    assert_eq!(sh(&rig, &three, of).await, sh(&rig, &one, of).await);
    assert_eq!(sh(&rig, &three, "stat -c %u:%g /").await, "0:0");
    rig.cri().end_pod(&id).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_user_of_the_image_is_shifted_too() {
    let rig = rig!();
    let config = pod(&rig, "guest");
    let id = rig.cri().run_pod(&config).await.unwrap();
    let mut guest = shell("guest");
    security(&mut guest).run_as_username = "guest".into();
    let guest = rig.run(&id, &config, &guest).await;
    assert_eq!(ids_outside(&rig, pid(&rig, &guest).await).await, ("201000".to_owned(), "401000".to_owned()));
    assert_eq!(sh(&rig, &guest, "id -u; id -g; id -G").await, "1000\n1000\n1000 2000");
    // Its standard streams are its own to open.
    let mut speaker = container("speaker", BUSYBOX, &["-c", "echo heard >/dev/stdout"]);
    speaker.command = vec!["/bin/sh".into()];
    security(&mut speaker).run_as_username = "guest".into();
    let speaker = rig.run(&id, &config, &speaker).await;
    let ended = rig.cri().ended(&speaker, Duration::from_secs(20)).await.unwrap();
    let log = fs::read_to_string(configs::log_file(&config, "speaker")).unwrap();
    assert!(ended.exit_code == 0 && log.contains("heard"), "{} {log}", ended.exit_code);
    // Who is not mapped cannot run.
    let mut stranger = shell("stranger");
    security(&mut stranger).run_as_user = Some(Int64Value { value: i64::from(LENGTH) });
    let refused = rig.cri().run(&id, &config, &stranger).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(
        refused.message().contains("linux.security_context.run_as_user: 65536 is not mapped"),
        "{refused}"
    );
    rig.cri().end_pod(&id).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn volumes_with_mappings_show_the_pods_owners_and_plain_ones_the_hosts() {
    let rig = rig!();
    let config = pod(&rig, "volumes");
    let id = rig.cri().run_pod(&config).await.unwrap();
    let (own, plain) = (volume(&rig, "own"), volume(&rig, "plain"));
    // The host keeps others out of the way to it.
    fs::set_permissions(rig.machine.directory().join("volumes"), fs::Permissions::from_mode(0o700)).unwrap();
    let mut config_of = shell("one");
    config_of.mounts = vec![
        mapped(&own, "/own"),
        Mount { readonly: false, ..configs::mount(&plain, "/plain") },
        mapped(&own.join("guests"), "/new/file"),
        Mount { readonly: true, ..mapped(&own, "/own-ro") },
        Mount { propagation: MountPropagation::PropagationHostToContainer.into(), ..mapped(&own, "/slave") },
    ];
    let one = rig.run(&id, &config, &config_of).await;
    assert_eq!(
        sh(&rig, &one, "stat -c %u:%g /own /own/roots /own/guests /new/file").await,
        "0:0\n0:0\n1000:2000\n1000:2000"
    );
    assert_eq!(sh(&rig, &one, "stat -c %u:%g /plain /plain/guests").await, "65534:65534\n65534:65534");
    assert_eq!(
        sh(&rig, &one, "touch /own/made && chown 7:8 /own/made && stat -c %u:%g /own-ro/made").await,
        "7:8"
    );
    assert_eq!(sh(&rig, &one, "touch /plain/made 2>/dev/null || echo no").await, "no");
    assert_eq!(sh(&rig, &one, "touch /own-ro/x 2>/dev/null || echo no").await, "no");
    let made = fs::metadata(own.join("made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (7, 8), "on disk an owner is what the container says");
    // What the host mounts later comes into the container that asked for it.
    let below = own.join("below");
    fs::create_dir(&below).unwrap();
    rig.machine.run_well(["mount", "-t", "tmpfs", "x", &below.display().to_string()]).await.unwrap();
    let seen = sh(&rig, &one, "grep -c below /proc/self/mountinfo").await;
    rig.machine.run_well(["umount", &below.display().to_string()]).await.unwrap();
    assert_eq!(seen, "1", "the mount is seen in the slave, and nowhere else");
    rig.cri().end_pod(&id).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn an_image_volume_shows_the_pods_owners() {
    let rig = rig!();
    let layers = rig.cri().pull(&format!("{REGISTRY}/layers:1")).await.unwrap();
    let config = pod(&rig, "images");
    let id = rig.cri().run_pod(&config).await.unwrap();
    let mut config_of = shell("one");
    // The kubelet sends the mappings with every mount.
    config_of.mounts = vec![Mount {
        container_path: "/layers".into(),
        readonly: true,
        image: Some(ImageSpec { image: layers, ..Default::default() }),
        uid_mappings: ids(UIDS),
        gid_mappings: ids(GIDS),
        ..Default::default()
    }];
    let one = rig.run(&id, &config, &config_of).await;
    let seen = sh(&rig, &one, "stat -c %u:%g /layers /layers/data /layers/data/owned").await;
    assert_eq!(seen, "0:0\n0:0\n1000:2000");
    assert_eq!(sh(&rig, &one, "cat /layers/data/changed").await, "new");
    assert_eq!(sh(&rig, &one, "touch /layers/x 2>/dev/null || echo no").await, "no");
    rig.cri().end_pod(&id).await.unwrap();
    rig.finish().await;
}
