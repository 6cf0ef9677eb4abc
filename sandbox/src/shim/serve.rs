//! The requests of the protocol, one function each.

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use podhold_proto::shim::{
    Exit, Hello, HelloReply, Known, ListReply, OpenPod, OpenPodReply, ReopenLog, Request,
    Signal as SignalCall, StartReply, reply::Result as Outcome, request::Call,
};

use super::{
    Holder, ReplyTo, Shim,
    connection::{done, io_failure, not_running, older_daemon, protocol_failure, refused},
    container::Phase,
    delete::Closing,
    logger::{Command, Logger},
    nanoseconds, pause,
};
use crate::{ContainerId, sys::SignalNumber, wire};

/// How long the logger may take to open a file anew before the daemon hears that it is stuck.
pub(super) const LOG_LIMIT: Duration = Duration::from_secs(10);

impl Shim {
    pub(super) fn request(&mut self, to: ReplyTo, request: Request, files: Vec<OwnedFd>) {
        let Some(call) = request.call else {
            return self.reply(to, protocol_failure("a request this shim does not know"));
        };
        let greeted = self.connection.as_ref().is_some_and(|connection| connection.greeted);
        if !greeted && !matches!(call, Call::Hello(_)) {
            return self.reply(to, protocol_failure("the first request must be Hello"));
        }
        if self.closing.is_some() && !matches!(call, Call::Hello(_) | Call::List(_) | Call::Close(_)) {
            return self.reply(to, refused("the pod is being closed"));
        }
        if self.is_new(&call)
            && let Err(error) = self.has_room()
        {
            return self.reply(to, io_failure("begin something new in the pod's shim", &error));
        }
        match call {
            Call::Hello(hello) => self.hello(to, &hello),
            Call::MakeNamespaces(call) => self.make_namespaces(to, call),
            Call::OpenPod(pod) => self.open_pod(to, &pod),
            Call::Start(start) => {
                self.with_container(to, &start.container, |shim, id| shim.start(to, id, &start))
            }
            Call::Signal(signal) => self.with_container(to, &signal.container, |shim, id| {
                let outcome = shim.signal(&id, &signal);
                shim.reply(to, outcome);
            }),
            Call::Exec(exec) => {
                self.with_container(to, &exec.container, |shim, id| shim.exec(to, id, &exec, files));
            }
            Call::Attach(attach) => self.with_container(to, &attach.container, |shim, id| {
                shim.attach(to, &id, &attach, files);
            }),
            Call::KillExec(call) => {
                self.kill_exec(call.exec);
                self.reply(to, done());
            }
            Call::ReopenLog(ReopenLog { container }) => {
                self.with_container(to, &container, |shim, id| shim.reopen_log(to, &id));
            }
            Call::Delete(delete) => {
                self.with_container(to, &delete.container, |shim, id| shim.delete(to, &id))
            }
            Call::List(_) => {
                let list = self.list();
                self.reply(to, list);
            }
            Call::Close(_) => self.closing.get_or_insert_with(Closing::new).waiters.push(to),
        }
    }

    /// Whether a request begins something that stays open for a while.
    fn is_new(&self, call: &Call) -> bool {
        match call {
            Call::Exec(_) | Call::Attach(_) => true,
            Call::Start(start) => self.containers.keys().all(|known| known.as_str() != start.container),
            _ => false,
        }
    }

    fn with_container(&mut self, to: ReplyTo, id: &str, act: impl FnOnce(&mut Self, ContainerId)) {
        match ContainerId::parse(id) {
            Ok(id) => act(self, id),
            Err(error) => self.reply(to, protocol_failure(error.to_string())),
        }
    }

    fn hello(&mut self, to: ReplyTo, hello: &Hello) {
        // A newer daemon speaks this version as well.
        if hello.version < wire::VERSION {
            let words = format!("this shim speaks version {}, not {}", wire::VERSION, hello.version);
            return self.reply(to, older_daemon(words));
        }
        if let Some(connection) = &mut self.connection {
            connection.greeted = true;
        }
        let holder = self.holder.as_ref();
        let reply = HelloReply {
            version: wire::VERSION,
            features: Vec::new(),
            pause_pid: holder.map_or(0, |holder| holder.pause.as_raw().unsigned_abs()),
            pause_ended: holder.is_some_and(|holder| holder.pause_ended),
            shim_pid: std::process::id(),
        };
        self.reply(to, Outcome::Hello(reply));
    }

    fn open_pod(&mut self, to: ReplyTo, pod: &OpenPod) {
        if self.holder.is_none() {
            let directory = self.layout.pod_run(&self.pod);
            let logger = match Logger::start() {
                Ok(logger) => logger,
                Err(error) => return self.reply(to, io_failure("start the logger", &error)),
            };
            let user = self.user_space.as_ref().map(|space| &space.user);
            match pause::start(pod, user, &directory) {
                Ok(pause) => {
                    self.holder = Some(Holder {
                        pause,
                        pause_ended: false,
                        shared_pid: pod.shared_pid,
                        logger,
                        logger_silent: false,
                        logger_ended: false,
                        logger_born: Instant::now(),
                        revival: None,
                    });
                }
                // The logger ends with its socket.
                Err(words) => return self.reply(to, refused(words)),
            }
        }
        let pause_pid = self.holder.as_ref().map_or(0, |holder| holder.pause.as_raw().unsigned_abs());
        self.reply(to, Outcome::OpenPod(OpenPodReply { pause_pid }));
    }

    fn signal(&mut self, id: &ContainerId, call: &SignalCall) -> Outcome {
        let Some(signal) = SignalNumber::new(call.signal) else {
            return refused(format!("signal {} does not exist: it must be 1 to 64", call.signal));
        };
        let Some(container) = self.containers.get(id) else {
            return not_running("it does not exist");
        };
        let pid = match &container.phase {
            Phase::Running(started) => started.pid,
            Phase::Exited { .. } | Phase::Draining { .. } | Phase::Deleting { .. } => {
                if call.all {
                    self.hierarchies.signal(&container.cgroup, signal);
                }
                return done();
            }
            _ => return not_running("it is being started"),
        };
        let sent = match call.all {
            // A container without a cgroup has its init at least.
            true if !self.hierarchies.signal(&container.cgroup, signal) => signal.send_to_child(pid),
            true => Ok(()),
            false => signal.send_to_child(pid),
        };
        match sent {
            Ok(()) => done(),
            Err(error) => io_failure(format!("send {signal} to process {pid}"), &error),
        }
    }

    fn reopen_log(&mut self, to: ReplyTo, id: &ContainerId) {
        let (Some(container), Some(holder)) = (self.containers.get_mut(id), self.holder.as_ref()) else {
            return self.reply(to, not_running("it does not exist"));
        };
        if !matches!(container.phase, Phase::Running(_)) {
            return self.reply(to, not_running("it does not run"));
        }
        match holder.logger.tell(&Command::Reopen { id: id.clone() }, &[]) {
            Ok(()) => container.reopens.push((to, Instant::now() + LOG_LIMIT)),
            Err(error) => self.reply(to, io_failure("reach the logger (is the log's disk stuck?)", &error)),
        }
    }

    fn list(&self) -> Outcome {
        let known = |(id, super::Container { phase, .. }): (&ContainerId, &super::Container)| {
            let container = id.to_string();
            let (started, exit) = match phase {
                Phase::OpeningLog { .. } | Phase::Creating(_) => {
                    return Some(Known { container, starting: true, ..Known::default() });
                }
                Phase::Running(started) => (started, None),
                Phase::Draining { started, exit, .. } | Phase::Exited { started, exit } => {
                    (started, Some(exit))
                }
                Phase::Deleting { .. } => return None,
            };
            Some(Known {
                container,
                pid: started.pid.as_raw().unsigned_abs(),
                started_at: nanoseconds(started.at),
                exit: exit.map(wire_exit),
                starting: false,
            })
        };
        Outcome::List(ListReply { containers: self.containers.iter().filter_map(known).collect() })
    }
}

/// An exit as the protocol has it.
pub(super) fn wire_exit(exit: &crate::launch::Exit) -> Exit {
    Exit {
        code: exit.code,
        at: nanoseconds(exit.at),
        oom_killed: exit.oom_killed,
        started_at: exit.started_at.map_or(0, nanoseconds),
    }
}

/// The answer to Start.
pub(super) fn started(started: &super::container::Started) -> Outcome {
    Outcome::Start(StartReply { pid: started.pid.as_raw().unsigned_abs(), at: nanoseconds(started.at) })
}
