//! The daemon's connection: accepting, framing, replies and events. Knows no request.

use std::os::{fd::OwnedFd, unix::net::UnixStream};

use podhold_proto::shim::{
    Answer, Done, Event, Failure, FailureKind, Reply, Request, answer::Body, event::What,
    reply::Result as Outcome,
};
use rustix::event::PollFlags;

use super::{ACCEPT_PAUSE, ReplyTo, Shim};
use crate::wire::{Inbox, Outbox, Received, VERSION, is_out_of_descriptors};

/// A daemon that leaves more than this unread is cut off; it dials again and asks for a list.
const MAX_UNREAD: usize = 8 << 20;

/// Descriptors that must be free before something new is begun; a start keeps half of them for a while.
const ROOM: usize = 16;

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) socket: UnixStream,
    inbox: Inbox,
    outbox: Outbox,
    /// Hello has been answered: from now on events are sent.
    pub(super) greeted: bool,
}

impl Connection {
    pub(super) fn interest(&self) -> PollFlags {
        if self.outbox.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT }
    }
}

impl Shim {
    /// The newest connection replaces the one before.
    pub(super) fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                Ok((socket, _)) => {
                    self.generation += 1;
                    let (inbox, outbox) = Default::default();
                    self.connection = Some(Connection { socket, inbox, outbox, greeted: false });
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    self.say(&format!("the daemon cannot be let in: {error}"));
                    // Nothing tells when there is room again.
                    self.deaf_until = Some(std::time::Instant::now() + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    /// Whether there is room for what new work opens, and beyond it for what must always be possible: to let
    /// a daemon in, to read cgroups, to write down an exit.
    pub(super) fn has_room(&self) -> std::io::Result<()> {
        let places: Result<Vec<OwnedFd>, _> =
            (0..ROOM).map(|_| rustix::io::fcntl_dupfd_cloexec(&self.listener, 0)).collect();
        places.map(drop).map_err(Into::into)
    }

    /// Takes what the daemon has sent and answers it.
    pub(super) fn serve(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        let received = connection.inbox.receive(&connection.socket);
        let generation = self.generation;
        loop {
            let Some(connection) = self.connection.as_mut().filter(|_| self.generation == generation) else {
                return;
            };
            let next = connection.inbox.next::<Request>().and_then(|request| {
                let Some(request) = request else { return Ok(None) };
                match connection.inbox.files(request.fds) {
                    Err(error) if !is_out_of_descriptors(&error) => Err(error),
                    files => Ok(Some((request, files))),
                }
            });
            match next {
                Ok(Some((request, files))) => {
                    let to = ReplyTo { generation, id: request.id };
                    match files {
                        Ok(files) => self.request(to, request, files.into()),
                        Err(error) => {
                            let operation =
                                "take the files of a request: the shim's open files are at their limit";
                            self.reply(to, io_failure(operation, &error));
                        }
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    self.say(&format!("the daemon's frames: {error}"));
                    self.connection = None;
                    return;
                }
            }
        }
        if matches!(received, Ok(Received::End) | Err(_)) {
            self.connection = None;
            self.idle_since = std::time::Instant::now();
        }
    }

    pub(super) fn reply(&mut self, to: ReplyTo, outcome: Outcome) {
        self.reply_with(to, outcome, Vec::new());
    }

    pub(super) fn reply_with(&mut self, to: ReplyTo, outcome: Outcome, files: Vec<OwnedFd>) {
        if to.generation == self.generation {
            self.push(Body::Reply(Reply { id: to.id, result: Some(outcome) }), files);
        }
    }

    pub(super) fn event(&mut self, what: What) {
        if self.connection.as_ref().is_some_and(|connection| connection.greeted) {
            self.push(Body::Event(Event { what: Some(what) }), Vec::new());
        }
    }

    fn push(&mut self, body: Body, files: Vec<OwnedFd>) {
        let Some(connection) = &mut self.connection else { return };
        let answer = Answer { fds: u32::try_from(files.len()).unwrap_or(0), body: Some(body) };
        if connection.outbox.push(&answer, files).is_err() || connection.outbox.size() > MAX_UNREAD {
            self.connection = None;
        }
    }

    /// Sends what the daemon takes now.
    pub(super) fn flush(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        if connection.outbox.send(&connection.socket).is_err() {
            self.connection = None;
            self.idle_since = std::time::Instant::now();
        }
    }

    /// Whether everything that was to be said has been.
    pub(super) fn all_said(&self) -> bool {
        self.connection.as_ref().is_none_or(|connection| connection.outbox.is_empty())
    }
}

pub(super) fn done() -> Outcome {
    Outcome::Done(Done {})
}

pub(super) fn refused(message: impl Into<String>) -> Outcome {
    failure(FailureKind::Refused, message.into(), 0)
}

pub(super) fn not_running(message: impl Into<String>) -> Outcome {
    failure(FailureKind::NotRunning, message.into(), 0)
}

pub(super) fn io_failure(operation: impl Into<String>, error: &std::io::Error) -> Outcome {
    failure(FailureKind::Io, operation.into(), error.raw_os_error().unwrap_or(0))
}

pub(super) fn protocol_failure(message: impl Into<String>) -> Outcome {
    failure(FailureKind::Protocol, message.into(), 0)
}

/// The answer to the Hello of a daemon of an earlier version.
pub(super) fn older_daemon(message: String) -> Outcome {
    let kind = FailureKind::Protocol.into();
    Outcome::Failure(Failure { kind, message, errno: 0, version: VERSION })
}

fn failure(kind: FailureKind, message: String, errno: i32) -> Outcome {
    Outcome::Failure(Failure { kind: kind.into(), message, errno, version: 0 })
}
