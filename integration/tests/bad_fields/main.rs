//! Each field of each request: missing, empty, absurdly large, no value of its enum. The requests are made
//! from the protocol's descriptors, so that a new field is in the table from its first day. The daemon
//! takes what it can, refuses the rest with a code and a message of use, stays up and leaks nothing.

#![allow(clippy::unwrap_used, reason = "a test")]

mod variants;

use std::{collections::BTreeMap, path::Path, time::Duration};

use podhold_integration::{
    configs, raw, rig,
    rig::{PROBE, Rig},
};
use podhold_proto::cri::*;
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor, prost::Message};
use tokio::time::timeout;
use tonic::{Code, Status};

/// How long any answer may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest message a person reads, and well below what clients take in a header.
const LONGEST_MESSAGE: usize = 4096;

/// What a request that cannot be met may be answered with.
const REFUSALS: [Code; 4] =
    [Code::InvalidArgument, Code::NotFound, Code::FailedPrecondition, Code::Unimplemented];
/// What else of images: registries that are not there, or want another name.
const OF_REGISTRIES: [Code; 3] = [Code::Unavailable, Code::Unauthenticated, Code::PermissionDenied];

/// What came of all cases.
#[derive(Default)]
struct Table {
    answers: BTreeMap<String, usize>,
    wrong: Vec<String>,
}

impl Table {
    fn judge(&mut self, rpc: &str, path: &str, what: &str, answer: &Result<Vec<u8>, Status>) {
        let status = match answer {
            Ok(_) => {
                *self.answers.entry("OK".into()).or_default() += 1;
                return;
            }
            Err(status) => status,
        };
        *self.answers.entry(format!("{:?}", status.code())).or_default() += 1;
        let of_image = rpc == "PullImage" && OF_REGISTRIES.contains(&status.code());
        let message = status.message();
        let shown: String = message.chars().take(300).collect();
        if !REFUSALS.contains(&status.code()) && !of_image {
            self.wrong.push(format!("{rpc} {path} {what}: {:?}: {shown}", status.code()));
        } else if message.is_empty() || message.len() > LONGEST_MESSAGE {
            self.wrong.push(format!("{rpc} {path} {what}: a message of {} bytes: {shown}", message.len()));
        } else if status.code() == Code::InvalidArgument && !names(message, path, what) {
            self.wrong.push(format!("{rpc} {path} {what}: the field is not named: {shown}"));
        }
    }

    fn finish(self, what: &str) {
        let count: usize = self.answers.values().sum();
        println!("{what}: {count} cases: {:?}", self.answers);
        assert!(self.wrong.is_empty(), "{} of {count} cases:\n{}", self.wrong.len(), self.wrong.join("\n"));
    }
}

/// Whether a message names the field, or one beside or within it.
fn names(message: &str, path: &str, what: &str) -> bool {
    // Of an empty part the message names what is missing in it; a user may come from the image as well.
    let of_user = path.ends_with("run_as_username") && message.starts_with("user: ");
    what == "empty" || of_user || path.split('.').any(|part| message.contains(part))
}

fn pool() -> DescriptorPool {
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto");
    let files = protox::compile(["cri/v1/api.proto"], [proto]).unwrap();
    DescriptorPool::from_file_descriptor_set(files).unwrap()
}

fn method(pool: &DescriptorPool, rpc: &str) -> MethodDescriptor {
    pool.services()
        .flat_map(|service| service.methods().collect::<Vec<_>>())
        .find(|m| m.name() == rpc)
        .unwrap()
}

async fn send(rig: &Rig, method: &MethodDescriptor, request: &DynamicMessage) -> Result<Vec<u8>, Status> {
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let request = request.encode_to_vec();
    let call = raw::call(&rig.cri().channel, &path, request, method.is_server_streaming());
    let answer = timeout(PATIENCE, call).await.unwrap_or_else(|_| panic!("{path} does not answer"));
    answer.map(Vec::from)
}

fn dynamic(method: &MethodDescriptor, base: &impl Message) -> DynamicMessage {
    DynamicMessage::decode(method.input(), base.encode_to_vec().as_slice()).unwrap()
}

/// A pod on the host's network, which costs no plugins.
fn host_pod(rig: &Rig, name: &str) -> PodSandboxConfig {
    let mut config = rig.pod(name);
    configs::Parts::namespaces(&mut config).network = NamespaceMode::Node.into();
    config
}

fn host_container(name: &str) -> ContainerConfig {
    let mut config = configs::container(name, PROBE, &["sleep"]);
    configs::Parts::namespaces(&mut config).network = NamespaceMode::Node.into();
    config
}

#[tokio::test]
async fn every_field_of_a_pod_is_taken_or_refused_well() {
    let rig = rig!();
    let pool = pool();
    let method = method(&pool, "RunPodSandbox");
    let mut table = Table::default();
    let base = RunPodSandboxRequest { config: Some(host_pod(&rig, "bad")), ..Default::default() };
    for variant in variants::of(&dynamic(&method, &base)) {
        let answer = send(&rig, &method, &variant.message).await;
        table.judge("RunPodSandbox", &variant.path, variant.what, &answer);
        if let Ok(answer) = answer {
            let pod = RunPodSandboxResponse::decode(answer.as_slice()).unwrap().pod_sandbox_id;
            rig.cri().end_pod(&pod).await.unwrap();
        }
    }
    table.finish("RunPodSandbox");
    rig.finish().await;
}

#[tokio::test]
async fn every_field_of_a_container_is_taken_or_refused_well() {
    let rig = rig!();
    let pool = pool();
    let method = method(&pool, "CreateContainer");
    let mut table = Table::default();
    let config = host_pod(&rig, "bad");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let base = CreateContainerRequest {
        pod_sandbox_id: pod.clone(),
        config: Some(host_container("bad")),
        sandbox_config: Some(config),
    };
    let variants = variants::of(&dynamic(&method, &base));
    for variant in variants.into_iter().filter(|variant| !variant.path.starts_with("sandbox_config.")) {
        let answer = send(&rig, &method, &variant.message).await;
        table.judge("CreateContainer", &variant.path, variant.what, &answer);
        if let Ok(answer) = answer {
            let id = CreateContainerResponse::decode(answer.as_slice()).unwrap().container_id;
            let started = rig.cri().start(&id).await.map(|()| Vec::new());
            table.judge("StartContainer after", &variant.path, variant.what, &started);
            rig.cri().remove(&id).await.unwrap();
        }
    }
    table.finish("CreateContainer");
    // A container that is for ever being made is not listed, but keeps the pod from ending.
    timeout(PATIENCE, rig.cri().end_pod(&pod)).await.expect("nothing keeps the pod").unwrap();
    rig.finish().await;
}

/// A valid request for each of the other RPCs, of a pod, a created container and a running one.
fn others(pod: &str, created: &str, running: &str) -> Vec<(&'static str, Vec<u8>)> {
    let (pod, created, running) = (pod.to_owned(), created.to_owned(), running.to_owned());
    let spec = || Some(ImageSpec { image: PROBE.into(), ..Default::default() });
    let command = || vec!["/probe".to_owned(), "exit".into(), "0".into()];
    let limits = || Some(LinuxContainerResources { cpu_shares: 100, ..Default::default() });
    vec![
        (
            "PodSandboxStatus",
            PodSandboxStatusRequest { pod_sandbox_id: pod.clone(), verbose: true }.encode_to_vec(),
        ),
        (
            "ContainerStatus",
            ContainerStatusRequest { container_id: running.clone(), verbose: true }.encode_to_vec(),
        ),
        ("StartContainer", StartContainerRequest { container_id: running.clone() }.encode_to_vec()),
        ("StopContainer", StopContainerRequest { container_id: created, timeout: 0 }.encode_to_vec()),
        ("ReopenContainerLog", ReopenContainerLogRequest { container_id: running.clone() }.encode_to_vec()),
        (
            "ExecSync",
            ExecSyncRequest { container_id: running.clone(), cmd: command(), timeout: 10 }.encode_to_vec(),
        ),
        (
            "Exec",
            ExecRequest { container_id: running.clone(), cmd: command(), stdout: true, ..Default::default() }
                .encode_to_vec(),
        ),
        (
            "Attach",
            AttachRequest { container_id: running.clone(), stdout: true, ..Default::default() }
                .encode_to_vec(),
        ),
        ("PortForward", PortForwardRequest { pod_sandbox_id: pod.clone(), port: vec![80] }.encode_to_vec()),
        (
            "UpdateContainerResources",
            UpdateContainerResourcesRequest {
                container_id: running.clone(),
                linux: limits(),
                ..Default::default()
            }
            .encode_to_vec(),
        ),
        (
            "UpdatePodSandboxResources",
            UpdatePodSandboxResourcesRequest {
                pod_sandbox_id: pod.clone(),
                overhead: limits(),
                resources: limits(),
            }
            .encode_to_vec(),
        ),
        ("PodSandboxStats", PodSandboxStatsRequest { pod_sandbox_id: pod }.encode_to_vec()),
        ("ContainerStats", ContainerStatsRequest { container_id: running }.encode_to_vec()),
        ("ImageStatus", ImageStatusRequest { image: spec(), verbose: true }.encode_to_vec()),
        ("PullImage", PullImageRequest { image: spec(), ..Default::default() }.encode_to_vec()),
        (
            "RemoveImage",
            RemoveImageRequest { image: Some(ImageSpec { image: "no/such:1".into(), ..Default::default() }) }
                .encode_to_vec(),
        ),
        (
            "UpdateRuntimeConfig",
            UpdateRuntimeConfigRequest {
                runtime_config: Some(RuntimeConfig {
                    network_config: Some(NetworkConfig { pod_cidr: "10.1.0.0/16".into() }),
                }),
            }
            .encode_to_vec(),
        ),
    ]
}

#[tokio::test]
async fn every_field_of_every_other_request_is_taken_or_refused_well() {
    let rig = rig!();
    let pool = pool();
    let config = host_pod(&rig, "pod");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let created = rig.cri().create(&pod, &config, &host_container("created")).await.unwrap();
    let running = rig.run(&pod, &config, &host_container("running")).await;
    let bases: BTreeMap<_, _> = others(&pod, &created, &running).into_iter().collect();
    let mut table = Table::default();
    let services = pool.services().collect::<Vec<_>>();
    for method in services.iter().flat_map(|service| service.methods().collect::<Vec<_>>()) {
        let rpc = method.name();
        // Those have tests of their own; events never end.
        if ["RunPodSandbox", "CreateContainer", "GetContainerEvents"].contains(&rpc) {
            continue;
        }
        let base = bases.get(rpc).cloned().unwrap_or_default();
        let base = DynamicMessage::decode(method.input(), base.as_slice()).unwrap();
        for variant in variants::of(&base) {
            if rpc == "PullImage" && variant.path.starts_with("sandbox_config.") {
                continue;
            }
            let answer = send(&rig, &method, &variant.message).await;
            table.judge(rpc, &variant.path, variant.what, &answer);
        }
    }
    assert_eq!(rig.cri().status(&running).await.unwrap().state(), ContainerState::ContainerRunning);
    table.finish("all other requests");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}
