//! What changes pods and containers: a request is decoded here, then a verb is called.

use std::time::Duration;

use podhold_proto::cri;
use tonic::Status;

use super::Service;
use crate::error::Error;

type Answer<T> = Result<T, Status>;

/// Refuses an id that is empty, which would be the beginning of every other.
pub(super) fn id<'a>(id: &'a str, field: &str) -> Answer<&'a str> {
    if id.is_empty() {
        return Err(Error::invalid(field, "is empty; give an id").into());
    }
    Ok(id)
}

/// Seconds of the CRI; below zero is zero.
fn seconds(value: i64) -> Duration {
    Duration::from_secs(value.max(0).unsigned_abs())
}

impl Service {
    pub(super) async fn run_pod(
        &self,
        request: cri::RunPodSandboxRequest,
    ) -> Answer<cri::RunPodSandboxResponse> {
        let config = request.config.ok_or_else(|| Error::invalid("config", "is missing"))?;
        let id = self.runtime.run_pod(config, request.runtime_handler).await?;
        Ok(cri::RunPodSandboxResponse { pod_sandbox_id: id.to_string() })
    }

    pub(super) async fn stop_pod(
        &self,
        request: cri::StopPodSandboxRequest,
    ) -> Answer<cri::StopPodSandboxResponse> {
        self.runtime.stop_pod(id(&request.pod_sandbox_id, "pod_sandbox_id")?).await?;
        Ok(cri::StopPodSandboxResponse {})
    }

    pub(super) async fn remove_pod(
        &self,
        request: cri::RemovePodSandboxRequest,
    ) -> Answer<cri::RemovePodSandboxResponse> {
        self.runtime.remove_pod(id(&request.pod_sandbox_id, "pod_sandbox_id")?).await?;
        Ok(cri::RemovePodSandboxResponse {})
    }

    pub(super) async fn create(
        &self,
        request: cri::CreateContainerRequest,
    ) -> Answer<cri::CreateContainerResponse> {
        let config = request.config.ok_or_else(|| Error::invalid("config", "is missing"))?;
        let pod = id(&request.pod_sandbox_id, "pod_sandbox_id")?;
        let id = self.runtime.create_container(pod, config).await?;
        Ok(cri::CreateContainerResponse { container_id: id.to_string() })
    }

    pub(super) async fn start(
        &self,
        request: cri::StartContainerRequest,
    ) -> Answer<cri::StartContainerResponse> {
        self.runtime.start_container(id(&request.container_id, "container_id")?).await?;
        Ok(cri::StartContainerResponse {})
    }

    pub(super) async fn stop(
        &self,
        request: cri::StopContainerRequest,
    ) -> Answer<cri::StopContainerResponse> {
        let grace = seconds(request.timeout);
        self.runtime.stop_container(id(&request.container_id, "container_id")?, grace).await?;
        Ok(cri::StopContainerResponse {})
    }

    pub(super) async fn remove(
        &self,
        request: cri::RemoveContainerRequest,
    ) -> Answer<cri::RemoveContainerResponse> {
        self.runtime.remove_container(id(&request.container_id, "container_id")?).await?;
        Ok(cri::RemoveContainerResponse {})
    }

    pub(super) async fn update(
        &self,
        request: cri::UpdateContainerResourcesRequest,
    ) -> Answer<cri::UpdateContainerResourcesResponse> {
        let container = id(&request.container_id, "container_id")?;
        self.runtime.known_container(container)?;
        let limits = request.linux.ok_or_else(|| Error::invalid("linux", "is missing"))?;
        self.runtime.update_container(container, &limits).await?;
        Ok(cri::UpdateContainerResourcesResponse {})
    }

    pub(super) async fn update_pod(
        &self,
        request: cri::UpdatePodSandboxResourcesRequest,
    ) -> Answer<cri::UpdatePodSandboxResourcesResponse> {
        let pod = id(&request.pod_sandbox_id, "pod_sandbox_id")?;
        self.runtime.update_pod(pod, request.overhead, request.resources).await?;
        Ok(cri::UpdatePodSandboxResourcesResponse {})
    }

    pub(super) async fn reopen_log(
        &self,
        request: cri::ReopenContainerLogRequest,
    ) -> Answer<cri::ReopenContainerLogResponse> {
        self.runtime.reopen_log(id(&request.container_id, "container_id")?).await?;
        Ok(cri::ReopenContainerLogResponse {})
    }

    pub(super) async fn run_and_wait(&self, request: cri::ExecSyncRequest) -> Answer<cri::ExecSyncResponse> {
        let limit = Some(seconds(request.timeout)).filter(|limit| !limit.is_zero());
        let container = id(&request.container_id, "container_id")?;
        let output = self.runtime.exec_sync(container, request.cmd, limit).await?;
        Ok(cri::ExecSyncResponse { stdout: output.stdout, stderr: output.stderr, exit_code: output.code })
    }
}
