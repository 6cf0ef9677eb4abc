//! Lists and their filters.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::HashMap;

use podhold_integration::{cgroup, rig, rig::Rig};
use podhold_proto::cri::*;

async fn pods(rig: &Rig, filter: PodSandboxFilter) -> Vec<String> {
    let request = ListPodSandboxRequest { filter: Some(filter) };
    let items = rig.cri().runtime.clone().list_pod_sandbox(request).await.unwrap().into_inner().items;
    let mut names: Vec<String> = items.into_iter().map(|pod| pod.metadata.unwrap().name).collect();
    names.sort();
    names
}

async fn containers(rig: &Rig, filter: ContainerFilter) -> Vec<String> {
    let request = ListContainersRequest { filter: Some(filter) };
    let items = rig.cri().runtime.clone().list_containers(request).await.unwrap().into_inner().containers;
    let mut names: Vec<String> = items.into_iter().map(|c| c.metadata.unwrap().name).collect();
    names.sort();
    names
}

fn label(key: &str, value: &str) -> HashMap<String, String> {
    HashMap::from([(key.to_owned(), value.to_owned())])
}

#[tokio::test]
async fn every_part_of_a_filter_counts() {
    let rig = rig!();
    let (mut one, two) = (rig.pod("one"), rig.pod("two"));
    one.labels.insert("tier".into(), "front".into());
    let first = rig.cri().run_pod(&one).await.unwrap();
    let second = rig.cri().run_pod(&two).await.unwrap();
    let running = rig.probe(&first, &one, "running", &["sleep"]).await;
    let ended = rig.probe(&second, &two, "ended", &["exit", "0"]).await;
    rig.cri().ended(&ended, std::time::Duration::from_secs(10)).await.unwrap();
    rig.cri().stop_pod(&second).await.unwrap();

    let all = PodSandboxFilter::default();
    let state = |state: PodSandboxState| Some(PodSandboxStateValue { state: state.into() });
    assert_eq!(pods(&rig, all.clone()).await, ["one", "two"]);
    assert_eq!(pods(&rig, PodSandboxFilter { id: second.clone(), ..all.clone() }).await, ["two"]);
    assert_eq!(pods(&rig, PodSandboxFilter { id: second[..10].into(), ..all.clone() }).await, ["two"]);
    assert_eq!(pods(&rig, PodSandboxFilter { id: "none".into(), ..all.clone() }).await, [""; 0]);
    let ready = PodSandboxFilter { state: state(PodSandboxState::SandboxReady), ..all.clone() };
    assert_eq!(pods(&rig, ready.clone()).await, ["one"]);
    let not_ready = PodSandboxFilter { state: state(PodSandboxState::SandboxNotready), ..all.clone() };
    assert_eq!(pods(&rig, not_ready).await, ["two"]);
    let labelled = PodSandboxFilter { label_selector: label("tier", "front"), ..all.clone() };
    assert_eq!(pods(&rig, labelled).await, ["one"]);
    let both = PodSandboxFilter { label_selector: label("tier", "back"), ..ready };
    assert_eq!(pods(&rig, both).await, [""; 0]);

    let all = ContainerFilter::default();
    let state = |state: ContainerState| Some(ContainerStateValue { state: state.into() });
    assert_eq!(containers(&rig, all.clone()).await, ["ended", "running"]);
    assert_eq!(
        containers(&rig, ContainerFilter { id: running[..12].into(), ..all.clone() }).await,
        ["running"]
    );
    let of_second = ContainerFilter { pod_sandbox_id: second.clone(), ..all.clone() };
    assert_eq!(containers(&rig, of_second).await, ["ended"]);
    let exited = ContainerFilter { state: state(ContainerState::ContainerExited), ..all.clone() };
    assert_eq!(containers(&rig, exited).await, ["ended"]);
    let named = label("io.kubernetes.container.name", "running");
    assert_eq!(containers(&rig, ContainerFilter { label_selector: named, ..all.clone() }).await, ["running"]);
    rig.cri().end_pod(&first).await.unwrap();
    rig.cri().end_pod(&second).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn what_was_asked_for_is_what_is_reported() {
    let rig = rig!();
    let mut config = rig.pod("told");
    config.annotations.insert("note".into(), "kept as it is\n\u{1f980}".into());
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let status = rig.cri().pod_status(&pod).await.unwrap();
    assert_eq!(
        (status.metadata, &status.labels, &status.annotations),
        (config.metadata.clone(), &config.labels, &config.annotations)
    );
    assert_eq!(
        status.linux.unwrap().namespaces.unwrap().options,
        config.linux.clone().unwrap().security_context.unwrap().namespace_options
    );
    let id = rig.probe(&pod, &config, "one", &["sleep"]).await;
    let status = rig.cri().status(&id).await.unwrap();
    assert_eq!(status.image.as_ref().unwrap().image, podhold_integration::rig::PROBE);
    assert_eq!(status.log_path, podhold_integration::configs::log_file(&config, "one").display().to_string());
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    assert!(status.image_id.starts_with("sha256:"), "{}", status.image_id);
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn version_and_status_are_complete() {
    let rig = rig!();
    let mut runtime = rig.cri().runtime.clone();
    let version = runtime.version(VersionRequest::default()).await.unwrap().into_inner();
    assert_eq!((version.version.as_str(), version.runtime_name.as_str()), ("0.1.0", "podhold"));
    assert_eq!(version.runtime_api_version, "v1");
    assert!(!version.runtime_version.is_empty());
    let status = runtime.status(StatusRequest { verbose: true }).await.unwrap().into_inner();
    for kind in ["RuntimeReady", "NetworkReady"] {
        let conditions = &status.status.as_ref().unwrap().conditions;
        assert!(conditions.iter().any(|c| c.r#type == kind && c.status), "{kind}: {conditions:?}");
    }
    assert!(status.runtime_handlers.iter().any(|handler| handler.name.is_empty()), "{status:?}");
    assert!(status.features.is_some());
    let driver = runtime.runtime_config(RuntimeConfigRequest {}).await.unwrap().into_inner().linux.unwrap();
    let expected = match *cgroup::DRIVER {
        cgroup::Driver::Cgroupfs => CgroupDriver::Cgroupfs,
        cgroup::Driver::Systemd => CgroupDriver::Systemd,
    };
    assert_eq!(driver.cgroup_driver(), expected);
    let disk = rig.cri().images.clone().image_fs_info(ImageFsInfoRequest {}).await.unwrap().into_inner();
    assert!(disk.image_filesystems[0].used_bytes.unwrap().value > 1 << 20);
    assert!(!disk.container_filesystems.is_empty());
    rig.finish().await;
}

/// All batches of a stream.
macro_rules! drained {
    ($answer:expr, $field:ident) => {{
        let mut stream = $answer.await.unwrap().into_inner();
        let mut all = Vec::new();
        while let Some(batch) = stream.message().await.unwrap() {
            all.extend(batch.$field);
        }
        all
    }};
}

#[tokio::test]
async fn streams_hold_what_the_lists_hold_and_keep_to_filters() {
    let rig = rig!();
    let (one, two) = (rig.pod("one"), rig.pod("two"));
    let pods = [rig.cri().run_pod(&one).await.unwrap(), rig.cri().run_pod(&two).await.unwrap()];
    rig.probe(&pods[0], &one, "first", &["sleep"]).await;
    let id = rig.probe(&pods[1], &two, "second", &["sleep"]).await;
    let mut runtime = rig.cri().runtime.clone();
    let mut images = rig.cri().images.clone();

    let streamed =
        drained!(runtime.stream_pod_sandboxes(StreamPodSandboxesRequest::default()), pod_sandboxes);
    let listed = runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap().into_inner().items;
    assert_eq!(streamed, listed);
    let filter = Some(PodSandboxFilter { id: pods[1].clone(), ..Default::default() });
    let streamed =
        drained!(runtime.stream_pod_sandboxes(StreamPodSandboxesRequest { filter }), pod_sandboxes);
    assert_eq!(streamed, listed[1..]);

    let streamed = drained!(runtime.stream_containers(StreamContainersRequest::default()), containers);
    let listed = runtime.list_containers(ListContainersRequest::default()).await.unwrap().into_inner();
    assert_eq!(streamed, listed.containers);
    let filter = Some(ContainerFilter { id: id.clone(), ..Default::default() });
    let streamed = drained!(runtime.stream_containers(StreamContainersRequest { filter }), containers);
    assert_eq!(streamed, listed.containers[1..]);

    let streamed = drained!(images.stream_images(StreamImagesRequest::default()), images);
    let listed = images.list_images(ListImagesRequest::default()).await.unwrap().into_inner().images;
    assert_eq!((&streamed, streamed.len()), (&listed, 2));

    let filter = Some(ContainerStatsFilter { id: id.clone(), ..Default::default() });
    let request = StreamContainerStatsRequest { filter };
    let streamed = drained!(runtime.stream_container_stats(request), container_stats);
    assert_eq!(streamed.len(), 1);
    assert_eq!(streamed[0].attributes.as_ref().unwrap().id, id);
    let request = StreamPodSandboxStatsRequest::default();
    let streamed = drained!(runtime.stream_pod_sandbox_stats(request), pod_sandbox_stats);
    let ids: Vec<String> = streamed.into_iter().map(|stats| stats.attributes.unwrap().id).collect();
    assert_eq!(ids, pods);
    for pod in pods {
        rig.cri().end_pod(&pod).await.unwrap();
    }
    let request = StreamContainersRequest::default();
    assert!(drained!(runtime.stream_containers(request), containers).is_empty());
    rig.finish().await;
}
