//! Which container begins, is stopped or begins again, and when: the pod as a state machine. Pure; who asks
//! brings the time.
//!
//! ```text
//! pod:        Setup ──────────────> Running ─────────> Ending ────────> Over
//!             init containers and   all apps at once,  apps first, then
//!             sidecars in order     until all have     sidecars in reverse
//!                                   ended for good
//! container:  Waiting -> Running -> Ended
//!                        ^      \-> BackingOff ─┐
//!                        └──────────────────────┘
//! ```
//!
//! Invariant: [`Order::next`] is asked after everything that happens and whenever [`Order::wakes`] has come; it
//! orders a thing once.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    deadline::Grace,
    plan::{Plan, Policy, Role},
    restart::{self, Backoff, End},
};

/// Why a pod ends before its containers have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::standalone) enum Why {
    /// All apps have ended for good, or an init container has failed for good.
    Done,
    /// The command got this signal.
    Signal(u8),
    /// `--timeout` is over.
    Timeout,
    /// `activeDeadlineSeconds` is over.
    Deadline,
    /// Somebody else has stopped the pod, or it lost its pause process.
    Stopped,
    /// Nobody reads what its containers say any more.
    Unread,
    /// Its containers have failed more often than its job lets them (`backoffLimit`), the last one with this code.
    GivenUp(i32),
    /// Something of the host failed.
    Broken,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    /// Create and start this run of a member.
    Begin { member: usize, attempt: u32 },
    /// Ask a member to end until then, at which it is killed.
    Stop { member: usize, deadline: Instant },
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::standalone) enum Stage {
    /// Its turn has not come.
    Waiting,
    /// It was ordered to begin.
    Running { started: bool, ready: bool, stop: Option<Instant> },
    /// It has ended and begins again then.
    BackingOff { ended: Instant, due: Instant },
    /// It has ended for good, or never will begin.
    Ended { code: i32 },
}

/// Where the pod is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::standalone) enum Phase {
    Setup,
    Running,
    Ending(Why),
    Over(Why),
}

/// One container.
#[derive(Debug, Clone)]
pub(in crate::standalone) struct State {
    pub(in crate::standalone) role: Role,
    pub(in crate::standalone) stage: Stage,
    /// How often it was started again.
    pub(in crate::standalone) restarts: u32,
    policy: Policy,
    /// It has begun at least once.
    begun: bool,
    /// It was past its startup probe at least once.
    passed: bool,
    backoff: Backoff,
}

/// The state of one pod.
#[derive(Debug, Clone)]
pub(in crate::standalone) struct Order {
    pub(in crate::standalone) members: Vec<State>,
    pub(in crate::standalone) phase: Phase,
    grace: Grace,
    /// How often containers may still fail and begin again.
    retries: Option<u32>,
}

impl Order {
    /// A pod none of whose containers has begun. `first` is the wait before the second restart of each.
    pub(super) fn new(plan: &Plan, first: Duration) -> Self {
        let state = |member: &super::plan::Member| State {
            role: member.role,
            stage: Stage::Waiting,
            restarts: 0,
            policy: member.policy,
            begun: false,
            passed: false,
            backoff: Backoff::new(first),
        };
        let members = plan.members.iter().map(state).collect();
        Self { members, phase: Phase::Setup, grace: Grace::new(plan.grace), retries: plan.retries }
    }

    /// A member is past its postStart hook and its startup probe.
    pub(super) fn started(&mut self, member: usize) {
        let state = &mut self.members[member];
        if let Stage::Running { started, .. } = &mut state.stage {
            (*started, state.passed) = (true, true);
        }
    }

    /// A member is ready, or is not any more.
    pub(super) fn ready(&mut self, member: usize, now: bool) {
        if let Stage::Running { ready, .. } = &mut self.members[member].stage {
            *ready = now;
        }
    }

    /// A member has ended; answers when it begins again.
    pub(super) fn ended(&mut self, member: usize, end: End, now: Instant) -> Option<Instant> {
        let ending = self.is_ending();
        let state = &mut self.members[member];
        if !ending && restart::again(state.role, state.policy, end) {
            let counts = state.role != Role::Sidecar && end.is_failure();
            match &mut self.retries {
                Some(0) if counts => {
                    state.stage = Stage::Ended { code: end.code };
                    self.end(Why::GivenUp(end.code), now);
                    return None;
                }
                Some(left) if counts => *left -= 1,
                _ => {}
            }
            let due = state.backoff.due(now);
            state.stage = Stage::BackingOff { ended: now, due };
            return Some(due);
        }
        state.stage = Stage::Ended { code: end.code };
        None
    }

    /// The pod is to end; what it is ending of already stays the reason, but for a reader that was interrupted with
    /// this command and was faster.
    pub(super) fn end(&mut self, why: Why, now: Instant) {
        if self.is_ending() {
            if self.phase == Phase::Ending(Why::Unread) && matches!(why, Why::Signal(_)) {
                self.phase = Phase::Ending(why);
            }
            return;
        }
        self.phase = Phase::Ending(why);
        self.grace.begin(now);
        for state in &mut self.members {
            if matches!(state.stage, Stage::Waiting | Stage::BackingOff { .. }) {
                // Of one that backs off its last end is told; the code here only says that it is over.
                state.stage = Stage::Ended { code: 0 };
            }
        }
    }

    /// The grace of a pod that ends is over now.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.grace.cut(now);
    }

    /// Whether it ends or has ended.
    pub(super) fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Ending(_) | Phase::Over(_))
    }

    /// When to ask again although nothing has happened.
    pub(super) fn wakes(&self) -> Option<Instant> {
        let due = |state: &State| match state.stage {
            Stage::BackingOff { due, .. } => Some(due),
            _ => None,
        };
        self.members.iter().filter_map(due).min()
    }

    /// What is to be done now.
    pub(super) fn next(&mut self, now: Instant) -> Vec<Command> {
        let mut commands = Vec::new();
        if self.phase == Phase::Setup {
            self.set_up(now, &mut commands);
        }
        if self.phase == Phase::Running {
            for member in 0..self.members.len() {
                self.begin_if_due(member, now, &mut commands);
            }
            if self.apps().all(|state| matches!(state.stage, Stage::Ended { .. })) {
                self.end(Why::Done, now);
            }
        }
        if let Phase::Ending(why) = self.phase {
            self.wind_up(why, now, &mut commands);
        }
        commands
    }

    fn apps(&self) -> impl Iterator<Item = &State> {
        self.members.iter().filter(|state| state.role == Role::App)
    }

    /// Init containers and sidecars, up to the first that has to be waited for.
    fn set_up(&mut self, now: Instant, commands: &mut Vec<Command>) {
        let mut passed = true;
        for member in 0..self.members.len() {
            let role = self.members[member].role;
            if role == Role::App {
                continue;
            }
            // A sidecar that was up is kept up, wherever the pod is.
            if passed || self.members[member].begun {
                self.begin_if_due(member, now, commands);
            }
            let state = &self.members[member];
            match (role, state.stage) {
                (Role::Init, Stage::Ended { code: 0 }) => {}
                (Role::Init, Stage::Ended { .. }) => {
                    self.end(Why::Done, now);
                    return;
                }
                (Role::Sidecar, _) if state.passed => {}
                _ => passed = false,
            }
        }
        if passed {
            self.phase = Phase::Running;
        }
    }

    fn begin_if_due(&mut self, member: usize, now: Instant, commands: &mut Vec<Command>) {
        let state = &mut self.members[member];
        match state.stage {
            Stage::Waiting => {}
            Stage::BackingOff { ended, due } if due <= now => {
                state.restarts += 1;
                state.backoff.started(ended, now);
            }
            _ => return,
        }
        state.begun = true;
        state.stage = Stage::Running { started: false, ready: false, stop: None };
        commands.push(Command::Begin { member, attempt: state.restarts });
    }

    /// Apps and init containers first, then one sidecar after another, the last one first.
    fn wind_up(&mut self, why: Why, now: Instant, commands: &mut Vec<Command>) {
        let deadline = self.grace.deadline(now);
        let mut stop = |member: usize, state: &mut State| {
            let Stage::Running { stop, .. } = &mut state.stage else { return false };
            if stop.is_none_or(|earlier| deadline < earlier) {
                *stop = Some(deadline);
                commands.push(Command::Stop { member, deadline });
            }
            true
        };
        let mut waiting = false;
        for (member, state) in self.members.iter_mut().enumerate() {
            if state.role != Role::Sidecar {
                waiting |= stop(member, state);
            }
        }
        for (member, state) in self.members.iter_mut().enumerate().rev() {
            if !waiting && state.role == Role::Sidecar {
                waiting |= stop(member, state);
            }
        }
        if !waiting {
            self.phase = Phase::Over(why);
        }
    }
}

#[cfg(test)]
#[path = "order_tests.rs"]
mod tests;
