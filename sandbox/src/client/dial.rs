//! Dialling the shim of a pod: a connection on which Hello has been said, and the shim's process.
//!
//! A shim talks to the last who has dialled it. So of the connections of one daemon to one pod only the newest
//! is dialled again when it is lost ([`Turns`]).

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use podhold_proto::shim as wire;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc::UnboundedReceiver,
};

use super::{
    blocking,
    connection::Connection,
    processes, spawn,
    version::{self, Version},
};
use crate::{
    Layout, PodId,
    launch::{LaunchError, PodEvent},
    sys,
};

/// What a connection tells, in order.
pub(super) type Events = UnboundedReceiver<PodEvent>;
/// A pidfd of a shim: readable when it has ended.
pub(super) type Process = Arc<AsyncFd<OwnedFd>>;

/// A shim that has answered.
pub(super) struct Dialled {
    pub(super) connection: Arc<Connection>,
    pub(super) events: Events,
    pub(super) hello: wire::HelloReply,
    pub(super) version: Version,
    /// `None` when it cannot be told which process it is.
    pub(super) process: Option<Process>,
}

/// Which shim is dialled.
#[derive(Debug, Clone)]
pub(super) struct Dialler {
    pub(super) layout: Layout,
    pub(super) pod: PodId,
}

impl Dialler {
    /// [`LaunchError::Gone`] when nobody listens, or when no process of the shim is left.
    pub(super) async fn dial(&self) -> Result<Dialled, LaunchError> {
        let pod = &self.pod;
        let (layout, id) = (self.layout.clone(), pod.clone());
        let dialled =
            blocking(format!("dial the shim of pod {pod}"), move || spawn::dial(&layout, &id)).await;
        let socket = match dialled {
            Err(LaunchError::Io { source, .. }) if spawn::nobody_listens(&source) => {
                return Err(LaunchError::Gone { pod: pod.clone() });
            }
            other => other?,
        };
        let (connection, events) = Connection::open(pod.clone(), socket)?;
        let (hello, version) = match version::greet(pod, &connection).await {
            Err(error @ (LaunchError::Silent { .. } | LaunchError::Lost { .. })) => {
                return Err(self.unless_dead(error).await);
            }
            greeted => greeted?,
        };
        connection.is_of(hello.shim_pid);
        let process = processes::is_shim(&self.layout, pod, hello.shim_pid)
            .and_then(|process| sys::watch(process, Interest::READABLE).ok())
            .map(Arc::new);
        if let Some(process) = &process {
            connection.end_with(Arc::clone(process));
        }
        Ok(Dialled { connection, events, hello, version, process })
    }

    /// Why a shim does not answer, with its process; or that it is dead, and somebody else has its socket.
    async fn unless_dead(&self, error: LaunchError) -> LaunchError {
        let (layout, id) = (self.layout.clone(), self.pod.clone());
        let find = move || Ok(processes::shim(&layout, &id));
        let found = blocking(format!("find the shim of pod {}", self.pod), find).await;
        let pod = self.pod.clone();
        match (found, error) {
            (Err(error), _) => error,
            (Ok(None), _) => LaunchError::Gone { pod },
            (Ok(Some(shim)), LaunchError::Silent { seconds, .. }) => {
                LaunchError::Silent { pod, shim, seconds }
            }
            (Ok(Some(_)), error) => error,
        }
    }
}

/// Numbers the connections to each pod.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<PodId, u64>>);

impl Turns {
    fn lock(&self) -> MutexGuard<'_, HashMap<PodId, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest connection to a pod from now on.
    pub(super) fn take(&self, pod: &PodId) -> u64 {
        let mut turns = self.lock();
        let turn = turns.entry(pod.clone()).or_default();
        *turn += 1;
        *turn
    }

    pub(super) fn is_newest(&self, pod: &PodId, turn: u64) -> bool {
        self.lock().get(pod) == Some(&turn)
    }

    /// This one is not dialled again.
    pub(super) fn leave(&self, pod: &PodId, turn: u64) {
        let mut turns = self.lock();
        if turns.get(pod) == Some(&turn) {
            turns.remove(pod);
        }
    }
}
