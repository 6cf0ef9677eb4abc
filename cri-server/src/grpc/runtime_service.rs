//! `runtime.v1.RuntimeService`.

use std::{collections::HashMap, time::Duration};

use podhold_cgroups::Driver;
use podhold_proto::cri::{self, runtime_service_server::RuntimeService};
use tokio_stream::Empty;
use tonic::{Request, Response, Status};

use super::{Service, answer, not_built, select};
use crate::{
    error::Error,
    runtime::{HANDLER, Runtime},
    state::{ContainerPhase, nanos},
};

type Answer<T> = Result<Response<T>, Status>;
type NoStream<T> = Empty<Result<T, Status>>;

/// Refuses an id that is empty, which would be the beginning of every other.
fn id<'a>(id: &'a str, field: &str) -> Result<&'a str, Status> {
    if id.is_empty() {
        return Err(Error::invalid(field, "is empty; give an id").into());
    }
    Ok(id)
}

/// Seconds of the CRI; below zero is zero.
fn seconds(value: i64) -> Duration {
    Duration::from_secs(value.max(0).unsigned_abs())
}

/// The verbose part of an answer, as peers give it: one entry `info` that holds JSON.
fn info(verbose: bool, value: impl FnOnce() -> serde_json::Value) -> HashMap<String, String> {
    if verbose { [("info".to_owned(), value().to_string())].into() } else { HashMap::new() }
}

impl Service {
    fn containers(&self, filter: Option<&cri::ContainerFilter>) -> Vec<cri::Container> {
        let selected = select::containers(self.runtime.store().containers(), filter);
        selected.iter().map(answer::container).collect()
    }

    fn layers_root(&self) -> std::path::PathBuf {
        self.runtime.images().snapshots().root().to_owned()
    }
}

async fn conditions(runtime: &Runtime) -> Vec<cri::RuntimeCondition> {
    let network = runtime.network_ready().await;
    vec![
        cri::RuntimeCondition { r#type: "RuntimeReady".into(), status: true, ..Default::default() },
        cri::RuntimeCondition {
            r#type: "NetworkReady".into(),
            status: network.is_ok(),
            reason: if network.is_ok() { String::new() } else { "NetworkPluginNotReady".into() },
            message: network.err().map(|error| error.to_string()).unwrap_or_default(),
        },
    ]
}

#[tonic::async_trait]
impl RuntimeService for Service {
    async fn version(&self, _: Request<cri::VersionRequest>) -> Answer<cri::VersionResponse> {
        Ok(Response::new(cri::VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "podhold".into(),
            runtime_version: env!("CARGO_PKG_VERSION").into(),
            runtime_api_version: "v1".into(),
        }))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<cri::RunPodSandboxRequest>,
    ) -> Answer<cri::RunPodSandboxResponse> {
        let request = request.into_inner();
        let config = request.config.ok_or_else(|| Error::invalid("config", "is missing"))?;
        let id = self.runtime.run_pod(config, request.runtime_handler).await?;
        Ok(Response::new(cri::RunPodSandboxResponse { pod_sandbox_id: id.to_string() }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<cri::StopPodSandboxRequest>,
    ) -> Answer<cri::StopPodSandboxResponse> {
        let request = request.into_inner();
        self.runtime.stop_pod(id(&request.pod_sandbox_id, "pod_sandbox_id")?).await?;
        Ok(Response::new(cri::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<cri::RemovePodSandboxRequest>,
    ) -> Answer<cri::RemovePodSandboxResponse> {
        let request = request.into_inner();
        self.runtime.remove_pod(id(&request.pod_sandbox_id, "pod_sandbox_id")?).await?;
        Ok(Response::new(cri::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<cri::PodSandboxStatusRequest>,
    ) -> Answer<cri::PodSandboxStatusResponse> {
        let request = request.into_inner();
        let pod = self.runtime.known_pod(id(&request.pod_sandbox_id, "pod_sandbox_id")?)?;
        let containers = self.runtime.store().containers_of(&pod.record.id);
        Ok(Response::new(cri::PodSandboxStatusResponse {
            status: Some(answer::pod_status(&pod)),
            info: info(request.verbose, || {
                serde_json::json!({
                    "pid": pod.live.as_ref().map(|live| live.pause_pid()),
                    "phase": pod.phase.name(),
                    "cgroup": pod.record.cgroup.as_str(),
                    "netns": self.runtime.netns(&pod),
                    "config": pod.record.config,
                })
            }),
            containers_statuses: containers
                .iter()
                .filter(|container| container.phase != ContainerPhase::Creating)
                .map(answer::container_status)
                .collect(),
            timestamp: nanos(std::time::SystemTime::now()),
        }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<cri::ListPodSandboxRequest>,
    ) -> Answer<cri::ListPodSandboxResponse> {
        let selected = select::pods(self.runtime.store().pods(), request.into_inner().filter.as_ref());
        let items = selected.iter().map(answer::pod).collect();
        Ok(Response::new(cri::ListPodSandboxResponse { items }))
    }

    type StreamPodSandboxesStream = NoStream<cri::StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        _: Request<cri::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        Err(not_built("StreamPodSandboxes"))
    }

    async fn create_container(
        &self,
        request: Request<cri::CreateContainerRequest>,
    ) -> Answer<cri::CreateContainerResponse> {
        let request = request.into_inner();
        let config = request.config.ok_or_else(|| Error::invalid("config", "is missing"))?;
        let pod = id(&request.pod_sandbox_id, "pod_sandbox_id")?;
        let id = self.runtime.create_container(pod, config).await?;
        Ok(Response::new(cri::CreateContainerResponse { container_id: id.to_string() }))
    }

    async fn start_container(
        &self,
        request: Request<cri::StartContainerRequest>,
    ) -> Answer<cri::StartContainerResponse> {
        let request = request.into_inner();
        self.runtime.start_container(id(&request.container_id, "container_id")?).await?;
        Ok(Response::new(cri::StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<cri::StopContainerRequest>,
    ) -> Answer<cri::StopContainerResponse> {
        let request = request.into_inner();
        let grace = seconds(request.timeout);
        self.runtime.stop_container(id(&request.container_id, "container_id")?, grace).await?;
        Ok(Response::new(cri::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<cri::RemoveContainerRequest>,
    ) -> Answer<cri::RemoveContainerResponse> {
        let request = request.into_inner();
        self.runtime.remove_container(id(&request.container_id, "container_id")?).await?;
        Ok(Response::new(cri::RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<cri::ListContainersRequest>,
    ) -> Answer<cri::ListContainersResponse> {
        let containers = self.containers(request.into_inner().filter.as_ref());
        Ok(Response::new(cri::ListContainersResponse { containers }))
    }

    type StreamContainersStream = NoStream<cri::StreamContainersResponse>;

    async fn stream_containers(
        &self,
        _: Request<cri::StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        Err(not_built("StreamContainers"))
    }

    async fn container_status(
        &self,
        request: Request<cri::ContainerStatusRequest>,
    ) -> Answer<cri::ContainerStatusResponse> {
        let request = request.into_inner();
        let container = self.runtime.known_container(id(&request.container_id, "container_id")?)?;
        Ok(Response::new(cri::ContainerStatusResponse {
            status: Some(answer::container_status(&container)),
            info: info(request.verbose, || {
                serde_json::json!({
                    "sandboxID": container.record.pod,
                    "pid": container.phase.run().map_or(0, |run| run.pid),
                    "phase": container.phase.name(),
                    "cgroup": container.record.cgroup.as_str(),
                    "config": container.record.config,
                    "runtimeSpec": self.runtime.container_spec(&container),
                })
            }),
        }))
    }

    async fn update_container_resources(
        &self,
        request: Request<cri::UpdateContainerResourcesRequest>,
    ) -> Answer<cri::UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        let container = id(&request.container_id, "container_id")?;
        self.runtime.known_container(container)?;
        let limits = request.linux.ok_or_else(|| Error::invalid("linux", "is missing"))?;
        self.runtime.update_container(container, &limits).await?;
        Ok(Response::new(cri::UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        request: Request<cri::ReopenContainerLogRequest>,
    ) -> Answer<cri::ReopenContainerLogResponse> {
        let request = request.into_inner();
        self.runtime.reopen_log(id(&request.container_id, "container_id")?).await?;
        Ok(Response::new(cri::ReopenContainerLogResponse {}))
    }

    async fn exec_sync(&self, request: Request<cri::ExecSyncRequest>) -> Answer<cri::ExecSyncResponse> {
        let request = request.into_inner();
        let limit = Some(seconds(request.timeout)).filter(|limit| !limit.is_zero());
        let container = id(&request.container_id, "container_id")?;
        let output = self.runtime.exec_sync(container, request.cmd, limit).await?;
        Ok(Response::new(cri::ExecSyncResponse {
            stdout: output.stdout,
            stderr: output.stderr,
            exit_code: output.code,
        }))
    }

    async fn exec(&self, _: Request<cri::ExecRequest>) -> Answer<cri::ExecResponse> {
        Err(not_built("Exec"))
    }

    async fn attach(&self, _: Request<cri::AttachRequest>) -> Answer<cri::AttachResponse> {
        Err(not_built("Attach"))
    }

    async fn port_forward(&self, _: Request<cri::PortForwardRequest>) -> Answer<cri::PortForwardResponse> {
        Err(not_built("PortForward"))
    }

    async fn container_stats(
        &self,
        request: Request<cri::ContainerStatsRequest>,
    ) -> Answer<cri::ContainerStatsResponse> {
        let request = request.into_inner();
        let usage = self.runtime.container_usage(id(&request.container_id, "container_id")?).await?;
        let stats = Some(answer::container_stats(&usage, &self.layers_root()));
        Ok(Response::new(cri::ContainerStatsResponse { stats }))
    }

    async fn list_container_stats(
        &self,
        request: Request<cri::ListContainerStatsRequest>,
    ) -> Answer<cri::ListContainerStatsResponse> {
        let selected = select::stats(self.runtime.store().containers(), request.into_inner().filter);
        let usages = self.runtime.containers_usage(selected).await?;
        let root = self.layers_root();
        let stats = usages.iter().map(|usage| answer::container_stats(usage, &root)).collect();
        Ok(Response::new(cri::ListContainerStatsResponse { stats }))
    }

    type StreamContainerStatsStream = NoStream<cri::StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        _: Request<cri::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        Err(not_built("StreamContainerStats"))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<cri::PodSandboxStatsRequest>,
    ) -> Answer<cri::PodSandboxStatsResponse> {
        let request = request.into_inner();
        let usage = self.runtime.pod_usage(id(&request.pod_sandbox_id, "pod_sandbox_id")?).await?;
        let stats = Some(answer::pod_stats(&usage, &self.layers_root()));
        Ok(Response::new(cri::PodSandboxStatsResponse { stats }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<cri::ListPodSandboxStatsRequest>,
    ) -> Answer<cri::ListPodSandboxStatsResponse> {
        let selected = select::pod_stats(self.runtime.store().pods(), request.into_inner().filter);
        let usages = self.runtime.pods_usage(selected).await?;
        let root = self.layers_root();
        let stats = usages.iter().map(|usage| answer::pod_stats(usage, &root)).collect();
        Ok(Response::new(cri::ListPodSandboxStatsResponse { stats }))
    }

    type StreamPodSandboxStatsStream = NoStream<cri::StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        _: Request<cri::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        Err(not_built("StreamPodSandboxStats"))
    }

    async fn update_runtime_config(
        &self,
        _: Request<cri::UpdateRuntimeConfigRequest>,
    ) -> Answer<cri::UpdateRuntimeConfigResponse> {
        Err(not_built("UpdateRuntimeConfig"))
    }

    async fn status(&self, request: Request<cri::StatusRequest>) -> Answer<cri::StatusResponse> {
        let verbose = request.into_inner().verbose;
        let handler = |name: &str| cri::RuntimeHandler {
            name: name.into(),
            features: Some(cri::RuntimeHandlerFeatures::default()),
        };
        Ok(Response::new(cri::StatusResponse {
            status: Some(cri::RuntimeStatus { conditions: conditions(&self.runtime).await }),
            info: info(verbose, || serde_json::json!({ "config": self.runtime.config() })),
            runtime_handlers: vec![handler(""), handler(HANDLER)],
            features: Some(cri::RuntimeFeatures {
                supplemental_groups_policy: true,
                mount_options: true,
                ..Default::default()
            }),
        }))
    }

    async fn checkpoint_container(
        &self,
        _: Request<cri::CheckpointContainerRequest>,
    ) -> Answer<cri::CheckpointContainerResponse> {
        Err(not_built("CheckpointContainer"))
    }

    async fn checkpoint_pod(
        &self,
        _: Request<cri::CheckpointPodRequest>,
    ) -> Answer<cri::CheckpointPodResponse> {
        Err(not_built("CheckpointPod"))
    }

    async fn restore_pod(&self, _: Request<cri::RestorePodRequest>) -> Answer<cri::RestorePodResponse> {
        Err(not_built("RestorePod"))
    }

    type GetContainerEventsStream = NoStream<cri::ContainerEventResponse>;

    async fn get_container_events(
        &self,
        _: Request<cri::GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        Err(not_built("GetContainerEvents"))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<cri::ListMetricDescriptorsRequest>,
    ) -> Answer<cri::ListMetricDescriptorsResponse> {
        Err(not_built("ListMetricDescriptors"))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<cri::ListPodSandboxMetricsRequest>,
    ) -> Answer<cri::ListPodSandboxMetricsResponse> {
        Err(not_built("ListPodSandboxMetrics"))
    }

    type StreamPodSandboxMetricsStream = NoStream<cri::StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<cri::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        Err(not_built("StreamPodSandboxMetrics"))
    }

    async fn runtime_config(
        &self,
        _: Request<cri::RuntimeConfigRequest>,
    ) -> Answer<cri::RuntimeConfigResponse> {
        let driver = match self.runtime.config().cgroup_driver() {
            Driver::Cgroupfs => cri::CgroupDriver::Cgroupfs,
            Driver::Systemd => cri::CgroupDriver::Systemd,
        };
        let linux = Some(cri::LinuxRuntimeConfiguration { cgroup_driver: driver.into() });
        Ok(Response::new(cri::RuntimeConfigResponse { linux }))
    }

    async fn update_pod_sandbox_resources(
        &self,
        _: Request<cri::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<cri::UpdatePodSandboxResourcesResponse> {
        Err(not_built("UpdatePodSandboxResources"))
    }
}
