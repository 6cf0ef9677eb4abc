//! Comes back after the daemon was away: reads the records, dials all shims at once, folds what they say
//! into the store, and undoes what is half made.
//!
//! A record that cannot be read harms one object, and is reported.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::Path,
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use podhold_sandbox::{
    ContainerId, PodId,
    launch::{KnownState, LaunchError},
    record,
};
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::{Runtime, volumes};
use crate::{
    error::{Error, Result},
    state::{
        Container, ContainerEvent, ContainerPhase, ContainerRecord, ContainerStatusRecord, Pod, PodEvent,
        PodPhase, PodRecord, Run,
    },
};

/// How long a shim that was dialled may take to answer.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// When no shim has answered for so long, those that have not are waited for in the background.
const LULL: Duration = Duration::from_secs(2);
/// Pauses between questions to a shim that does not answer.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

impl Runtime {
    /// Finds what an earlier daemon left.
    pub(super) async fn recover(self: &Arc<Self>) -> Result<()> {
        let names = names(&self.layout.pods_state())?;
        let pods = self.side_by_side("records", names, |runtime, name| runtime.load_pod(&name)).await?;
        let count = pods.len();
        self.recover_pods(pods).await;
        self.drop_orphans().await;
        self.give_back_addresses();
        if count > 0 {
            info!(pods = count, "recovered");
        }
        Ok(())
    }

    /// Asks all shims at once. One that is there and does not answer holds up nobody: when no other has
    /// answered for a while, it goes on being asked in the background.
    async fn recover_pods(self: &Arc<Self>, pods: Vec<PodId>) {
        let recover = |id| {
            let runtime = Arc::clone(self);
            tokio::spawn(async move { runtime.recover_pod(id).await })
        };
        let mut asked: FuturesUnordered<_> = pods.into_iter().map(recover).collect();
        while let Ok(next) = timeout(LULL, asked.next()).await {
            if next.is_none() {
                return;
            }
        }
        warn!(pods = asked.len(), "their shims do not answer yet; serving without them");
    }

    /// Takes down, in the background, the networks of pods whose records were lost.
    fn give_back_addresses(self: &Arc<Self>) {
        for pod in self.cni.cached() {
            if self.layout.pod_state(&pod).exists() {
                continue;
            }
            let runtime = Arc::clone(self);
            tokio::spawn(async move {
                warn!(pod = %pod, "has a network and no record; its network is taken down");
                if let Err(error) = runtime.cni.del(&pod).await {
                    warn!(pod = %pod, %error, "network not taken down");
                }
            });
        }
    }

    /// Reads a pod's records into the store.
    fn load_pod(&self, name: &str) -> Option<PodId> {
        let id = match PodId::parse(name) {
            Ok(id) => id,
            Err(reason) => {
                error!(path = %self.layout.pods_state().join(name).display(), %reason, "not a pod's directory; left alone");
                return None;
            }
        };
        let path = self.layout.pod_record(&id);
        let record: PodRecord = match record::read(&path) {
            Ok(record) => record,
            Err(reason) => {
                error!(path = %path.display(), reason = crate::error::chain(&reason), "pod record cannot be read; the pod is left alone");
                return None;
            }
        };
        let phase = if record.complete { PodPhase::NotReady } else { PodPhase::Creating };
        self.store.add_pod(Pod {
            ips: Vec::new(),
            record: Arc::new(record),
            phase,
            live: None,
            containers: BTreeSet::new(),
            updating: Arc::default(),
        });
        for container in names(&self.layout.pod_state(&id).join("containers")).unwrap_or_default() {
            self.load_container(&id, &container);
        }
        Some(id)
    }

    fn load_container(&self, pod: &PodId, name: &str) {
        let Ok(id) = ContainerId::parse(name) else { return };
        let path = self.layout.container_record(pod, &id);
        let record: ContainerRecord = match record::read(&path) {
            Ok(record) => record,
            Err(reason) => {
                error!(path = %path.display(), reason = crate::error::chain(&reason), "container record cannot be read; the container is left alone");
                return;
            }
        };
        let status: Option<ContainerStatusRecord> =
            record::read(&self.layout.container_status(pod, &id)).ok();
        let asked = record.config.linux.as_ref().and_then(|linux| linux.resources.clone());
        let resources = status.as_ref().map(|status| status.resources.clone()).or(asked).unwrap_or_default();
        let phase = match status.and_then(|status| status.ended) {
            Some(ended) => ContainerPhase::Exited(ended),
            None => ContainerPhase::Unknown,
        };
        self.store.load_container(Container {
            record: Arc::new(record),
            phase,
            resources,
            updating: Arc::default(),
        });
    }

    /// Asks the pod's shim for the truth.
    async fn recover_pod(self: &Arc<Self>, id: PodId) {
        let Some(pod) = self.store.pod(&id) else { return };
        if pod.phase == PodPhase::Creating {
            self.undo_half_made(id);
            return;
        }
        match self.ask_shim(&id).await {
            Ok(()) => {}
            Err(LaunchError::Gone { .. }) => {
                info!(pod = %id, "pod does not run");
                for container in self.store.containers_of(&id) {
                    self.fold_dead(container);
                }
            }
            Err(reason) => {
                warn!(pod = %id, reason = %reason, "shim does not answer; asked again in the background");
                self.keep_asking(id);
            }
        }
    }

    /// Undoes a pod whose making was cut short. Whoever asks for the same pod meanwhile joins, and is told
    /// to ask again.
    fn undo_half_made(self: &Arc<Self>, id: PodId) {
        warn!(pod = %id, "was half made; undone");
        let runtime = Arc::clone(self);
        tokio::spawn(async move {
            let undoing = Arc::clone(&runtime);
            let key = id.clone();
            let work = || async move {
                match undoing.teardown_pod(&key).await {
                    Ok(()) => undoing.store.forget_pod(&key),
                    Err(reason) => {
                        error!(pod = %key, error = %reason, "not undone; remove it");
                        undoing.store.pod_event(&key, PodEvent::RunFailed);
                    }
                }
                Err(Error::Precondition(format!("pod {key} was half made and is undone; ask again")))
            };
            let _told: Result<()> = runtime.under_way.run.join(id, work).await;
        });
    }

    /// A shim that is there and does not answer may be busy, or of a build that this one cannot talk to:
    /// its containers are not declared dead. Asked ever more rarely, for there is no event to wait for.
    fn keep_asking(self: &Arc<Self>, id: PodId) {
        let runtime = Arc::clone(self);
        tokio::spawn(async move {
            let mut pause = FIRST_PAUSE;
            loop {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                let waits = runtime.store.pod(&id).is_some_and(|pod| pod.live.is_none());
                if !waits {
                    return;
                }
                match runtime.ask_shim(&id).await {
                    Ok(()) => return,
                    Err(LaunchError::Gone { .. }) => break,
                    Err(reason) => warn!(pod = %id, reason = %reason, "shim still does not answer"),
                }
            }
            for container in runtime.store.containers_of(&id) {
                runtime.fold_dead(container);
            }
        });
    }

    /// Dials the shim and folds what it says into the store.
    async fn ask_shim(self: &Arc<Self>, id: &PodId) -> std::result::Result<(), LaunchError> {
        let open = self.launcher.reopen_pod(id).await?;
        let known =
            timeout(ANSWER_TIME, open.pod.containers()).await.map_err(|_| LaunchError::Protocol {
                pod: id.clone(),
                reason: format!("no answer within {} s", ANSWER_TIME.as_secs()),
            })??;
        self.store.change_pod(id, |pod| {
            pod.live = Some(open.pod);
            pod.ips.clone_from(&pod.record.ips);
        });
        self.store.pod_event(id, PodEvent::Found);
        for container in known {
            self.fold(&container.id, container.state);
        }
        for container in self.store.containers_of(id) {
            if container.phase == ContainerPhase::Unknown {
                self.store.container_event(&container.record.id, ContainerEvent::NeverStarted);
            }
        }
        self.watch(id.clone(), open.events);
        Ok(())
    }

    fn fold(self: &Arc<Self>, id: &ContainerId, state: KnownState) {
        match state {
            KnownState::Running(started) => {
                let run = Run { pid: started.pid, started_at: started.at };
                self.store.container_event(id, ContainerEvent::Started(run));
            }
            KnownState::Exited { exit, .. } => self.exited(id, &exit),
            KnownState::Starting => self.go_on_starting(id),
        }
    }

    /// Joins, in the background, a start that an earlier daemon had asked for.
    fn go_on_starting(self: &Arc<Self>, id: &ContainerId) {
        let Some(Ok(container)) = self.store.container_event(id, ContainerEvent::FoundStarting) else {
            return;
        };
        let (runtime, id) = (Arc::clone(self), id.clone());
        tokio::spawn(async move {
            let starting = Arc::clone(&runtime);
            let started =
                runtime.under_way.start.join(id.clone(), || starting.carry_out_start(container)).await;
            if let Err(error) = started {
                warn!(container = %id, %error, "start under way at the last daemon's end has failed");
            }
        });
    }

    /// A container whose pod does not run: how it ended is on disk, or nobody knows.
    fn fold_dead(self: &Arc<Self>, container: Container) {
        if container.phase != ContainerPhase::Unknown {
            return;
        }
        let (pod, id) = (&container.record.pod, &container.record.id);
        let status: Option<ContainerStatusRecord> = record::read(&self.layout.container_status(pod, id)).ok();
        let started = status.is_some_and(|status| status.started_at.is_some());
        if started || self.layout.exit_record(pod, id).exists() {
            self.end_unattended(container, "the host or its shim ended while nobody looked".to_owned());
        } else {
            self.store.container_event(id, ContainerEvent::NeverStarted);
        }
    }

    /// Undoes root filesystems that belong to no container, left by a create that was cut short.
    async fn drop_orphans(self: &Arc<Self>) {
        let snapshots = self.images.snapshots();
        let layout = self.layout.clone();
        let cleaned = tokio::task::spawn_blocking(move || {
            // By directory, not by record: a container whose record cannot be read may still run.
            let pods: Vec<PodId> = names(&layout.pods_state())
                .unwrap_or_default()
                .iter()
                .filter_map(|name| PodId::parse(name).ok())
                .collect();
            let containers = |pod| names(&layout.pod_state(pod).join("containers")).unwrap_or_default();
            let known: HashMap<String, &PodId> =
                pods.iter().flat_map(|pod| containers(pod).into_iter().map(move |id| (id, pod))).collect();
            for key in snapshots.keys() {
                let Some(id) = ContainerId::parse(&key).ok().or_else(|| volumes::owner(&key)) else {
                    continue;
                };
                if known.get(id.as_str()).is_some_and(|pod| layout.container_record(pod, &id).exists()) {
                    continue;
                }
                warn!(container = %key, "belongs to no container; undone");
                let index = key.split_once('.').map(|(_, index)| index.to_owned());
                let place = |pod: &PodId| match &index {
                    Some(index) => layout.volumes(pod, &id).join(index),
                    None => layout.rootfs(pod, &id),
                };
                let mounted = pods.iter().map(place).find(|place| place.exists());
                if let Some(Err(error)) = mounted.map(|mounted| snapshots.unmount(&mounted)) {
                    warn!(container = %key, %error, "root filesystem not unmounted");
                    continue;
                }
                if let Err(error) = snapshots.remove(&key) {
                    warn!(container = %key, %error, "root filesystem not removed");
                }
            }
        });
        if let Err(error) = cleaned.await {
            error!(%error, "orphans not undone");
        }
    }
}

/// Names in a directory. A missing directory is empty.
pub(super) fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::failed(format!("reading {}", dir.display()), &error)),
    };
    Ok(entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect())
}
