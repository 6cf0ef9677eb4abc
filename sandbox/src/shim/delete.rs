//! The end of containers and of the pod: kill, wait for the kernel to let go, remove what is left.
//!
//! An emptied cgroup cannot be removed until its last process is gone for good; that is tried again
//! after each reaped child and at short intervals, never by waiting in place.

use std::{
    fs,
    time::{Duration, Instant},
};

use nix::sys::signal::{Signal, kill};

use super::{
    RETRY, ReplyTo, Shim,
    connection::{done, io_failure, refused},
    container::Phase,
    create,
    logger::Command,
};
use crate::{ContainerId, sys::SignalNumber};

/// How long killed processes may take to be gone.
pub(super) const LIMIT: Duration = Duration::from_secs(10);
/// How long pause may take to end on SIGTERM.
const TERM: Duration = Duration::from_secs(2);
/// How long the logger may take to write what it has.
const LAST_LINES: Duration = Duration::from_secs(3);
/// How long a killed logger is waited for. One whose disk hangs outlives it: it dies when the disk is
/// back, and nobody else waits for that.
const KILLED_LOGGER: Duration = Duration::from_secs(1);

/// The pod's end under way.
pub(super) struct Closing {
    pub(super) waiters: Vec<ReplyTo>,
    step: Step,
    until: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Containers,
    PauseTerm,
    PauseKill,
    Logger,
    LoggerKill,
    Answer,
}

impl Closing {
    pub(super) fn new() -> Self {
        Self { waiters: Vec::new(), step: Step::Containers, until: Instant::now() + LIMIT }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.until
    }
}

impl Shim {
    pub(super) fn delete(&mut self, to: ReplyTo, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else {
            self.remove_files(id);
            return self.reply(to, done());
        };
        container.deleters.push((to, Instant::now() + LIMIT));
        self.doom(id);
    }

    /// The container is to be gone: kills it, and lets nobody wait for its log.
    fn doom(&mut self, id: &ContainerId) {
        self.kill_container(id);
        let Some(container) = self.containers.get_mut(id) else { return };
        container.doomed = true;
        if matches!(container.phase, Phase::OpeningLog { .. }) {
            self.start_failed(id, "it was deleted while it was being started".into());
        }
    }

    /// Moves doomed containers on as far as the kernel allows now.
    pub(super) fn settle_deletions(&mut self) {
        let ids: Vec<ContainerId> = self.containers.keys().cloned().collect();
        for id in ids {
            let Some(container) = self.containers.get_mut(&id) else { continue };
            if container.doomed && matches!(container.phase, Phase::Exited { .. }) {
                let now = Instant::now();
                container.phase = Phase::Deleting { retry: now, limit: now + LIMIT, failure: None };
            }
            if matches!(container.phase, Phase::Deleting { .. }) {
                self.try_deletion(&id);
            }
        }
    }

    fn try_deletion(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Phase::Deleting { retry, limit, failure } = &mut container.phase else { return };
        let now = Instant::now();
        let cgroup = container.cgroup.as_str();
        // What can be removed has no process: looked for, in ten hierarchies, only in one that stays.
        let emptied = cgroup.is_empty() || self.hierarchies.remove(cgroup) || {
            self.hierarchies.signal(cgroup, SignalNumber::KILL);
            false
        };
        let gone = emptied && container.init.is_none();
        if !gone && now < *limit {
            *retry = now + RETRY;
            return;
        }
        let failure = failure.take();
        let Some(container) = self.containers.remove(id) else { return };
        self.remove_files(id);
        let left = if gone { "" } else { " (and its processes do not end)" };
        for to in container.starters {
            let words = failure.as_deref().unwrap_or("it was deleted while it was being started");
            self.reply(to, refused(format!("{words}{left}")));
        }
        for (to, _) in container.deleters {
            if gone {
                self.reply(to, done());
            } else {
                let busy = std::io::Error::from_raw_os_error(libc::EBUSY);
                self.reply(to, io_failure(format!("remove the cgroup {}", container.cgroup), &busy));
            }
        }
    }

    /// libcontainer's state of the container and the creator's temporary files.
    fn remove_files(&self, id: &ContainerId) {
        let temporary = create::temporary(&self.layout, &self.pod, id);
        // Left, empty, by a creator that was cut short.
        let _ = fs::remove_dir(create::staging(&temporary));
        let _ = fs::remove_dir_all(temporary);
        let _ = fs::remove_dir_all(self.layout.libcontainer(&self.pod).join(id.as_str()));
    }

    /// One step after the other; each is left when what it waits for has come true or its time is over.
    pub(super) fn settle_closing(&mut self) {
        while let Some(closing) = &self.closing {
            let over = Instant::now() >= closing.until;
            let step = closing.step;
            let Some(next) = self.closing_step(step, over) else { return };
            let wait = match next {
                Step::Containers | Step::PauseKill | Step::Answer => LIMIT,
                Step::PauseTerm => TERM,
                Step::Logger => LAST_LINES,
                Step::LoggerKill => KILLED_LOGGER,
            };
            if let Some(closing) = &mut self.closing {
                (closing.step, closing.until) = (next, Instant::now() + wait);
            }
        }
    }

    /// The next step when this one is finished.
    fn closing_step(&mut self, step: Step, over: bool) -> Option<Step> {
        match step {
            Step::Containers => self.close_containers(over),
            Step::PauseTerm | Step::PauseKill => {
                let pause = self.holder.as_ref().filter(|holder| !holder.pause_ended).map(|h| h.pause);
                match (pause, step) {
                    (None, _) => {
                        if let Some(holder) = &self.holder {
                            let _ = holder.logger.tell(&Command::Quit, &[]);
                        }
                        Some(Step::Logger)
                    }
                    (Some(pause), Step::PauseTerm) if over => {
                        let _ = kill(pause, Signal::SIGKILL);
                        Some(Step::PauseKill)
                    }
                    _ if over => self.give_up("the pause process"),
                    _ => None,
                }
            }
            Step::Logger | Step::LoggerKill => {
                let logger = self.holder.as_ref().filter(|holder| !holder.logger_ended).map(|h| h.logger.pid);
                match (logger, step) {
                    (Some(_), _) if !over => None,
                    (Some(logger), Step::Logger) => {
                        let _ = kill(logger, Signal::SIGKILL);
                        Some(Step::LoggerKill)
                    }
                    _ => {
                        self.last_words();
                        Some(Step::Answer)
                    }
                }
            }
            Step::Answer => {
                self.flush();
                self.done = over || self.all_said();
                None
            }
        }
    }

    fn close_containers(&mut self, over: bool) -> Option<Step> {
        if over && !self.containers.is_empty() {
            return self.give_up("the containers");
        }
        let fresh = self.containers.iter().filter(|(_, container)| !container.doomed);
        for id in fresh.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            self.doom(&id);
            let Some(container) = self.containers.get_mut(&id) else { continue };
            if let Phase::Creating(creation) = &container.phase {
                let _ = kill(creation.creator, Signal::SIGKILL);
            }
        }
        self.settle_deletions();
        if !self.containers.is_empty() {
            return None;
        }
        if let Some(holder) = self.holder.as_ref().filter(|holder| !holder.pause_ended) {
            let _ = kill(holder.pause, Signal::SIGTERM);
        }
        Some(Step::PauseTerm)
    }

    /// Something does not die; the daemon hears of it and may try again.
    fn give_up(&mut self, who: &str) -> Option<Step> {
        let timed_out = std::io::Error::from_raw_os_error(libc::ETIMEDOUT);
        for to in self.closing.take().into_iter().flat_map(|closing| closing.waiters) {
            self.reply(to, io_failure(format!("close the pod: end {who}"), &timed_out));
        }
        None
    }

    fn last_words(&mut self) {
        let _ = fs::remove_file(self.layout.shim_socket(&self.pod));
        let _ = fs::remove_dir_all(self.layout.libcontainer(&self.pod));
        let waiters = self.closing.as_mut().map(|closing| std::mem::take(&mut closing.waiters));
        for to in waiters.into_iter().flatten() {
            self.reply(to, done());
        }
    }
}
