//! What an image says of itself is a claim, and its content is hostile.

use std::{fs, os::unix::fs::MetadataExt};

use podhold_integration::{
    configs::security,
    images::hostile::{ODD_USERS, USERS},
    rig,
};
use podhold_proto::cri::{Int64Value, ListPodSandboxRequest};
use tonic::Code;

use super::{attempt, busybox, hostile, shell, specification};

#[tokio::test]
async fn cve_2024_40635_a_user_that_overflows_is_refused_and_never_root() {
    let rig = rig!();
    let config = rig.pod("users");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    for (index, user) in USERS.iter().enumerate() {
        let image = hostile(&format!("user-{index}"));
        rig.cri().pull(&image).await.unwrap();
        let refusal = rig.cri().create(&pod, &config, &shell("user", &image)).await.expect_err(user);
        assert_eq!(refusal.code(), Code::InvalidArgument, "{user:?}: {refusal}");
    }
    for odd in [-1, i64::from(u32::MAX), 1 << 32, i64::MIN, i64::MAX] {
        for field in ["run_as_user", "run_as_group", "supplemental_groups"] {
            let mut container = busybox("id");
            let security = security(&mut container);
            security.run_as_user = Some(Int64Value { value: 1 });
            match field {
                "run_as_user" => security.run_as_user = Some(Int64Value { value: odd }),
                "run_as_group" => security.run_as_group = Some(Int64Value { value: odd }),
                _ => security.supplemental_groups = vec![odd],
            }
            let refusal = rig.cri().create(&pod, &config, &container).await.expect_err(field);
            assert_eq!(refusal.code(), Code::InvalidArgument, "{field} {odd}: {refusal}");
            assert!(refusal.message().contains(field), "{field} {odd}: {refusal}");
        }
    }
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn cve_2026_46680_a_user_with_odd_fields_is_refused_and_never_root() {
    let rig = rig!();
    let image = hostile("passwd");
    rig.cri().pull(&image).await.unwrap();
    let config = rig.pod("passwd");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    for user in ODD_USERS {
        let mut container = shell(user, &image);
        security(&mut container).run_as_username = user.into();
        let refusal = rig.cri().create(&pod, &config, &container).await.expect_err(user);
        assert_eq!(refusal.code(), Code::InvalidArgument, "{user}: {refusal}");
        assert!(refusal.message().contains(user), "{user}: {refusal}");
    }
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

/// Volumes an image declares are never taken from the host and never lead there.
#[tokio::test]
async fn cve_2022_23648_volumes_of_an_image_show_nothing_of_the_host() {
    let rig = rig!();
    let image = hostile("volume");
    rig.cri().pull(&image).await.unwrap();
    let config = rig.pod("volume");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let id = rig.run(&pod, &config, &shell("volume", &image)).await;
    let (_, shown) = attempt(&rig, &id, "cat /leak/shadow /etc/shadow /data/shadow 2>/dev/null").await;
    assert_eq!(shown, "", "a file of the host is shown");
    let mounts = specification(&rig, &id).await["mounts"].clone();
    let odd = mounts.as_array().unwrap().iter().filter(|mount| {
        let target = mount["destination"].as_str().unwrap();
        ["/leak", "/data"].iter().any(|volume| target.starts_with(volume)) || target.contains("..")
    });
    assert_eq!(odd.count(), 0, "{mounts}");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

/// A layer is unpacked beneath its own root, whatever links it brings.
#[tokio::test]
async fn cve_2021_32760_2025_47290_unpacking_follows_no_link() {
    let rig = rig!();
    let look = || {
        let found = fs::metadata("/etc/passwd").unwrap();
        (found.mode(), found.uid(), found.nlink())
    };
    let before = look();
    for tag in ["through-link", "hard-link"] {
        match rig.cri().pull(&hostile(tag)).await {
            Err(refusal) => assert_eq!(refusal.code(), Code::DataLoss, "{tag}: {refusal}"),
            Ok(_) => assert_eq!(tag, "hard-link", "a file beneath a link was taken"),
        }
        assert!(!fs::exists("/etc/podhold-hostile").unwrap(), "{tag} wrote to the host");
        assert_eq!(look(), before, "{tag} changed the host");
    }
    rig.finish().await;
}

/// An image's labels are the image's: none of them becomes the container's, or a word to the runtime.
#[tokio::test]
async fn cve_2026_53488_labels_of_an_image_reach_no_reserved_key() {
    let rig = rig!();
    let image = hostile("labels");
    rig.cri().pull(&image).await.unwrap();
    let config = rig.pod("labels");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let container = shell("labels", &image);
    let id = rig.run(&pod, &config, &container).await;
    let status = rig.cri().status(&id).await.unwrap();
    assert_eq!((&status.labels, &status.annotations), (&container.labels, &container.annotations));
    let spec = specification(&rig, &id).await;
    assert!(!spec.to_string().contains("forged") && !spec.to_string().contains("io.podhold"), "{spec}");
    let pods = rig
        .cri()
        .runtime
        .clone()
        .list_pod_sandbox(ListPodSandboxRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(pods.items.len(), 1);
    assert_eq!(pods.items[0].labels, config.labels);
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}
