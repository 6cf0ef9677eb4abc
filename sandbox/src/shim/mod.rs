//! The shim: one process with one thread per pod, parent of pause and of all its containers.
//!
//! One loop over poll(2): the listener, the daemon's connection, child signals, the logger, and the
//! reports of processes being made. Each step is short; whatever can wait for something outside the
//! kernel runs in a child (logger, creator, exec helper).
//!
//! Invariants: it reaps every child, so no exit is lost; an exit is on disk before anyone hears of it;
//! it has no threads, which is what makes its forks safe; it never dials, the daemon does.

mod attach;
mod capability;
mod cgroup;
mod connection;
mod container;
mod create;
pub(crate) mod cri_log;
mod delete;
mod device_directory;
mod exec;
mod exec_session;
mod fanout;
mod log_file;
mod logger;
mod overmount;
mod pause;
mod propagation;
mod reap;
mod report;
mod revive;
mod seccomp;
mod serve;
mod stage;
mod userspace;
mod workload;

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsString,
    io,
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use nix::{
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
    unistd::Pid,
};
use rustix::event::{PollFd, PollFlags, poll};

use self::{
    attach::Attachment, cgroup::Hierarchies, connection::Connection, container::Container, delete::Closing,
    exec_session::ExecSession, logger::Logger, userspace::UserSpace,
};
use crate::{ContainerId, Layout, PodId, sys};

/// A shim that no daemon has opened a pod in ends after this time.
const UNUSED: Duration = Duration::from_secs(60);
/// How often what waits for the kernel (an emptied cgroup) is tried again.
const RETRY: Duration = Duration::from_millis(5);
/// How long to wait when no connection can be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Least chosen by the kernel when memory is short, short of "never".
const OOM_SCORE: &str = "-999";

/// Why a shim cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// It was not started by a daemon.
    #[error(
        "usage: podhold-shim RUN_DIR STATE_DIR POD_ID, with the listening socket as stdin; \
         podhold starts it, there is no need to do so by hand"
    )]
    Usage,
    /// Something of its own process could not be set up.
    #[error("{operation}: {source}")]
    Setup {
        /// What was attempted.
        operation: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Runs a shim with the arguments of its command line; returns when its pod is closed.
pub fn run(arguments: impl Iterator<Item = OsString>) -> Result<(), ShimError> {
    let arguments: Vec<OsString> = arguments.skip(1).collect();
    let [run, state, pod] = arguments.as_slice() else { return Err(ShimError::Usage) };
    let pod = pod.to_str().and_then(|pod| PodId::parse(pod).ok()).ok_or(ShimError::Usage)?;
    let listener = sys::adopt_listener(0).map_err(|_| ShimError::Usage)?;
    let layout = Layout::new(PathBuf::from(run), PathBuf::from(state));
    let mut shim = set_up(layout, pod, listener)?;
    shim.run().map_err(|source| ShimError::Setup { operation: "wait for events", source })
}

fn set_up(layout: Layout, pod: PodId, listener: UnixListener) -> Result<Shim, ShimError> {
    let failed = |operation| move |source| ShimError::Setup { operation, source };
    sys::promise_single_thread().map_err(failed("look at its threads"))?;
    // It was executed through a descriptor, whose number would be its name.
    let _ = nix::sys::prctl::set_name(c"podhold-shim");
    // So that what is sent to the daemon's session or group does not reach the pod. The leader of a group,
    // which a child of the daemon is not, would be refused.
    let _ = nix::unistd::setsid();
    nix::sys::prctl::set_child_subreaper(true).map_err(|errno| failed("become subreaper")(errno.into()))?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    // Going below the present score takes CAP_SYS_RESOURCE; then it stays, or becomes neutral.
    for score in [OOM_SCORE, "0"] {
        if std::fs::write("/proc/self/oom_score_adj", score).is_ok() {
            break;
        }
    }
    // Everything is blocked: terminal signals and SIGTERM do not end a pod, only the daemon does.
    let all = SigSet::all();
    all.thread_block().map_err(|errno| failed("block signals")(errno.into()))?;
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    let signals = SignalFd::with_flags(&children, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(|errno| failed("signalfd")(errno.into()))?;
    listener.set_nonblocking(true).map_err(failed("set up the listener"))?;
    // 0 was the listener's number and must never be taken by a file that a child inherits as its stdin.
    let stdin = listener.try_clone().map_err(failed("move the listener"))?;
    let null = std::fs::File::open("/dev/null").map_err(failed("open /dev/null"))?;
    nix::unistd::dup2(std::os::fd::AsRawFd::as_raw_fd(&null), 0)
        .map_err(|errno| failed("replace stdin")(errno.into()))?;
    // Fd 0 stays open as /dev/null for good; its former owner must not close it.
    let _ = std::os::fd::IntoRawFd::into_raw_fd(listener);
    let hierarchies = Hierarchies::read().map_err(failed("read the mount table"))?;
    Ok(Shim {
        layout,
        pod,
        listener: stdin,
        signals,
        hierarchies,
        connection: None,
        generation: 0,
        user_space: None,
        holder: None,
        containers: BTreeMap::new(),
        execs: BTreeMap::new(),
        next_exec: 1,
        attachments: BTreeMap::new(),
        next_attachment: 1,
        early: HashMap::new(),
        closing: None,
        done: false,
        idle_since: Instant::now(),
        deaf_until: None,
    })
}

/// The shim's whole state.
struct Shim {
    layout: Layout,
    pod: PodId,
    listener: UnixListener,
    signals: SignalFd,
    hierarchies: Hierarchies,
    connection: Option<Connection>,
    /// Counts connections; a reply to an earlier one is dropped.
    generation: u64,
    /// The pod's own, made before it is opened.
    user_space: Option<UserSpace>,
    holder: Option<Holder>,
    containers: BTreeMap<ContainerId, Container>,
    execs: BTreeMap<u64, ExecSession>,
    next_exec: u64,
    attachments: BTreeMap<u64, Attachment>,
    next_attachment: u64,
    /// Children that ended while some process was being made, and may turn out to be that process.
    early: HashMap<Pid, End>,
    closing: Option<Closing>,
    done: bool,
    idle_since: Instant,
    /// No connection could be accepted; not looked at until this time.
    deaf_until: Option<Instant>,
}

/// What holds the pod, once it is open.
struct Holder {
    pause: Pid,
    pause_ended: bool,
    shared_pid: bool,
    logger: Logger,
    /// The logger's end of its socket is closed.
    logger_silent: bool,
    logger_ended: bool,
    logger_born: Instant,
    /// When the next logger is started, after this one has died.
    revival: Option<Instant>,
}

/// How a child ended.
#[derive(Debug, Clone, Copy)]
struct End {
    /// The exit code, or 128 + signal.
    code: i32,
    at: SystemTime,
}

/// Where a reply goes.
#[derive(Debug, Clone, Copy)]
struct ReplyTo {
    generation: u64,
    id: u64,
}

/// What poll has found something on.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Signals,
    Listener,
    Connection,
    Logger,
    Creation(ContainerId),
    Exec(u64),
    Attachment(u64),
}

impl Shim {
    fn run(&mut self) -> io::Result<()> {
        while !self.done {
            for source in self.wait()? {
                self.dispatch(&source);
            }
            self.expire(Instant::now());
            self.settle();
        }
        Ok(())
    }

    fn wait(&self) -> io::Result<Vec<Source>> {
        let mut sources = vec![Source::Signals, Source::Listener];
        let listen = if self.deaf_until.is_some() { PollFlags::empty() } else { PollFlags::IN };
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN), PollFd::new(&self.listener, listen)];
        if let Some(connection) = &self.connection {
            sources.push(Source::Connection);
            fds.push(PollFd::new(&connection.socket, connection.interest()));
        }
        if let Some(holder) =
            self.holder.as_ref().filter(|holder| !holder.logger_silent && !holder.logger_ended)
        {
            sources.push(Source::Logger);
            fds.push(PollFd::new(&holder.logger.socket, PollFlags::IN));
        }
        for (id, container) in &self.containers {
            if let Some(report) = container.report() {
                sources.push(Source::Creation(id.clone()));
                fds.push(PollFd::new(report, PollFlags::IN));
            }
        }
        for (id, exec) in &self.execs {
            if let Some(report) = exec.report() {
                sources.push(Source::Exec(*id));
                fds.push(PollFd::new(report, PollFlags::IN));
            }
        }
        for (number, attachment) in &self.attachments {
            sources.push(Source::Attachment(*number));
            fds.push(PollFd::new(attachment.socket(), attachment.interest()));
        }
        let left = self.deadline().map(|at| at.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| rustix::event::Timespec::try_from(left).ok());
        match poll(&mut fds, left.as_ref()) {
            Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            // Of the kernel's memory, for a moment: the pod must not end of it.
            Err(rustix::io::Errno::NOMEM | rustix::io::Errno::AGAIN) => {
                let pause = rustix::event::Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
                let _passed = poll(&mut [], Some(&pause));
                return Ok(Vec::new());
            }
            Err(error) => return Err(error.into()),
            Ok(_) => {}
        }
        let ready = fds.iter().zip(sources).filter(|(fd, _)| !fd.revents().is_empty());
        Ok(ready.map(|(_, source)| source).collect())
    }

    fn dispatch(&mut self, source: &Source) {
        match source {
            Source::Signals => {
                while let Ok(Some(_)) = self.signals.read_signal() {}
                self.reap();
            }
            Source::Listener => self.accept(),
            Source::Connection => self.serve(),
            Source::Logger => self.hear_logger(),
            Source::Creation(id) => self.hear_creation(id),
            Source::Exec(id) => self.hear_exec(*id),
            Source::Attachment(number) => self.hear_attachment(*number),
        }
    }

    /// The next time at which something is to be done without an event.
    fn deadline(&self) -> Option<Instant> {
        let containers = self.containers.values().filter_map(Container::deadline);
        let execs = self.execs.values().filter_map(ExecSession::deadline);
        let closing = self.closing.as_ref().map(Closing::deadline);
        let unused = self.holder.is_none().then(|| self.idle_since + UNUSED);
        let revival = self.holder.as_ref().and_then(|holder| holder.revival);
        let times = [revival, self.deaf_until].into_iter().flatten();
        containers.chain(execs).chain(closing).chain(unused).chain(times).min()
    }

    /// Does what has become due.
    fn expire(&mut self, now: Instant) {
        if self.holder.is_none() && now >= self.idle_since + UNUSED {
            self.done = true;
        }
        self.revive_logger(now);
        if self.deaf_until.is_some_and(|until| now >= until) {
            self.deaf_until = None;
        }
        let due: Vec<ContainerId> = self
            .containers
            .iter()
            .filter(|(_, container)| container.deadline().is_some_and(|at| now >= at))
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            self.container_due(&id, now);
        }
        let due: Vec<u64> = self
            .execs
            .iter()
            .filter(|(_, exec)| exec.deadline().is_some_and(|at| now >= at))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.exec_due(id);
        }
    }

    /// Goes on with what waits for children to be gone, and sends what is to be sent.
    fn settle(&mut self) {
        self.settle_execs();
        self.settle_deletions();
        self.settle_closing();
        if self.execs.values().all(|exec| exec.report().is_none())
            && self.containers.values().all(|container| container.report().is_none())
        {
            self.early.clear();
        }
        self.flush();
    }

    /// Says something in the pod's `shim.log`. On a full disk it is lost; the macros for this would panic.
    fn say(&self, words: &str) {
        let _unsaid = io::Write::write_fmt(
            &mut io::stderr(),
            format_args!("podhold-shim: pod {}: {words}\n", self.pod),
        );
    }

    fn bundle(&self, id: &ContainerId) -> PathBuf {
        self.layout.bundle(&self.pod, id)
    }
}

/// Opens a pidfd for the process that has this number now; for a child that has not been reaped that is
/// the child.
fn pidfd(pid: Pid) -> io::Result<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(pid.as_raw()).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?)
}

fn nanoseconds(at: SystemTime) -> i64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
