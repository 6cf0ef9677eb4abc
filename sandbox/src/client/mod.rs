//! The built-in handler, seen from the daemon: starts shims, dials them, speaks their protocol.
//!
//! A shim outlives the daemon: dropping a handle closes the connection and ends nothing. One task per
//! connection owns the socket; requests and replies meet by number. A connection that is lost is made anew as
//! long as the shim lives ([`line`]).

mod attach;
mod connection;
mod convert;
mod dial;
mod line;
mod namespaces;
mod processes;
mod spawn;
mod version;

use std::{fmt, os::fd::OwnedFd, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use podhold_cgroups::CgroupPath;
use podhold_proto::shim::{
    self as wire, Close, Delete, KillExec, List, ReopenLog, Signal, reply::Result as Outcome, request::Call,
};
use tokio::sync::{OnceCell, watch};

pub use self::spawn::find_shim_binary;
use self::{
    connection::{Connection, Ended},
    dial::{Dialled, Dialler, Events, Turns},
    line::Line,
    processes::Listing,
    version::Version,
};
use crate::{
    ContainerId, Layout, PodId,
    launch::{
        AttachSpec, Attached, ExecEnd, ExecIo, ExecSession, ExecSpec, IdMap, KnownContainer, LaunchError,
        Launcher, LivePod, OpenPod, PodEvent, PodSpec, SignalTo, StartSpec, Started, UserNamespace,
    },
};

/// Puts a process into a cgroup; may block.
pub type Attach = Arc<dyn Fn(&CgroupPath, u32) -> std::io::Result<()> + Send + Sync>;

/// How shims are started.
#[derive(Clone)]
pub struct ShimConfig {
    /// Where everything lies. Must be the same for the shim, which is told.
    pub layout: Layout,
    /// The program `podhold-shim`; see [`find_shim_binary`].
    pub shim_binary: PathBuf,
    /// Puts pause (and the shim) into its cgroup; run where it may block.
    pub attach: Attach,
    /// The cgroup of the shim and its logger; `None` is the daemon's own.
    pub shim_cgroup: Option<CgroupPath>,
    /// How long a shim may take until its pod is open, or until it answers a Hello.
    pub open_timeout: Duration,
}

impl fmt::Debug for ShimConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShimConfig")
            .field("layout", &self.layout)
            .field("shim_binary", &self.shim_binary)
            .field("shim_cgroup", &self.shim_cgroup)
            .field("open_timeout", &self.open_timeout)
            .finish_non_exhaustive()
    }
}

/// Starts one shim per pod.
#[derive(Debug)]
pub struct ShimLauncher {
    config: ShimConfig,
    /// The shim's program in a sealed memory file, made once and shared by all shims of this daemon.
    program: OnceCell<Arc<OwnedFd>>,
    turns: Arc<Turns>,
    listing: Arc<Listing>,
}

impl ShimLauncher {
    /// Takes the configuration; touches nothing until the first pod.
    pub fn new(config: ShimConfig) -> Self {
        Self { config, program: OnceCell::new(), turns: Arc::default(), listing: Arc::default() }
    }

    async fn program(&self) -> Result<Arc<OwnedFd>, LaunchError> {
        let binary = self.config.shim_binary.clone();
        let made = self.program.get_or_try_init(|| async {
            let operation = format!("read the shim's program {}", binary.display());
            blocking(operation, move || spawn::sealed_program(&binary)).await.map(Arc::new)
        });
        made.await.cloned()
    }

    /// What is still to be done once the shim answers. On error the caller closes the shim.
    async fn open(&self, pod: &PodSpec, shim: &ShimPod, shim_pid: u32) -> Result<u32, LaunchError> {
        if let Some(cgroup) = self.config.shim_cgroup.clone() {
            self.attach(cgroup, shim_pid).await?;
        }
        let call = Call::OpenPod(convert::open_pod(pod)?);
        let pause_pid = match shim.line.request(call, Vec::new()).await?.0 {
            Outcome::OpenPod(reply) => reply.pause_pid,
            other => return Err(shim.unexpected(&other)),
        };
        self.attach(pod.pause_cgroup.clone(), pause_pid).await?;
        Ok(pause_pid)
    }

    async fn attach(&self, cgroup: CgroupPath, pid: u32) -> Result<(), LaunchError> {
        let attach = Arc::clone(&self.config.attach);
        blocking(format!("put process {pid} into cgroup {cgroup}"), move || attach(&cgroup, pid)).await
    }

    async fn dial(&self, pod: &PodId) -> Result<(ShimPod, wire::HelloReply, Events), LaunchError> {
        let dialler = Dialler { layout: self.config.layout.clone(), pod: pod.clone() };
        let Dialled { connection, events, hello, version, process } = dialler.dial().await?;
        if hello.pause_ended {
            connection.tell(PodEvent::PauseExited);
        }
        let (line, events) = Line::new(dialler, Arc::clone(&self.turns), connection, (events, process));
        let shim = ShimPod { id: pod.clone(), pause_pid: hello.pause_pid, version, line };
        Ok((shim, hello, events))
    }

    async fn in_time<T>(
        &self,
        pod: &PodId,
        work: impl Future<Output = Result<T, LaunchError>>,
    ) -> Result<T, LaunchError> {
        tokio::time::timeout(self.config.open_timeout, work).await.unwrap_or_else(|_| {
            Err(LaunchError::Io {
                operation: format!("wait for the shim of pod {pod}"),
                source: std::io::ErrorKind::TimedOut.into(),
            })
        })
    }
}

#[async_trait]
impl Launcher for ShimLauncher {
    async fn make_namespaces(
        &self,
        pod: &PodId,
        ids: &IdMap,
        own_net: bool,
    ) -> Result<UserNamespace, LaunchError> {
        // One that is there was started by a call before this one.
        let spawned = self.spawn(pod).await?;
        let made = self
            .in_time(pod, async {
                let (shim, ..) = self.dial(pod).await?;
                shim.make_namespaces(ids, own_net).await
            })
            .await;
        match (made, spawned) {
            (Ok(made), spawned) => {
                spawned.into_iter().for_each(spawn::Spawned::reap_in_background);
                Ok(made)
            }
            (Err(error), spawned) => {
                self.undo(pod, spawned).await;
                Err(error)
            }
        }
    }

    async fn open_pod(&self, pod: PodSpec) -> Result<OpenPod, LaunchError> {
        let spawned = self.spawn(&pod.id).await?;
        let opened = self
            .in_time(&pod.id, async {
                let (mut shim, hello, events) = self.dial(&pod.id).await?;
                if hello.pause_pid == 0 {
                    shim.pause_pid = self.open(&pod, &shim, hello.shim_pid).await?;
                }
                Ok((shim, events))
            })
            .await;
        match (opened, spawned) {
            (Ok((shim, events)), spawned) => {
                spawned.into_iter().for_each(spawn::Spawned::reap_in_background);
                Ok(OpenPod { pod: Arc::new(shim), events })
            }
            (Err(error), spawned) => {
                self.undo(&pod.id, spawned).await;
                Err(error)
            }
        }
    }

    async fn reopen_pod(&self, pod: &PodId) -> Result<OpenPod, LaunchError> {
        let (shim, hello, events) = self.in_time(pod, self.dial(pod)).await?;
        if hello.pause_pid == 0 {
            // Its daemon died before the pod was open: nothing holds the pod. It may be gone by now.
            let _ = self.in_time(pod, shim.close()).await;
            return Err(LaunchError::Gone { pod: pod.clone() });
        }
        Ok(OpenPod { pod: Arc::new(shim), events })
    }

    async fn end_holder(&self, pod: &PodId) -> Result<(), LaunchError> {
        self.of_dead_shim(pod, processes::end_makers).await
    }

    async fn end_logs(&self, pod: &PodId) -> Result<(), LaunchError> {
        self.of_dead_shim(pod, processes::end_logger).await
    }
}

impl ShimLauncher {
    async fn of_dead_shim(
        &self,
        pod: &PodId,
        work: fn(&Layout, &PodId, &Listing) -> std::io::Result<()>,
    ) -> Result<(), LaunchError> {
        let (layout, id, listing) = (self.config.layout.clone(), pod.clone(), Arc::clone(&self.listing));
        blocking(format!("end what the shim of pod {pod} has left"), move || work(&layout, &id, &listing))
            .await
    }

    /// Starts the pod's shim; none when there is one already.
    async fn spawn(&self, pod: &PodId) -> Result<Option<spawn::Spawned>, LaunchError> {
        let program = self.program().await?;
        self.listing.forget();
        let (layout, id) = (self.config.layout.clone(), pod.clone());
        let spawned =
            blocking(format!("start the shim of pod {id}"), move || spawn::spawn(&layout, &id, &program))
                .await;
        match spawned {
            Err(LaunchError::Io { source, .. }) if source.kind() == std::io::ErrorKind::AddrInUse => Ok(None),
            other => other.map(Some),
        }
    }

    /// Ends a shim that could not open its pod, with all that it has started. One that an earlier call
    /// has started is reaped by that.
    async fn undo(&self, pod: &PodId, spawned: Option<spawn::Spawned>) {
        let closed = self.in_time(pod, async {
            let (shim, ..) = self.dial(pod).await?;
            shim.close().await
        });
        let closed = closed.await;
        if let Some(mut spawned) = spawned {
            if closed.is_err() {
                spawned.kill();
            }
            spawned.wait().await;
        }
        // The socket goes last: what is left is looked for as long as it is there.
        let ended = async {
            self.end_holder(pod).await?;
            self.end_logs(pod).await
        };
        if let Err(error) = ended.await {
            tracing::warn!(%pod, %error, "not all ended of a shim that could not open its pod");
        }
    }
}

/// A pod held by a shim.
struct ShimPod {
    id: PodId,
    pause_pid: u32,
    version: Version,
    line: Arc<Line>,
}

impl fmt::Debug for ShimPod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShimPod").field("id", &self.id).field("pause_pid", &self.pause_pid).finish()
    }
}

impl ShimPod {
    fn unexpected(&self, outcome: &Outcome) -> LaunchError {
        let reason = format!("an answer to another question: {outcome:?}");
        LaunchError::Protocol { pod: self.id.clone(), reason }
    }

    async fn call(&self, container: Option<&ContainerId>, call: Call) -> Result<Outcome, LaunchError> {
        let answered = self.line.request(call, Vec::new()).await;
        answered.map(|(outcome, _)| outcome).map_err(|error| convert::name_container(error, container))
    }

    async fn order(&self, container: Option<&ContainerId>, call: Call) -> Result<(), LaunchError> {
        match self.call(container, call).await? {
            Outcome::Done(_) => Ok(()),
            other => Err(self.unexpected(&other)),
        }
    }
}

#[async_trait]
impl LivePod for ShimPod {
    fn pause_pid(&self) -> u32 {
        self.pause_pid
    }

    fn is_silent(&self) -> bool {
        self.line.is_silent()
    }

    async fn silent(&self) -> LaunchError {
        self.line.silent().await
    }

    async fn user_namespace(&self) -> Result<Option<UserNamespace>, LaunchError> {
        if !self.version.can_make_namespaces() {
            return Ok(None);
        }
        self.namespaces(wire::MakeNamespaces::default()).await
    }

    async fn containers(&self) -> Result<Vec<KnownContainer>, LaunchError> {
        match self.call(None, Call::List(List {})).await? {
            Outcome::List(list) => {
                list.containers.into_iter().map(|known| convert::known(&self.id, known)).collect()
            }
            other => Err(self.unexpected(&other)),
        }
    }

    async fn start(&self, start: StartSpec) -> Result<Started, LaunchError> {
        // A start that is given up would still be made by a shim that goes on, and nobody would know.
        let answered = self.line.request_patiently(Call::Start(convert::start(&start)?)).await;
        let started = answered.map_err(|error| convert::name_container(error, Some(&start.id)));
        match started?.0 {
            Outcome::Start(reply) => Ok(Started { pid: reply.pid, at: convert::time(reply.at) }),
            other => Err(self.unexpected(&other)),
        }
    }

    async fn signal(&self, container: &ContainerId, signal: i32, to: SignalTo) -> Result<(), LaunchError> {
        let call = Signal { container: container.to_string(), signal, all: to == SignalTo::All };
        self.order(Some(container), Call::Signal(call)).await
    }

    async fn exec(&self, exec: ExecSpec) -> Result<Box<dyn ExecSession>, LaunchError> {
        let container = exec.container.clone();
        let terminal = matches!(exec.io, ExecIo::Terminal);
        let (call, files) = convert::exec(&self.id, exec)?;
        let connection = self.line.up().await?;
        let (outcome, mut files) = match connection.request(Call::Exec(call), files).await {
            Err(LaunchError::Lost { .. }) => return Err(self.line.verdict(&connection).await),
            answered => answered.map_err(|error| convert::name_container(error, Some(&container)))?,
        };
        let Outcome::Exec(reply) = outcome else { return Err(self.unexpected(&outcome)) };
        let ended = connection.exec_ended(reply.exec);
        let terminal = terminal.then(|| files.pop()).flatten();
        let line = Arc::clone(&self.line);
        Ok(Box::new(ShimExec { number: reply.exec, pid: reply.pid, terminal, ended, connection, line }))
    }

    async fn attach(&self, attach: AttachSpec) -> Result<Attached, LaunchError> {
        self.attach_to(attach).await
    }

    async fn reopen_log(&self, container: &ContainerId) -> Result<(), LaunchError> {
        let call = ReopenLog { container: container.to_string() };
        self.order(Some(container), Call::ReopenLog(call)).await
    }

    async fn delete(&self, container: &ContainerId) -> Result<(), LaunchError> {
        self.order(Some(container), Call::Delete(Delete { container: container.to_string() })).await
    }

    async fn close(&self) -> Result<(), LaunchError> {
        self.order(None, Call::Close(Close {})).await?;
        tokio::select! {
            ended = self.line.ended() => ended,
            silent = self.line.silent() => Err(silent),
        }
    }
}

/// A process in a container.
struct ShimExec {
    number: u64,
    pid: u32,
    terminal: Option<OwnedFd>,
    ended: watch::Receiver<Ended>,
    /// The shim ends it with this connection.
    connection: Arc<Connection>,
    line: Arc<Line>,
}

#[async_trait]
impl ExecSession for ShimExec {
    fn pid(&self) -> u32 {
        self.pid
    }

    fn take_terminal(&mut self) -> Option<OwnedFd> {
        self.terminal.take()
    }

    async fn kill(&self) -> Result<(), LaunchError> {
        let call = Call::KillExec(KillExec { exec: self.number });
        match self.connection.request(call, Vec::new()).await {
            Err(LaunchError::Lost { .. }) => Err(self.line.verdict(&self.connection).await),
            answered => answered.map(drop),
        }
    }

    async fn wait(&mut self) -> Result<ExecEnd, LaunchError> {
        let ended = self.ended.wait_for(Option::is_some).await.ok().and_then(|ended| *ended);
        match ended {
            Some(end) => Ok(end),
            None => Err(self.line.verdict(&self.connection).await),
        }
    }
}

impl Drop for ShimExec {
    fn drop(&mut self) {
        self.connection.forget_exec(self.number);
    }
}

/// Runs what may block where it may.
async fn blocking<T: Send + 'static>(
    operation: String,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, LaunchError> {
    let done =
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    done.map_err(|source| LaunchError::Io { operation, source })
}
