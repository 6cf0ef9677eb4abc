//! Another logger when one has died, whoever has killed it: a container must neither block on a full pipe nor
//! be killed by a broken one.
//!
//! The shim keeps the reading ends of all output beside the logger's, and hands them to the next. What the
//! dead one had read and not written, at most a buffer and one unfinished line of each stream, is lost; clients
//! that were attached are cut off.

use std::time::{Duration, Instant};

use super::{
    End, Shim,
    container::Phase,
    logger::{Command, Logger},
};

/// The least time between two loggers: one that dies at once must not use up the machine.
const PAUSE: Duration = Duration::from_millis(100);

impl Shim {
    /// The logger has been reaped.
    pub(super) fn logger_died(&mut self, end: End) {
        let Some(holder) = &mut self.holder else { return };
        holder.logger_ended = true;
        if self.closing.is_none() {
            holder.revival = Some(Instant::now().max(holder.logger_born + PAUSE));
            self.say(&format!("the logger has ended with code {}", end.code));
        }
    }

    /// Starts the next logger if it is time to, and tells it all that the one before knew.
    pub(super) fn revive_logger(&mut self, now: Instant) {
        let Some(holder) = self.holder.as_mut().filter(|holder| holder.revival.is_some_and(|at| now >= at))
        else {
            return;
        };
        holder.revival = None;
        if self.closing.is_some() {
            return;
        }
        match Logger::start() {
            Ok(logger) => holder.logger = logger,
            Err(error) => {
                holder.revival = Some(now + PAUSE);
                return self.say(&format!("another logger: {error}"));
            }
        }
        (holder.logger_silent, holder.logger_ended, holder.logger_born) = (false, false, now);
        for (number, attachment) in std::mem::take(&mut self.attachments) {
            if let Some(container) = self.containers.get_mut(attachment.container()) {
                container.stdin.leave(number);
            }
        }
        let Some(holder) = &self.holder else { return };
        for (id, container) in &self.containers {
            let draining = matches!(container.phase, Phase::Draining { .. });
            let open = Command::Open { id: id.clone(), path: container.log_path.clone() };
            let told = match &container.phase {
                Phase::Exited { .. } | Phase::Deleting { .. } => Ok(()),
                Phase::OpeningLog { .. } => holder.logger.tell(&open, &[]),
                Phase::Creating(_) | Phase::Running(_) | Phase::Draining { .. } => {
                    let streams = Command::Streams { id: id.clone() };
                    let told = holder.logger.tell(&open, &[]);
                    told.and_then(|()| holder.logger.tell(&streams, &container.streams()))
                }
            };
            let finished =
                if draining { holder.logger.tell(&Command::Finish { id: id.clone() }, &[]) } else { Ok(()) };
            if let Err(error) = told.and(finished) {
                self.say(&format!("container {id}: no log any more: {error}"));
            }
        }
    }
}
