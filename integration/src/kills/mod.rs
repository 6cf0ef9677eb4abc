//! The daemon's death at every step of every verb, and what has to be true when it is back.
//!
//! One *run*: a stage is set, a verb is called, the daemon dies at a [`Moment`], it is started again on the
//! same directories, and what it then says is judged ([`judge`]): the object is whole, or as before, or the
//! next call deals with it; never a twin, never Running for a dead one, never an error for ever, nothing
//! left at the end.

mod judge;
mod plan;
mod stage;
mod table;
mod trial;

use std::{fmt, time::Duration};

pub use self::{
    plan::{Dice, chosen},
    stage::Verb,
    table::Table,
    trial::trial,
};
use crate::{
    daemon::Daemon,
    rig::Rig,
    steps::{Step, Tracer},
};

/// How long a call, a restart or a settling may take on a slow and loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// When the daemon dies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Moment {
    /// Before it makes this step; after the answer where the call goes without.
    Before(Step),
    /// After it has answered.
    Answered,
    /// This long after the call was made.
    At(Duration),
}

/// What the first daemon's death had left of the verb, as the second one saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The verb's work is done: the object is whole, or what was to go is gone.
    Done,
    /// As before the call.
    Before,
    /// Neither; the next call goes on from there.
    Between,
}

/// How one run went.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// What the death had left.
    pub outcome: Outcome,
    /// What must not be, in words.
    pub faults: Vec<String>,
    /// What was left at the end, in words.
    pub leaks: Vec<String>,
    /// The steps the first daemon has made, where they were followed.
    pub steps: Vec<Step>,
}

/// What is tried in one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kill {
    /// What is called.
    pub verb: Verb,
    /// When the daemon dies.
    pub moment: Moment,
    /// How long its successor lives, when that dies too: while it comes back, or soon after.
    pub again: Option<Duration>,
}

impl Kill {
    /// At this moment, once.
    pub fn new(verb: Verb, moment: Moment) -> Self {
        Self { verb, moment, again: None }
    }
}

impl fmt::Display for Kill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, killed ", self.verb)?;
        match &self.moment {
            Moment::Before(step) => write!(f, "before {} #{}", step.name, step.occurrence)?,
            Moment::Answered => write!(f, "after the answer")?,
            Moment::At(time) => write!(f, "after {time:?}")?,
        }
        self.again.map_or(Ok(()), |life| write!(f, ", its successor after {life:?}"))
    }
}

/// Calls the verb, has the daemon die, and judges its successor.
///
/// # Panics
/// When the stage cannot be set, or no daemon comes back.
pub async fn run(rig: &mut Rig, kill: &Kill) -> Verdict {
    let verb = kill.verb;
    let stage = stage::set(rig, verb).await;
    let steps = die(rig, verb, &stage, &kill.moment).await;
    if let Some(life) = kill.again {
        let died = Daemon::start_and_kill(&rig.machine, &rig.places, life).await;
        died.unwrap_or_else(|error| panic!("{kill}: {error}"));
    }
    // At once: network plugins of the first one may still run.
    let again = Daemon::start(&rig.machine, &rig.places).await;
    rig.daemon = again.unwrap_or_else(|error| panic!("{kill}: {error}"));
    let (outcome, faults) = judge::judge(rig, verb, &stage).await;
    let leaks = rig.leaks().await.iter().map(ToString::to_string).collect();
    Verdict { outcome, faults, leaks, steps }
}

/// Calls the verb, and answers the daemon's steps in it. Nothing is killed: the daemon is told to end, and
/// started again.
///
/// # Panics
/// As [`run`].
pub async fn steps(rig: &mut Rig, verb: Verb) -> Vec<Step> {
    let stage = stage::set(rig, verb).await;
    let cri = rig.cri().clone();
    let call = async { tokio::time::timeout(PATIENCE, stage.call(&cri, verb)).await };
    let steps = follow(rig, None, call, Tracer::finish_kindly).await;
    rig.machine.wait(rig.daemon.pid).await.unwrap_or_else(|error| panic!("{error}"));
    let again = Daemon::start(&rig.machine, &rig.places).await;
    rig.daemon = again.unwrap_or_else(|error| panic!("{verb}: {error}"));
    let mut faults = Vec::new();
    judge::end(rig, verb, &mut faults).await;
    assert!(faults.is_empty(), "{verb}: {faults:?}");
    steps
}

/// Calls the verb; answers the daemon's steps when it is dead.
async fn die(rig: &Rig, verb: Verb, stage: &stage::Stage, moment: &Moment) -> Vec<Step> {
    let cri = rig.cri().clone();
    let call = async { tokio::time::timeout(PATIENCE, stage.call(&cri, verb)).await };
    let steps = match moment {
        Moment::At(after) => {
            // What it answers does not matter: it may be cut off.
            let _ = tokio::time::timeout(*after, call).await;
            rig.daemon.kill(&rig.machine).await.unwrap_or_else(|error| panic!("{error}"));
            return Vec::new();
        }
        Moment::Before(step) => follow(rig, Some(step.clone()), call, Tracer::finish).await,
        Moment::Answered => follow(rig, None, call, Tracer::finish).await,
    };
    rig.machine.wait(rig.daemon.pid).await.unwrap_or_else(|error| panic!("{error}"));
    steps
}

async fn follow(
    rig: &Rig,
    fatal: Option<Step>,
    call: impl Future,
    finish: fn(Tracer) -> std::io::Result<Vec<Step>>,
) -> Vec<Step> {
    let root = rig.machine.directory().display().to_string();
    let daemon = rig.daemon_on_the_host();
    let tracer = Tracer::start(daemon, &root, fatal).unwrap_or_else(|e| panic!("follow the daemon: {e}"));
    // A daemon that dies closes its socket, which ends the call.
    call.await;
    let done = tokio::task::spawn_blocking(move || finish(tracer)).await;
    done.expect("no panic").unwrap_or_else(|e| panic!("follow the daemon: {e}"))
}
