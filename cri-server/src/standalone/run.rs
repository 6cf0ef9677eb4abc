//! Runs one manifest from beginning to end: images, the pod, the life of its containers, and everything removed
//! again, or kept for who asked for that.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use podhold_sandbox::PodId;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::sleep,
};

use super::{
    life::{Life, Outcome, Plan, Policy, Role, Why},
    manifest::{Manifest, ManifestError},
    plan::{RUNS, decide},
    request::{PodFacts, Pull, Requests},
    terminal::{self, Screen, Subject},
    volume,
};
use crate::{
    error::{Error, Result},
    output,
    runtime::Runtime,
    state::{Hidden, Pod},
};

/// The annotation of a pod that outlives its `podhold run`.
const KEPT: &str = "podhold.io/keep";

/// The annotation with the process id of the `podhold run` whose pod it is.
pub const RUN_BY: &str = "podhold.io/run-by";
/// The annotation with the container in which commands run that name none; kubectl's.
pub const FIRST: &str = "kubectl.kubernetes.io/default-container";

/// How a pod is run, besides what its manifest says.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Takes the place of the pod's restartPolicy.
    pub restart_policy: Option<Policy>,
    /// The wait before a container's second restart.
    pub restart_backoff: Option<Duration>,
    /// How long the whole may take.
    pub timeout: Option<Duration>,
    /// Takes the place of the containers' imagePullPolicy.
    pub pull: Option<PullWhen>,
    /// Standard output is one JSON document.
    pub json: bool,
    /// Where a JUnit report goes.
    pub junit: Option<PathBuf>,
    /// The pod is not removed.
    pub keep: bool,
}

/// When images are pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum PullWhen {
    /// Every time.
    Always,
    /// When they are not there.
    Missing,
    /// Not at all.
    Never,
}

impl From<PullWhen> for Pull {
    fn from(when: PullWhen) -> Self {
        match when {
            PullWhen::Always => Self::Always,
            PullWhen::Missing => Self::IfNotPresent,
            PullWhen::Never => Self::Never,
        }
    }
}

/// Why a pod could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Its manifest says something that cannot be.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// This host, or what it needs of others, has failed.
    #[error(transparent)]
    Host(#[from] Error),
}

/// One run of a manifest.
struct Errand<'a> {
    runtime: &'a Arc<Runtime>,
    requests: Arc<Requests>,
    plan: Plan,
    screen: Arc<Screen>,
    options: &'a Options,
}

/// Runs a pod and returns its exit code: that of the first container of the manifest that failed, or 0; 128 and
/// the signal for one that was told to end; 124 for one whose time was over.
///
/// Whatever happens, the pod is removed before this returns, unless it is to be kept.
pub async fn run(
    manifest: &Manifest,
    runtime: &Arc<Runtime>,
    options: &Options,
) -> std::result::Result<u8, RunError> {
    let errand = prepare(manifest, runtime, options)?;
    if let Err(error) = remove_earlier(runtime).await {
        errand.screen.say(&format!("what an earlier run left could not all be removed: {error}"));
    }
    let mut told = listen(options.timeout)?;
    let (subject, outcome) = errand.live(&mut told).await;
    let removed = errand.clean_up(&mut told).await;
    errand.screen.close();
    // What is left over is no less a failure of the host.
    let code = outcome.code();
    if options.json {
        let report = terminal::json(&subject, &outcome, code.unwrap_or(HOST));
        output::this(format_args!("{report}")).map_err(|output::Unwritten(error)| {
            Error::doing("writing the report to standard output")(error)
        })?;
    }
    if let Some(file) = &options.junit {
        let written = std::fs::write(file, terminal::junit(&subject, &outcome));
        written.map_err(Error::doing(format!("writing the report {}", file.display())))?;
    }
    // The reports have read the logs.
    let removed = match removed {
        Ok(()) if !options.keep => errand.remove_volumes().await,
        removed => removed,
    };
    match (code, outcome.error) {
        // Why it failed says more than what could not be cleaned up after it.
        (None, Some(error)) => Err(error.into()),
        (None, None) => Err(Error::Precondition("the pod could not be run".to_owned()).into()),
        (Some(code), _) => removed.map(|()| code).map_err(RunError::from),
    }
}

/// Exit code in a report of what the host could not do; the command line ends with the same.
pub const HOST: u8 = 3;

/// Everything that the manifest decides, before anything is done.
fn prepare<'a>(
    manifest: &Manifest,
    runtime: &'a Arc<Runtime>,
    options: &'a Options,
) -> std::result::Result<Errand<'a>, RunError> {
    let (mut requests, plan) = decide(manifest, runtime.config(), options)?;
    let annotations = &mut requests.pod.annotations;
    annotations.insert(RUN_BY.to_owned(), std::process::id().to_string());
    if let Some(first) = plan.members.iter().find(|member| member.role == Role::App) {
        annotations.entry(FIRST.to_owned()).or_insert_with(|| first.name.clone());
    }
    if options.keep {
        annotations.insert(KEPT.to_owned(), "true".to_owned());
    }
    let name = requests.pod.metadata.clone().unwrap_or_default().name;
    let screen = Screen::new(&name, options.json);
    for note in &requests.notes {
        screen.say(&format!("note: {note}"));
    }
    Ok(Errand { runtime, requests: Arc::new(requests), plan, screen, options })
}

/// Why the pod is to end, as often as somebody says so.
fn listen(timeout: Option<Duration>) -> Result<mpsc::UnboundedReceiver<Why>> {
    let (tell, told) = mpsc::unbounded_channel();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let number = u8::try_from(kind.as_raw_value()).unwrap_or(0);
        let signal = signal(kind).map_err(Error::doing("signals"))?;
        tokio::spawn(pass_on(signal, Why::Signal(number), tell.clone()));
    }
    if let Some(timeout) = timeout {
        tokio::spawn(async move {
            sleep(timeout).await;
            let _told = tell.send(Why::Timeout);
        });
    }
    Ok(told)
}

async fn pass_on(mut signal: Signal, why: Why, tell: mpsc::UnboundedSender<Why>) {
    while signal.recv().await.is_some() && tell.send(why).is_ok() {}
}

impl Errand<'_> {
    /// Images, pod, containers.
    async fn live(&self, told: &mut mpsc::UnboundedReceiver<Why>) -> (Subject, Outcome) {
        let begun = tokio::select! {
            pod = self.begin() => pod.map_err(|error| (Why::Broken, Some(error))),
            Some(why) = told.recv() => {
                self.screen.say("told to end before it has begun");
                Err((why, None))
            }
        };
        let mut subject = self.subject();
        let (pod, facts) = match begun {
            Ok(begun) => begun,
            Err((why, error)) => return (subject, Outcome::nothing(why, error)),
        };
        let ips = self.runtime.store().pod(&pod).map(|pod| pod.ips).unwrap_or_default();
        subject.addresses = ips.iter().map(ToString::to_string).collect();
        let life = Life {
            runtime: Arc::clone(self.runtime),
            pod,
            plan: self.plan.clone(),
            requests: Arc::clone(&self.requests),
            facts,
            screen: Arc::clone(&self.screen),
            backoff: self.options.restart_backoff,
        };
        (subject, life.live(told).await)
    }

    async fn begin(&self) -> Result<(PodId, PodFacts)> {
        self.pull_images().await?;
        let requests = Arc::clone(&self.requests);
        let making = tokio::task::spawn_blocking(move || {
            let logs = Path::new(&requests.pod.log_directory);
            std::fs::create_dir_all(logs).map_err(Error::doing(format!("making {}", logs.display())))?;
            requests.volumes.make()
        });
        making.await.map_err(Error::doing("making the volumes"))??;
        let pod = self.runtime.run_pod(self.requests.pod.clone(), String::new()).await?;
        let addresses = self.runtime.store().pod(&pod).map(|pod| pod.ips.clone()).unwrap_or_default();
        let facts = self.requests.learn(&addresses)?;
        Ok((pod, facts))
    }

    async fn remove_volumes(&self) -> Result<()> {
        let requests = Arc::clone(&self.requests);
        let removing = tokio::task::spawn_blocking(move || {
            volume::remove(&requests.place.dir).and(volume::remove(&requests.place.disk))
        });
        removing.await.map_err(Error::doing("removing the volumes"))?
    }

    fn subject(&self) -> Subject {
        let of = self.requests.pod.metadata.clone().unwrap_or_default();
        Subject { name: of.name, namespace: of.namespace, uid: of.uid, addresses: Vec::new() }
    }

    /// Removes this run's pod, or stops what is to be kept.
    async fn clean_up(&self, told: &mut mpsc::UnboundedReceiver<Why>) -> Result<()> {
        let ours = |pod: &Pod| pod.record.config.log_directory == self.requests.pod.log_directory;
        if self.options.keep {
            let pods = self.runtime.store().pods();
            let stops =
                pods.iter().filter(|pod| ours(pod)).map(|pod| self.runtime.stop_pod(pod.record.id.as_str()));
            futures::future::try_join_all(stops).await?;
            let name = self.requests.pod.metadata.clone().unwrap_or_default().name;
            self.screen.say(&format!(
                "the pod is kept; podhold logs {name} shows what it said, podhold rm {name} removes it"
            ));
            return Ok(());
        }
        let removed = remove_pods(self.runtime, ours);
        tokio::pin!(removed);
        loop {
            tokio::select! {
                removed = &mut removed => return removed,
                // Its containers have no grace any more: it is as fast as can be.
                Some(_) = told.recv() => self.screen.say("the pod is being removed"),
            }
        }
    }

    async fn pull_images(&self) -> Result<()> {
        let mut wanted = Vec::new();
        for (image, pull) in self.requests.images() {
            let there = self.runtime.images().find(image).is_some();
            match pull {
                Pull::IfNotPresent | Pull::Never if there => {}
                Pull::Never => return Err(Error::not_found("image (imagePullPolicy: Never)", image)),
                Pull::Always | Pull::IfNotPresent if wanted.contains(&image) => {}
                Pull::Always | Pull::IfNotPresent => wanted.push(image),
            }
        }
        let count = wanted.len();
        for (index, image) in wanted.iter().enumerate() {
            self.screen.show(&format!("pulling {}/{count}", index + 1));
            self.screen.say(&format!("pulling {image}"));
            self.runtime.pull_image(image, self.requests.credentials(image), None).await?;
        }
        Ok(())
    }
}

/// Whether a pod outlives the command that ran it.
fn is_kept(pod: &Pod) -> bool {
    pod.record.config.annotations.contains_key(KEPT)
}

/// Removes what earlier runs have left that is not to be kept, and the directories of pods that are gone.
async fn remove_earlier(runtime: &Arc<Runtime>) -> Result<()> {
    let left = remove_pods(runtime, |pod| !is_kept(pod)).await.and(remove_damaged(runtime).await);
    remove_directories(runtime);
    left
}

/// Removes the directories of runs that have no pod any more, with what is mounted in them.
pub fn remove_directories(runtime: &Arc<Runtime>) {
    let pods = runtime.store().pods();
    let logs = |pod: &Pod| PathBuf::from(&pod.record.config.log_directory);
    let used: Vec<PathBuf> = pods.iter().map(logs).collect();
    let is_used = |path: &Path| used.iter().any(|logs| logs.parent().is_some_and(|run| run.ends_with(path)));
    let config = runtime.config();
    for directory in [&config.run_dir, &config.state_dir].map(|directory| directory.join(RUNS)) {
        let Ok(entries) = std::fs::read_dir(directory) else { continue };
        for entry in entries.flatten().filter(|entry| !is_used(Path::new(&entry.file_name()))) {
            if let Err(error) = volume::remove(&entry.path()) {
                tracing::warn!(%error, "what a run of a pod left stays");
            }
        }
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
            let (path, reason) = (damage.path.display(), &damage.reason);
            output::note(format_args!("removing a pod of an earlier run: {path}: {reason}"));
            runtime.remove_pod(id.as_str()).await?;
        }
    }
    Ok(())
}
