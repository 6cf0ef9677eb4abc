//! What the kernel has, beside what the daemon says, when nobody asks anything.

use std::{collections::BTreeSet, fs, io, time::Duration};

use podhold_proto::cri::*;
use tokio::time::{Instant, interval};

use crate::rig::Rig;

/// How long what was begun may take to come to its end.
const SETTLE: Duration = Duration::from_secs(30);

/// The processes of a machine that belong to pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Processes {
    /// Pids of workloads.
    pub workloads: BTreeSet<i32>,
    /// Pods that have a shim.
    pub shims: BTreeSet<String>,
}

impl Processes {
    /// What the kernel has now.
    pub fn now(rig: &Rig) -> io::Result<Self> {
        let mut found = Self::default();
        for entry in fs::read_dir(rig.machine.process(1).with_file_name(""))? {
            let entry = entry?;
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // Dead ones have no command line any more.
            let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
            let words: Vec<String> = line
                .split(|byte| *byte == 0)
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .collect();
            match words[0].as_str() {
                "/probe" => {
                    found.workloads.insert(pid);
                }
                "podhold-shim" => found.shims.extend(words.get(3).cloned()),
                _ => {}
            }
        }
        Ok(found)
    }

    /// What the daemon says.
    async fn told(rig: &Rig) -> Result<Self, tonic::Status> {
        let mut told = Self::default();
        let mut client = rig.cri().runtime.clone();
        for pod in rig.cri().list_pods().await? {
            if pod.state() == PodSandboxState::SandboxReady {
                told.shims.insert(pod.id);
            }
        }
        let all = client.list_containers(ListContainersRequest::default()).await?.into_inner().containers;
        for container in all {
            match container.state() {
                ContainerState::ContainerRunning => {
                    told.workloads.insert(pid(rig, &container.id).await?);
                }
                ContainerState::ContainerUnknown => {
                    return Err(tonic::Status::unknown(format!("container {} is Unknown", container.id)));
                }
                _ => {}
            }
        }
        Ok(told)
    }
}

/// The pids, as the machine has them, of a pod's processes of this name: `podhold-shim`, `pause`.
pub fn of_pod(rig: &Rig, pod: &str, program: &str) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(rig.machine.process(1).with_file_name(""))? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let read = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
        let text = |file: &str| String::from_utf8_lossy(&read(file)).into_owned();
        // A shim names its pod; pause is in a cgroup of it.
        let named = text("cmdline").contains(program) || text("comm").trim_end() == program;
        if named && (text("cmdline").contains(pod) || text("cgroup").contains(pod)) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// The pid of a container's first process, as the machine has it; 0 when it does not run.
pub async fn pid(rig: &Rig, container: &str) -> Result<i32, tonic::Status> {
    let request = ContainerStatusRequest { container_id: container.to_owned(), verbose: true };
    let answer = rig.cri().runtime.clone().container_status(request).await?.into_inner();
    let info = answer.info.values().find_map(|text| serde_json::from_str::<serde_json::Value>(text).ok());
    let pid = info.and_then(|info| info["pid"].as_i64()).unwrap_or_default();
    Ok(i32::try_from(pid).unwrap_or_default())
}

/// Waits until the daemon says what the kernel has: each running container has its process, every process a
/// container that is said to run, each Ready pod a shim and no other pod one.
///
/// # Errors
/// The difference, when it stays.
pub async fn holds(rig: &Rig) -> Result<(), String> {
    holds_but_for(rig, &BTreeSet::new()).await
}

/// As [`holds`]; these pods have lost their pause process: they are not ready, and have a shim until they are
/// stopped.
///
/// # Errors
/// As for that.
pub async fn holds_but_for(rig: &Rig, unpaused: &BTreeSet<String>) -> Result<(), String> {
    let deadline = Instant::now() + SETTLE;
    let mut ticks = interval(Duration::from_millis(50));
    loop {
        ticks.tick().await;
        let told = Processes::told(rig).await.map_err(|status| status.to_string());
        let mut kernel = Processes::now(rig).map_err(|error| error.to_string())?;
        kernel.shims.retain(|pod| !unpaused.contains(pod));
        if told.as_ref() == Ok(&kernel) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(format!("the daemon says {told:?}\nthe kernel has {kernel:?}"));
        }
    }
}
