//! One run of one container, from its creation to its last words: carries out what [`Order`](super::order) has
//! decided over the runtime's verbs, and tells it what happened.
//!
//! Invariant: a run tells exactly one [`Event::Ended`] or [`Event::Failed`], and that last.

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::{FutureExt, future::BoxFuture};
use podhold_proto::cri;
use podhold_sandbox::{ContainerId, PodId};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout, timeout_at},
};

use super::{
    super::{
        request::{ContainerRequest, PodFacts, Requests},
        terminal::{Label, Screen},
    },
    action::Action,
    deadline::LEAST,
    hook, outcome,
    plan::{Member, Plan, Probe},
    probe::{Target, Verdict},
};
use crate::{
    error::{Error, Result},
    runtime::Runtime,
    state::{Container, ContainerPhase, Ended},
};

/// What is told of a container that does not end when it is asked to.
pub(super) const LATE: &str = "its grace period was over, and it was killed by SIGKILL";
/// The exit code that SIGKILL leaves.
const KILLED: i32 = 128 + 9;
/// How long the word of a container's end waits for its last lines to be printed.
const LAST_LINES: Duration = Duration::from_secs(1);

/// What all runs of a pod share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) runtime: Arc<Runtime>,
    pub(super) pod: PodId,
    pub(super) address: IpAddr,
    pub(super) plan: Plan,
    pub(super) requests: Arc<Requests>,
    pub(super) facts: PodFacts,
    /// The directory of the logs.
    pub(super) logs: PathBuf,
    pub(super) screen: Arc<Screen>,
    pub(super) events: mpsc::UnboundedSender<Event>,
}

/// What happened to a member.
#[derive(Debug)]
pub(super) enum Event {
    /// It is past its postStart hook and its startup probe.
    Started(usize),
    /// It is ready, or is not any more.
    Ready(usize, bool),
    /// Its run is over.
    Ended(usize, Box<RunEnd>),
    /// Something of the host failed; no run came of it.
    Failed(usize, Error),
}

/// How one run of a container was.
#[derive(Debug, Clone)]
pub(in crate::standalone) struct RunEnd {
    pub(in crate::standalone) id: String,
    pub(in crate::standalone) image_ref: String,
    pub(in crate::standalone) ended: Ended,
    /// For which probe or hook it was killed.
    pub(in crate::standalone) unhealthy: Option<String>,
    /// It did not end within its grace, and was killed by SIGKILL.
    pub(in crate::standalone) late: bool,
    /// Its last words.
    pub(in crate::standalone) message: String,
    /// Its log.
    pub(in crate::standalone) log: PathBuf,
}

impl RunEnd {
    /// Why it was killed, where it was.
    pub(in crate::standalone) fn killed_for(&self) -> Option<String> {
        let late = self.late.then(|| LATE.to_owned());
        let both: Vec<String> = self.unhealthy.clone().into_iter().chain(late).collect();
        (!both.is_empty()).then(|| both.join("; "))
    }
}

/// Why a container is killed although nobody has ended its pod.
struct Unhealthy {
    why: String,
    grace: Option<Duration>,
}

/// One run.
pub(super) struct Run {
    pub(super) shared: Arc<Shared>,
    pub(super) member: usize,
    pub(super) attempt: u32,
    /// When it is to have ended, as soon as it is to end.
    pub(super) stop: watch::Receiver<Option<Instant>>,
}

impl Run {
    /// Lives it, and tells its end.
    pub(super) async fn live(mut self) {
        let event = match self.complete().await {
            Ok(end) => Event::Ended(self.member, Box::new(end)),
            Err(error) => Event::Failed(self.member, error),
        };
        self.tell(event);
    }

    fn member(&self) -> &Member {
        &self.shared.plan.members[self.member]
    }

    fn tell(&self, event: Event) {
        // Nobody listens any more once the pod is over.
        let _told = self.shared.events.send(event);
    }

    fn say(&self, text: &str) {
        self.shared.screen.say(&format!("{}: {text}", self.member().name));
    }

    async fn complete(&mut self) -> Result<RunEnd> {
        let runtime = Arc::clone(&self.shared.runtime);
        let config = self.config().await?;
        let log = self.shared.logs.join(&config.log_path);
        self.forget_older().await?;
        let id = runtime.create_container(self.shared.pod.as_str(), config).await?;
        let id = ContainerId::parse(id.as_str()).map_err(Error::doing("container"))?;
        let (over, ended) = watch::channel(false);
        let width = self.shared.plan.members.iter().map(|member| member.name.len()).max().unwrap_or(0);
        let label = Label::new(&self.member().name, self.member, width);
        let following = tokio::spawn(self.shared.screen.show_log(log.clone(), label, ended));
        let Over { ended, unhealthy, late } = self.started(&id).await?;
        over.send_replace(true);
        // Its last lines stand before the word of its end, unless their reader takes its time.
        let _printed = timeout(LAST_LINES, following).await;
        let image_ref = runtime.store().container(&id).map(|container| container.record.image_ref.clone());
        let words = &self.request().termination_message;
        let message = match outcome::last_words(words, &log, self.member().log_speaks, ended.code) {
            said if said.is_empty() => ended.message.clone(),
            said => said,
        };
        let id = id.as_str().to_owned();
        let image_ref = image_ref.unwrap_or_default();
        Ok(RunEnd { id, image_ref, ended, unhealthy, late, message, log })
    }

    /// Starts the container and attends it until it has ended.
    async fn started(&mut self, id: &ContainerId) -> Result<Over> {
        if self.stop.borrow().is_some() {
            return Ok(gone("NotStarted", 0).into());
        }
        let runtime = Arc::clone(&self.shared.runtime);
        let started = runtime.start_container(id.as_str()).await;
        if let Err(error) = started {
            let phase = runtime.store().container(id).map(|container| container.phase);
            return match phase {
                // A command that is not there is the container's failure, not the host's.
                Some(ContainerPhase::Exited(ended)) => Ok(ended.into()),
                _ => Err(error),
            };
        }
        let target = Target {
            runtime: Arc::clone(&runtime),
            container: id.clone(),
            address: self.shared.address,
            since: Instant::now(),
        };
        let ending = ending(&runtime, id);
        tokio::pin!(ending);
        let stop = self.stop.clone();
        let this = &*self;
        let care = this.attend(&target);
        tokio::pin!(care);
        Attending { this, target: &target, stop, unhealthy: None, deadline: None }
            .until(&mut ending, &mut care)
            .await
    }

    /// Hook and probes of a container that runs; answers when it is to be killed for one of them.
    async fn attend(&self, target: &Target) -> Unhealthy {
        let member = self.member();
        if let Some(hook) = &member.post_start
            && let Err(why) = hook::run(target, hook).await
        {
            return Unhealthy { why: format!("FailedPostStartHook: {why}"), grace: None };
        }
        if let Some(probe) = &member.startup
            && let Some(unhealthy) = self.failed(target, probe, "startup").await
        {
            return unhealthy;
        }
        self.tell(Event::Started(self.member));
        let readiness = async {
            let Some(probe) = &member.readiness else { return self.tell(Event::Ready(self.member, true)) };
            let mut last = None;
            let judge = |verdict| {
                let good = verdict == Verdict::Good;
                if last.replace(good) != Some(good) {
                    self.tell(Event::Ready(self.member, good));
                    if let Verdict::Bad(why) = verdict {
                        self.say(&format!("is not ready: {why}"));
                    }
                }
                true
            };
            target.watch(probe, judge).await;
        };
        let liveness = async {
            match &member.liveness {
                None => std::future::pending().await,
                Some(probe) => self.failed(target, probe, "liveness").await,
            }
        };
        let (readiness, liveness) = (readiness.fuse(), liveness.fuse());
        tokio::pin!(readiness, liveness);
        loop {
            tokio::select! {
                // Without a probe it is over at once.
                () = &mut readiness, if !futures::future::FusedFuture::is_terminated(&*readiness) => {}
                Some(unhealthy) = &mut liveness => return unhealthy,
            }
        }
    }

    /// Asks until the container counts as failed; a startup probe only until it is answered well.
    async fn failed(&self, target: &Target, probe: &Probe, kind: &str) -> Option<Unhealthy> {
        let mut unhealthy = None;
        let judge = |verdict| match verdict {
            Verdict::Good => kind == "liveness",
            Verdict::Bad(why) => {
                let why = format!("{kind} probe failed: {why}");
                unhealthy = Some(Unhealthy { why, grace: probe.grace });
                false
            }
        };
        target.watch(probe, judge).await;
        unhealthy
    }

    /// Removes the runs before the last one, as a kubelet does.
    async fn forget_older(&self) -> Result<()> {
        let name = &self.member().name;
        for container in self.shared.runtime.store().containers_of(&self.shared.pod) {
            let of = container.record.config.metadata.clone().unwrap_or_default();
            if of.name == *name && of.attempt + 1 < self.attempt {
                self.shared.runtime.remove_container(container.record.id.as_str()).await?;
                let _gone = std::fs::remove_file(self.shared.logs.join(&container.record.config.log_path));
            }
        }
        Ok(())
    }

    fn request(&self) -> &ContainerRequest {
        let Requests { init, apps, .. } = &*self.shared.requests;
        // The members of the plan are in the order of the requests.
        init.get(self.member).unwrap_or_else(|| &apps[self.member - init.len()])
    }

    /// What is asked for this run.
    async fn config(&self) -> Result<cri::ContainerConfig> {
        let parts = self.shared.requests.parts(self.request(), &self.shared.facts);
        let answers = parts.iter().map(|(field, path)| self.shared.runtime.host_path_answers(field, path));
        futures::future::try_join_all(answers).await?;
        let image = self.request().config.image.clone().unwrap_or_default().image;
        let image = self.shared.runtime.images().find(&image);
        let user = image.and_then(|image| image.config.config().as_ref()?.user().clone());
        let run = Self { shared: Arc::clone(&self.shared), stop: self.stop.clone(), ..*self };
        // Parts of volumes are looked up, wherever they are.
        let settling = tokio::task::spawn_blocking(move || {
            let (requests, facts) = (&run.shared.requests, &run.shared.facts);
            requests.settled(run.request(), facts, user.as_deref().unwrap_or_default())
        });
        let mut config = settling.await.map_err(Error::doing("the request of a container"))??;
        config.metadata.get_or_insert_default().attempt = self.attempt;
        config.log_path = format!("{}/{}.log", self.member().name, self.attempt);
        if let Some(dir) = self.shared.logs.join(&config.log_path).parent() {
            std::fs::create_dir_all(dir).map_err(Error::doing(format!("making {}", dir.display())))?;
        }
        Ok(config)
    }
}

/// How a container was ended.
struct Over {
    ended: Ended,
    /// See [`RunEnd`].
    unhealthy: Option<String>,
    late: bool,
}

impl From<Ended> for Over {
    fn from(ended: Ended) -> Self {
        Self { ended, unhealthy: None, late: false }
    }
}

/// A container that runs, and what is being done about it.
struct Attending<'a> {
    this: &'a Run,
    target: &'a Target,
    stop: watch::Receiver<Option<Instant>>,
    unhealthy: Option<String>,
    /// Until when it is to end, once it is to end.
    deadline: Option<Instant>,
}

impl<'a> Attending<'a> {
    async fn until(
        mut self,
        ending: &mut (impl Future<Output = Ended> + Unpin),
        care: &mut (impl Future<Output = Unhealthy> + Unpin),
    ) -> Result<Over> {
        let mut stopping: Option<BoxFuture<'a, Result<()>>> = None;
        let mut told = true;
        loop {
            tokio::select! {
                ended = &mut *ending => return Ok(self.over(ended)),
                stopped = async { stopping.as_mut().expect("it is looked at before").await }, if stopping.is_some() => {
                    // One that cannot be stopped is never heard of again.
                    stopped?;
                    stopping = None;
                }
                deadline = sooner(&mut self.stop, self.deadline), if told => match deadline {
                    Some(deadline) => stopping = Some(self.begin_stop(deadline)),
                    None => told = false,
                },
                unhealthy = &mut *care, if self.deadline.is_none() && self.unhealthy.is_none() => {
                    let grace = unhealthy.grace.unwrap_or(self.this.shared.plan.grace);
                    self.this.say(&format!("{}; it is killed", unhealthy.why));
                    self.unhealthy = Some(unhealthy.why);
                    stopping = Some(self.begin_stop(Instant::now() + grace));
                }
            }
        }
    }

    fn over(self, ended: Ended) -> Over {
        let after = self.deadline.is_some_and(|deadline| deadline <= Instant::now());
        // One that was killed for its memory has its own reason.
        let late = after && ended.code == KILLED && ended.reason != "OOMKilled";
        Over { ended, unhealthy: self.unhealthy, late }
    }

    /// Runs the preStop hook, the first time, and ends the container until `deadline`.
    fn begin_stop(&mut self, deadline: Instant) -> BoxFuture<'a, Result<()>> {
        let (this, target) = (self.this, self.target);
        let first = self.deadline.replace(deadline).is_none();
        let hook: Option<&Action> = this.member().pre_stop.as_ref().filter(|_| first);
        async move {
            let mut least = Duration::ZERO;
            if let Some(hook) = hook {
                match timeout_at(deadline, hook::run(target, hook)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(why)) => this.say(&format!("FailedPreStopHook: {why}")),
                    Err(_) => this.say("FailedPreStopHook: it did not end within the grace period"),
                }
                least = LEAST;
            }
            let grace = deadline.saturating_duration_since(Instant::now()).max(least);
            target.runtime.stop_container(target.container.as_str(), grace).await
        }
        .boxed()
    }
}

/// The next deadline that is before the present one; `None` when nobody sets any.
async fn sooner(stop: &mut watch::Receiver<Option<Instant>>, now: Option<Instant>) -> Option<Instant> {
    let before = |stop: &Option<Instant>| stop.is_some_and(|stop| now.is_none_or(|now| stop < now));
    stop.wait_for(before).await.ok().and_then(|stop| *stop)
}

/// How a container that was started has ended; also when somebody else has removed it.
async fn ending(runtime: &Arc<Runtime>, id: &ContainerId) -> Ended {
    let over = |container: Option<&Container>| match container.map(|container| &container.phase) {
        Some(ContainerPhase::Exited(ended) | ContainerPhase::Removing(Some(ended))) => Some(ended.clone()),
        None | Some(ContainerPhase::Removing(None)) => Some(gone("Removed", 255)),
        Some(_) => None,
    };
    runtime.store().wait_container(id, over).await
}

/// The end of a container of which there is no other word.
fn gone(reason: &str, code: i32) -> Ended {
    Ended {
        started_at: None,
        finished_at: SystemTime::now(),
        code,
        reason: reason.to_owned(),
        message: String::new(),
    }
}
