//! Tells readers what became of pods and containers (CRI `GetContainerEvents`).
//!
//! Invariant: an event is published under the store's lock, with the change it tells of, so that readers
//! get all events after their subscription, in order, each with the state as it was then. A reader that
//! falls more than [`QUEUE`] events behind is told so and gets no more. Without readers nothing is kept and
//! nothing is copied.
//!
//! What happened before a subscription is not told: whoever connects looks at the lists first. An exit
//! while no daemon ran is therefore in the lists of the next one, and is told by it only if the exit became
//! known after the reader came, as when a shim answers late.

use std::{sync::Arc, time::SystemTime};

use tokio::sync::broadcast;

use super::{Container, ContainerPhase, Pod, PodPhase};

/// How many events may wait for a reader.
const QUEUE: usize = 1024;

/// What became of a pod or container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It is there, and is listed.
    Created,
    /// It runs; a pod is ready.
    Started,
    /// It does not run any more, or could not be started.
    Stopped,
    /// It is gone.
    Deleted,
}

/// One event.
#[derive(Debug, Clone)]
pub struct Happening {
    /// What became of it.
    pub kind: Kind,
    /// The container, or the pod itself.
    pub id: String,
    /// When.
    pub at: SystemTime,
    /// The pod as it was then.
    pub pod: Pod,
    /// Its listed containers as they were then.
    pub containers: Vec<Container>,
}

/// What readers were told of one object so far, whether there were any or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Told {
    Nothing,
    Created,
    Started,
    Stopped,
}

/// A reader's end.
pub type Reader = broadcast::Receiver<Arc<Happening>>;

/// The readers.
#[derive(Debug, Default)]
pub(super) struct Readers {
    sender: Option<broadcast::Sender<Arc<Happening>>>,
    ended: bool,
}

impl Readers {
    /// One more reader, who gets what is published from now on.
    pub(super) fn subscribe(&mut self) -> Reader {
        if self.ended {
            return broadcast::channel(1).1;
        }
        self.sender.get_or_insert_with(|| broadcast::channel(QUEUE).0).subscribe()
    }

    /// Whether anybody reads.
    pub(super) fn any(&mut self) -> bool {
        if self.sender.as_ref().is_some_and(|sender| sender.receiver_count() == 0) {
            self.sender = None;
        }
        self.sender.is_some()
    }

    pub(super) fn publish(&self, happening: Happening) {
        if let Some(sender) = &self.sender {
            // An error means that the last reader has just left.
            let _readers = sender.send(Arc::new(happening));
        }
    }

    /// Ends every reader's stream, of now and of later.
    pub(super) fn end(&mut self) {
        self.sender = None;
        self.ended = true;
    }
}

impl Told {
    /// What is due when a container has come to `phase`; changes what was told.
    pub(super) fn of_container(&mut self, phase: &ContainerPhase) -> Vec<Kind> {
        match phase {
            ContainerPhase::Created | ContainerPhase::Starting => self.reach(Self::Created, false),
            ContainerPhase::Running(_) | ContainerPhase::Stopping { .. } => self.reach(Self::Started, true),
            ContainerPhase::Exited(ended) => self.reach(Self::Stopped, ended.started_at.is_some()),
            ContainerPhase::Creating | ContainerPhase::Removing(_) | ContainerPhase::Unknown { .. } => {
                Vec::new()
            }
        }
    }

    /// What is due when a pod has come to `phase`; changes what was told.
    pub(super) fn of_pod(&mut self, phase: PodPhase) -> Vec<Kind> {
        match phase {
            PodPhase::Ready => self.reach(Self::Started, true),
            PodPhase::NotReady => self.reach(Self::Stopped, false),
            PodPhase::Creating | PodPhase::Unanswered | PodPhase::Stopping | PodPhase::Removing => Vec::new(),
        }
    }

    /// A step that nobody saw, since the exit overtook the answer to a start, is told all the same.
    fn reach(&mut self, level: Self, ran: bool) -> Vec<Kind> {
        let steps =
            [(Self::Created, Kind::Created), (Self::Started, Kind::Started), (Self::Stopped, Kind::Stopped)];
        let due = steps.into_iter().filter(|(step, _)| *step > *self && *step <= level);
        let due = due.filter(|(step, _)| ran || *step != Self::Started).map(|(_, kind)| kind).collect();
        *self = level.max(*self);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Ended, Run};

    fn ended(ran: bool) -> ContainerPhase {
        let now = SystemTime::now();
        ContainerPhase::Exited(Ended {
            started_at: ran.then_some(now),
            finished_at: now,
            code: 1,
            reason: "Error".into(),
            message: String::new(),
        })
    }

    #[test]
    fn each_step_is_told_once_and_none_is_left_out() {
        let running = ContainerPhase::Running(Run { pid: 1, started_at: SystemTime::now() });
        let tell = |phases: &[&ContainerPhase]| {
            let mut told = Told::Nothing;
            phases.iter().flat_map(|phase| told.of_container(phase)).collect::<Vec<_>>()
        };
        let created = &ContainerPhase::Created;
        let starting = &ContainerPhase::Starting;
        let all = [Kind::Created, Kind::Started, Kind::Stopped];
        assert_eq!(tell(&[created, starting, &running, &ended(true), &ended(true)]), all);
        assert_eq!(tell(&[created, starting, &ended(true)]), all, "an exit overtook the answer to the start");
        assert_eq!(tell(&[created, starting, &ended(false)]), [Kind::Created, Kind::Stopped]);
        let gone = ContainerPhase::Removing(None);
        assert_eq!(tell(&[created, &gone, created]), [Kind::Created], "a removal failed");
        let mut told = Told::Nothing;
        let phases = [PodPhase::Creating, PodPhase::Ready, PodPhase::NotReady, PodPhase::Stopping];
        let pod: Vec<_> =
            phases.into_iter().chain([PodPhase::NotReady]).flat_map(|p| told.of_pod(p)).collect();
        assert_eq!(pod, all);
    }
}
