//! What pods and containers use, for one of them, as a list and as a stream.

use std::path::PathBuf;

use podhold_proto::cri;
use tonic::Status;

use super::{Batches, Service, answer, lists::batches, select, verbs::id};
use crate::runtime::{ContainerUsage, PodUsage};

impl Service {
    fn layers_root(&self) -> PathBuf {
        self.runtime.images().snapshots().root().to_owned()
    }

    async fn containers_usage(
        &self,
        filter: Option<cri::ContainerStatsFilter>,
    ) -> Result<Vec<ContainerUsage>, Status> {
        let selected = select::stats(self.runtime.store().containers(), filter);
        Ok(self.runtime.containers_usage(selected).await?)
    }

    async fn pods_usage(&self, filter: Option<cri::PodSandboxStatsFilter>) -> Result<Vec<PodUsage>, Status> {
        let selected = select::pod_stats(self.runtime.store().pods(), filter);
        Ok(self.runtime.pods_usage(selected).await?)
    }

    pub(super) async fn usage(
        &self,
        request: cri::ContainerStatsRequest,
    ) -> Result<cri::ContainerStatsResponse, Status> {
        let usage = self.runtime.container_usage(id(&request.container_id, "container_id")?).await?;
        let stats = Some(answer::container_stats(&usage, &self.layers_root()));
        Ok(cri::ContainerStatsResponse { stats })
    }

    pub(super) async fn list_usage(
        &self,
        request: cri::ListContainerStatsRequest,
    ) -> Result<cri::ListContainerStatsResponse, Status> {
        let root = self.layers_root();
        let usages = self.containers_usage(request.filter).await?;
        let stats = usages.iter().map(|usage| answer::container_stats(usage, &root)).collect();
        Ok(cri::ListContainerStatsResponse { stats })
    }

    pub(super) async fn stream_usage(
        &self,
        request: cri::StreamContainerStatsRequest,
    ) -> Result<Batches<cri::StreamContainerStatsResponse>, Status> {
        let root = self.layers_root();
        let usages = self.containers_usage(request.filter).await?;
        let items = usages.into_iter().map(move |usage| answer::container_stats(&usage, &root));
        Ok(batches(items, |container_stats| cri::StreamContainerStatsResponse { container_stats }))
    }

    pub(super) async fn pod_usage(
        &self,
        request: cri::PodSandboxStatsRequest,
    ) -> Result<cri::PodSandboxStatsResponse, Status> {
        let usage = self.runtime.pod_usage(id(&request.pod_sandbox_id, "pod_sandbox_id")?).await?;
        let stats = Some(answer::pod_stats(&usage, &self.layers_root()));
        Ok(cri::PodSandboxStatsResponse { stats })
    }

    pub(super) async fn list_pod_usage(
        &self,
        request: cri::ListPodSandboxStatsRequest,
    ) -> Result<cri::ListPodSandboxStatsResponse, Status> {
        let root = self.layers_root();
        let usages = self.pods_usage(request.filter).await?;
        let stats = usages.iter().map(|usage| answer::pod_stats(usage, &root)).collect();
        Ok(cri::ListPodSandboxStatsResponse { stats })
    }

    pub(super) async fn stream_pod_usage(
        &self,
        request: cri::StreamPodSandboxStatsRequest,
    ) -> Result<Batches<cri::StreamPodSandboxStatsResponse>, Status> {
        let root = self.layers_root();
        let usages = self.pods_usage(request.filter).await?;
        let items = usages.into_iter().map(move |usage| answer::pod_stats(&usage, &root));
        Ok(batches(items, |pod_sandbox_stats| cri::StreamPodSandboxStatsResponse { pod_sandbox_stats }))
    }
}
