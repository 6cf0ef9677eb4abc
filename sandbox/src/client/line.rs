//! The line to a pod's shim: one connection after the other, as long as the shim lives.
//!
//! A connection that is lost says nothing about the shim. Its process does: while that lives it is dialled
//! again, a bounded number of times, and what happened meanwhile is asked for, so that no exit is missed.
//!
//! ```text
//! Up -> Lost -> Up                the shim has answered again
//!          \--> Dead              its process has ended, or nobody listens at its socket any more
//!           \-> Off               it lives, and cannot be talked to
//! ```

use std::{
    collections::VecDeque,
    os::fd::OwnedFd,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use podhold_proto::shim::{List, reply::Result as Outcome, request::Call};
use tokio::sync::{mpsc, watch};

use super::{
    connection::{Answered, Connection},
    convert,
    dial::{Dialled, Dialler, Events, Process, Turns},
};
use crate::{
    PodId,
    launch::{KnownState, LaunchError, PodEvent},
};

/// Waits before each try to reach a shim again, unless its process ends meanwhile. The first is for the
/// ordinary case: a process closes its files a moment before it has ended.
const PAUSES: [Duration; 6] = [
    Duration::from_millis(20),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
];
/// A line that is lost more often than this within [`WINDOW`] is given up: somebody else wants the shim.
const MOST_LOSSES: usize = 8;
const WINDOW: Duration = Duration::from_secs(10);

/// Where requests go in.
pub(super) struct Line {
    pod: PodId,
    state: watch::Sender<State>,
}

#[derive(Clone)]
enum State {
    Up(Arc<Connection>),
    Lost,
    Dead,
    Off(String),
}

/// Keeps the line up.
struct Keeper {
    line: Weak<Line>,
    dialler: Dialler,
    turns: Arc<Turns>,
    turn: u64,
    events: mpsc::UnboundedSender<PodEvent>,
    losses: VecDeque<Instant>,
}

enum Found {
    Again(Arc<Connection>, Events, Option<Process>),
    Dead(String),
    Not(String),
}

impl Line {
    /// A line whose first connection is this one, and what is told on it.
    pub(super) fn new(
        dialler: Dialler,
        turns: Arc<Turns>,
        connection: Arc<Connection>,
        told: (Events, Option<Process>),
    ) -> (Arc<Self>, Events) {
        let turn = turns.take(&dialler.pod);
        let state = watch::Sender::new(State::Up(connection));
        let line = Arc::new(Self { pod: dialler.pod.clone(), state });
        let (events, received) = mpsc::unbounded_channel();
        let weak = Arc::downgrade(&line);
        let keeper = Keeper { line: weak, dialler, turns, turn, events, losses: VecDeque::new() };
        tokio::spawn(keeper.run(told.0, told.1));
        (line, received)
    }

    /// The connection there is, or the next one.
    pub(super) async fn up(&self) -> Result<Arc<Connection>, LaunchError> {
        self.next(None).await
    }

    /// The connection after `lost`.
    async fn next(&self, lost: Option<&Arc<Connection>>) -> Result<Arc<Connection>, LaunchError> {
        let mut state = self.state.subscribe();
        let settled = |state: &State| match state {
            State::Lost => false,
            State::Up(connection) => lost.is_none_or(|lost| !Arc::ptr_eq(lost, connection)),
            State::Dead | State::Off(_) => true,
        };
        let pod = self.pod.clone();
        match state.wait_for(settled).await.as_deref() {
            Ok(State::Up(connection)) => Ok(Arc::clone(connection)),
            Ok(State::Off(reason)) => Err(LaunchError::Lost { pod, reason: reason.clone() }),
            _ => Err(LaunchError::Gone { pod }),
        }
    }

    /// Why something that was bound to a connection has ended with it.
    pub(super) async fn verdict(&self, of: &Arc<Connection>) -> LaunchError {
        let reason = "it was made anew meanwhile".to_owned();
        self.next(Some(of)).await.err().unwrap_or(LaunchError::Lost { pod: self.pod.clone(), reason })
    }

    /// As [`Connection::request`]. What may be asked twice is, when its connection is lost.
    pub(super) async fn request(&self, call: Call, files: Vec<OwnedFd>) -> Answered {
        if !files.is_empty() || !may_be_repeated(&call) {
            let connection = self.up().await?;
            return match connection.request(call, files).await {
                Err(LaunchError::Lost { .. }) => Err(self.verdict(&connection).await),
                answered => answered,
            };
        }
        let mut connection = self.up().await?;
        loop {
            match connection.request(call.clone(), Vec::new()).await {
                Err(LaunchError::Lost { .. }) => connection = self.next(Some(&connection)).await?,
                answered => return answered,
            }
        }
    }

    /// As [`Connection::request_patiently`], of a call that may be repeated.
    pub(super) async fn request_patiently(&self, call: Call) -> Answered {
        let mut connection = self.up().await?;
        loop {
            match connection.request_patiently(call.clone(), Vec::new()).await {
                Err(LaunchError::Lost { .. }) => connection = self.next(Some(&connection)).await?,
                answered => return answered,
            }
        }
    }

    pub(super) fn is_silent(&self) -> bool {
        match &*self.state.borrow() {
            State::Up(connection) => connection.is_silent(),
            State::Off(_) => true,
            State::Lost | State::Dead => false,
        }
    }

    /// Completes when the shim does not answer; never when it is dead.
    pub(super) async fn silent(&self) -> LaunchError {
        let mut before = None;
        loop {
            match self.next(before.as_ref()).await {
                Ok(connection) => {
                    tokio::select! {
                        silent = connection.silent() => return silent,
                        () = connection.gone() => before = Some(connection),
                    }
                }
                Err(LaunchError::Gone { .. }) => std::future::pending().await,
                Err(error) => return error,
            }
        }
    }

    /// Waits until the shim has ended.
    pub(super) async fn ended(&self) -> Result<(), LaunchError> {
        let mut state = self.state.subscribe();
        let over = |state: &State| matches!(state, State::Dead | State::Off(_));
        match state.wait_for(over).await.as_deref() {
            Ok(State::Off(reason)) => {
                Err(LaunchError::Lost { pod: self.pod.clone(), reason: reason.clone() })
            }
            _ => Ok(()),
        }
    }
}

/// What does the same when it is done twice. A command that is run again is another command, files that were
/// sent are gone, and many a program takes the second signal for more than the first: only a KILL is one.
fn may_be_repeated(call: &Call) -> bool {
    match call {
        Call::Exec(_) | Call::Attach(_) | Call::KillExec(_) => false,
        Call::Signal(sent) => sent.signal == libc::SIGKILL,
        _ => true,
    }
}

impl Keeper {
    async fn run(mut self, mut events: Events, mut process: Option<Process>) {
        loop {
            let reason = match self.forward(&mut events).await {
                Some(reason) => reason,
                // Nobody has a handle any more.
                None => break,
            };
            let Some(()) = self.tell_state(State::Lost) else { break };
            match self.again(process.as_ref(), &reason).await {
                Found::Again(connection, next, of) => {
                    let Some(()) = self.tell_state(State::Up(connection)) else { break };
                    (events, process) = (next, of.or(process));
                }
                Found::Dead(reason) => {
                    self.tell_state(State::Dead);
                    let _ = self.events.send(PodEvent::Gone(reason));
                    break;
                }
                Found::Not(reason) => {
                    self.tell_state(State::Off(reason.clone()));
                    let _ = self.events.send(PodEvent::Lost(reason));
                    break;
                }
            }
        }
        self.turns.leave(&self.dialler.pod, self.turn);
    }

    /// Hands on what is told, until the connection is lost; why.
    async fn forward(&self, events: &mut Events) -> Option<String> {
        loop {
            match events.recv().await? {
                PodEvent::Gone(reason) | PodEvent::Lost(reason) => return Some(reason),
                event => drop(self.events.send(event)),
            }
        }
    }

    fn tell_state(&self, state: State) -> Option<()> {
        self.line.upgrade().map(|line| drop(line.state.send_replace(state)))
    }

    /// Dials the shim again.
    async fn again(&mut self, process: Option<&Process>, lost: &str) -> Found {
        let now = Instant::now();
        self.losses.retain(|at| now.duration_since(*at) < WINDOW);
        self.losses.push_back(now);
        if self.losses.len() > MOST_LOSSES {
            return Found::Not(format!(
                "it was lost {} times within {} s",
                self.losses.len(),
                WINDOW.as_secs()
            ));
        }
        let dead = || Found::Dead("its process has ended".to_owned());
        let mut last = Found::Not(lost.to_owned());
        for pause in PAUSES {
            tokio::select! {
                () = end_of(process) => return dead(),
                () = tokio::time::sleep(pause) => {}
            }
            if !self.turns.is_newest(&self.dialler.pod, self.turn) {
                return Found::Not("this daemon has dialled it once more".to_owned());
            }
            let dialled = tokio::select! {
                () = end_of(process) => return dead(),
                dialled = self.dial() => dialled,
            };
            last = match dialled {
                Ok((connection, events, process)) => return Found::Again(connection, events, process),
                Err(LaunchError::Gone { .. }) if process.is_none() => return dead(),
                Err(LaunchError::Gone { .. }) => {
                    Found::Dead("its process lives, and nobody can reach it: its socket is gone".to_owned())
                }
                // It takes seconds to find that out.
                Err(silent @ LaunchError::Silent { .. }) => return Found::Not(silent.to_string()),
                Err(error) => Found::Not(format!("{lost}; dialled again: {error}")),
            };
        }
        last
    }

    /// A new connection, and on it what has happened since the last one was lost.
    async fn dial(&self) -> Result<(Arc<Connection>, Events, Option<Process>), LaunchError> {
        let Dialled { connection, events, hello, process, .. } = self.dialler.dial().await?;
        let listed = match connection.request(Call::List(List {}), Vec::new()).await?.0 {
            Outcome::List(list) => list.containers,
            other => {
                let reason = format!("an answer to another question: {other:?}");
                return Err(LaunchError::Protocol { pod: self.dialler.pod.clone(), reason });
            }
        };
        if hello.pause_ended {
            let _ = self.events.send(PodEvent::PauseExited);
        }
        for known in listed {
            let known = convert::known(&self.dialler.pod, known)?;
            if let KnownState::Exited { exit, .. } = known.state {
                let _ = self.events.send(PodEvent::ContainerExited(known.id, exit));
            }
        }
        Ok((connection, events, process))
    }
}

async fn end_of(process: Option<&Process>) {
    match process {
        Some(process) => drop(process.readable().await),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use podhold_proto::shim::Signal;

    use super::*;

    #[test]
    fn of_signals_only_a_kill_is_sent_twice() {
        let sent = |signal| Call::Signal(Signal { container: "c1".to_owned(), signal, all: false });
        assert!(may_be_repeated(&sent(libc::SIGKILL)));
        assert!(!may_be_repeated(&sent(libc::SIGTERM)) && !may_be_repeated(&sent(libc::SIGHUP)));
    }
}
