//! What the runtime asks of whatever makes a pod run: the contract every runtime handler keeps.
//!
//! The built-in handler ([`crate::client::ShimLauncher`]) starts one `podhold-shim` per pod; others may
//! start a virtual machine or an OCI command line.
//!
//! Contract:
//! - Every operation is idempotent: repeating one that has succeeded succeeds again.
//! - A container's exit is written to disk before it is reported; it is reported to the connection there
//!   is then, again after every further [`LivePod::start`] of that container, and can be asked for
//!   ([`LivePod::containers`]) after the daemon was away.
//! - Dropping a handle ends no process: pods outlive the daemon.

mod error;

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use oci_spec::runtime::Process;
use podhold_cgroups::CgroupPath;
use tokio::sync::mpsc::UnboundedReceiver;

pub use self::error::LaunchError;
use crate::{ContainerId, PodId};

/// Starts pods and finds those that run already.
#[async_trait]
pub trait Launcher: Send + Sync + std::fmt::Debug {
    /// Makes a user namespace for the pod and, with `own_net`, in it a network namespace whose loopback
    /// is up, so that the pod's network can be set up before the pod is open. What holds them lets go of
    /// them after a while in which [`Launcher::open_pod`] has not followed.
    ///
    /// On error nothing of it is left running. [`LaunchError::Refused`] by a handler without such pods.
    async fn make_namespaces(
        &self,
        pod: &PodId,
        ids: &IdMap,
        own_net: bool,
    ) -> Result<UserNamespace, LaunchError>;

    /// Starts what holds the pod (for the built-in handler: shim, logger and pause process).
    ///
    /// On error nothing of it is left running.
    async fn open_pod(&self, pod: PodSpec) -> Result<OpenPod, LaunchError>;

    /// Connects to a pod that an earlier daemon opened. [`LaunchError::Gone`] when nothing holds it.
    async fn reopen_pod(&self, pod: &PodId) -> Result<OpenPod, LaunchError>;

    /// Ends by force what holds the pod and does not answer, or what a holder that has died was doing.
    /// Leaves containers, which are found by their cgroups, and what writes their logs.
    async fn end_holder(&self, pod: &PodId) -> Result<(), LaunchError>;

    /// Ends what writes the logs of a pod whose holder is gone, after a bounded time in which it may write
    /// what there is. To be called when the pod's containers have ended.
    async fn end_logs(&self, pod: &PodId) -> Result<(), LaunchError>;
}

/// A running pod and the channel that tells what happens in it.
pub struct OpenPod {
    /// The handle for requests.
    pub pod: Arc<dyn LivePod>,
    /// What happens in the pod, in order. Ends after [`PodEvent::Gone`] and [`PodEvent::Lost`].
    pub events: UnboundedReceiver<PodEvent>,
}

/// One pod that runs.
#[async_trait]
pub trait LivePod: Send + Sync + std::fmt::Debug {
    /// The process that holds the pod's namespaces, as the daemon's pid namespace sees it.
    fn pause_pid(&self) -> u32;

    /// Whether the holder is known not to answer ([`LaunchError::Silent`], [`LaunchError::Lost`]).
    fn is_silent(&self) -> bool;

    /// Completes, with one of these errors, when the holder does not answer; never while it does. Every
    /// request but [`LivePod::start`] ends with that error by itself.
    async fn silent(&self) -> LaunchError;

    /// The pod's user namespace; `None` when it has none of its own.
    async fn user_namespace(&self) -> Result<Option<UserNamespace>, LaunchError>;

    /// Every container the holder knows: those being started, running ones, and those that have ended
    /// and are not deleted.
    async fn containers(&self) -> Result<Vec<KnownContainer>, LaunchError>;

    /// Creates the container from its bundle and starts it. Returns when its init has been told to
    /// execute the workload; a workload that cannot be executed is [`LaunchError::Refused`], and
    /// nothing of it is left.
    ///
    /// Waits for a silent holder as long as it takes: it would start the container when it goes on.
    ///
    /// Joins a start under way. Of a container that runs or has ended it gives the first answer again,
    /// and [`PodEvent::ContainerExited`] follows when it has ended.
    async fn start(&self, start: StartSpec) -> Result<Started, LaunchError>;

    /// Sends a signal to the container's init process, or to every process of it. Success when the
    /// container has ended already.
    async fn signal(&self, container: &ContainerId, signal: i32, to: SignalTo) -> Result<(), LaunchError>;

    /// Runs a further process in a running container. Returns when the process has been started.
    async fn exec(&self, exec: ExecSpec) -> Result<Box<dyn ExecSession>, LaunchError>;

    /// Joins the standard streams of a running container: output from now on, and its stdin, which one
    /// client has at a time.
    ///
    /// Never slows the container: a client that leaves too much unread is cut off
    /// ([`AttachEnd::TooSlow`]).
    async fn attach(&self, attach: AttachSpec) -> Result<Attached, LaunchError>;

    /// Opens the container's log file anew, after it was renamed. No line is lost or torn.
    async fn reopen_log(&self, container: &ContainerId) -> Result<(), LaunchError>;

    /// Kills what is left of the container and forgets it.
    async fn delete(&self, container: &ContainerId) -> Result<(), LaunchError>;

    /// Kills every container, ends pause (TERM, then KILL) and the holder itself. When it returns,
    /// no process of the pod is left, except one that writes logs to a disk that hangs: it has been
    /// killed and ends when the disk is back. [`LaunchError::Gone`] when the holder has ended before, or
    /// meanwhile by itself: then nobody knows what it has left.
    async fn close(&self) -> Result<(), LaunchError>;
}

/// A process started by [`LivePod::exec`]. It is killed when the daemon that asked for it dies.
#[async_trait]
pub trait ExecSession: Send + Sync {
    /// The process, as the daemon's pid namespace sees it.
    fn pid(&self) -> u32;
    /// The terminal's master side when [`ExecSpec::io`] asked for one; once only.
    fn take_terminal(&mut self) -> Option<OwnedFd>;
    /// Kills the process and everything it started in its session.
    async fn kill(&self) -> Result<(), LaunchError>;
    /// Waits for its end. May be called again and gives the same answer.
    async fn wait(&mut self) -> Result<ExecEnd, LaunchError>;
}

/// Which of a container's standard streams a client joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachSpec {
    /// The container.
    pub container: ContainerId,
    /// Its standard input; refused while another client has it, when the container was made without
    /// one, and after it was closed ([`StartSpec::stdin_once`]).
    pub stdin: bool,
    /// Its standard output; all output of a container that has a terminal.
    pub stdout: bool,
    /// Its standard error.
    pub stderr: bool,
}

/// A client's end of a container's standard streams. Each is there when it was asked for.
pub struct Attached {
    /// What is written to this reaches the container's stdin; absent when it has a terminal. Does not
    /// block. To be closed before [`AttachSession::give_up_stdin`].
    pub stdin: Option<OwnedFd>,
    /// Standard output: a stream socket, to its end of file.
    pub stdout: Option<OwnedFd>,
    /// Standard error: a stream socket, to its end of file.
    pub stderr: Option<OwnedFd>,
    /// The container's terminal, when it has one: for input, if that was asked for, and for its size.
    /// Reading from it would steal output.
    pub terminal: Option<OwnedFd>,
    /// The session itself. Dropping it detaches.
    pub session: Box<dyn AttachSession>,
}

/// A session started by [`LivePod::attach`]. Dropping it detaches, and so does the daemon's death.
#[async_trait]
pub trait AttachSession: Send + Sync {
    /// Lets go of stdin, for another client to have it. With [`StartSpec::stdin_once`] and no terminal
    /// the container reads end of file.
    fn give_up_stdin(&self);
    /// Waits for the end of the session for a reason on the container's side. May be given up and asked
    /// again until it has answered.
    async fn ended(&self) -> Result<AttachEnd, LaunchError>;
}

/// Why an attach session has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachEnd {
    /// The container has ended, with this code. Its output is in the streams, then end of file.
    Exited(i32),
    /// The client left more output unread than is kept for it. What is kept is in the streams.
    TooSlow,
}

/// How an exec'd process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecEnd {
    /// It ended by itself: its exit code, or 128 + signal.
    Exited(i32),
    /// Its time was over and it was killed.
    TimedOut,
}

/// What a pod's holder needs to know to open it.
#[derive(Debug, Clone)]
pub struct PodSpec {
    /// The pod.
    pub id: PodId,
    /// Path of the network namespace to hold; `None` is the host's network.
    pub netns: Option<PathBuf>,
    /// In the user namespace that [`Launcher::make_namespaces`] has made.
    pub in_user_namespace: bool,
    /// A UTS namespace of its own with this host name; `None` is the host's.
    pub hostname: Option<String>,
    /// An IPC namespace of its own; otherwise the host's.
    pub own_ipc: bool,
    /// One PID namespace for all containers, with pause as its pid 1.
    pub shared_pid: bool,
    /// Sysctls to set in the pod's namespaces, by dotted name. Checked by the caller.
    pub sysctls: BTreeMap<String, String>,
    /// The cgroup leaf that pause is put into.
    pub pause_cgroup: CgroupPath,
    /// `oom_score_adj` of pause; clamped to what is allowed.
    pub pause_oom_score_adj: i32,
}

/// How ids in a user namespace map to ids on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMap {
    /// User ids.
    pub uids: Vec<IdRange>,
    /// Group ids.
    pub gids: Vec<IdRange>,
}

/// A range of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// First id in the namespace.
    pub container: u32,
    /// First id on the host.
    pub host: u32,
    /// How many.
    pub length: u32,
}

/// A pod's user namespace.
#[derive(Debug)]
pub struct UserNamespace {
    /// The namespace itself.
    pub user: OwnedFd,
    /// The network namespace that belongs to it; `None` when the pod has none of its own.
    pub net: Option<OwnedFd>,
}

/// A container to start. Its bundle directory is [`crate::Layout::bundle`] and holds `config.json` and
/// a mounted `rootfs`; namespaces the spec lists without a path are made anew, except those in `join`.
#[derive(Debug, Clone)]
pub struct StartSpec {
    /// The container.
    pub id: ContainerId,
    /// Namespaces to join instead of making them.
    pub join: Vec<NamespaceJoin>,
    /// The log file, in the CRI log format; `None` discards output.
    pub log_path: Option<PathBuf>,
    /// Whether the container has a terminal (CRI `tty`). Must equal the OCI spec's.
    pub tty: bool,
    /// Whether stdin stays open for attach (CRI `stdin`); otherwise `/dev/null`.
    pub stdin: bool,
    /// Whether stdin is closed when the first client leaves it (CRI `stdin_once`). A terminal stays open:
    /// it has no end of file of its own.
    pub stdin_once: bool,
}

/// One namespace a container shares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceJoin {
    /// Which kind.
    pub kind: NamespaceKind,
    /// Whose: pause's, or (PID only) that of another running container of the pod.
    pub of: NamespaceOf,
}

/// The kinds of namespaces containers of a pod share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamespaceKind {
    /// Users; the pod's only. Binds of the spec are then made by the holder before it is entered, those
    /// with `uidMappings` with their owners shifted.
    User,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Host name.
    Uts,
    /// Processes.
    Pid,
    /// Network.
    Net,
}

/// Whose namespace is joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamespaceOf {
    /// The pod's, held by pause.
    Pod,
    /// Another container's (CRI `NamespaceMode.TARGET`).
    Container(ContainerId),
}

/// A container that was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// Its init process, as the daemon's pid namespace sees it.
    pub pid: u32,
    /// When it was told to execute the workload.
    pub at: SystemTime,
}

/// Who gets a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalTo {
    /// The container's first process.
    Init,
    /// Every process of the container.
    All,
}

/// A further process in a container.
#[derive(Debug)]
pub struct ExecSpec {
    /// The container it runs in.
    pub container: ContainerId,
    /// What runs: arguments, environment, user, capabilities, limits; as OCI says.
    pub process: Process,
    /// Where its standard streams go.
    pub io: ExecIo,
    /// Killed after this time.
    pub timeout: Option<Duration>,
}

/// Standard streams of an exec'd process.
#[derive(Debug)]
pub enum ExecIo {
    /// These files; `None` is `/dev/null`.
    Files {
        /// Standard input.
        stdin: Option<OwnedFd>,
        /// Standard output.
        stdout: Option<OwnedFd>,
        /// Standard error.
        stderr: Option<OwnedFd>,
    },
    /// A new terminal in the container's devpts.
    Terminal,
}

/// A container the holder knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownContainer {
    /// The container.
    pub id: ContainerId,
    /// Whether it is being started, runs, or how it ended.
    pub state: KnownState,
}

/// The kernel's truth about one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KnownState {
    /// Its start, asked for by an earlier daemon, is under way. Nothing tells its outcome but
    /// [`LivePod::start`], which joins it.
    Starting,
    /// It runs.
    Running(Started),
    /// It has ended.
    Exited {
        /// When it was told to execute the workload; `None` when that is not known.
        started_at: Option<SystemTime>,
        /// How it ended.
        exit: Exit,
    },
}

/// How a container ended; also the exit record on disk.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Exit {
    /// The exit code, or 128 + signal.
    pub code: i32,
    /// When the init process was reaped.
    pub at: SystemTime,
    /// Whether the kernel killed a process of it for want of memory.
    pub oom_killed: bool,
    /// When it was told to execute the workload; `None` in records that do not say.
    #[serde(default)]
    pub started_at: Option<SystemTime>,
}

/// What happens in a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodEvent {
    /// A container has ended and its record is on disk.
    ContainerExited(ContainerId, Exit),
    /// The pause process has ended unasked.
    PauseExited,
    /// The holder itself is gone, or nobody can ever reach it again; the reason in words.
    Gone(String),
    /// The holder lives, and cannot be talked to; the reason in words. The handle is of no use any more: only
    /// [`Launcher::reopen_pod`] gives another one.
    Lost(String),
}
