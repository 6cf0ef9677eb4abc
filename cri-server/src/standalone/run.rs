//! Runs one manifest from beginning to end: images, init containers one after another, app containers at
//! once, and everything removed again.

use std::{path::PathBuf, sync::Arc, time::Duration};

use podhold_sandbox::{ContainerId, PodId};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinHandle,
};

use super::{
    logs::{self, Label},
    manifest::Manifest,
    plan,
    request::{self, ContainerRequest, PodFacts, Pull, Requests},
    volume,
};
use crate::{
    config::Config,
    error::{Error, Result},
    runtime::Runtime,
    state::{Container, ContainerPhase, Ended, Hidden, Pod},
};

/// Exit codes of a pod that was told to end, as shells give them: 128 and the signal.
const INTERRUPTED: u8 = 130;
const TERMINATED: u8 = 143;

/// Runs a pod and returns its exit code: that of the first container of the manifest that failed, or 0.
///
/// Whatever happens, the pod is removed before this returns.
pub async fn run(manifest: Manifest, config: Config) -> Result<u8> {
    let runtime = Runtime::open(config).await?;
    let left = remove_pods(&runtime, |_| true).await.and(remove_damaged(&runtime).await);
    if let Err(error) = left {
        eprintln!("podhold: what an earlier run left could not all be removed: {error}");
    }
    let place = plan::place(&manifest, runtime.config());
    let requests = request::requests(&manifest, &place)
        .map_err(|error| Error::invalid("manifest", error.to_string()))?;
    for note in &requests.notes {
        eprintln!("podhold: note: {note}");
    }
    for left in [&place.dir, &place.disk] {
        volume::remove(left)?;
    }
    pull_images(&runtime, &requests).await?;
    make_directories(&requests)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::doing("signals"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::doing("signals"))?;
    let show = Show::new(&requests);
    let told_to_end = |code| {
        show.say("told to end; stopping the pod");
        Ok(code)
    };
    let result = tokio::select! {
        code = run_pod(&runtime, &requests, &show) => code,
        _ = interrupt.recv() => told_to_end(INTERRUPTED),
        _ = terminate.recv() => told_to_end(TERMINATED),
    };
    let removed = tokio::select! {
        removed = remove_pod(&runtime, &requests, requests.grace) => removed,
        // The second signal ends the grace.
        _ = interrupt.recv() => remove_pod(&runtime, &requests, Duration::ZERO).await,
        _ = terminate.recv() => remove_pod(&runtime, &requests, Duration::ZERO).await,
    };
    let removed = removed.and(volume::remove(&place.dir)).and(volume::remove(&place.disk));
    runtime.close().await;
    match (result, removed) {
        // Why it failed says more than what could not be cleaned up after it.
        (Err(error), _) | (Ok(_), Err(error)) => Err(error),
        (Ok(code), Ok(())) => Ok(code),
    }
}

/// Removes the pods that `which` chooses; after a kill there are pods of earlier runs.
async fn remove_pods(runtime: &Arc<Runtime>, which: impl Fn(&Pod) -> bool) -> Result<()> {
    let pods = runtime.store().pods();
    let removals = pods.iter().filter(|pod| which(pod)).map(|pod| runtime.remove_pod(pod.record.id.as_str()));
    futures::future::join_all(removals).await.into_iter().collect()
}

/// Removes the pods of earlier runs whose records cannot be used any more: nobody else will.
async fn remove_damaged(runtime: &Arc<Runtime>) -> Result<()> {
    for damage in runtime.store().damaged() {
        if let Hidden::Pod(id) = &damage.hides {
            eprintln!(
                "podhold: removing a pod of an earlier run: {}: {}",
                damage.path.display(),
                damage.reason
            );
            runtime.remove_pod(id.as_str()).await?;
        }
    }
    Ok(())
}

/// Gives the running containers of this run's pod their grace, then removes it.
async fn remove_pod(runtime: &Arc<Runtime>, requests: &Requests, grace: Duration) -> Result<()> {
    let ours = |pod: &Pod| pod.record.config.metadata == requests.pod.metadata;
    let pods = runtime.store().pods();
    let containers = pods.iter().filter(|pod| ours(pod)).flat_map(|pod| &pod.containers);
    let stops = containers.map(|container| runtime.stop_container(container.as_str(), grace));
    futures::future::try_join_all(stops).await?;
    remove_pods(runtime, ours).await
}

fn make_directories(requests: &Requests) -> Result<()> {
    let logs = PathBuf::from(&requests.pod.log_directory);
    std::fs::create_dir_all(&logs).map_err(Error::doing(format!("making {}", logs.display())))?;
    requests.volumes.make()
}

async fn pull_images(runtime: &Arc<Runtime>, requests: &Requests) -> Result<()> {
    let mut done = std::collections::BTreeSet::new();
    for (image, pull) in requests.images() {
        let there = runtime.images().find(image).is_some();
        let wanted = match pull {
            Pull::Always => true,
            Pull::IfNotPresent => !there,
            Pull::Never if there => false,
            Pull::Never => return Err(Error::not_found("image (imagePullPolicy: Never)", image)),
        };
        if wanted && done.insert(image) {
            eprintln!("podhold: pulling {image}");
            runtime.pull_image(image, requests.credentials(image), None).await?;
        }
    }
    Ok(())
}

async fn run_pod(runtime: &Arc<Runtime>, requests: &Requests, show: &Show) -> Result<u8> {
    let pod = runtime.run_pod(requests.pod.clone(), String::new()).await?;
    let addresses = runtime.store().pod(&pod).map(|pod| pod.record.ips.clone()).unwrap_or_default();
    let facts = requests.learn(&addresses)?;
    let known = Known { requests, facts };
    for (index, request) in requests.init.iter().enumerate() {
        let running = begin(runtime, &pod, request, &known, show.label(index)).await?;
        let (name, ended) = running.end(runtime).await?;
        if ended.code != 0 {
            show.failed("init container", &name, &ended);
            return Ok(exit_code(ended.code));
        }
    }
    let first = requests.init.len();
    let begun = requests
        .apps
        .iter()
        .enumerate()
        .map(|(index, request)| begin(runtime, &pod, request, &known, show.label(first + index)));
    let running = futures::future::try_join_all(begun).await?;
    let ends = running.into_iter().map(|container| container.end(runtime));
    let mut code = 0;
    for (name, ended) in futures::future::try_join_all(ends).await? {
        if ended.code != 0 {
            show.failed("container", &name, &ended);
            if code == 0 {
                code = exit_code(ended.code);
            }
        }
    }
    Ok(code)
}

/// A pod that runs.
struct Known<'a> {
    requests: &'a Requests,
    facts: PodFacts,
}

/// A container that was started and whose log is followed.
struct Running {
    id: ContainerId,
    name: String,
    over: watch::Sender<bool>,
    log: JoinHandle<std::io::Result<()>>,
}

async fn begin(
    runtime: &Arc<Runtime>,
    pod: &PodId,
    request: &ContainerRequest,
    known: &Known<'_>,
    label: Label,
) -> Result<Running> {
    let name = request.config.image.clone().unwrap_or_default().image;
    let image = runtime.images().find(&name);
    let user = image.and_then(|image| image.config.config().as_ref()?.user().clone()).unwrap_or_default();
    let config = known.requests.settled(request, &known.facts, &user)?;
    let log_dir = PathBuf::from(&known.requests.pod.log_directory);
    let id = runtime.create_container(pod.as_str(), config).await?;
    let (over, ended) = watch::channel(false);
    let log = tokio::spawn(logs::follow(log_dir.join(&request.config.log_path), label, ended));
    runtime.start_container(id.as_str()).await?;
    let name = request.config.metadata.clone().unwrap_or_default().name;
    Ok(Running { id, name, over, log })
}

impl Running {
    /// Waits for the container's end and for the last line of its log.
    async fn end(self, runtime: &Arc<Runtime>) -> Result<(String, Ended)> {
        let over = |container: Option<&Container>| match container.map(|container| &container.phase) {
            Some(ContainerPhase::Exited(ended)) => Some(Some(ended.clone())),
            None | Some(ContainerPhase::Removing(_)) => Some(None),
            Some(_) => None,
        };
        let ended = runtime.store().wait_container(&self.id, over).await;
        self.over.send_replace(true);
        self.log.await.map_err(Error::doing("log"))?.map_err(Error::doing("log"))?;
        let ended = ended.ok_or_else(|| Error::not_found("container", self.id.as_str()))?;
        Ok((self.name, ended))
    }
}

/// What is told on the terminal.
struct Show {
    names: Vec<String>,
    width: usize,
}

impl Show {
    fn new(requests: &Requests) -> Self {
        let all = requests.init.iter().chain(&requests.apps);
        let names: Vec<String> =
            all.map(|request| request.config.metadata.clone().unwrap_or_default().name).collect();
        let width = names.iter().map(String::len).max().unwrap_or(0);
        Self { names, width }
    }

    fn label(&self, index: usize) -> Label {
        Label::new(&self.names[index], index, self.width)
    }

    fn say(&self, text: &str) {
        eprintln!("podhold: {text}");
    }

    fn failed(&self, what: &str, name: &str, ended: &Ended) {
        let more = if ended.message.is_empty() { String::new() } else { format!(": {}", ended.message) };
        self.say(&format!("{what} {name} failed with exit code {} ({}){more}", ended.code, ended.reason));
    }
}

fn exit_code(code: i32) -> u8 {
    u8::try_from(code).unwrap_or(1).max(1)
}
