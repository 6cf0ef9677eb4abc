//! Exec'd processes, from the request to the event that tells their end.

use std::{
    fs::{self, File},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use oci_spec::runtime::Process;
use podhold_proto::shim::{Exec, ExecExited, ExecReply, event::What, reply::Result as Outcome};

use super::{
    End, ReplyTo, Shim,
    connection::{io_failure, not_running, protocol_failure, refused},
    container::Phase,
    exec::{self, Job},
    pidfd,
    report::{self, Heard, Report},
};
use crate::{ContainerId, sys::SignalNumber};

/// How long a process may take from the request to its exec.
const START_LIMIT: Duration = Duration::from_secs(30);

pub(super) struct ExecSession {
    container: ContainerId,
    /// The connection it was asked for on.
    generation: u64,
    process: Option<Pid>,
    /// It has been reaped.
    end: Option<End>,
    step: Step,
    timeout: Option<Duration>,
    deadline: Option<Instant>,
    timed_out: bool,
    /// Whoever asked for it is gone, and it has been killed.
    abandoned: bool,
}

enum Step {
    Starting { helper: Pid, report: OwnedFd, to: ReplyTo, terminal: Option<OwnedFd>, failure: Option<String> },
    Running,
}

impl ExecSession {
    pub(super) fn report(&self) -> Option<&OwnedFd> {
        match &self.step {
            Step::Starting { report, .. } => Some(report),
            Step::Running => None,
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
}

impl Shim {
    pub(super) fn exec(&mut self, to: ReplyTo, id: ContainerId, call: &Exec, files: Vec<OwnedFd>) {
        let process: Process = match serde_json::from_slice(&call.process) {
            Ok(process) => process,
            Err(error) => return self.reply(to, protocol_failure(format!("the process: {error}"))),
        };
        let Some(container) = self.containers.get(&id) else {
            return self.reply(to, not_running("it does not exist"));
        };
        let Phase::Running(started) = &container.phase else {
            return self.reply(to, not_running("it does not run"));
        };
        let files = match streams(call, files) {
            Ok(files) => files,
            Err(error) => return self.reply(to, io_failure("take over the streams", &error)),
        };
        let made = report::pair().and_then(|(near, far)| {
            let job = Job {
                init: started.pid,
                pidfd: pidfd(started.pid)?,
                cgroup: &container.cgroup,
                hierarchies: &self.hierarchies,
                bundle: self.bundle(&id),
                process: &process,
                files,
                report: far,
            };
            Ok((exec::start(&job)?, near))
        });
        match made {
            Err(error) => self.reply(to, io_failure("fork a process for the exec", &error)),
            Ok((helper, report)) => {
                let session = ExecSession {
                    container: id,
                    generation: to.generation,
                    process: None,
                    end: None,
                    step: Step::Starting { helper, report, to, terminal: None, failure: None },
                    timeout: (call.timeout_ms > 0).then(|| Duration::from_millis(call.timeout_ms)),
                    deadline: Some(Instant::now() + START_LIMIT),
                    timed_out: false,
                    abandoned: false,
                };
                self.execs.insert(self.next_exec, session);
                self.next_exec += 1;
            }
        }
    }

    pub(super) fn hear_exec(&mut self, number: u64) {
        loop {
            let Some(session) = self.execs.get_mut(&number) else { return };
            let Step::Starting { report, terminal, failure, .. } = &mut session.step else { return };
            match report::hear(report) {
                Heard::Nothing => return,
                Heard::End => return self.conclude_exec(number),
                Heard::Report(Report::Process(pid), _) => {
                    let pid = Pid::from_raw(pid);
                    session.process = Some(pid);
                    session.end = self.early.remove(&pid);
                }
                Heard::Report(Report::Terminal, file) => *terminal = file,
                Heard::Report(Report::Failed(words), _) => {
                    failure.get_or_insert(words);
                }
                Heard::Report(..) => {}
            }
        }
    }

    /// The process has become the program, or everyone on the way has died.
    fn conclude_exec(&mut self, number: u64) {
        let Some(session) = self.execs.get_mut(&number) else { return };
        let step = std::mem::replace(&mut session.step, Step::Running);
        let Step::Starting { to, terminal, failure, .. } = step else { return };
        let (Some(pid), None) = (session.process, &failure) else {
            self.execs.remove(&number);
            let words = failure.unwrap_or_else(|| "the process died before it could run".into());
            return self.reply(to, refused(words));
        };
        session.deadline = session.timeout.map(|timeout| Instant::now() + timeout);
        let reply = ExecReply { exec: number, pid: pid.as_raw().unsigned_abs() };
        self.reply_with(to, Outcome::Exec(reply), terminal.into_iter().collect());
        self.exec_ended(number);
    }

    /// Whether the child belonged to an exec.
    pub(super) fn exec_child_ended(&mut self, pid: Pid, end: End) -> bool {
        for (number, session) in &mut self.execs {
            if matches!(&session.step, Step::Starting { helper, .. } if *helper == pid) {
                return true;
            }
            if session.process == Some(pid) {
                session.end = Some(end);
                let number = *number;
                self.exec_ended(number);
                return true;
            }
        }
        false
    }

    /// Tells the end of a process that has started and has been reaped.
    fn exec_ended(&mut self, number: u64) {
        let Some(session) = self.execs.get(&number) else { return };
        let (Step::Running, Some(end)) = (&session.step, session.end) else { return };
        let timed_out = session.timed_out;
        self.execs.remove(&number);
        self.event(What::ExecExited(ExecExited { exec: number, code: end.code, timed_out }));
    }

    pub(super) fn exec_due(&mut self, number: u64) {
        let Some(session) = self.execs.get_mut(&number) else { return };
        session.deadline = None;
        match &mut session.step {
            Step::Running => {
                session.timed_out = true;
                self.kill_exec(number);
            }
            Step::Starting { helper, failure, .. } => {
                let _ = kill(*helper, Signal::SIGKILL);
                failure.get_or_insert(format!("starting the process took longer than {START_LIMIT:?}"));
                self.kill_exec(number);
                self.conclude_exec(number);
            }
        }
    }

    /// Kills the processes whose daemon is gone: nobody can be told how they end.
    pub(super) fn settle_execs(&mut self) {
        let generation = self.connection.as_ref().map(|_| self.generation);
        let mut left = Vec::new();
        for (number, session) in &mut self.execs {
            let running = matches!(session.step, Step::Running);
            if running && !session.abandoned && generation != Some(session.generation) {
                session.abandoned = true;
                left.push(*number);
            }
        }
        for number in left {
            self.kill_exec(number);
        }
    }

    /// Kills the process and what it has started in its session, and nothing else of the container.
    pub(super) fn kill_exec(&self, number: u64) {
        let Some(session) = self.execs.get(&number) else { return };
        let (Some(leader), None) = (session.process, session.end) else { return };
        // Not reaped yet, so the number still names the leader and its session.
        let cgroup = self.containers.get(&session.container).map_or("", |container| &container.cgroup);
        let ours = |pid| session_of(pid) == Some(leader.as_raw());
        self.hierarchies.signal_those(cgroup, SignalNumber::KILL, ours);
        let _ = kill(leader, Signal::SIGKILL);
    }
}

/// The session of a process; see proc_pid_stat(5), field 6.
fn session_of(pid: Pid) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, blanks and parentheses included.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(3)?.parse().ok()
}

/// The three streams, in order; `/dev/null` where there is none. None for a terminal.
fn streams(call: &Exec, files: Vec<OwnedFd>) -> std::io::Result<Option<[OwnedFd; 3]>> {
    if call.terminal {
        return Ok(None);
    }
    let mut files = files.into_iter();
    let mut next = |given: bool| -> std::io::Result<OwnedFd> {
        let null = || fs::OpenOptions::new().read(true).write(true).open("/dev/null").map(File::into);
        match given {
            true => files.next().ok_or_else(|| std::io::ErrorKind::InvalidInput.into()),
            false => null(),
        }
    };
    Ok(Some([next(call.stdin)?, next(call.stdout)?, next(call.stderr)?]))
}
