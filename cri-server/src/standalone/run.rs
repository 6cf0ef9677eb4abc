//! Runs one manifest from beginning to end: images, the pod, the life of its containers, and everything removed
//! again, or kept for who asked for that.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use podhold_sandbox::PodId;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{Mutex, mpsc},
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{
    left::{KEPT, RUN_BY, claim_directories, remove_earlier, remove_pods},
    life::{Life, Outcome, Plan, Policy, Role, UNREAD, Why},
    manifest::{Manifest, ManifestError},
    plan::decide,
    request::{PodFacts, Pull, Requests},
    terminal::{self, Screen, Subject},
    volume,
};
use crate::{
    error::{Error, Result},
    output,
    runtime::Runtime,
    state::Pod,
};

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

/// How a run ended.
#[derive(Debug)]
pub struct Finished {
    /// That of the first container of the manifest that failed, or 0; 128 and the signal for a pod that was told
    /// to end; 124 for one whose time was over; 141 when nobody read what it said; [`HOST`] when anything failed
    /// that is none of its containers.
    pub code: u8,
    /// What that is, first the cause.
    pub failures: Vec<Error>,
}

/// One run of a manifest.
struct Errand<'a> {
    runtime: &'a Arc<Runtime>,
    requests: Arc<Requests>,
    plan: Plan,
    screen: Arc<Screen>,
    options: &'a Options,
    /// The making of the volumes, while it is under way.
    making: Mutex<Option<JoinHandle<Result<()>>>>,
}

/// What is there before anything of a pod is made.
struct Ready {
    told: mpsc::UnboundedReceiver<Why>,
    junit: Option<File>,
}

/// Exit code of what the host could not do.
pub const HOST: u8 = 3;

/// How long the output of a pod that was ended waits for its reader.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long the making of volumes that nobody wants any more is waited for.
const MAKING: Duration = Duration::from_secs(15);

/// Runs a pod to its end. An error is what its manifest decides, and then nothing was done.
///
/// Whatever happens, the pod is removed before this returns, unless it is to be kept.
pub async fn run(
    manifest: &Manifest,
    runtime: &Arc<Runtime>,
    options: &Options,
) -> std::result::Result<Finished, ManifestError> {
    let errand = prepare(manifest, runtime, options)?;
    let Ready { mut told, junit } = match errand.ready().await {
        Ok(ready) => ready,
        Err(error) => {
            let outcome = Outcome::nothing(Why::Broken, Some(error));
            let _said_or_late = timeout(PATIENCE, errand.screen.close()).await;
            return Ok(errand.finish(&errand.subject(), outcome, Vec::new()));
        }
    };
    let (subject, outcome) = errand.live(&mut told).await;
    let mut failures: Vec<Error> = errand.clean_up(&mut told).await.err().into_iter().collect();
    let removed = failures.is_empty();
    errand.hear_out(outcome.why, &mut told).await;
    if let Some(mut file) = junit {
        let written = file.write_all(terminal::junit(&subject, &outcome, failures.first()).as_bytes());
        failures.extend(written.map_err(Error::doing("writing the JUnit report")).err());
    }
    // The reports have read the logs. A pod that is still there has its volumes.
    if removed && !options.keep {
        failures.extend(errand.remove_volumes().await.err());
    }
    Ok(errand.finish(&subject, outcome, failures))
}

/// Everything that the manifest decides, before anything is done.
fn prepare<'a>(
    manifest: &Manifest,
    runtime: &'a Arc<Runtime>,
    options: &'a Options,
) -> std::result::Result<Errand<'a>, ManifestError> {
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
    Ok(Errand { runtime, requests: Arc::new(requests), plan, screen, options, making: Mutex::default() })
}

/// Why the pod is to end, as often as somebody says so.
fn listen(timeout: Option<Duration>, screen: &Arc<Screen>) -> Result<mpsc::UnboundedReceiver<Why>> {
    let (tell, told) = mpsc::unbounded_channel();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let number = u8::try_from(kind.as_raw_value()).unwrap_or(0);
        let signal = signal(kind).map_err(Error::doing("signals"))?;
        tokio::spawn(pass_on(signal, Why::Signal(number), tell.clone()));
    }
    let (screen, unread) = (Arc::clone(screen), tell.clone());
    tokio::spawn(async move {
        let error = screen.lost().await;
        let why = if is_unread(&error) { Why::Unread } else { Why::Broken };
        let _told = unread.send(why);
    });
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

/// Whether the reader is gone; anything else is a failure.
fn is_unread(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}

impl Errand<'_> {
    /// Clears what earlier runs have left, and opens what is needed at the end.
    async fn ready(&self) -> Result<Ready> {
        claim_directories(self.runtime)?;
        if let Err(error) = remove_earlier(self.runtime).await {
            self.screen.say(&format!("what an earlier run left could not all be removed: {error}"));
        }
        let told = listen(self.options.timeout, &self.screen)?;
        let open = |path: &PathBuf| {
            File::create(path).map_err(Error::doing(format!("making the report {}", path.display())))
        };
        Ok(Ready { told, junit: self.options.junit.as_ref().map(open).transpose()? })
    }

    /// Waits until the pod's output is written, unless its reader takes longer than somebody wants to wait.
    async fn hear_out(&self, why: Why, told: &mut mpsc::UnboundedReceiver<Why>) {
        let ended = why != Why::Done;
        tokio::select! {
            () = self.screen.close() => {}
            Some(_) = told.recv() => {}
            () = sleep(PATIENCE), if ended => {}
        }
    }

    /// The one place that decides over the exit code; the report has the same one.
    fn finish(&self, subject: &Subject, mut outcome: Outcome, mut failures: Vec<Error>) -> Finished {
        let lost = self.screen.failure();
        let code = outcome.code();
        if let Some(error) = lost.as_ref().filter(|error| !is_unread(error)) {
            failures.insert(0, Error::failed("standard output", error));
        }
        if code.is_none() {
            let reason = || Error::Precondition("the pod was stopped by somebody else".to_owned());
            // Why it failed says more than what could not be cleaned up after it.
            let first = outcome.error.take().or_else(|| failures.is_empty().then(reason));
            failures.splice(..0, first);
        }
        let unread = lost.is_some_and(|error| is_unread(&error)) && outcome.why == Why::Done;
        let mut code = match code {
            Some(code) if failures.is_empty() => {
                if unread {
                    UNREAD
                } else {
                    code
                }
            }
            _ => HOST,
        };
        if self.options.json {
            let report = terminal::json(subject, &outcome, code, failures.first());
            match output::this(format_args!("{report}")) {
                Ok(()) => {}
                Err(output::Unwritten(error)) if is_unread(&error) => code = UNREAD,
                Err(output::Unwritten(error)) => {
                    code = HOST;
                    failures.push(Error::failed("writing the report to standard output", &error));
                }
            }
        }
        Finished { code, failures }
    }

    /// Images, pod, containers.
    async fn live(&self, told: &mut mpsc::UnboundedReceiver<Why>) -> (Subject, Outcome) {
        let begun = tokio::select! {
            pod = self.begin() => pod.map_err(|error| (Why::Broken, Some(error))),
            Some(why) = told.recv() => {
                let of_time = if why == Why::Timeout { "its time was over (--timeout)" } else { "told to end" };
                self.screen.say(&format!("{of_time} before it has begun"));
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
        let host_paths = self.requests.volumes.host_paths();
        let host_paths: Vec<_> = host_paths.map(|(field, path)| (field, path.to_owned())).collect();
        let answers = host_paths.iter().map(|(field, path)| self.runtime.host_path_answers(field, path));
        futures::future::try_join_all(answers).await?;
        self.make_volumes().await?;
        let pod = self.runtime.run_pod(self.requests.pod.clone(), String::new()).await?;
        let addresses = self.runtime.store().pod(&pod).map(|pod| pod.ips.clone()).unwrap_or_default();
        let facts = self.requests.learn(&addresses)?;
        Ok((pod, facts))
    }

    /// Makes the volumes. It goes on when nobody waits for it any more.
    async fn make_volumes(&self) -> Result<()> {
        let requests = Arc::clone(&self.requests);
        let mut making = self.making.lock().await;
        let work = making.insert(tokio::task::spawn_blocking(move || {
            let logs = Path::new(&requests.pod.log_directory);
            std::fs::create_dir_all(logs).map_err(Error::doing(format!("making {}", logs.display())))?;
            requests.volumes.make()
        }));
        let made = work.await;
        *making = None;
        made.map_err(Error::doing("making the volumes"))?
    }

    async fn remove_volumes(&self) -> Result<()> {
        if let Some(making) = self.making.lock().await.take()
            && timeout(MAKING, making).await.is_err()
        {
            let place = self.requests.place.dir.display();
            let reason = format!("{place}: volumes are still being made; the next podhold run removes them");
            return Err(Error::Deadline(reason));
        }
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
        self.runtime.close_with_last();
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
                Pull::Never => {
                    let state = self.runtime.config().state_dir.display();
                    return Err(Error::Precondition(format!(
                        "image {image:?} is not here, and imagePullPolicy Never (or --pull never) leaves it at that: pull \
                         or import it by podhold image with --state-dir {state}, or allow the pull"
                    )));
                }
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
