//! Pods with users of their own: root in the pod is nobody outside.

#![allow(clippy::unwrap_used, reason = "a test")]

mod owners;
mod refused;
mod sharing;

use std::{
    fs,
    path::{Path, PathBuf},
};

use podhold_integration::{
    configs::{self, Parts},
    rig::{BUSYBOX, Rig},
};
use podhold_proto::cri::{
    ContainerConfig, ContainerStatusRequest, IdMapping, Mount, NamespaceMode, PodSandboxConfig, UserNamespace,
};

/// First id of the pods' users on the host, different for groups so that none is taken for the other.
const UIDS: u32 = 200_000;
const GIDS: u32 = 400_000;
const LENGTH: u32 = 65_536;

fn ids(host_id: u32) -> Vec<IdMapping> {
    vec![IdMapping { host_id, container_id: 0, length: LENGTH }]
}

fn users() -> UserNamespace {
    UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids(UIDS), gids: ids(GIDS) }
}

fn pod(rig: &Rig, name: &str) -> PodSandboxConfig {
    let mut config = rig.pod(name);
    config.namespaces().userns_options = Some(users());
    config
}

fn container(name: &str, image: &str, words: &[&str]) -> ContainerConfig {
    let mut config = configs::container(name, image, words);
    config.namespaces().userns_options = Some(users());
    config
}

/// A container that waits.
fn shell(name: &str) -> ContainerConfig {
    let mut config = container(name, BUSYBOX, &["1000"]);
    config.command = vec!["/bin/sleep".into()];
    config
}

fn mapped(host: &Path, target: &str) -> Mount {
    Mount {
        readonly: false,
        uid_mappings: ids(UIDS),
        gid_mappings: ids(GIDS),
        ..configs::mount(host, target)
    }
}

/// What a shell in the container says, without the last newline.
async fn sh(rig: &Rig, container: &str, script: &str) -> String {
    let said = rig.cri().exec_well(container, &["/bin/sh", "-c", script]).await;
    said.unwrap_or_else(|status| panic!("{script}: {status}")).trim_end().to_owned()
}

/// The container's first process as the host sees it.
async fn pid(rig: &Rig, container: &str) -> u32 {
    let request = ContainerStatusRequest { container_id: container.to_owned(), verbose: true };
    let answer = rig.cri().runtime.clone().container_status(request).await.unwrap().into_inner();
    let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).unwrap();
    u32::try_from(info["pid"].as_u64().unwrap()).unwrap()
}

/// Real, effective, saved and file system id of a process, outside.
async fn ids_outside(rig: &Rig, pid: u32) -> (String, String) {
    let status = rig.machine.run_well(["cat", &format!("/proc/{pid}/status")]).await.unwrap();
    let line = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.split_whitespace().next().unwrap().to_owned()
    };
    (line("Uid:"), line("Gid:"))
}

fn volume(rig: &Rig, name: &str) -> PathBuf {
    let directory = rig.machine.directory().join("volumes").join(name);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("roots"), "of root\n").unwrap();
    fs::write(directory.join("guests"), "of guest\n").unwrap();
    std::os::unix::fs::chown(directory.join("guests"), Some(1000), Some(2000)).unwrap();
    directory
}
