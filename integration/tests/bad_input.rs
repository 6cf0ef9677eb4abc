//! What cannot be met is refused with the right code, names its object, and leaves nothing.

#![allow(clippy::unwrap_used, reason = "a test")]

use podhold_integration::{configs, rig, rig::PROBE};
use podhold_proto::cri::*;
use tonic::{Code, Status};

/// The request is refused with `code` and a message that contains `word`.
fn refused<T: std::fmt::Debug>(what: &str, answer: Result<T, Status>, code: Code, word: &str) {
    let status = answer.expect_err(what);
    assert_eq!(status.code(), code, "{what}: {status}");
    assert!(status.message().contains(word), "{what}: no {word:?} in {:?}", status.message());
}

#[tokio::test]
async fn unknown_and_malformed_ids() {
    let rig = rig!();
    let cri = rig.cri();
    let mut runtime = cri.runtime.clone();
    for id in ["nosuchid", "../../etc", &"a".repeat(5000)] {
        refused("pod status", cri.pod_status(id).await, Code::NotFound, "");
        refused("status", cri.status(id).await, Code::NotFound, "");
        refused("start", cri.start(id).await, Code::NotFound, "");
        refused("exec", cri.exec(id, &["true"]).await, Code::NotFound, "");
        let request = UpdateContainerResourcesRequest {
            container_id: id.into(),
            linux: Some(LinuxContainerResources::default()),
            ..Default::default()
        };
        refused("update", runtime.update_container_resources(request).await, Code::NotFound, "");
        let request = ReopenContainerLogRequest { container_id: id.into() };
        refused("reopen", runtime.reopen_container_log(request).await, Code::NotFound, "");
        let request = ContainerStatsRequest { container_id: id.into() };
        refused("stats", runtime.container_stats(request).await, Code::NotFound, "");
        let container = configs::container("one", PROBE, &["sleep"]);
        refused("create", cri.create(id, &rig.pod("none"), &container).await, Code::NotFound, "");
    }
    refused("empty pod id", cri.pod_status("").await, Code::InvalidArgument, "pod_sandbox_id");
    refused("empty container id", cri.status("").await, Code::InvalidArgument, "container_id");
    rig.finish().await;
}

#[tokio::test]
async fn pods_that_cannot_be() {
    type Change = fn(&mut PodSandboxConfig);
    let cases: [(&str, Change, &str); 8] = [
        ("no metadata", |c| c.metadata = None, "metadata"),
        ("no name", |c| c.metadata.as_mut().unwrap().name.clear(), "name"),
        ("no uid", |c| c.metadata.as_mut().unwrap().uid.clear(), "uid"),
        ("no namespace", |c| c.metadata.as_mut().unwrap().namespace.clear(), "namespace"),
        ("relative log directory", |c| c.log_directory = "logs".into(), "log_directory"),
        (
            "relative cgroup parent",
            |c| c.linux.as_mut().unwrap().cgroup_parent = "pods/one".into(),
            "cgroup_parent",
        ),
        (
            "escaping cgroup parent",
            |c| c.linux.as_mut().unwrap().cgroup_parent = "/a/../../b".into(),
            "cgroup_parent",
        ),
        (
            "a sysctl of the host",
            |c| drop(c.linux.as_mut().unwrap().sysctls.insert("kernel.panic".into(), "1".into())),
            "kernel.panic",
        ),
    ];
    let rig = rig!();
    for (what, change, word) in cases {
        let mut config = rig.pod("impossible");
        change(&mut config);
        refused(what, rig.cri().run_pod(&config).await, Code::InvalidArgument, word);
    }
    let request = RunPodSandboxRequest { config: Some(rig.pod("handler")), runtime_handler: "nosuch".into() };
    let answer = rig.cri().runtime.clone().run_pod_sandbox(request).await;
    refused("unknown handler", answer, Code::InvalidArgument, "nosuch");
    refused(
        "no config",
        rig.cri().runtime.clone().run_pod_sandbox(RunPodSandboxRequest::default()).await,
        Code::InvalidArgument,
        "config",
    );
    rig.finish().await;
}

#[tokio::test]
async fn containers_that_cannot_be() {
    type Change = fn(&mut ContainerConfig);
    let cases: [(&str, Change, Code, &str); 4] = [
        ("no metadata", |c| c.metadata = None, Code::InvalidArgument, "metadata"),
        ("no name", |c| c.metadata.as_mut().unwrap().name.clear(), Code::InvalidArgument, "name"),
        ("no image", |c| c.image = None, Code::InvalidArgument, "image"),
        (
            "an image that is not here",
            |c| c.image.as_mut().unwrap().image = "nosuch:1".into(),
            Code::NotFound,
            "nosuch",
        ),
    ];
    let rig = rig!();
    let config = rig.pod("pod");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    for (what, change, code, word) in cases {
        let mut container = configs::container("impossible", PROBE, &["sleep"]);
        change(&mut container);
        refused(what, rig.cri().create(&pod, &config, &container).await, code, word);
    }
    rig.cri().stop_pod(&pod).await.unwrap();
    let late = rig.cri().create(&pod, &config, &configs::container("late", PROBE, &["sleep"])).await;
    refused("a container in a stopped pod", late, Code::FailedPrecondition, "");
    rig.cri().remove_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn an_image_without_a_command_needs_one() {
    let rig = rig!();
    let image = format!("{}/nocommand:1", podhold_integration::rig::REGISTRY);
    rig.cri().pull(&image).await.unwrap();
    let config = rig.pod("pod");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let answer = rig.cri().create(&pod, &config, &configs::container("one", &image, &[])).await;
    refused("no command", answer, Code::InvalidArgument, "command");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn verbs_at_the_wrong_time() {
    let rig = rig!();
    let config = rig.pod("pod");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let id = rig.cri().create(&pod, &config, &configs::container("one", PROBE, &["sleep"])).await.unwrap();
    refused(
        "exec before the start",
        rig.cri().exec(&id, &["/probe", "exit", "0"]).await,
        Code::FailedPrecondition,
        "",
    );
    rig.cri().start(&id).await.unwrap();
    rig.cri().stop(&id, 0).await.unwrap();
    refused("a second start", rig.cri().start(&id).await, Code::FailedPrecondition, "");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}
