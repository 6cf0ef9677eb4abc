//! Lists and statuses of pods, containers and images. A list as a stream holds the same objects, cut into
//! batches that stay far below the message limits of clients.

use futures::{StreamExt, stream};
use podhold_proto::cri;
use tonic::Status;

use super::{Batches, Service, answer, info, select, verbs::id};
use crate::state::{ContainerPhase, nanos};

/// Largest batch in bytes. A client takes 4 MiB at least; an object that is larger is alone in its batch.
const BATCH: usize = 1 << 20;
/// What the keys and lengths of one object take in its batch, at most.
const FRAME: usize = 12;

/// Cuts answers into batches, each made when the client is ready for it.
pub(super) fn batches<T, B>(
    items: impl Iterator<Item = T> + Send + 'static,
    batch: fn(Vec<T>) -> B,
) -> Batches<B>
where
    T: prost::Message + 'static,
    B: Send + 'static,
{
    let mut items = items.peekable();
    let next = move || {
        let first = items.next()?;
        let mut size = first.encoded_len() + FRAME;
        let mut group = vec![first];
        while let Some(item) = items.next_if(|item| size + item.encoded_len() + FRAME <= BATCH) {
            size += item.encoded_len() + FRAME;
            group.push(item);
        }
        Some(Ok(batch(group)))
    };
    stream::iter(std::iter::from_fn(next)).boxed()
}

impl Service {
    pub(super) async fn pod_status(
        &self,
        request: cri::PodSandboxStatusRequest,
    ) -> Result<cri::PodSandboxStatusResponse, Status> {
        let asked = id(&request.pod_sandbox_id, "pod_sandbox_id")?;
        if self.runtime.damage_of_pod(asked).is_some() {
            self.runtime.look_again().await;
        }
        if let Some((id, damage)) = self.runtime.damage_of_pod(asked) {
            // Clients ask for the status before they remove anything.
            let status = Some(answer::damaged_pod(id.as_str(), damage));
            return Ok(cri::PodSandboxStatusResponse { status, ..Default::default() });
        }
        let pod = self.runtime.known_pod(asked)?;
        let containers = self.runtime.store().containers_of(&pod.record.id);
        let wait = pod.waits_for();
        Ok(cri::PodSandboxStatusResponse {
            status: Some(answer::pod_status(&pod)),
            info: info(request.verbose, || {
                serde_json::json!({
                    "pid": pod.live.as_ref().map(|live| live.pause_pid()),
                    "phase": pod.phase.name(),
                    "waits_for": wait,
                    "cgroup": pod.record.cgroup.as_str(),
                    "netns": self.runtime.netns(&pod),
                    "config": pod.record.config,
                })
            }),
            containers_statuses: containers
                .iter()
                .filter(|container| container.phase != ContainerPhase::Creating)
                .map(|container| answer::container_status(container, wait.as_deref()))
                .collect(),
            timestamp: nanos(std::time::SystemTime::now()),
        })
    }

    pub(super) async fn list_pods(
        &self,
        request: cri::ListPodSandboxRequest,
    ) -> Result<cri::ListPodSandboxResponse, Status> {
        let selected = select::pods(self.runtime.store().pods(), request.filter.as_ref());
        Ok(cri::ListPodSandboxResponse { items: selected.iter().map(answer::pod).collect() })
    }

    pub(super) async fn stream_pods(
        &self,
        request: cri::StreamPodSandboxesRequest,
    ) -> Result<Batches<cri::StreamPodSandboxesResponse>, Status> {
        let selected = select::pods(self.runtime.store().pods(), request.filter.as_ref());
        Ok(batches(selected.into_iter().map(|pod| answer::pod(&pod)), |pod_sandboxes| {
            cri::StreamPodSandboxesResponse { pod_sandboxes }
        }))
    }

    pub(super) async fn list(
        &self,
        request: cri::ListContainersRequest,
    ) -> Result<cri::ListContainersResponse, Status> {
        let selected = select::containers(self.runtime.store().containers(), request.filter.as_ref());
        Ok(cri::ListContainersResponse { containers: selected.iter().map(answer::container).collect() })
    }

    pub(super) async fn stream(
        &self,
        request: cri::StreamContainersRequest,
    ) -> Result<Batches<cri::StreamContainersResponse>, Status> {
        let selected = select::containers(self.runtime.store().containers(), request.filter.as_ref());
        let items = selected.into_iter().map(|container| answer::container(&container));
        Ok(batches(items, |containers| cri::StreamContainersResponse { containers }))
    }

    pub(super) async fn status_of(
        &self,
        request: cri::ContainerStatusRequest,
    ) -> Result<cri::ContainerStatusResponse, Status> {
        let asked = id(&request.container_id, "container_id")?;
        if self.runtime.damage_of_container(asked).is_some() {
            self.runtime.look_again().await;
        }
        if let Some((id, damage)) = self.runtime.damage_of_container(asked) {
            let status = Some(answer::damaged_container(id.as_str(), damage));
            return Ok(cri::ContainerStatusResponse { status, ..Default::default() });
        }
        let container = self.runtime.known_container(asked)?;
        let wait = self.runtime.store().pod(&container.record.pod).and_then(|pod| pod.waits_for());
        Ok(cri::ContainerStatusResponse {
            status: Some(answer::container_status(&container, wait.as_deref())),
            info: info(request.verbose, || {
                serde_json::json!({
                    "sandboxID": container.record.pod,
                    "pid": container.phase.run().map_or(0, |run| run.pid),
                    "phase": container.name_of_state(),
                    "waits_for": wait,
                    "cgroup": container.record.cgroup.as_str(),
                    "config": container.record.config,
                    "runtimeSpec": self.runtime.container_spec(&container),
                })
            }),
        })
    }

    /// The images a filter asks for.
    pub(super) fn images(
        &self,
        filter: Option<cri::ImageFilter>,
    ) -> Vec<std::sync::Arc<podhold_image::Image>> {
        let images = self.runtime.images();
        match filter.and_then(|filter| filter.image).filter(|spec| !spec.image.is_empty()) {
            None => images.list(),
            Some(spec) => images.find(&spec.image).into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[tokio::test]
    async fn batches_hold_each_object_once_and_stay_small() {
        let container = |n: usize, size: usize| cri::Container {
            id: n.to_string(),
            image_ref: "x".repeat(size),
            ..Default::default()
        };
        let sizes: Vec<usize> = (0..2000).map(|n| if n == 700 { 3 * BATCH } else { n * 3 % 4000 }).collect();
        let items = sizes.clone().into_iter().enumerate().map(move |(n, size)| container(n, size));
        let cut: Vec<_> =
            batches(items, |containers| cri::StreamContainersResponse { containers }).collect().await;
        let mut seen = Vec::new();
        for batch in cut {
            let batch = batch.unwrap();
            assert!(batch.encoded_len() <= BATCH || batch.containers.len() == 1);
            seen.extend(batch.containers.into_iter().map(|container| container.id));
        }
        assert_eq!(seen, (0..2000).map(|n| n.to_string()).collect::<Vec<_>>());
        let none = batches(std::iter::empty::<cri::Container>(), |containers| {
            cri::StreamContainersResponse { containers }
        });
        assert_eq!(none.count().await, 0, "an empty list is an empty stream");
    }
}
