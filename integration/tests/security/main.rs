//! One test for each class of hole that container runtimes have had and that these parts could have. A
//! name that begins with `cve` is the class's best-known case, whichever runtime had it.

#![allow(clippy::unwrap_used, reason = "a test")]

mod host;
mod images;
mod mounts;
mod processes;
mod streams;

use podhold_integration::{
    configs,
    rig::{BUSYBOX, REGISTRY, Rig},
};
use podhold_proto::cri::{ContainerConfig, ContainerStatusRequest};

/// A container of `image` that waits.
fn shell(name: &str, image: &str) -> ContainerConfig {
    let mut config = configs::container(name, image, &["1000"]);
    config.command = vec!["/bin/sleep".into()];
    config
}

/// A container of busybox that waits.
fn busybox(name: &str) -> ContainerConfig {
    shell(name, BUSYBOX)
}

fn hostile(tag: &str) -> String {
    format!("{REGISTRY}/hostile:{tag}")
}

/// What a command says on both streams, and whether it succeeds.
async fn attempt(rig: &Rig, container: &str, script: &str) -> (bool, String) {
    let done = rig.cri().exec(container, &["/bin/sh", "-c", script]).await.unwrap();
    let said = [done.stdout, done.stderr].concat();
    (done.exit_code == 0, String::from_utf8_lossy(&said).into_owned())
}

/// The OCI specification a container was made from.
async fn specification(rig: &Rig, container: &str) -> serde_json::Value {
    let request = ContainerStatusRequest { container_id: container.to_owned(), verbose: true };
    let answer = rig.cri().runtime.clone().container_status(request).await.unwrap().into_inner();
    let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).unwrap();
    assert!(info["runtimeSpec"].is_object(), "{info}");
    info["runtimeSpec"].clone()
}

/// The mount points a container sees.
async fn mount_points(rig: &Rig, container: &str) -> Vec<String> {
    let table = rig.cri().exec_well(container, &["cat", "/proc/self/mountinfo"]).await.unwrap();
    table.lines().filter_map(|line| line.split(' ').nth(4)).map(str::to_owned).collect()
}
