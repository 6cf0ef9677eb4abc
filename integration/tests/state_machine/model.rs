//! The life of pods and containers as a client sees it: what each verb answers in each state, and what there
//! is afterwards. Pure; knows nothing of the daemon.
//!
//! Objects are named by their place: pods 0 and 1 are two attempts of one name in the host's network, pod 2
//! has a network of its own; container 0 of each ignores its stop signal, container 1 ends with 5 by it. A
//! place whose object is gone stands for the id it had last.

use proptest::prelude::*;
use proptest_state_machine::ReferenceStateMachine;
use tonic::Code;

/// Places of pods.
pub(crate) const PODS: usize = 3;
/// Places of containers in each pod.
pub(crate) const CONTAINERS: usize = 2;
/// The container that ends with 5 when it is told to end.
pub(crate) const OBEYS: usize = 1;

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    Created,
    Running,
    /// With this exit code.
    Exited(i32),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Container {
    pub life: Life,
    /// In which of two ways it was asked for.
    pub other: bool,
    /// Its limit, as last set.
    pub shares: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pod {
    pub ready: bool,
    /// Its pause process was killed, and its shim still holds what is left.
    pub unpaused: bool,
    /// In which of two ways it was asked for.
    pub other: bool,
    pub containers: [Option<Container>; CONTAINERS],
}

/// The place of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub pod: usize,
    pub container: usize,
}

/// A call of one verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    RunPod {
        pod: usize,
        other: bool,
    },
    StopPod {
        pod: usize,
    },
    RemovePod {
        pod: usize,
    },
    Create {
        at: Place,
        other: bool,
    },
    Start {
        at: Place,
    },
    /// With time to end by itself, or none.
    Stop {
        at: Place,
        kindly: bool,
    },
    Remove {
        at: Place,
    },
    Exec {
        at: Place,
        code: i32,
    },
    ExecNothing {
        at: Place,
    },
    Update {
        at: Place,
        shares: i64,
    },
    Reopen {
        at: Place,
    },
    Stats {
        at: Place,
    },
    ExecUrl {
        at: Place,
    },
    AttachUrl {
        at: Place,
    },
    ForwardUrl {
        pod: usize,
    },
}

/// Verbs that are given an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ById {
    StopPod,
    RemovePod,
    PodStatus,
    Create,
    Start,
    Stop,
    Remove,
    Status,
    Exec,
    Update,
    Reopen,
    Stats,
}

/// Anything that can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Somebody calls; or two do, at once, with the same words.
    Call { verb: Verb, twice: bool },
    /// Somebody calls with an empty id, or one that nothing has.
    Nonsense { verb: ById, empty: bool },
    /// The first process of a container is sent KILL, or TERM, by somebody else.
    Signal { at: Place, kill: bool },
    /// The daemon is killed and started again.
    Crash,
    /// The daemon is told to end and started again.
    Restart,
    /// The shim of a pod is killed.
    KillShim { pod: usize },
    /// The pause process of a pod is killed.
    KillPause { pod: usize },
}

/// What a call answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Done,
    /// The id of a new object.
    New,
    /// The id of the object that is there.
    Same,
    /// A command's exit code.
    Code(i32),
    Refused(Code),
}

/// All pods, and what the last step was answered.
#[derive(Debug, Clone, Default)]
pub(crate) struct Model {
    pub pods: [Option<Pod>; PODS],
    pub answer: Option<Answer>,
}

impl Model {
    pub(crate) fn container(&self, at: Place) -> Option<&Container> {
        self.pods[at.pod].as_ref()?.containers[at.container].as_ref()
    }

    fn slot(&mut self, at: Place) -> Option<&mut Container> {
        self.pods[at.pod].as_mut()?.containers[at.container].as_mut()
    }

    /// Everything that runs in a pod ends with this code.
    fn end_all(&mut self, pod: usize, code: i32) {
        let Some(pod) = &mut self.pods[pod] else { return };
        (pod.ready, pod.unpaused) = (false, false);
        for container in pod.containers.iter_mut().flatten() {
            if container.life == Life::Running {
                container.life = Life::Exited(code);
            }
        }
    }

    fn call(&mut self, verb: Verb) -> Answer {
        match verb {
            Verb::RunPod { pod, other } => self.run_pod(pod, other),
            Verb::StopPod { pod } => {
                self.end_all(pod, 137);
                Answer::Done
            }
            Verb::RemovePod { pod } => {
                self.pods[pod] = None;
                Answer::Done
            }
            Verb::Create { at, other } => self.create(at, other),
            Verb::Start { at } => self.start(at),
            Verb::Stop { at, kindly } => {
                let code = if kindly && at.container == OBEYS { 5 } else { 137 };
                self.end(at, code);
                Answer::Done
            }
            Verb::Remove { at } => {
                if let Some(pod) = &mut self.pods[at.pod] {
                    pod.containers[at.container] = None;
                }
                Answer::Done
            }
            Verb::Exec { at, code } => self.of_running(at, Answer::Code(code)),
            Verb::ExecNothing { at } => match self.container(at) {
                None => Answer::Refused(Code::NotFound),
                Some(_) => Answer::Refused(Code::InvalidArgument),
            },
            Verb::Update { at, shares } => match self.slot(at) {
                None => Answer::Refused(Code::NotFound),
                Some(Container { life: Life::Exited(_), .. }) => Answer::Refused(Code::FailedPrecondition),
                Some(container) => {
                    container.shares = shares;
                    Answer::Done
                }
            },
            Verb::Reopen { at } | Verb::Stats { at } | Verb::ExecUrl { at } | Verb::AttachUrl { at } => {
                self.of_running(at, Answer::Done)
            }
            Verb::ForwardUrl { pod } => match &self.pods[pod] {
                None => Answer::Refused(Code::NotFound),
                Some(Pod { ready: false, .. }) => Answer::Refused(Code::FailedPrecondition),
                Some(_) => Answer::Done,
            },
        }
    }

    fn run_pod(&mut self, place: usize, other: bool) -> Answer {
        match &self.pods[place] {
            None => {
                self.pods[place] =
                    Some(Pod { ready: true, unpaused: false, other, containers: [None, None] });
                Answer::New
            }
            Some(pod) if pod.other != other => Answer::Refused(Code::AlreadyExists),
            Some(Pod { ready: true, .. }) => Answer::Same,
            Some(_) => Answer::Refused(Code::FailedPrecondition),
        }
    }

    fn create(&mut self, at: Place, other: bool) -> Answer {
        let Some(pod) = &mut self.pods[at.pod] else { return Answer::Refused(Code::NotFound) };
        if !pod.ready {
            return Answer::Refused(Code::FailedPrecondition);
        }
        let place = &mut pod.containers[at.container];
        match place {
            None => {
                *place = Some(Container { life: Life::Created, other, shares: 102 });
                Answer::New
            }
            Some(container) if container.other != other => Answer::Refused(Code::AlreadyExists),
            Some(Container { life: Life::Created, .. }) => Answer::Same,
            Some(_) => Answer::Refused(Code::FailedPrecondition),
        }
    }

    fn start(&mut self, at: Place) -> Answer {
        let ready = self.pods[at.pod].as_ref().is_some_and(|pod| pod.ready);
        let Some(container) = self.slot(at) else { return Answer::Refused(Code::NotFound) };
        match (container.life, ready) {
            (Life::Created, true) => {
                container.life = Life::Running;
                Answer::Done
            }
            (Life::Created, false) => {
                container.life = Life::Exited(128);
                Answer::Refused(Code::FailedPrecondition)
            }
            (Life::Running, _) => Answer::Done,
            (Life::Exited(_), _) => Answer::Refused(Code::FailedPrecondition),
        }
    }

    fn end(&mut self, at: Place, code: i32) {
        if let Some(container) = self.slot(at).filter(|container| container.life == Life::Running) {
            container.life = Life::Exited(code);
        }
    }

    fn of_running(&self, at: Place, answer: Answer) -> Answer {
        match self.container(at).map(|container| container.life) {
            None => Answer::Refused(Code::NotFound),
            Some(Life::Running) => answer,
            Some(_) => Answer::Refused(Code::FailedPrecondition),
        }
    }
}

fn nonsense(verb: ById, empty: bool) -> Answer {
    match verb {
        _ if empty => Answer::Refused(Code::InvalidArgument),
        // What is gone is stopped and removed.
        ById::StopPod | ById::RemovePod | ById::Stop | ById::Remove => Answer::Done,
        _ => Answer::Refused(Code::NotFound),
    }
}

fn place() -> impl Strategy<Value = Place> + Clone {
    (0..PODS, 0..CONTAINERS).prop_map(|(pod, container)| Place { pod, container })
}

fn verbs() -> impl Strategy<Value = Verb> {
    let at = place;
    // Once in a while the other configuration.
    let other = || prop::bool::weighted(0.1);
    prop_oneof![
        6 => (0..PODS, other()).prop_map(|(pod, other)| Verb::RunPod { pod, other }),
        2 => (0..PODS).prop_map(|pod| Verb::StopPod { pod }),
        2 => (0..PODS).prop_map(|pod| Verb::RemovePod { pod }),
        8 => (at(), other()).prop_map(|(at, other)| Verb::Create { at, other }),
        8 => at().prop_map(|at| Verb::Start { at }),
        3 => (at(), any::<bool>()).prop_map(|(at, kindly)| Verb::Stop { at, kindly }),
        2 => at().prop_map(|at| Verb::Remove { at }),
        2 => (at(), 0..4).prop_map(|(at, code)| Verb::Exec { at, code }),
        1 => at().prop_map(|at| Verb::ExecNothing { at }),
        2 => (at(), 2i64..500).prop_map(|(at, shares)| Verb::Update { at, shares }),
        1 => at().prop_map(|at| Verb::Reopen { at }),
        1 => at().prop_map(|at| Verb::Stats { at }),
        1 => at().prop_map(|at| Verb::ExecUrl { at }),
        1 => at().prop_map(|at| Verb::AttachUrl { at }),
        1 => (0..PODS).prop_map(|pod| Verb::ForwardUrl { pod }),
    ]
}

fn by_id() -> impl Strategy<Value = ById> {
    use ById::*;
    let all =
        [StopPod, RemovePod, PodStatus, Create, Start, Stop, Remove, Status, Exec, Update, Reopen, Stats];
    prop::sample::select(all.to_vec())
}

impl ReferenceStateMachine for Model {
    type State = Self;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Self> {
        Just(Self::default()).boxed()
    }

    fn transitions(_: &Self) -> BoxedStrategy<Step> {
        prop_oneof![
            30 => (verbs(), prop::bool::weighted(0.15)).prop_map(|(verb, twice)| Step::Call { verb, twice }),
            2 => (by_id(), any::<bool>()).prop_map(|(verb, empty)| Step::Nonsense { verb, empty }),
            2 => (place(), any::<bool>()).prop_map(|(at, kill)| Step::Signal { at, kill }),
            2 => Just(Step::Crash),
            1 => Just(Step::Restart),
            1 => (0..PODS).prop_map(|pod| Step::KillShim { pod }),
            1 => (0..PODS).prop_map(|pod| Step::KillPause { pod }),
        ]
        .boxed()
    }

    fn apply(mut state: Self, step: &Step) -> Self {
        state.answer = match *step {
            Step::Call { verb, .. } => Some(state.call(verb)),
            Step::Nonsense { verb, empty } => Some(nonsense(verb, empty)),
            Step::Signal { at, kill } => {
                // The first process of a PID namespace does not notice a TERM it does not wait for.
                match (kill, at.container == OBEYS) {
                    (true, _) => state.end(at, 137),
                    (false, true) => state.end(at, 5),
                    (false, false) => {}
                }
                None
            }
            Step::Crash | Step::Restart => None,
            Step::KillShim { pod } => {
                state.end_all(pod, 255);
                None
            }
            Step::KillPause { pod } => {
                let held = state.pods[pod].as_ref().is_some_and(|pod| pod.ready || pod.unpaused);
                state.end_all(pod, 137);
                if let Some(pod) = &mut state.pods[pod] {
                    pod.unpaused = held;
                }
                None
            }
        };
        state
    }
}
