//! Clients attached to running containers: who has stdin, and how long a session lasts.
//!
//! The output of a session flows from the logger straight to the client, its input from the client
//! straight into the container; this end knows the session's socket only. When the daemon closes that,
//! or dies, the client is gone. One client has stdin at a time.

use std::os::fd::OwnedFd;

use podhold_proto::shim::{Attach, AttachEnd, AttachReply, attach_end::Why, reply::Result as Outcome};
use prost::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    ReplyTo, Shim,
    connection::{io_failure, not_running, protocol_failure, refused},
    container::Phase,
    logger::Command,
};
use crate::{ContainerId, wire};

/// Most clients of one container: each costs three files here and in the logger.
const MOST: usize = 64;

/// A container's standard input.
#[derive(Debug)]
pub(super) struct Stdin {
    pub(super) owner: Owner,
    /// Closed when the first client leaves it.
    pub(super) once: bool,
    /// The pipe's writing end, or the terminal: that one is there for its size when there is no stdin.
    pub(super) file: Option<OwnedFd>,
    pub(super) terminal: bool,
}

/// Who has a container's standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// The container was made without one.
    Missing,
    /// The next client that asks.
    Free,
    /// This attachment.
    Attachment(u64),
    /// Nobody ever again: its one client has left.
    Closed,
}

/// One client.
#[derive(Debug)]
pub(super) struct Attachment {
    container: ContainerId,
    socket: OwnedFd,
    /// The daemon has nothing more to say.
    silent: bool,
}

impl Attachment {
    /// What poll is to look for; that the other end is closed it reports always.
    pub(super) fn interest(&self) -> PollFlags {
        if self.silent { PollFlags::empty() } else { PollFlags::IN }
    }

    pub(super) fn container(&self) -> &ContainerId {
        &self.container
    }

    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }
}

impl Shim {
    pub(super) fn attach(&mut self, to: ReplyTo, id: &ContainerId, call: &Attach, files: Vec<OwnedFd>) {
        let outcome = self.try_attach(id, call, files);
        match outcome {
            Ok((reply, file)) => self.reply_with(to, Outcome::Attach(reply), file.into_iter().collect()),
            Err(failure) => self.reply(to, failure),
        }
    }

    fn try_attach(
        &mut self,
        id: &ContainerId,
        call: &Attach,
        files: Vec<OwnedFd>,
    ) -> Result<(AttachReply, Option<OwnedFd>), Outcome> {
        let number = self.next_attachment;
        let here = self.attachments.values().filter(|attachment| attachment.container == *id).count();
        let container = self.containers.get_mut(id).ok_or_else(|| not_running("it does not exist"))?;
        if !matches!(container.phase, Phase::Running(_)) {
            return Err(not_running("it does not run"));
        }
        if here >= MOST {
            return Err(refused(format!("container {id}: {MOST} clients are attached already")));
        }
        let stdin = &mut container.stdin;
        if call.stdin {
            stdin.refusal().map_or(Ok(()), |words| Err(not_running(words)))?;
        }
        let wanted = usize::from(call.stdout) + usize::from(call.stderr);
        let mut files = files.into_iter();
        let (Some(socket), true) = (files.next(), files.len() == wanted) else {
            return Err(protocol_failure("an attach without its sockets"));
        };
        let file = stdin.file.as_ref().filter(|_| call.stdin || stdin.terminal);
        let file = file.map(OwnedFd::try_clone).transpose();
        let file = file.map_err(|error| io_failure("hand out the container's stdin", &error))?;
        let outputs: Vec<OwnedFd> = files.collect();
        let command = Command::Attach { id: id.clone(), client: number, streams: [call.stdout, call.stderr] };
        let holder = self.holder.as_ref().ok_or_else(|| not_running("the pod has not been opened"))?;
        if wanted > 0 {
            let told = holder.logger.tell(&command, &outputs.iter().collect::<Vec<_>>());
            told.map_err(|error| io_failure("reach the logger (is the log's disk stuck?)", &error))?;
        }
        if call.stdin {
            stdin.owner = Owner::Attachment(number);
        }
        let terminal = stdin.terminal;
        self.next_attachment += 1;
        self.attachments.insert(number, Attachment { container: id.clone(), socket, silent: false });
        Ok((AttachReply { terminal }, file))
    }

    /// The daemon has given up stdin, or the whole session.
    pub(super) fn hear_attachment(&mut self, number: u64) {
        let Some(attachment) = self.attachments.get_mut(&number) else { return };
        match wire::receive_packet(&attachment.socket) {
            Ok(Some((packet, _))) if !packet.is_empty() => return,
            Ok(None) => {}
            _ => attachment.silent = true,
        }
        if !attachment.silent && !hung_up(&attachment.socket) {
            return;
        }
        let id = attachment.container.clone();
        if let Some(container) = self.containers.get_mut(&id) {
            container.stdin.leave(number);
        }
        if self.attachments.get(&number).is_some_and(|attachment| hung_up(&attachment.socket)) {
            self.attachments.remove(&number);
        }
    }

    /// The logger has cut a client off.
    pub(super) fn attachment_too_slow(&mut self, number: u64) {
        if let Some(attachment) = self.attachments.remove(&number) {
            if let Some(container) = self.containers.get_mut(&attachment.container) {
                container.stdin.leave(number);
            }
            attachment.end(Why::TooSlow(true));
        }
    }

    /// The container has ended and its output has been given out.
    pub(super) fn end_attachments(&mut self, id: &ContainerId, code: i32) {
        for (_, attachment) in self.attachments.extract_if(.., |_, attachment| attachment.container == *id) {
            attachment.end(Why::Exited(code));
        }
    }
}

impl Attachment {
    /// Says why; a client that is gone by now does not mind.
    fn end(self, why: Why) {
        let packet = AttachEnd { why: Some(why) }.encode_to_vec();
        let _ = wire::try_send_packet(&self.socket, &packet, &[]);
    }
}

impl Stdin {
    /// None of a container that is being made.
    pub(super) fn unknown() -> Self {
        Self { owner: Owner::Missing, once: false, file: None, terminal: false }
    }

    /// Why nobody can have it now.
    fn refusal(&self) -> Option<&'static str> {
        match self.owner {
            Owner::Free => None,
            Owner::Missing => {
                Some("it was created without stdin; attach without it, or create it with stdin")
            }
            Owner::Attachment(_) => {
                Some("another client is attached to its stdin; attach without it, or end that one first")
            }
            Owner::Closed => {
                Some("its stdin was closed when its first client left (stdin_once); attach without it")
            }
        }
    }

    /// A client has left; if it had stdin, another may have it.
    pub(super) fn leave(&mut self, client: u64) {
        if self.owner != Owner::Attachment(client) {
            return;
        }
        if self.once && !self.terminal {
            self.owner = Owner::Closed;
            self.file = None;
        } else {
            self.owner = Owner::Free;
        }
    }
}

fn hung_up(socket: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok() && !fds[0].revents().is_empty()
}
