//! Whether what the second daemon says is true, and whether every object can be gone on with.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use podhold_proto::cri::{Container, ContainerState, ContainerStatus, PodSandbox, PodSandboxState};
use tokio::time::{Duration, Instant, interval};
use tonic::{Code, Status};

use super::{
    Outcome, PATIENCE, Verb,
    stage::{SHARES, Stage, pulled},
};
use crate::rig::Rig;

/// What the daemon lists.
struct Seen {
    pods: Vec<PodSandbox>,
    containers: Vec<Container>,
    image: bool,
    /// CPU shares, where a container is updated.
    shares: Option<i64>,
}

/// Looks at what was left, calls the verb again, uses the object, removes everything.
pub(super) async fn judge(rig: &Rig, verb: Verb, stage: &Stage) -> (Outcome, Vec<String>) {
    let mut faults = Vec::new();
    let seen = look(rig, verb, &mut faults).await;
    let outcome = outcome(verb, &seen);
    no_twins(&seen, &mut faults);
    truth(rig, &mut faults).await;
    match call_again(rig, verb, stage).await {
        Err(status) => faults.push(format!("the same call again ({outcome:?}): {status}")),
        Ok(()) => {
            truth(rig, &mut faults).await;
            let now = look(rig, verb, &mut faults).await;
            no_twins(&now, &mut faults);
            if self::outcome(verb, &now) != Outcome::Done {
                faults.push(format!("the same call has succeeded ({outcome:?}) and left {}", now.words()));
            }
            if let Err(what) = go_on(rig, verb, stage, &now).await {
                faults.push(what);
            }
        }
    }
    end(rig, verb, &mut faults).await;
    (outcome, faults)
}

impl Seen {
    fn words(&self) -> String {
        let pods = self.pods.iter().map(|pod| pod.state().as_str_name());
        let containers = self.containers.iter().map(|container| container.state().as_str_name());
        pods.chain(containers).collect::<Vec<_>>().join(", ")
    }
}

async fn look(rig: &Rig, verb: Verb, faults: &mut Vec<String>) -> Seen {
    let cri = rig.cri();
    let mut said = |what: &str, status: Status| faults.push(format!("{what}: {status}"));
    let pods = cri.list_pods().await.unwrap_or_else(|status| {
        said("list pods", status);
        Vec::new()
    });
    let containers = cri.list_containers().await.unwrap_or_else(|status| {
        said("list containers", status);
        Vec::new()
    });
    let images = cri.list_images().await.unwrap_or_else(|status| {
        said("list images", status);
        Vec::new()
    });
    let image = verb == Verb::Pull && images.iter().any(|image| image.repo_tags.contains(&pulled()));
    let updated = matches!(verb, Verb::UpdateCreated | Verb::UpdateRunning);
    let mut shares = None;
    for container in containers.iter().filter(|_| updated) {
        match cri.status(&container.id).await {
            Ok(status) => shares = Some(linux_shares(&status)),
            Err(status) => said("status", status),
        }
    }
    Seen { pods, containers, image, shares }
}

fn linux_shares(status: &ContainerStatus) -> i64 {
    let linux = status.resources.as_ref().and_then(|resources| resources.linux.as_ref());
    linux.map_or(0, |linux| linux.cpu_shares)
}

/// How far the verb has come.
fn outcome(verb: Verb, seen: &Seen) -> Outcome {
    let pod = seen.pods.first().map(PodSandbox::state);
    let container = seen.containers.first().map(Container::state);
    let pick = |done: bool, before: bool| match (done, before) {
        (true, _) => Outcome::Done,
        (_, true) => Outcome::Before,
        _ => Outcome::Between,
    };
    let (ready, not_ready) = (Some(PodSandboxState::SandboxReady), Some(PodSandboxState::SandboxNotready));
    let created = Some(ContainerState::ContainerCreated);
    let running = Some(ContainerState::ContainerRunning);
    let exited = Some(ContainerState::ContainerExited);
    let updated = seen.shares == Some(SHARES);
    match verb {
        Verb::RunPod | Verb::RunUserPod | Verb::RunPlacedPod => pick(pod == ready, pod.is_none()),
        Verb::Create | Verb::CreateWithVolume | Verb::CreateInUserPod => {
            pick(container == created, container.is_none())
        }
        Verb::UpdateCreated => pick(container == created && updated, container == created),
        Verb::UpdateRunning => pick(container == running && updated, container == running),
        Verb::Start => pick(container == running, container == created),
        Verb::Stop | Verb::StopByForce => pick(container == exited, container == running),
        Verb::Remove | Verb::RemoveWithVolume => pick(container.is_none(), container == running),
        Verb::RemoveEnded => pick(container.is_none(), container == exited),
        Verb::StopPod => pick(pod == not_ready && container == exited, pod == ready && container == running),
        Verb::RemovePod | Verb::RemovePlacedPod => pick(pod.is_none(), pod == ready && container == running),
        Verb::RemoveStoppedPod => pick(pod.is_none(), pod == not_ready && container == exited),
        Verb::Pull => pick(seen.image, !seen.image),
    }
}

/// Each run has one pod with one container.
fn no_twins(seen: &Seen, faults: &mut Vec<String>) {
    if seen.pods.len() > 1 {
        faults.push(format!("a twin: {} pods", seen.pods.len()));
    }
    if seen.containers.len() > 1 {
        faults.push(format!("a twin: {} containers", seen.containers.len()));
    }
}

/// The call again, as a kubelet does: one that says "ask again" is asked again, and what it says is to be
/// removed is removed.
async fn call_again(rig: &Rig, verb: Verb, stage: &Stage) -> Result<(), Status> {
    let deadline = Instant::now() + PATIENCE;
    let mut ticks = interval(Duration::from_millis(50));
    loop {
        ticks.tick().await;
        let answer = tokio::time::timeout_at(deadline, stage.call(rig.cri(), verb)).await;
        match answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer"))) {
            Err(status) if says(&status, "ask again") && Instant::now() < deadline => {}
            Err(status) if says(&status, "remove it") && Instant::now() < deadline => {
                remove_unfinished(rig, stage).await?;
            }
            answer => return answer,
        }
    }
}

fn says(status: &Status, what: &str) -> bool {
    status.code() == Code::FailedPrecondition && status.message().contains(what)
}

/// Removes what is in the way of another attempt.
async fn remove_unfinished(rig: &Rig, stage: &Stage) -> Result<(), Status> {
    let cri = rig.cri();
    for container in cri.list_containers().await? {
        cri.remove(&container.id).await?;
    }
    for pod in cri.list_pods().await? {
        if pod.id != stage.pod {
            cri.remove_pod(&pod.id).await?;
        }
    }
    Ok(())
}

/// Waits until the processes there are are those the daemon says there are: its list is ahead of the
/// kernel, or behind it, for a moment only.
async fn truth(rig: &Rig, faults: &mut Vec<String>) {
    let deadline = Instant::now() + PATIENCE;
    let mut ticks = interval(Duration::from_millis(20));
    loop {
        ticks.tick().await;
        let Ok(list) = rig.cri().list_containers().await else { return };
        let running = list.iter().filter(|one| one.state() == ContainerState::ContainerRunning);
        let said: BTreeMap<String, usize> = running.map(|one| (one.id.clone(), 1)).collect();
        let there = processes(&rig.cgroup);
        if said == there {
            return;
        }
        if Instant::now() >= deadline {
            faults.push(format!("said to run: {said:?}; there are: {there:?}"));
            return;
        }
    }
}

/// How many processes each container has, by its cgroup.
fn processes(parent: &str) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    let root = Path::new("/sys/fs/cgroup");
    // Not every hierarchy of version 1 is one that containers are put into.
    for hierarchy in std::iter::once(root.to_owned()).chain(directories(root)) {
        count(&hierarchy.join(parent), &mut found);
    }
    found
}

/// Counts the processes of every cgroup beneath that has a container's name.
fn count(cgroup: &Path, found: &mut BTreeMap<String, usize>) {
    for below in directories(cgroup) {
        let name = below.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let own = fs::read_to_string(below.join("cgroup.procs")).unwrap_or_default().lines().count();
        if own > 0 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let most = found.entry(name).or_insert(0);
            *most = own.max(*most);
        }
        count(&below, found);
    }
}

fn directories(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// Uses what the verb has made.
async fn go_on(rig: &Rig, verb: Verb, stage: &Stage, now: &Seen) -> Result<(), String> {
    let cri = rig.cri();
    let failed = |what: &'static str| move |status: Status| format!("{what}: {status}");
    match verb {
        Verb::RunPod | Verb::RunUserPod | Verb::RunPlacedPod => {
            let pod = now.pods.first().map(|pod| pod.id.clone()).unwrap_or_default();
            let run = cri.run(&pod, &stage.pod_config, &stage.container_config).await;
            let container = run.map_err(failed("a container in the pod"))?;
            exec(rig, &container).await
        }
        Verb::Create | Verb::CreateWithVolume | Verb::CreateInUserPod => {
            let container = now.containers.first().map(|one| one.id.clone()).unwrap_or_default();
            cri.start(&container).await.map_err(failed("start the container"))?;
            exec(rig, &container).await
        }
        Verb::UpdateCreated => {
            cri.start(&stage.container).await.map_err(failed("start the container"))?;
            exec(rig, &stage.container).await
        }
        Verb::Start | Verb::UpdateRunning => exec(rig, &stage.container).await,
        Verb::Remove | Verb::RemoveEnded | Verb::RemoveWithVolume => {
            // Its name is free again.
            let run = cri.run(&stage.pod, &stage.pod_config, &stage.container_config).await;
            run.map(drop).map_err(failed("another container of the same name"))
        }
        Verb::Stop | Verb::StopByForce | Verb::StopPod => {
            let status = cri.status(&stage.container).await.map_err(failed("status"))?;
            let by_signal = matches!(status.exit_code, 0 | 137 | 143);
            by_signal.then_some(()).ok_or_else(|| format!("exit code {}", status.exit_code))
        }
        Verb::RemovePod | Verb::RemovePlacedPod | Verb::RemoveStoppedPod | Verb::Pull => Ok(()),
    }
}

async fn exec(rig: &Rig, container: &str) -> Result<(), String> {
    match rig.cri().exec(container, &["/probe", "exit", "3"]).await {
        Ok(answer) if answer.exit_code == 3 => Ok(()),
        Ok(answer) => Err(format!("exec in the container: exit code {}", answer.exit_code)),
        Err(status) => Err(format!("exec in the container: {status}")),
    }
}

/// Removes everything.
pub(super) async fn end(rig: &Rig, verb: Verb, faults: &mut Vec<String>) {
    let cri = rig.cri();
    for pod in cri.list_pods().await.unwrap_or_default() {
        let ended = tokio::time::timeout(PATIENCE, cri.end_pod(&pod.id)).await;
        if let Err(status) = ended.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer"))) {
            faults.push(format!("end pod: {status}"));
        }
    }
    if verb == Verb::Pull
        && let Err(status) = cri.remove_image(&pulled()).await
    {
        faults.push(format!("remove the image: {status}"));
    }
    let left = look(rig, verb, faults).await;
    if !left.pods.is_empty() || !left.containers.is_empty() || left.image {
        faults.push(format!("still listed at the end: {}", left.words()));
    }
}
