//! The daemon beneath the model: carries steps out, and compares what there is with what there should be.

use std::collections::{BTreeMap, BTreeSet};

use nix::sys::signal::Signal;
use podhold_integration::{
    configs::{self, Parts, log_file},
    log,
    rig::{PROBE, Rig},
    soak::truth,
};
use podhold_proto::cri::*;
use std::time::Duration;
use tokio::time::{Instant, interval};
use tonic::{Code, Status};

use super::model::{Answer, ById, CONTAINERS, Life, Model, OBEYS, PODS, Place, Step, Verb};

/// How long a container that was signalled may take to be told as exited.
const SOON: Duration = Duration::from_secs(30);

/// An id that nothing has.
const UNKNOWN: &str = "00000000000000000000000000000000000000000000000000000000000000ff";

type Outcome<T = ()> = Result<T, String>;

/// The daemon, and the ids that stand for the model's places.
pub(crate) struct System {
    pub rig: Rig,
    configs: Vec<PodSandboxConfig>,
    pods: Vec<String>,
    containers: BTreeMap<(usize, usize), String>,
    addresses: BTreeMap<String, String>,
    /// Pods whose pause process was killed.
    unpaused: BTreeSet<String>,
    case: u64,
}

impl System {
    pub(crate) fn new(rig: Rig) -> Self {
        let mut system = Self {
            rig,
            configs: Vec::new(),
            pods: Vec::new(),
            containers: BTreeMap::new(),
            addresses: BTreeMap::new(),
            unpaused: BTreeSet::new(),
            case: 0,
        };
        system.begin();
        system
    }

    /// Names of their own for each case: a failure of one is none of the next.
    fn begin(&mut self) {
        self.case += 1;
        let name = |kind: &str| format!("{kind}-{}", self.case);
        let logs = self.rig.places.pod_logs();
        let mut shared = configs::pod(&name("shared"), &logs);
        shared.hostname = String::new();
        shared.namespaces().network = NamespaceMode::Node.into();
        let mut second = shared.clone();
        second.metadata.get_or_insert_default().attempt = 1;
        self.configs = vec![shared, second, configs::pod(&name("own"), &logs)];
        self.pods = vec![UNKNOWN.to_owned(); PODS];
        self.containers.clear();
        self.addresses.clear();
    }

    /// Removes everything; nothing may be left.
    pub(crate) async fn end(&mut self) -> Outcome {
        for pod in self.rig.cri().list_pods().await.map_err(|status| status.to_string())? {
            let removed = self.rig.cri().remove_pod(&pod.id).await;
            removed.map_err(|status| format!("remove {} in the end: {status}", pod.id))?;
        }
        self.begin();
        let leaks: Vec<String> = self.rig.leaks().await.iter().map(ToString::to_string).collect();
        if leaks.is_empty() { Ok(()) } else { Err(format!("left in the end:\n{}", leaks.join("\n"))) }
    }

    /// Carries a step out; `model` is as it should be afterwards.
    pub(crate) async fn carry_out(&mut self, step: Step, model: &Model) -> Outcome {
        match step {
            Step::Call { verb, twice: false } => {
                let got = self.call(verb).await;
                self.compare(verb, got, model)
            }
            Step::Call { verb, twice: true } => {
                let (one, two) = tokio::join!(self.call(verb), self.call(verb));
                let ids = (one.as_ref().ok().cloned().flatten(), two.as_ref().ok().cloned().flatten());
                if ids.0 != ids.1 {
                    return Err(format!("two calls at once answer {one:?} and {two:?}"));
                }
                self.compare(verb, one, model)?;
                // What is new to the first is there for the second.
                let then = Model {
                    answer: model.answer.map(|answer| match answer {
                        Answer::New => Answer::Same,
                        other => other,
                    }),
                    ..model.clone()
                };
                self.compare(verb, two, &then)
            }
            Step::Nonsense { verb, empty } => {
                let got = self.nonsense(verb, if empty { "" } else { UNKNOWN }).await;
                expect(model.answer, &got.map(|()| Answer::Done))
            }
            Step::Signal { at, kill } => self.signal(at, kill, model).await,
            Step::Crash => {
                self.rig.crash_and_restart().await;
                Ok(())
            }
            Step::Restart => {
                self.rig.restart().await;
                Ok(())
            }
            Step::KillShim { pod } => self.kill_of_pod(pod, "podhold-shim", model).await,
            Step::KillPause { pod } => {
                self.unpaused.insert(self.pods[pod].clone());
                self.kill_of_pod(pod, "pause", model).await
            }
        }
    }

    /// Compares an answer, and keeps the id that it gives to a place.
    fn compare(&mut self, verb: Verb, got: Result<Option<String>, Status>, model: &Model) -> Outcome {
        let (known, place) = match verb {
            Verb::RunPod { pod, .. } => (Some(self.pods[pod].clone()), Some((pod, None))),
            Verb::Create { at, .. } => (Some(self.container(at)), Some((at.pod, Some(at.container)))),
            _ => (None, None),
        };
        let told = match (&got, verb) {
            (Err(status), _) => Err(status.clone()),
            (Ok(Some(code)), Verb::Exec { .. }) => Ok(Answer::Code(code.parse().unwrap_or(-1))),
            (Ok(Some(id)), _) if Some(id) == known.as_ref() => Ok(Answer::Same),
            (Ok(Some(_)), _) => Ok(Answer::New),
            (Ok(None), _) => Ok(Answer::Done),
        };
        expect(model.answer, &told)?;
        match (place, got) {
            (Some((pod, None)), Ok(Some(id))) => self.pods[pod] = id,
            (Some((pod, Some(container))), Ok(Some(id))) => {
                self.containers.insert((pod, container), id);
            }
            _ => {}
        }
        Ok(())
    }

    fn container(&self, at: Place) -> String {
        self.containers.get(&(at.pod, at.container)).cloned().unwrap_or_else(|| UNKNOWN.to_owned())
    }

    /// Answers an id, an exit code, or nothing.
    async fn call(&self, verb: Verb) -> Result<Option<String>, Status> {
        let cri = self.rig.cri();
        let done = |answer: Result<(), Status>| answer.map(|()| None);
        match verb {
            Verb::RunPod { pod, other } => cri.run_pod(&self.pod_config(pod, other)).await.map(Some),
            Verb::StopPod { pod } => done(cri.stop_pod(&self.pods[pod]).await),
            Verb::RemovePod { pod } => done(cri.remove_pod(&self.pods[pod]).await),
            Verb::Create { at, other } => {
                let config = container_config(at, other);
                cri.create(&self.pods[at.pod], &self.configs[at.pod], &config).await.map(Some)
            }
            Verb::Start { at } => {
                cri.start(&self.container(at)).await?;
                if at.container == OBEYS {
                    // It obeys from now on.
                    log::wait_for(&log_file(&self.configs[at.pod], name(at)), "ready").await;
                }
                Ok(None)
            }
            Verb::Stop { at, kindly } => {
                let grace = if at.container == OBEYS { 60 } else { 1 };
                done(cri.stop(&self.container(at), if kindly { grace } else { 0 }).await)
            }
            Verb::Remove { at } => done(cri.remove(&self.container(at)).await),
            Verb::Exec { at, code } => {
                let answer = cri.exec(&self.container(at), &["/probe", "exit", &code.to_string()]).await?;
                Ok(Some(answer.exit_code.to_string()))
            }
            Verb::ExecNothing { at } => cri.exec(&self.container(at), &[]).await.map(|_| None),
            Verb::Update { at, shares } => done(self.update(&self.container(at), shares).await),
            Verb::Reopen { at } => done(self.reopen(&self.container(at)).await),
            Verb::Stats { at } => done(self.stats(&self.container(at)).await),
            Verb::ExecUrl { .. } | Verb::AttachUrl { .. } | Verb::ForwardUrl { .. } => {
                done(self.url(verb).await)
            }
        }
    }

    async fn url(&self, verb: Verb) -> Result<(), Status> {
        let mut client = self.rig.cri().runtime.clone();
        match verb {
            Verb::ExecUrl { at } => {
                let cmd = vec!["/probe".to_owned(), "exit".to_owned(), "0".to_owned()];
                let request =
                    ExecRequest { container_id: self.container(at), cmd, stdout: true, ..Default::default() };
                client.exec(request).await.map(drop)
            }
            Verb::AttachUrl { at } => {
                let request =
                    AttachRequest { container_id: self.container(at), stdout: true, ..Default::default() };
                client.attach(request).await.map(drop)
            }
            Verb::ForwardUrl { pod } => {
                let request = PortForwardRequest { pod_sandbox_id: self.pods[pod].clone(), port: vec![80] };
                client.port_forward(request).await.map(drop)
            }
            _ => Ok(()),
        }
    }

    async fn update(&self, id: &str, shares: i64) -> Result<(), Status> {
        let linux = Some(LinuxContainerResources { cpu_shares: shares, ..Default::default() });
        let request =
            UpdateContainerResourcesRequest { container_id: id.into(), linux, ..Default::default() };
        self.rig.cri().runtime.clone().update_container_resources(request).await.map(drop)
    }

    async fn reopen(&self, id: &str) -> Result<(), Status> {
        let request = ReopenContainerLogRequest { container_id: id.into() };
        self.rig.cri().runtime.clone().reopen_container_log(request).await.map(drop)
    }

    async fn stats(&self, id: &str) -> Result<(), Status> {
        let request = ContainerStatsRequest { container_id: id.into() };
        self.rig.cri().runtime.clone().container_stats(request).await.map(drop)
    }

    async fn nonsense(&self, verb: ById, id: &str) -> Result<(), Status> {
        let cri = self.rig.cri();
        match verb {
            ById::StopPod => cri.stop_pod(id).await,
            ById::RemovePod => cri.remove_pod(id).await,
            ById::PodStatus => cri.pod_status(id).await.map(drop),
            ById::Create => {
                let config = container_config(Place { pod: 0, container: 0 }, false);
                cri.create(id, &self.configs[0], &config).await.map(drop)
            }
            ById::Start => cri.start(id).await,
            ById::Stop => cri.stop(id, 0).await,
            ById::Remove => cri.remove(id).await,
            ById::Status => cri.status(id).await.map(drop),
            ById::Exec => cri.exec(id, &["true"]).await.map(drop),
            ById::Update => self.update(id, 100).await,
            ById::Reopen => self.reopen(id).await,
            ById::Stats => self.stats(id).await,
        }
    }

    /// Sends a signal to a container's first process, past the daemon.
    async fn signal(&self, at: Place, kill: bool, model: &Model) -> Outcome {
        let id = self.container(at);
        let pid = truth::pid(&self.rig, &id).await.unwrap_or_default();
        if pid == 0 {
            return Ok(());
        }
        let signal = if kill { Signal::SIGKILL } else { Signal::SIGTERM };
        self.rig.machine.signal(pid, signal).await.map_err(|error| error.to_string())?;
        if let Some(Life::Exited(_)) = model.container(at).map(|container| container.life) {
            self.rig.cri().ended(&id, SOON).await.map_err(|status| status.to_string())?;
        }
        Ok(())
    }

    async fn kill_of_pod(&self, pod: usize, program: &str, model: &Model) -> Outcome {
        for pid in truth::of_pod(&self.rig, &self.pods[pod], program).map_err(|error| error.to_string())? {
            self.rig.machine.signal(pid, Signal::SIGKILL).await.map_err(|error| error.to_string())?;
        }
        // Nobody has asked for this: it is told when it has been noticed.
        let deadline = Instant::now() + SOON;
        let mut ticks = interval(Duration::from_millis(20));
        while self.is_ready(pod).await? {
            ticks.tick().await;
            if Instant::now() > deadline {
                return Err(format!("pod {pod} stays ready without its {program}"));
            }
        }
        for at in (0..CONTAINERS).map(|container| Place { pod, container }) {
            if let Some(Life::Exited(_)) = model.container(at).map(|container| container.life) {
                let ended = self.rig.cri().ended(&self.container(at), SOON).await;
                ended.map_err(|status| format!("{at:?} after the death of {program}: {status}"))?;
            }
        }
        Ok(())
    }

    async fn is_ready(&self, pod: usize) -> Result<bool, String> {
        match self.rig.cri().pod_status(&self.pods[pod]).await {
            Ok(status) => Ok(status.state() == PodSandboxState::SandboxReady),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(status.to_string()),
        }
    }

    fn pod_config(&self, pod: usize, other: bool) -> PodSandboxConfig {
        let mut config = self.configs[pod].clone();
        if other {
            config.annotations.insert("model".into(), "other".into());
        }
        config
    }

    /// Compares the daemon and the kernel with the model.
    pub(crate) async fn check(&mut self, model: &Model) -> Outcome {
        self.forget_stopped(model);
        truth::holds_but_for(&self.rig, &self.unpaused).await?;
        self.check_lists(model).await.map_err(|wrong| format!("lists: {wrong}"))?;
        for pod in 0..PODS {
            self.check_pod(pod, model).await.map_err(|wrong| format!("pod {pod}: {wrong}"))?;
            for container in 0..CONTAINERS {
                let at = Place { pod, container };
                self.check_container(at, model).await.map_err(|wrong| format!("{at:?}: {wrong}"))?;
            }
        }
        Ok(())
    }

    /// A pod that was stopped since its pause process died has no shim any more; nor has one that is gone.
    fn forget_stopped(&mut self, model: &Model) {
        let kept = (0..PODS).filter(|pod| model.pods[*pod].as_ref().is_some_and(|pod| pod.unpaused));
        let kept: BTreeSet<&String> = kept.map(|pod| &self.pods[pod]).collect();
        self.unpaused.retain(|pod| kept.contains(pod));
    }

    async fn check_lists(&self, model: &Model) -> Outcome {
        let told = self.rig.cri().list_pods().await.map_err(|status| status.to_string())?;
        let told: BTreeSet<String> = told.into_iter().map(|pod| pod.id).collect();
        let there = (0..PODS).filter(|pod| model.pods[*pod].is_some());
        let should: BTreeSet<String> = there.map(|pod| self.pods[pod].clone()).collect();
        same("pods", &told, &should)?;
        let mut client = self.rig.cri().runtime.clone();
        let told = client.list_containers(ListContainersRequest::default()).await;
        let told = told.map_err(|status| status.to_string())?.into_inner().containers;
        let told: BTreeSet<(String, String)> = told.into_iter().map(|c| (c.pod_sandbox_id, c.id)).collect();
        let places = (0..PODS).flat_map(|pod| (0..CONTAINERS).map(move |container| Place { pod, container }));
        let there = places.filter(|at| model.container(*at).is_some());
        let should = there.map(|at| (self.pods[at.pod].clone(), self.container(at))).collect();
        same("containers", &told, &should)
    }

    async fn check_pod(&mut self, place: usize, model: &Model) -> Outcome {
        let id = self.pods[place].clone();
        let status = self.rig.cri().pod_status(&id).await;
        let Some(pod) = &model.pods[place] else {
            return same("code", &status.err().map(|status| status.code()), &Some(Code::NotFound));
        };
        let status = status.map_err(|status| status.to_string())?;
        same("ready", &(status.state() == PodSandboxState::SandboxReady), &pod.ready)?;
        let metadata = self.configs[place].metadata.clone();
        same("metadata", &status.metadata, &metadata)?;
        let ip = status.network.map(|network| network.ip).unwrap_or_default();
        same("has an address", &!ip.is_empty(), &(pod.ready && place == 2))?;
        if pod.ready {
            let first = self.addresses.entry(id).or_insert_with(|| ip.clone());
            same("address", &ip, first)?;
        }
        Ok(())
    }

    async fn check_container(&self, at: Place, model: &Model) -> Outcome {
        let id = self.container(at);
        let status = self.rig.cri().status(&id).await;
        let Some(container) = model.container(at) else {
            return same("code", &status.err().map(|status| status.code()), &Some(Code::NotFound));
        };
        let status = status.map_err(|status| status.to_string())?;
        let (state, code, reason) = match container.life {
            Life::Created => (ContainerState::ContainerCreated, 0, ""),
            Life::Running => (ContainerState::ContainerRunning, 0, ""),
            Life::Exited(128) => (ContainerState::ContainerExited, 128, "StartError"),
            Life::Exited(255) => (ContainerState::ContainerExited, 255, "Unknown"),
            Life::Exited(code) => (ContainerState::ContainerExited, code, "Error"),
        };
        let told = (status.state(), status.exit_code, status.reason.as_str());
        same("state, exit code and reason", &told, &(state, code, reason))?;
        let linux = status.resources.and_then(|resources| resources.linux).unwrap_or_default();
        same("cpu_shares", &linux.cpu_shares, &container.shares)?;
        let times = [status.created_at, status.started_at, status.finished_at];
        let known: Vec<i64> = times.into_iter().filter(|time| *time != 0).collect();
        same("times in order", &(known.is_sorted(), times[0] != 0), &(true, true))
    }
}

fn name(at: Place) -> &'static str {
    if at.container == OBEYS { "obeys" } else { "ignores" }
}

fn container_config(at: Place, other: bool) -> ContainerConfig {
    let words: &[&str] = if at.container == OBEYS { &["catch", "5"] } else { &["sleep"] };
    let mut config = configs::container(name(at), PROBE, words);
    // As the pod says: some are in the host's network.
    configs::security(&mut config).namespace_options = None;
    if other {
        config.annotations.insert("model".into(), "other".into());
    }
    config
}

fn expect(answer: Option<Answer>, got: &Result<Answer, Status>) -> Outcome {
    let told = match got {
        Ok(answer) => *answer,
        Err(status) => Answer::Refused(status.code()),
    };
    if Some(told) == answer {
        return Ok(());
    }
    Err(format!("answers {got:?}; it should be {answer:?}"))
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, told: &T, should: &T) -> Outcome {
    if told == should { Ok(()) } else { Err(format!("{what}: told {told:?}; it should be {should:?}")) }
}
