//! Devices: a container has those it was given, as it was given them, and no other, though it may make nodes.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{fs, os::unix::fs::MetadataExt};

use podhold_integration::{
    configs::{self, security},
    needs::skipped,
    rig,
    rig::BUSYBOX,
};
use podhold_proto::cri::{Capability, Device};

/// A disk of the host that can be opened.
fn disk() -> Option<String> {
    let table = fs::read_to_string("/proc/partitions").unwrap_or_default();
    let names = table.lines().skip(2).filter_map(|line| line.split_whitespace().nth(3)).chain(["loop0"]);
    names.map(|name| format!("/dev/{name}")).find(|node| fs::File::open(node).is_ok())
}

#[tokio::test]
async fn a_container_cannot_read_a_disk_it_was_not_given() {
    let Some(node) = disk() else { return skipped("needs a disk, or /dev/loop0") };
    let rig = rig!();
    let config = rig.pod("disks");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let number = fs::metadata(&node).unwrap().rdev();
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let make = format!("mknod /made b {major} {minor} && : < /made && echo open");
    for (name, given) in [("without", None), ("with", Some("r"))] {
        let mut container = configs::container(name, BUSYBOX, &["100000"]);
        container.command = vec!["/bin/sleep".into()];
        security(&mut container).capabilities =
            Some(Capability { add_capabilities: vec!["MKNOD".into()], ..Default::default() });
        container.devices.extend(given.map(|permissions| Device {
            host_path: node.clone(),
            container_path: "/dev/given".into(),
            permissions: permissions.into(),
        }));
        let id = rig.run(&pod, &config, &container).await;
        let made = rig.cri().exec(&id, &["sh", "-c", &make]).await.unwrap();
        let told = String::from_utf8_lossy(&made.stderr).into_owned();
        match given {
            None => {
                assert!(made.exit_code != 0 && made.stdout.is_empty(), "it can read {node}");
                assert!(told.contains("/made") && told.contains("not permitted"), "{told}");
            }
            Some(_) => {
                assert_eq!((made.exit_code, made.stdout.as_slice()), (0, &b"open\n"[..]), "{told}");
                let written = rig.cri().exec(&id, &["sh", "-c", ": >> /dev/given"]).await.unwrap();
                let told = String::from_utf8_lossy(&written.stderr).into_owned();
                assert!(written.exit_code != 0 && told.contains("not permitted"), "{told}");
            }
        }
    }
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}
