//! Every RPC of the protocol is answered; what is not built says so, by its name.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;

use podhold_integration::{cri::Cri, rig};
use podhold_proto::cri::*;
use tonic::Code;

/// What the protocol has: 37 RPCs of RuntimeService, 6 of ImageService.
const ALL: usize = 43;

/// What this version refuses. Whoever builds one takes it from this list.
const NOT_BUILT: [&str; 3] = ["CheckpointContainer", "CheckpointPod", "RestorePod"];

type Answers = BTreeMap<&'static str, Result<(), tonic::Status>>;

/// Calls each with an empty request, which no RPC may fall over.
macro_rules! call {
    ($answers:ident, $client:expr, $($rpc:literal $method:ident $request:ident),+ $(,)?) => {
        $($answers.insert($rpc, $client.clone().$method($request::default()).await.map(drop));)+
    };
}

async fn pods(cri: &Cri, answers: &mut Answers) {
    call!(
        answers, cri.runtime,
        "Version" version VersionRequest,
        "RunPodSandbox" run_pod_sandbox RunPodSandboxRequest,
        "StopPodSandbox" stop_pod_sandbox StopPodSandboxRequest,
        "RemovePodSandbox" remove_pod_sandbox RemovePodSandboxRequest,
        "PodSandboxStatus" pod_sandbox_status PodSandboxStatusRequest,
        "ListPodSandbox" list_pod_sandbox ListPodSandboxRequest,
        "StreamPodSandboxes" stream_pod_sandboxes StreamPodSandboxesRequest,
        "PodSandboxStats" pod_sandbox_stats PodSandboxStatsRequest,
        "ListPodSandboxStats" list_pod_sandbox_stats ListPodSandboxStatsRequest,
        "StreamPodSandboxStats" stream_pod_sandbox_stats StreamPodSandboxStatsRequest,
        "ListPodSandboxMetrics" list_pod_sandbox_metrics ListPodSandboxMetricsRequest,
        "StreamPodSandboxMetrics" stream_pod_sandbox_metrics StreamPodSandboxMetricsRequest,
        "UpdatePodSandboxResources" update_pod_sandbox_resources UpdatePodSandboxResourcesRequest,
        "PortForward" port_forward PortForwardRequest,
        "CheckpointPod" checkpoint_pod CheckpointPodRequest,
        "RestorePod" restore_pod RestorePodRequest,
        "ListMetricDescriptors" list_metric_descriptors ListMetricDescriptorsRequest,
        "UpdateRuntimeConfig" update_runtime_config UpdateRuntimeConfigRequest,
        "Status" status StatusRequest,
        "RuntimeConfig" runtime_config RuntimeConfigRequest,
    );
}

async fn containers(cri: &Cri, answers: &mut Answers) {
    call!(
        answers, cri.runtime,
        "CreateContainer" create_container CreateContainerRequest,
        "StartContainer" start_container StartContainerRequest,
        "StopContainer" stop_container StopContainerRequest,
        "RemoveContainer" remove_container RemoveContainerRequest,
        "ListContainers" list_containers ListContainersRequest,
        "StreamContainers" stream_containers StreamContainersRequest,
        "ContainerStatus" container_status ContainerStatusRequest,
        "UpdateContainerResources" update_container_resources UpdateContainerResourcesRequest,
        "ReopenContainerLog" reopen_container_log ReopenContainerLogRequest,
        "ExecSync" exec_sync ExecSyncRequest,
        "Exec" exec ExecRequest,
        "Attach" attach AttachRequest,
        "ContainerStats" container_stats ContainerStatsRequest,
        "ListContainerStats" list_container_stats ListContainerStatsRequest,
        "StreamContainerStats" stream_container_stats StreamContainerStatsRequest,
        "CheckpointContainer" checkpoint_container CheckpointContainerRequest,
        "GetContainerEvents" get_container_events GetEventsRequest,
    );
}

async fn images(cri: &Cri, answers: &mut Answers) {
    call!(
        answers, cri.images,
        "ListImages" list_images ListImagesRequest,
        "StreamImages" stream_images StreamImagesRequest,
        "ImageStatus" image_status ImageStatusRequest,
        "PullImage" pull_image PullImageRequest,
        "RemoveImage" remove_image RemoveImageRequest,
        "ImageFsInfo" image_fs_info ImageFsInfoRequest,
    );
}

#[tokio::test]
async fn every_rpc_is_built_or_says_by_its_name_that_it_is_not() {
    let rig = rig!();
    let mut answers = Answers::new();
    pods(rig.cri(), &mut answers).await;
    containers(rig.cri(), &mut answers).await;
    images(rig.cri(), &mut answers).await;
    assert_eq!(answers.len(), ALL);
    for (rpc, answer) in &answers {
        let code = answer.as_ref().map_or_else(tonic::Status::code, |()| Code::Ok);
        if NOT_BUILT.contains(rpc) {
            assert_eq!(code, Code::Unimplemented, "{rpc}: {answer:?}");
            let refusal = answer.as_ref().unwrap_err();
            assert!(refusal.message().contains(rpc), "{rpc} is not in its own refusal: {refusal}");
        } else {
            let fits = [Code::Ok, Code::InvalidArgument, Code::NotFound];
            assert!(fits.contains(&code), "{rpc} with an empty request: {answer:?}");
        }
    }
    rig.finish().await;
}
