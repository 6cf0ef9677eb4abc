//! One container's way through the shim.
//!
//! ```text
//! OpeningLog -> Creating -> Running -> Draining -> Exited -> Deleting -> (forgotten)
//!      |            |                                          ^
//!      +------------+-- failed: what is half made is undone ---+
//! ```

use std::{
    fs::File,
    os::fd::OwnedFd,
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use oci_spec::runtime::LinuxNamespaceType;
use podhold_proto::shim::{Exited, NamespaceKind, Start, event::What};

use super::{
    End, ReplyTo, Shim,
    attach::{Owner, Stdin},
    connection::{io_failure, not_running, refused},
    create::{self, Job, Streams},
    logger::Command,
    report::{self, Heard, Report},
    serve::{LOG_LIMIT, started, wire_exit},
};
use crate::{ContainerId, launch::Exit, record, sys::SignalNumber};

/// How long libcontainer may take for one container.
const CREATE_LIMIT: Duration = Duration::from_secs(60);
/// How long the exit waits for the logger; a little more than the logger's own drain.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

pub(super) struct Container {
    pub(super) phase: Phase,
    /// Its cgroup path; empty until its spec has been read.
    pub(super) cgroup: String,
    /// Where its output is written; `None` when it is discarded.
    pub(super) log_path: Option<PathBuf>,
    /// The reading ends of its output, for another logger. Empty for a terminal, which `stdin` holds.
    pub(super) outputs: Vec<OwnedFd>,
    /// Its init, until that has been reaped.
    pub(super) init: Option<Pid>,
    pub(super) starters: Vec<ReplyTo>,
    pub(super) reopens: Vec<(ReplyTo, Instant)>,
    pub(super) deleters: Vec<(ReplyTo, Instant)>,
    /// To be killed and forgotten.
    pub(super) doomed: bool,
    /// What attached clients write to, kept open for them.
    pub(super) stdin: Stdin,
}

pub(super) enum Phase {
    OpeningLog { call: Start, deadline: Instant },
    Creating(Creation),
    Running(Started),
    Draining { started: Started, exit: Exit, deadline: Instant },
    Exited { started: Started, exit: Exit },
    Deleting { retry: Instant, limit: Instant, failure: Option<String> },
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Started {
    pub(super) pid: Pid,
    pub(super) at: SystemTime,
}

pub(super) struct Creation {
    pub(super) creator: Pid,
    report: OwnedFd,
    deadline: Instant,
    started: Option<SystemTime>,
    failure: Option<String>,
}

/// What the shim keeps of a container's streams.
type Kept = (Stdin, Vec<OwnedFd>);
/// The container's ends of its pipes, then what the shim keeps: the writing end of stdin, the reading ends of
/// its output.
type Pipes = (Streams, Option<OwnedFd>, Vec<OwnedFd>);

impl Container {
    /// What the logger reads.
    pub(super) fn streams(&self) -> Vec<&OwnedFd> {
        let terminal = self.stdin.file.as_ref().filter(|_| self.stdin.terminal);
        self.outputs.iter().chain(terminal).collect()
    }

    pub(super) fn report(&self) -> Option<&OwnedFd> {
        match &self.phase {
            Phase::Creating(creation) => Some(&creation.report),
            _ => None,
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let phase = match &self.phase {
            Phase::OpeningLog { deadline, .. } | Phase::Draining { deadline, .. } => Some(*deadline),
            Phase::Creating(creation) => Some(creation.deadline),
            Phase::Deleting { retry, .. } => Some(*retry),
            Phase::Running(_) | Phase::Exited { .. } => None,
        };
        let waiting = self.reopens.iter().chain(&self.deleters).map(|(_, limit)| *limit);
        phase.into_iter().chain(waiting).min()
    }
}

impl Shim {
    pub(super) fn start(&mut self, to: ReplyTo, id: ContainerId, call: &Start) {
        if let Some(container) = self.containers.get_mut(&id) {
            return match &container.phase {
                // Of a start that has failed the answer follows when what was half made is gone.
                Phase::OpeningLog { .. } | Phase::Creating(_) | Phase::Deleting { failure: Some(_), .. } => {
                    container.starters.push(to)
                }
                // The exit of one that is draining is yet to be told.
                Phase::Running(done) | Phase::Draining { started: done, .. } => {
                    let reply = started(done);
                    self.reply(to, reply);
                }
                Phase::Exited { started: done, exit } => {
                    // Who asks may be a daemon that was away when it was told.
                    let (reply, event) = (started(done), exited(&id, exit));
                    self.reply(to, reply);
                    self.event(event);
                }
                Phase::Deleting { .. } => self.reply(to, not_running("it is being deleted")),
            };
        }
        let Some(holder) = &self.holder else {
            return self.reply(to, refused("the pod has not been opened"));
        };
        let path = (!call.log_path.is_empty()).then(|| PathBuf::from(&call.log_path));
        let open = Command::Open { id: id.clone(), path: path.clone() };
        if let Err(error) = holder.logger.tell(&open, &[]) {
            return self.reply(to, io_failure("reach the logger (is the log's disk stuck?)", &error));
        }
        let deadline = Instant::now() + LOG_LIMIT;
        let container = Container {
            phase: Phase::OpeningLog { call: call.clone(), deadline },
            cgroup: String::new(),
            log_path: path,
            outputs: Vec::new(),
            init: None,
            starters: vec![to],
            reopens: Vec::new(),
            deleters: Vec::new(),
            doomed: false,
            stdin: Stdin::unknown(),
        };
        self.containers.insert(id, container);
    }

    /// The log is open (or not): on to the creator.
    pub(super) fn log_opened(&mut self, id: &ContainerId, error: Option<String>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Phase::OpeningLog { call, .. } = &container.phase else {
            // A new logger has opened it: so it is new for whoever waits for that.
            return self.log_reopened(id, error);
        };
        let call = call.clone();
        let made = match error {
            Some(words) => Err(words),
            None => self.make_creation(id, &call),
        };
        match made {
            Ok((creation, pipes)) => {
                if let Some(container) = self.containers.get_mut(id) {
                    container.phase = Phase::Creating(creation);
                    (container.stdin, container.outputs) = pipes;
                }
            }
            Err(words) => self.start_failed(id, words),
        }
    }

    fn make_creation(&self, id: &ContainerId, call: &Start) -> Result<(Creation, Kept), String> {
        let join = call.join.iter().map(|join| self.open_namespace(join)).collect::<Result<_, _>>()?;
        let (near, far) = report::pair().map_err(|error| format!("socket pair: {error}"))?;
        let (streams, file, outputs) = match call.tty {
            true => (Streams::Terminal, None, Vec::new()),
            false => self.pipes(id, call.stdin)?,
        };
        let owner = if call.stdin { Owner::Free } else { Owner::Missing };
        let stdin = Stdin { owner, once: call.stdin_once, file, terminal: call.tty };
        let state = self.layout.libcontainer(&self.pod);
        let job = Job { id: id.clone(), bundle: self.bundle(id), state, join, streams, report: far };
        let creator = create::start(&job, &create::temporary(&self.layout, &self.pod, id))
            .map_err(|error| format!("fork the creator: {error}"))?;
        let deadline = Instant::now() + CREATE_LIMIT;
        Ok((Creation { creator, report: near, deadline, started: None, failure: None }, (stdin, outputs)))
    }

    /// Pipes for a container without a terminal; the reading ends of its output go to the logger, and are
    /// kept for the next one.
    fn pipes(&self, id: &ContainerId, stdin: bool) -> Result<Pipes, String> {
        let pipe = || {
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
                .map_err(|error| format!("pipe: {}", std::io::Error::from(error)))
        };
        let ((out_read, out_write), (err_read, err_write)) = (pipe()?, pipe()?);
        let (input, kept) = if stdin {
            let (read, write) = pipe()?;
            (read, Some(write))
        } else {
            let null = File::open("/dev/null").map_err(|error| format!("/dev/null: {error}"))?;
            (null.into(), None)
        };
        self.hand_to_logger(id, &[&out_read, &err_read])?;
        Ok((Streams::Files([input, out_write, err_write]), kept, vec![out_read, err_read]))
    }

    fn hand_to_logger(&self, id: &ContainerId, streams: &[&OwnedFd]) -> Result<(), String> {
        let holder = self.holder.as_ref().ok_or("the pod has not been opened")?;
        let command = Command::Streams { id: id.clone() };
        holder.logger.tell(&command, streams).map_err(|error| format!("reach the logger: {error}"))
    }

    /// Opens the namespace to join; its owner is a child of ours that has not been reaped.
    fn open_namespace(
        &self,
        join: &podhold_proto::shim::NamespaceJoin,
    ) -> Result<(LinuxNamespaceType, OwnedFd), String> {
        let holder = self.holder.as_ref().ok_or("the pod has not been opened")?;
        let (kind, name) = match join.kind() {
            NamespaceKind::User => {
                let space = self.user_space.as_ref().ok_or("the pod has no user namespace of its own")?;
                let user = space.user.try_clone().map_err(|error| error.to_string())?;
                return Ok((LinuxNamespaceType::User, user));
            }
            NamespaceKind::Ipc => (LinuxNamespaceType::Ipc, "ipc"),
            NamespaceKind::Uts => (LinuxNamespaceType::Uts, "uts"),
            NamespaceKind::Pid => (LinuxNamespaceType::Pid, "pid"),
            NamespaceKind::Net => (LinuxNamespaceType::Network, "net"),
            NamespaceKind::Unspecified => return Err("a namespace of unknown kind".into()),
        };
        let owner = if join.container.is_empty() {
            if holder.pause_ended {
                return Err(format!("the pod's {name} namespace: its pause process has ended"));
            }
            if kind == LinuxNamespaceType::Pid && !holder.shared_pid {
                return Err("the pod has no PID namespace to share: open it with shared_pid".into());
            }
            holder.pause
        } else {
            let target = ContainerId::parse(&join.container).map_err(|error| error.to_string())?;
            match self.containers.get(&target).map(|container| &container.phase) {
                Some(Phase::Running(started)) => started.pid,
                _ => {
                    return Err(format!(
                        "container {target}, whose {name} namespace is asked for, does not run"
                    ));
                }
            }
        };
        let path = format!("/proc/{owner}/ns/{name}");
        let file = File::open(&path).map_err(|error| format!("{path}: {error}"))?;
        Ok((kind, file.into()))
    }

    pub(super) fn hear_creation(&mut self, id: &ContainerId) {
        loop {
            let Some(container) = self.containers.get_mut(id) else { return };
            let Phase::Creating(creation) = &mut container.phase else { return };
            match report::hear(&creation.report) {
                Heard::Nothing => return,
                Heard::End => return self.conclude_creation(id),
                Heard::Report(Report::Cgroup(path), _) => container.cgroup = path,
                Heard::Report(Report::Process(pid), _) => container.init = Some(Pid::from_raw(pid)),
                Heard::Report(Report::Started(at), _) => creation.started = Some(at),
                Heard::Report(Report::Failed(words), _) => {
                    // The first is nearest to the cause.
                    creation.failure.get_or_insert(words);
                }
                Heard::Report(Report::Terminal, Some(terminal)) => {
                    container.stdin.file = Some(terminal);
                    self.hand_over_terminal(id);
                }
                Heard::Report(Report::Terminal, None) => {
                    creation.failure.get_or_insert("the terminal did not come".into());
                }
            }
        }
    }

    fn hand_over_terminal(&mut self, id: &ContainerId) {
        let Some(terminal) = self.containers.get(id).and_then(|container| container.stdin.file.as_ref())
        else {
            return;
        };
        let handed = self.hand_to_logger(id, &[terminal]);
        if let (Err(words), Some(container)) = (handed, self.containers.get_mut(id))
            && let Phase::Creating(creation) = &mut container.phase
        {
            creation.failure.get_or_insert(words);
        }
    }

    /// Nobody holds the report any more: init executes the workload, or everyone has died.
    fn conclude_creation(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Phase::Creating(creation) = &mut container.phase else { return };
        if let Some(words) = creation.failure.take() {
            return self.start_failed(id, words);
        }
        let (Some(pid), Some(at)) = (container.init, creation.started) else {
            return self.start_failed(id, "the process that makes the container has died".into());
        };
        let running = Started { pid, at };
        container.phase = Phase::Running(running);
        let doomed = container.doomed;
        for to in std::mem::take(&mut container.starters) {
            self.reply(to, started(&running));
        }
        if let Some(end) = self.early.remove(&pid) {
            self.container_ended(id, end);
        } else if doomed {
            self.kill_container(id);
        }
    }

    /// The creator has been reaped; without its last word nothing more will come of it.
    pub(super) fn creator_ended(&mut self, id: &ContainerId, end: End) {
        self.hear_creation(id);
        let Some(container) = self.containers.get_mut(id) else { return };
        let Phase::Creating(creation) = &mut container.phase else { return };
        if creation.started.is_none() {
            let words = format!("the process that makes the container ended with code {}", end.code);
            creation.failure.get_or_insert(words);
            self.kill_container(id);
        }
    }

    pub(super) fn kill_container(&self, id: &ContainerId) {
        let Some(container) = self.containers.get(id) else { return };
        if !container.cgroup.is_empty() {
            self.hierarchies.signal(&container.cgroup, SignalNumber::KILL);
        }
        if let Some(init) = container.init {
            let _ = kill(init, Signal::SIGKILL);
        }
    }

    /// Undoes what is half made; the answer follows when it is gone.
    pub(super) fn start_failed(&mut self, id: &ContainerId, words: String) {
        self.tell_logger(&Command::Finish { id: id.clone() });
        if let Some(container) = self.containers.get_mut(id) {
            container.outputs.clear();
        }
        let early = self.containers.get(id).and_then(|container| container.init);
        let reaped = early.is_some_and(|init| self.early.contains_key(&init));
        self.kill_container(id);
        let Some(container) = self.containers.get_mut(id) else { return };
        if reaped {
            container.init = None;
        }
        let now = Instant::now();
        container.phase =
            Phase::Deleting { retry: now, limit: now + super::delete::LIMIT, failure: Some(words) };
    }

    /// False when there is no logger, and there will be none.
    fn tell_logger(&self, command: &Command) -> bool {
        self.holder.as_ref().is_some_and(|holder| match holder.logger_ended {
            true => holder.revival.is_some() && self.closing.is_none(),
            false => holder.logger.tell(command, &[]).is_ok(),
        })
    }

    /// The init of a running container has been reaped.
    pub(super) fn container_ended(&mut self, id: &ContainerId, end: End) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.init = None;
        let Phase::Running(started) = container.phase else { return };
        // Without a PID namespace of its own, processes of the container may be left.
        self.hierarchies.signal(&container.cgroup, SignalNumber::KILL);
        let oom_killed = self.hierarchies.oom_kills(&container.cgroup) > 0;
        let exit = Exit { code: end.code, at: end.at, oom_killed, started_at: Some(started.at) };
        container.phase =
            Phase::Draining { started, exit: exit.clone(), deadline: Instant::now() + DRAIN_LIMIT };
        if let Err(error) = record::write(&self.layout.exit_record(&self.pod, id), &exit) {
            self.say(&error.to_string());
        }
        if !self.tell_logger(&Command::Finish { id: id.clone() }) {
            self.drained(id);
        }
    }

    /// The container's output is in its log as far as it will be.
    pub(super) fn drained(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Phase::Draining { started, exit, .. } = &container.phase else { return };
        let (started, exit) = (*started, exit.clone());
        let code = exit.code;
        let event = exited(id, &exit);
        container.phase = Phase::Exited { started, exit };
        container.stdin.file = None;
        container.outputs.clear();
        self.end_attachments(id, code);
        self.event(event);
    }

    pub(super) fn container_due(&mut self, id: &ContainerId, now: Instant) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let late = |waiting: &mut Vec<(ReplyTo, Instant)>| -> Vec<ReplyTo> {
            waiting.extract_if(.., |(_, limit)| now >= *limit).map(|(to, _)| to).collect()
        };
        let (reopens, deleters) = (late(&mut container.reopens), late(&mut container.deleters));
        let due = container.deadline().is_some_and(|at| now >= at);
        match &mut container.phase {
            Phase::OpeningLog { call, .. } if due => {
                let words =
                    format!("the log {} could not be opened in time: is its disk stuck?", call.log_path);
                self.start_failed(id, words);
            }
            Phase::Creating(creation) if due => {
                let _ = kill(creation.creator, Signal::SIGKILL);
                let words = creation.failure.take();
                let words = words
                    .unwrap_or_else(|| format!("making the container took longer than {CREATE_LIMIT:?}"));
                self.start_failed(id, words);
            }
            Phase::Draining { .. } if due => self.drained(id),
            _ => {}
        }
        let timed_out = std::io::Error::from_raw_os_error(libc::ETIMEDOUT);
        for to in reopens {
            self.reply(to, io_failure("open the log anew (is its disk stuck?)", &timed_out));
        }
        for to in deleters {
            self.reply(to, io_failure("end the container's processes", &timed_out));
        }
    }
}

fn exited(id: &ContainerId, exit: &Exit) -> What {
    What::Exited(Exited { container: id.to_string(), exit: Some(wire_exit(exit)) })
}
