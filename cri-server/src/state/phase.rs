//! The life of a pod and of a container as pure functions. Owns the phases. No I/O, no clock.
//!
//! ```text
//! container:  Creating -> Created -> Starting -> Running -> Stopping -> Exited -> Removing -> (gone)
//!                            \           \___________\__________^  ^        ^
//!                             \__________ failed start: Exited ____/        |
//!                              \____________________________________________/  removed unstarted
//! pod:        Creating -> Ready -> Stopping -> NotReady -> Removing -> (gone)
//!             Ready <-> Unanswered: its shim lives, and does not answer; told as ready
//! ```
//!
//! Every change is *claim* (enter a transitional phase), act, *commit* (leave it). An exit that arrives
//! while Starting or Stopping is ordinary.

use std::time::SystemTime;

use tokio::time::Instant;

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerPhase {
    /// Its root filesystem and bundle are being made. Not listed.
    Creating,
    /// Ready to be started.
    Created,
    /// The shim is starting it.
    Starting,
    /// Its first process runs.
    Running(Run),
    /// It was told to end; at `deadline` it is killed.
    Stopping {
        /// The run that is to end.
        run: Run,
        /// When the container's processes are killed. Only ever moves closer.
        deadline: Instant,
    },
    /// It has ended, or could not be started.
    Exited(Ended),
    /// What is left of it is being undone; `None` when it never ran.
    Removing(Option<Ended>),
    /// Found on disk by a new daemon, which has no answer of its shim yet, or the answer to its start was lost.
    Unknown {
        /// When it was started, as far as its record says so.
        started_at: Option<SystemTime>,
    },
}

/// A container's run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Its first process.
    pub pid: u32,
    /// When it was started.
    pub started_at: SystemTime,
}

/// How a container's run ended.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Ended {
    /// When it was started; `None` when the start failed.
    pub started_at: Option<SystemTime>,
    /// When it ended.
    pub finished_at: SystemTime,
    /// Exit code, or 128 + signal.
    pub code: i32,
    /// One word as the kubelet knows it: Completed, Error, OOMKilled, StartError, Unknown.
    pub reason: String,
    /// More, in words.
    pub message: String,
}

/// What can happen to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerEvent {
    /// CreateContainer has made everything.
    CreateDone,
    /// StartContainer claims.
    StartClaimed,
    /// The shim has started it.
    Started(Run),
    /// The shim could not start it.
    StartFailed(Ended),
    /// The connection to the shim was lost before it has said how the start went: it may still be made.
    StartLost,
    /// StopContainer claims, or lowers the deadline of an earlier one.
    StopClaimed(Instant),
    /// Its first process was reaped, or is known to be gone.
    Exited(Ended),
    /// RemoveContainer claims.
    RemoveClaimed,
    /// Removing could not be finished; it can be tried again.
    RemoveFailed,
    /// The shim says that it was never started.
    NeverStarted,
    /// The shim says that it is being started, or somebody who was cut off by the end of a daemon did.
    FoundStarting,
}

/// Where a pod is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodPhase {
    /// Its namespaces, network and cgroup are being made. Not listed.
    Creating,
    /// Containers can be created in it.
    Ready,
    /// It was ready, and its shim has not answered this daemon, or does not any more. For all that is known it
    /// is as it was.
    Unanswered,
    /// It is being stopped.
    Stopping,
    /// Its network and processes are gone, or its pause process or shim has died.
    NotReady,
    /// What is left of it is being undone.
    Removing,
}

/// What can happen to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodEvent {
    /// RunPodSandbox has made everything.
    RunDone,
    /// RunPodSandbox failed and what it made could not all be undone.
    RunFailed,
    /// StopPodSandbox claims.
    StopClaimed,
    /// Everything was stopped.
    StopDone,
    /// Stopping could not be finished; it can be tried again.
    StopFailed,
    /// The pause process or the shim ended unasked.
    Died,
    /// Its shim lives, and cannot be talked to.
    Lost,
    /// RemovePodSandbox claims.
    RemoveClaimed,
    /// Removing could not be finished; it can be tried again.
    RemoveFailed,
    /// Its shim has answered a new daemon.
    Found,
}

/// An event that does not fit the phase.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{event} cannot happen while {phase}")]
pub struct IllegalTransition {
    /// Where the object is.
    pub phase: String,
    /// What was to happen.
    pub event: String,
}

impl ContainerPhase {
    /// The phase after `event`.
    pub fn after(&self, event: ContainerEvent) -> Result<Self, IllegalTransition> {
        use ContainerEvent as E;
        use ContainerPhase as P;
        Ok(match (self, event) {
            (P::Creating, E::CreateDone) | (P::Unknown { .. }, E::NeverStarted) => P::Created,
            (P::Created, E::StartClaimed) | (P::Unknown { .. }, E::FoundStarting) => P::Starting,
            (P::Starting | P::Unknown { .. }, E::Started(run)) => P::Running(run),
            (P::Starting, E::StartFailed(ended)) => P::Exited(ended),
            (P::Starting, E::StartLost) => P::Unknown { started_at: None },
            (P::Running(run), E::StopClaimed(deadline)) => P::Stopping { run: *run, deadline },
            (P::Stopping { run, deadline }, E::StopClaimed(sooner)) => {
                P::Stopping { run: *run, deadline: sooner.min(*deadline) }
            }
            (P::Starting | P::Running(_) | P::Stopping { .. } | P::Unknown { .. }, E::Exited(ended)) => {
                P::Exited(ended)
            }
            // The exit overtook the answer to Start.
            (P::Exited(ended), E::Started(run)) => {
                let started_at = ended.started_at.or(Some(run.started_at));
                P::Exited(Ended { started_at, ..ended.clone() })
            }
            (P::Exited(ended), E::Exited(_)) => P::Exited(ended.clone()),
            (P::Created | P::Creating | P::Unknown { .. }, E::RemoveClaimed) => P::Removing(None),
            (P::Exited(ended), E::RemoveClaimed) => P::Removing(Some(ended.clone())),
            (P::Removing(None), E::RemoveFailed) => P::Created,
            (P::Removing(Some(ended)), E::RemoveFailed) => P::Exited(ended.clone()),
            (phase, event) => {
                return Err(IllegalTransition {
                    phase: phase.name().to_owned(),
                    event: format!("{event:?}"),
                });
            }
        })
    }

    /// The phase in one word, for messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running(_) => "running",
            Self::Stopping { .. } => "stopping",
            Self::Exited(_) => "exited",
            Self::Removing(_) => "being removed",
            Self::Unknown { .. } => "not known yet: its shim has not answered",
        }
    }

    /// The run, while its process may live.
    pub fn run(&self) -> Option<Run> {
        match self {
            Self::Running(run) | Self::Stopping { run, .. } => Some(*run),
            _ => None,
        }
    }
}

impl PodPhase {
    /// The phase after `event`.
    pub fn after(self, event: PodEvent) -> Result<Self, IllegalTransition> {
        use PodEvent as E;
        use PodPhase as P;
        Ok(match (self, event) {
            (P::Creating, E::RunDone) | (P::NotReady | P::Unanswered | P::Ready, E::Found) => P::Ready,
            (P::Creating, E::RunFailed) => P::NotReady,
            (P::Ready | P::Unanswered | P::NotReady, E::StopClaimed) => P::Stopping,
            (P::Ready | P::Unanswered, E::Lost) => P::Unanswered,
            (P::Stopping, E::StopDone | E::StopFailed) => P::NotReady,
            (P::Ready | P::Unanswered | P::NotReady, E::Died) => P::NotReady,
            // Whoever is at work notices for itself.
            (P::Creating | P::Stopping | P::Removing, E::Died)
            | (P::Creating | P::Stopping | P::NotReady | P::Removing, E::Lost) => self,
            (P::NotReady, E::RemoveClaimed) => P::Removing,
            (P::Removing, E::RemoveFailed) => P::NotReady,
            (phase, event) => {
                return Err(IllegalTransition {
                    phase: phase.name().to_owned(),
                    event: format!("{event:?}"),
                });
            }
        })
    }

    /// Whether it has its namespaces and its network, as far as is known.
    pub fn is_up(self) -> bool {
        matches!(self, Self::Ready | Self::Unanswered)
    }

    /// The phase in words, for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Ready => "ready",
            Self::Unanswered => "waiting for its shim, which does not answer",
            Self::Stopping => "being stopped",
            Self::NotReady => "not ready",
            Self::Removing => "being removed",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    fn ended(code: i32) -> Ended {
        Ended {
            started_at: None,
            finished_at: SystemTime::UNIX_EPOCH,
            code,
            reason: "Completed".into(),
            message: String::new(),
        }
    }

    fn run() -> Run {
        Run { pid: 7, started_at: SystemTime::UNIX_EPOCH }
    }

    #[test]
    fn a_container_lives_through_its_phases() {
        let mut phase = ContainerPhase::Creating;
        for event in [
            ContainerEvent::CreateDone,
            ContainerEvent::StartClaimed,
            ContainerEvent::Started(run()),
            ContainerEvent::StopClaimed(Instant::now()),
            ContainerEvent::Exited(ended(143)),
            ContainerEvent::RemoveClaimed,
        ] {
            phase = phase.after(event).unwrap();
        }
        assert_eq!(phase, ContainerPhase::Removing(Some(ended(143))));
        assert_eq!(phase.after(ContainerEvent::RemoveFailed), Ok(ContainerPhase::Exited(ended(143))));
    }

    #[test]
    fn an_exit_that_overtakes_the_answer_to_start_is_kept() {
        let phase = ContainerPhase::Starting.after(ContainerEvent::Exited(ended(3))).unwrap();
        let known = Ended { started_at: Some(run().started_at), ..ended(3) };
        assert_eq!(phase.after(ContainerEvent::Started(run())), Ok(ContainerPhase::Exited(known)));
    }

    #[test]
    fn a_start_without_an_answer_is_what_the_shim_says_later() {
        let lost = ContainerPhase::Starting.after(ContainerEvent::StartLost).unwrap();
        assert_eq!(lost, ContainerPhase::Unknown { started_at: None });
        assert_eq!(lost.after(ContainerEvent::Started(run())), Ok(ContainerPhase::Running(run())));
        assert_eq!(lost.after(ContainerEvent::FoundStarting), Ok(ContainerPhase::Starting));
        assert_eq!(lost.after(ContainerEvent::NeverStarted), Ok(ContainerPhase::Created));
        assert_eq!(lost.after(ContainerEvent::Exited(ended(3))), Ok(ContainerPhase::Exited(ended(3))));
        // Somebody has asked before the start has noticed.
        assert!(ContainerPhase::Running(run()).after(ContainerEvent::StartLost).is_err());
    }

    #[test]
    fn the_deadline_of_a_stop_only_moves_closer() {
        let now = Instant::now();
        let soon = now + Duration::from_secs(1);
        let late = now + Duration::from_secs(60);
        let stopping = ContainerPhase::Running(run()).after(ContainerEvent::StopClaimed(late)).unwrap();
        let lowered = stopping.after(ContainerEvent::StopClaimed(soon)).unwrap();
        assert_eq!(lowered, ContainerPhase::Stopping { run: run(), deadline: soon });
        assert_eq!(lowered.after(ContainerEvent::StopClaimed(late)), Ok(lowered));
    }

    #[test]
    fn what_does_not_fit_is_refused_in_words() {
        let running = ContainerPhase::Running(run());
        for event in [ContainerEvent::CreateDone, ContainerEvent::StartClaimed, ContainerEvent::RemoveClaimed]
        {
            assert!(running.after(event.clone()).is_err(), "{event:?}");
        }
        let refusal = PodPhase::Ready.after(PodEvent::RemoveClaimed).unwrap_err();
        assert_eq!(refusal.to_string(), "RemoveClaimed cannot happen while ready");
    }

    #[test]
    fn a_pod_whose_shim_does_not_answer_stays_up_until_that_is_dead() {
        let lost = PodPhase::Ready.after(PodEvent::Lost).unwrap();
        assert!(lost.is_up() && lost != PodPhase::Ready);
        assert_eq!(lost.after(PodEvent::Found), Ok(PodPhase::Ready));
        assert_eq!(lost.after(PodEvent::Died), Ok(PodPhase::NotReady));
        assert_eq!(lost.after(PodEvent::StopClaimed), Ok(PodPhase::Stopping));
        // What nobody is waiting for stays as it is.
        for phase in [PodPhase::Stopping, PodPhase::NotReady, PodPhase::Removing] {
            assert_eq!(phase.after(PodEvent::Lost), Ok(phase));
        }
    }

    #[test]
    fn a_pod_that_died_can_be_stopped_and_removed() {
        let mut phase = PodPhase::Creating;
        for event in [
            PodEvent::RunDone,
            PodEvent::Died,
            PodEvent::StopClaimed,
            PodEvent::StopFailed,
            PodEvent::StopClaimed,
            PodEvent::Died,
            PodEvent::StopDone,
            PodEvent::RemoveClaimed,
        ] {
            phase = phase.after(event).unwrap();
        }
        assert_eq!(phase, PodPhase::Removing);
    }
}
