//! Images: what a pull makes of them, and by which names they are found.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::time::Duration;

use podhold_integration::{
    configs::{self, log_file, security},
    images::Catalogue,
    log, programs, rig,
    rig::{BUSYBOX, REGISTRY, Rig},
};
use podhold_proto::cri::{Image, ImageSpec, ImageStatusRequest, Int64Value};

async fn find(rig: &Rig, image: &str) -> Option<Image> {
    let spec = ImageSpec { image: image.to_owned(), ..Default::default() };
    let request = ImageStatusRequest { image: Some(spec), verbose: false };
    rig.cri().images.clone().image_status(request).await.unwrap().into_inner().image
}

#[tokio::test]
async fn an_image_is_found_by_tag_digest_and_id_until_it_is_removed() {
    let rig = rig!();
    let tag = format!("{REGISTRY}/layers:1");
    rig.cri().pull(&tag).await.unwrap();
    let catalogue = Catalogue::build(&programs::built("podhold-probe")).unwrap();
    let built = catalogue.get("layers", "1").unwrap();
    let image = find(&rig, &tag).await.unwrap();
    assert_eq!(Some(&image.id), built.id().as_ref());
    assert_eq!(image.repo_tags, std::slice::from_ref(&tag));
    let digest = format!("{REGISTRY}/layers@{}", built.top.digest());
    assert_eq!(image.repo_digests, std::slice::from_ref(&digest));
    assert!(image.size > 0);
    for name in [&image.id, &digest] {
        assert_eq!(find(&rig, name).await.map(|found| found.id), Some(image.id.clone()), "{name}");
    }
    rig.cri().remove_image(&digest).await.unwrap();
    rig.cri().remove_image(&digest).await.unwrap();
    assert!(find(&rig, &tag).await.is_none());
    // Layers it shared with another image are still there.
    assert!(find(&rig, BUSYBOX).await.is_some());
    rig.finish().await;
}

#[tokio::test]
async fn layers_of_every_compression_lie_on_each_other_as_the_specification_says() {
    let rig = rig!();
    let image = format!("{REGISTRY}/layers:1");
    rig.cri().pull(&image).await.unwrap();
    let config = rig.pod("layers");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mut container = configs::container("shell", &image, &["1000"]);
    container.command = vec!["/bin/sleep".into()];
    let id = rig.run(&pod, &config, &container).await;
    let run = async |script: &str| rig.cri().exec_well(&id, &["/bin/sh", "-c", script]).await.unwrap();
    assert_eq!(
        run("ls -A /data /data/emptied").await,
        "/data:\nchanged\nchanged-too\nemptied\nlink\none\nowned\ntwo\n\n/data/emptied:\nleft\n"
    );
    assert_eq!(run("cat /data/changed /data/changed-too").await, "new\nold\n");
    assert_eq!(run("stat -c '%a %u %g' /data/changed /data/owned").await, "600 0 0\n640 1000 2000\n");
    assert_eq!(run("stat -c %h /data/one /data/two").await, "2\n2\n");
    assert_eq!(run("test /data/one -ef /data/two && cat /data/link").await, "same file\n");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn what_one_container_writes_is_not_seen_by_the_next() {
    let rig = rig!();
    let config = rig.pod("writers");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mut container = configs::container("one", BUSYBOX, &["-c", "touch /left; rm /etc/group; ls /left"]);
    container.command = vec!["/bin/sh".into()];
    let one = rig.run(&pod, &config, &container).await;
    assert_eq!(rig.cri().ended(&one, Duration::from_secs(10)).await.unwrap().exit_code, 0);
    let mut container = configs::container("two", BUSYBOX, &["-c", "ls /left; ls /etc/group"]);
    container.command = vec!["/bin/sh".into()];
    let two = rig.run(&pod, &config, &container).await;
    rig.cri().ended(&two, Duration::from_secs(10)).await.unwrap();
    assert_eq!(log::lines(&log_file(&config, "two"), "stdout").unwrap(), ["/etc/group"]);
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn the_manifest_for_this_machine_is_taken_from_an_index() {
    let rig = rig!();
    let image = format!("{REGISTRY}/multi:1");
    rig.cri().pull(&image).await.unwrap();
    let config = rig.pod("multi");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let id = rig.run(&pod, &config, &configs::container("one", &image, &["print", "here"])).await;
    assert_eq!(rig.cri().ended(&id, Duration::from_secs(10)).await.unwrap().exit_code, 0);
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn the_images_user_directory_and_environment_are_used_unless_asked_otherwise() {
    let rig = rig!();
    let image = format!("{REGISTRY}/probe:user");
    rig.cri().pull(&image).await.unwrap();
    assert_eq!(find(&rig, &image).await.unwrap().username, "guest");
    let config = rig.pod("user");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let show = ["show", "user", "directory", "environment"];
    let id = rig.run(&pod, &config, &configs::container("image", &image, &show)).await;
    rig.cri().ended(&id, Duration::from_secs(10)).await.unwrap();
    let lines = log::lines(&log_file(&config, "image"), "stdout").unwrap();
    for line in ["uid=1000\t1000\t1000\t1000", "groups=1000 2000", "directory=/tmp", "FROM_IMAGE=yes"] {
        assert!(lines.iter().any(|each| each == line), "{line:?} is not in {lines:?}");
    }
    let mut other = configs::container("asked", &image, &show);
    security(&mut other).run_as_user = Some(Int64Value { value: 4242 });
    security(&mut other).supplemental_groups = vec![77];
    other.working_dir = "/".into();
    let id = rig.run(&pod, &config, &other).await;
    rig.cri().ended(&id, Duration::from_secs(10)).await.unwrap();
    let lines = log::lines(&log_file(&config, "asked"), "stdout").unwrap();
    for line in ["uid=4242\t4242\t4242\t4242", "directory=/"] {
        assert!(lines.iter().any(|each| each == line), "{line:?} is not in {lines:?}");
    }
    assert!(lines.iter().any(|each| each.starts_with("groups=") && each.contains("77")), "{lines:?}");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}
