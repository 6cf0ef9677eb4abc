//! A client of the CRI socket, with the verbs that tests use in one call each.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use podhold_proto::cri::{
    image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient, *,
};
use tokio::{
    net::UnixStream,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

/// Largest message that is taken: two full outputs of ExecSync and something over.
const LARGEST: usize = 40 << 20;

/// How often a state is asked for that no event tells about.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// A connection to a runtime.
#[derive(Debug, Clone)]
pub struct Cri {
    /// The RuntimeService, for calls that have no method here.
    pub runtime: RuntimeServiceClient<Channel>,
    /// The ImageService.
    pub images: ImageServiceClient<Channel>,
    /// The connection of both, for messages that have no type.
    pub channel: Channel,
}

impl Cri {
    /// Connects to the socket at `path`, which must exist.
    pub async fn connect(path: &Path) -> Result<Self, tonic::transport::Error> {
        let path: PathBuf = path.to_owned();
        let connect = tower::service_fn(move |_| {
            let path = path.clone();
            async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        // The address is not used: the connector goes to the socket.
        let channel = Endpoint::from_static("http://localhost").connect_with_connector(connect).await?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(LARGEST),
            images: ImageServiceClient::new(channel.clone()).max_decoding_message_size(LARGEST),
            channel,
        })
    }

    /// Tries to connect and to get an answer until `limit` is over; then gives the last error in words.
    pub async fn connect_within(path: &Path, limit: Duration) -> Result<Self, String> {
        let deadline = Instant::now() + limit;
        let mut ticks = interval(ASK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let last = match Self::connect(path).await {
                Ok(mut cri) => match cri.runtime.version(VersionRequest::default()).await {
                    Ok(_) => return Ok(cri),
                    Err(status) => status.to_string(),
                },
                Err(error) => error.to_string(),
            };
            if Instant::now() >= deadline {
                return Err(last);
            }
        }
    }

    /// RunPodSandbox with the default handler; answers the pod's id.
    pub async fn run_pod(&self, config: &PodSandboxConfig) -> Result<String, Status> {
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        Ok(self.runtime.clone().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    /// StopPodSandbox, then RemovePodSandbox.
    pub async fn end_pod(&self, pod: &str) -> Result<(), Status> {
        self.stop_pod(pod).await?;
        self.remove_pod(pod).await
    }

    /// StopPodSandbox.
    pub async fn stop_pod(&self, pod: &str) -> Result<(), Status> {
        let request = StopPodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        self.runtime.clone().stop_pod_sandbox(request).await.map(drop)
    }

    /// RemovePodSandbox.
    pub async fn remove_pod(&self, pod: &str) -> Result<(), Status> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        self.runtime.clone().remove_pod_sandbox(request).await.map(drop)
    }

    /// PodSandboxStatus.
    pub async fn pod_status(&self, pod: &str) -> Result<PodSandboxStatus, Status> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod.to_owned(), verbose: false };
        let answer = self.runtime.clone().pod_sandbox_status(request).await?.into_inner();
        answer.status.ok_or_else(|| Status::internal("the answer has no status"))
    }

    /// CreateContainer; answers the container's id.
    pub async fn create(
        &self,
        pod: &str,
        pod_config: &PodSandboxConfig,
        config: &ContainerConfig,
    ) -> Result<String, Status> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config.clone()),
            sandbox_config: Some(pod_config.clone()),
        };
        Ok(self.runtime.clone().create_container(request).await?.into_inner().container_id)
    }

    /// StartContainer.
    pub async fn start(&self, container: &str) -> Result<(), Status> {
        let request = StartContainerRequest { container_id: container.to_owned() };
        self.runtime.clone().start_container(request).await.map(drop)
    }

    /// CreateContainer and StartContainer; answers the container's id.
    pub async fn run(
        &self,
        pod: &str,
        pod_config: &PodSandboxConfig,
        config: &ContainerConfig,
    ) -> Result<String, Status> {
        let container = self.create(pod, pod_config, config).await?;
        self.start(&container).await?;
        Ok(container)
    }

    /// UpdateContainerResources of the CPU shares alone.
    pub async fn update_shares(&self, container: &str, shares: i64) -> Result<(), Status> {
        let linux = Some(LinuxContainerResources { cpu_shares: shares, ..Default::default() });
        let request = UpdateContainerResourcesRequest {
            container_id: container.to_owned(),
            linux,
            ..Default::default()
        };
        self.runtime.clone().update_container_resources(request).await.map(drop)
    }

    /// StopContainer with `grace` seconds.
    pub async fn stop(&self, container: &str, grace: i64) -> Result<(), Status> {
        let request = StopContainerRequest { container_id: container.to_owned(), timeout: grace };
        self.runtime.clone().stop_container(request).await.map(drop)
    }

    /// RemoveContainer.
    pub async fn remove(&self, container: &str) -> Result<(), Status> {
        let request = RemoveContainerRequest { container_id: container.to_owned() };
        self.runtime.clone().remove_container(request).await.map(drop)
    }

    /// ContainerStatus.
    pub async fn status(&self, container: &str) -> Result<ContainerStatus, Status> {
        let request = ContainerStatusRequest { container_id: container.to_owned(), verbose: false };
        let answer = self.runtime.clone().container_status(request).await?.into_inner();
        answer.status.ok_or_else(|| Status::internal("the answer has no status"))
    }

    /// Waits until a container has ended; answers its last status, DEADLINE_EXCEEDED after `limit`.
    pub async fn ended(&self, container: &str, limit: Duration) -> Result<ContainerStatus, Status> {
        let wait = async {
            let mut ticks = interval(ASK_EVERY);
            loop {
                ticks.tick().await;
                let status = self.status(container).await?;
                if status.state() == ContainerState::ContainerExited {
                    return Ok(status);
                }
            }
        };
        let late = |_| Status::deadline_exceeded(format!("{container} has not ended within {limit:?}"));
        timeout(limit, wait).await.map_err(late)?
    }

    /// ExecSync without a time limit.
    pub async fn exec(&self, container: &str, command: &[&str]) -> Result<ExecSyncResponse, Status> {
        self.exec_within(container, command, 0).await
    }

    /// ExecSync with a time limit in seconds.
    pub async fn exec_within(
        &self,
        container: &str,
        command: &[&str],
        seconds: i64,
    ) -> Result<ExecSyncResponse, Status> {
        let request = ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout: seconds,
        };
        Ok(self.runtime.clone().exec_sync(request).await?.into_inner())
    }

    /// ExecSync of a command that has to succeed; answers its standard output.
    ///
    /// # Panics
    /// When it ends with another code than 0.
    pub async fn exec_well(&self, container: &str, command: &[&str]) -> Result<String, Status> {
        let done = self.exec(container, command).await?;
        let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        assert_eq!(done.exit_code, 0, "{command:?}: {out}{err}");
        Ok(out.into_owned())
    }

    /// PullImage without credentials; answers the image reference.
    pub async fn pull(&self, image: &str) -> Result<String, Status> {
        let image = Some(ImageSpec { image: image.to_owned(), ..Default::default() });
        let request = PullImageRequest { image, auth: None, sandbox_config: None };
        Ok(self.images.clone().pull_image(request).await?.into_inner().image_ref)
    }

    /// RemoveImage.
    pub async fn remove_image(&self, image: &str) -> Result<(), Status> {
        let image = Some(ImageSpec { image: image.to_owned(), ..Default::default() });
        self.images.clone().remove_image(RemoveImageRequest { image }).await.map(drop)
    }

    /// All pods.
    pub async fn list_pods(&self) -> Result<Vec<PodSandbox>, Status> {
        let request = ListPodSandboxRequest::default();
        Ok(self.runtime.clone().list_pod_sandbox(request).await?.into_inner().items)
    }

    /// All containers.
    pub async fn list_containers(&self) -> Result<Vec<Container>, Status> {
        let request = ListContainersRequest::default();
        Ok(self.runtime.clone().list_containers(request).await?.into_inner().containers)
    }

    /// ListImages without a filter.
    pub async fn list_images(&self) -> Result<Vec<Image>, Status> {
        Ok(self.images.clone().list_images(ListImagesRequest::default()).await?.into_inner().images)
    }
}
