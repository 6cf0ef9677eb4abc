//! Children that have ended, and what the logger says.

use std::time::SystemTime;

use nix::unistd::Pid;
use podhold_proto::shim::{PauseExited, event::What};
use rustix::process::{WaitOptions, wait};

use super::{
    End, Shim,
    connection::{done, refused},
    container::Phase,
    logger::Answer,
};
use crate::ContainerId;

impl Shim {
    /// Reaps every child that has ended; as the subreaper of the pod these are also orphans of its
    /// containers.
    pub(super) fn reap(&mut self) {
        loop {
            let (pid, status) = match wait(WaitOptions::NOHANG) {
                Ok(Some(ended)) => ended,
                Err(rustix::io::Errno::INTR) => continue,
                Ok(None) | Err(_) => return,
            };
            // Numbers, since a signal may be a real-time one.
            let killed = status.terminating_signal().map(|signal| 128 + signal);
            if let Some(code) = status.exit_status().or(killed) {
                let pid = Pid::from_raw(pid.as_raw_nonzero().get());
                self.child_ended(pid, End { code, at: SystemTime::now() });
            }
        }
    }

    fn child_ended(&mut self, pid: Pid, end: End) {
        if let Some(holder) = &mut self.holder {
            if pid == holder.pause {
                holder.pause_ended = true;
                if self.closing.is_none() {
                    self.event(What::PauseExited(PauseExited {}));
                }
                return;
            }
            if pid == holder.logger.pid {
                self.logger_died(end);
                return;
            }
        }
        let of = |matches: &dyn Fn(&super::Container) -> bool| {
            let mut found = self.containers.iter().filter(|(_, container)| matches(container));
            found.next().map(|(id, _)| id.clone())
        };
        let running =
            of(&|container| matches!(&container.phase, Phase::Running(started) if started.pid == pid));
        if let Some(id) = running {
            return self.container_ended(&id, end);
        }
        let creating =
            of(&|container| matches!(&container.phase, Phase::Creating(creation) if creation.creator == pid));
        if let Some(id) = creating {
            return self.creator_ended(&id, end);
        }
        if let Some(id) =
            of(&|container| container.init == Some(pid) && matches!(container.phase, Phase::Deleting { .. }))
        {
            if let Some(container) = self.containers.get_mut(&id) {
                container.init = None;
            }
            return;
        }
        if !self.exec_child_ended(pid, end) {
            self.early.insert(pid, end);
        }
    }

    pub(super) fn hear_logger(&mut self) {
        loop {
            let Some(holder) = self.holder.as_mut().filter(|holder| !holder.logger_ended) else { return };
            match holder.logger.hear() {
                Some(Answer::Opened { id, error }) => self.log_opened(&id, error),
                Some(Answer::Drained { id }) => self.drained(&id),
                Some(Answer::TooSlow { client }) => self.attachment_too_slow(client),
                Some(Answer::Reopened { id, error }) => self.log_reopened(&id, error),
                None => {
                    self.logger_silent();
                    return;
                }
            }
        }
    }

    pub(super) fn log_reopened(&mut self, id: &ContainerId, error: Option<String>) {
        let waiting = self.containers.get_mut(id).map(|c| std::mem::take(&mut c.reopens));
        for (to, _) in waiting.into_iter().flatten() {
            self.reply(to, error.clone().map_or_else(done, refused));
        }
    }

    /// A logger whose socket has ended is never asked again; its death, which a hung disk can delay, is
    /// seen by reaping.
    fn logger_silent(&mut self) {
        let Some(holder) = &mut self.holder else { return };
        let mut fds = [rustix::event::PollFd::new(&holder.logger.socket, rustix::event::PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        if rustix::event::poll(&mut fds, Some(&now)).is_ok()
            && fds[0].revents().contains(rustix::event::PollFlags::HUP)
        {
            // Poll must not report it over and over meanwhile.
            holder.logger_silent = true;
        }
    }
}
