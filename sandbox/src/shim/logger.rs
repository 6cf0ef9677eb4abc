//! The logger process of a pod: reads the containers' output and writes their log files.
//!
//! A process of its own, since a write to a frozen file system sleeps where no signal reaches it: then
//! logs stand still, and nothing else does. Memory is bounded: one unfinished line of at most 16 KiB per
//! stream, and one buffer. When its containers end, the output that is in the pipes by then is written;
//! a stray process that keeps a pipe open does not hold up the exit (see [`DRAIN`]).
//!
//! Descriptors that do not fit are lost without a trace, and a container whose output nobody reads dies of
//! it. So the logger keeps places free for the streams of every log that it has agreed to open, and agrees
//! to none without (see [`Process::keep_places`]).
//!
//! Clients that attach get the output from here, before it is written (see [`fanout`](super::fanout)).

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, poll};
use serde::{Deserialize, Serialize};

use super::{
    cri_log::{Lines, STREAMS},
    fanout::Clients,
    log_file::LogFile,
    report,
};
use crate::{ContainerId, sys, wire};

/// How long output may still come after a container's end while some process holds its pipe open.
const DRAIN: Duration = Duration::from_secs(1);
/// How long a reopen waits for the end of a line of which a part has been written.
const REOPEN: Duration = Duration::from_secs(1);
/// Read at once from one stream.
const CHUNK: usize = 64 << 10;
/// Descriptors that one packet may bring: a container's stdout and stderr, or those of a client.
const BROUGHT: usize = 2;

/// From the shim.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Command {
    /// Opens the log; answered by [`Answer::Opened`].
    Open { id: ContainerId, path: Option<PathBuf> },
    /// The container's output: stdout and stderr, or the terminal alone.
    Streams { id: ContainerId },
    /// Output from now on goes to this client as well. Comes with a socket for each stream that is set,
    /// stdout and stderr.
    Attach { id: ContainerId, client: u64, streams: [bool; 2] },
    /// Opens the log anew; answered by [`Answer::Reopened`].
    Reopen { id: ContainerId },
    /// The container has ended; answered by [`Answer::Drained`].
    Finish { id: ContainerId },
    /// Ends the logger when all output has been written.
    Quit,
}

/// To the shim.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    Opened {
        id: ContainerId,
        error: Option<String>,
    },
    Reopened {
        id: ContainerId,
        error: Option<String>,
    },
    Drained {
        id: ContainerId,
    },
    /// The client gets nothing more: it has left too much unread, or there is no room for its sockets.
    TooSlow {
        client: u64,
    },
}

/// The shim's handle.
#[derive(Debug)]
pub(super) struct Logger {
    pub(super) pid: Pid,
    pub(super) socket: OwnedFd,
}

impl Logger {
    /// Forks the logger.
    pub(super) fn start() -> io::Result<Self> {
        let (near, far) = report::pair()?;
        let pid = sys::fork(sys::CloneFlags::empty(), || {
            sys::close_fds_except(&[0, 1, 2, far.as_raw_fd()]);
            let _ = nix::sys::prctl::set_name(c"podhold-logger");
            Process::new(&far).run();
            0
        })?;
        Ok(Self { pid, socket: near })
    }

    /// Tells the logger, without waiting: a logger that is stuck is an error. One that has died is none: the
    /// next one is told by [`revive`](super::revive).
    pub(super) fn tell(&self, command: &Command, files: &[&OwnedFd]) -> io::Result<()> {
        let packet = serde_json::to_vec(command).map_err(io::Error::other)?;
        let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        match wire::try_send_packet(&self.socket, &packet, &files) {
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                Ok(())
            }
            told => told,
        }
    }

    /// The next answer, if there is one; `None` for one that cannot be understood or a logger that ended.
    pub(super) fn hear(&self) -> Option<Answer> {
        let (packet, _) = wire::receive_packet(&self.socket).ok()??;
        serde_json::from_slice(&packet).ok()
    }
}

struct Process<'a> {
    socket: &'a OwnedFd,
    logs: BTreeMap<ContainerId, Log>,
    connected: bool,
    quitting: bool,
    buffer: Vec<u8>,
    /// Descriptors that are given up for those that come.
    places: Vec<OwnedFd>,
}

/// One container's log.
#[derive(Default)]
struct Log {
    path: Option<PathBuf>,
    file: Option<LogFile>,
    streams: Vec<Stream>,
    /// The streams have not come yet.
    awaited: bool,
    clients: Clients,
    /// The drain ends at this time.
    finish: Option<Instant>,
    /// A reopen waits for a whole line until this time.
    reopen: Option<Instant>,
}

/// One of a container's outputs.
struct Stream {
    fd: OwnedFd,
    /// 0 for stdout and terminals, 1 for stderr.
    kind: usize,
    lines: Lines,
}

/// What poll has found something on.
enum Ready {
    /// The stream with this index.
    Stream(usize),
    /// This client is gone.
    Client(u64),
}

impl<'a> Process<'a> {
    fn new(socket: &'a OwnedFd) -> Self {
        let (logs, places) = Default::default();
        let mut process =
            Self { socket, logs, connected: true, quitting: false, buffer: vec![0; CHUNK], places };
        process.keep_places();
        process
    }

    /// Takes places for what the next packet brings, and for the streams that each log waits for. False when
    /// there are not so many.
    fn keep_places(&mut self) -> bool {
        let awaited = self.logs.values().filter(|log| log.awaited).count();
        let wanted = BROUGHT * (1 + awaited);
        self.places.truncate(wanted);
        while self.places.len() < wanted {
            match self.socket.try_clone() {
                Ok(place) => self.places.push(place),
                Err(_) => return false,
            }
        }
        true
    }

    /// Opens a log, if there will be room for its streams too.
    fn open(&mut self, id: &ContainerId, path: Option<PathBuf>) -> io::Result<()> {
        let opened = path.as_deref().map(LogFile::open).transpose();
        let awaited = opened.is_ok();
        // Without a file output is discarded, until the log is opened anew.
        let (file, failed) = opened.map_or_else(|error| (None, Some(error)), |file| (file, None));
        self.logs.insert(id.clone(), Log { path, file, awaited, ..Log::default() });
        if let Some(error) = failed {
            return Err(error);
        }
        if self.keep_places() {
            return Ok(());
        }
        self.logs.remove(id);
        let full = io::Error::from_raw_os_error(libc::EMFILE);
        Err(io::Error::new(full.kind(), format!("the pod's logger has no room for its output: {full}")))
    }

    fn run(&mut self) {
        while self.connected || self.logs.values().any(|log| !log.streams.is_empty()) {
            let mut slow = Vec::new();
            let ready = self.wait();
            // First: a client that has just joined gets the answer to what it has sent.
            self.commands();
            for (id, ready) in ready.into_iter().rev() {
                let Some(log) = self.logs.get_mut(&id) else { continue };
                match ready {
                    Ready::Stream(index) => {
                        log.take(index, &mut self.buffer, &mut slow);
                    }
                    Ready::Client(client) => log.clients.leave(client),
                }
            }
            for client in slow {
                self.answer(&Answer::TooSlow { client });
            }
            self.settle();
        }
    }

    /// Waits for output, a command, the end of a client or the next deadline; gives the streams that have
    /// something, in order, and the clients that are gone.
    fn wait(&self) -> Vec<(ContainerId, Ready)> {
        let mut places = Vec::new();
        let mut fds = Vec::new();
        for (id, log) in &self.logs {
            for (client, socket) in log.clients.sockets() {
                places.push((id, Ready::Client(client)));
                // That the other end is closed is reported always.
                fds.push(PollFd::new(socket, PollFlags::empty()));
            }
            for (index, stream) in log.streams.iter().enumerate() {
                places.push((id, Ready::Stream(index)));
                fds.push(PollFd::new(&stream.fd, PollFlags::IN));
            }
        }
        if self.connected {
            fds.push(PollFd::new(self.socket, PollFlags::IN));
        }
        let deadline = self.logs.values().flat_map(|log| [log.finish, log.reopen]).flatten().min();
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| rustix::event::Timespec::try_from(left).ok());
        if poll(&mut fds, left.as_ref()).is_err() {
            return Vec::new();
        }
        let ready = fds.iter().zip(places).filter(|(fd, _)| !fd.revents().is_empty());
        ready.map(|(_, (id, ready))| (id.clone(), ready)).collect()
    }

    fn commands(&mut self) {
        while self.connected {
            self.places.clear();
            let received = wire::receive_packet(self.socket);
            if !matches!(received, Ok(Some(_))) {
                self.keep_places();
            }
            let (packet, files) = match received {
                Ok(None) => return,
                Ok(Some((packet, files))) if !packet.is_empty() => (packet, files),
                _ => {
                    // The shim has died: what still runs is logged to its end.
                    self.connected = false;
                    return;
                }
            };
            if let Ok(command) = serde_json::from_slice(&packet) {
                self.command(command, files);
            }
            self.keep_places();
        }
    }

    fn command(&mut self, command: Command, files: Vec<OwnedFd>) {
        match command {
            Command::Open { id, path } => {
                let error = self.open(&id, path).err().map(|error| error.to_string());
                self.answer(&Answer::Opened { id, error });
            }
            Command::Streams { id } => {
                let log = self.logs.entry(id).or_default();
                log.awaited = false;
                let names = STREAMS.into_iter().enumerate();
                let stream = |(fd, (kind, name))| Stream { fd, kind, lines: Lines::new(name) };
                log.streams = files.into_iter().zip(names).map(stream).collect();
            }
            Command::Attach { id, client, streams } => self.attach(&id, client, streams, files),
            Command::Reopen { id } => {
                self.logs.entry(id).or_default().reopen = Some(Instant::now() + REOPEN);
            }
            Command::Finish { id } => {
                self.logs.entry(id).or_default().finish = Some(Instant::now() + DRAIN);
            }
            Command::Quit => self.quitting = true,
        }
    }

    fn attach(&mut self, id: &ContainerId, client: u64, streams: [bool; 2], files: Vec<OwnedFd>) {
        let wanted = streams.iter().filter(|wanted| **wanted).count();
        // Its sockets must not take the places of a container's streams.
        if files.len() != wanted || !self.keep_places() {
            drop(files);
            return self.answer(&Answer::TooSlow { client });
        }
        // Of a container that has ended the client's sockets are closed here: end of file.
        let Some(log) = self.logs.get_mut(id) else { return };
        let mut files = files.into_iter();
        let output = |kind: usize| {
            let file = streams[kind].then(|| files.next()).flatten();
            file.filter(|_| log.streams.iter().any(|stream| stream.kind == kind))
        };
        let outputs = [0, 1].map(output);
        log.clients.join(client, outputs);
    }

    /// Does what has become due: swaps files, ends drains.
    fn settle(&mut self) {
        let now = Instant::now();
        let (mut answers, mut slow) = (Vec::new(), Vec::new());
        for (id, log) in &mut self.logs {
            if log.reopen.is_some_and(|until| now >= until || log.at_boundary()) {
                log.reopen = None;
                let reopened = log.path.as_deref().map(LogFile::open).transpose();
                let error = reopened.as_ref().err().map(ToString::to_string);
                if let Ok(Some(file)) = reopened {
                    match &mut log.file {
                        Some(old) => old.replace(file),
                        none => *none = Some(file),
                    }
                }
                answers.push(Answer::Reopened { id: id.clone(), error });
            }
            let over = log.finish.is_some_and(|until| now >= until || log.streams.is_empty());
            if over || (self.quitting && log.finish.is_none()) {
                log.close(&mut self.buffer, &mut slow);
                answers.push(Answer::Drained { id: id.clone() });
            }
        }
        let slow = slow.into_iter().map(|client| Answer::TooSlow { client });
        for answer in slow.chain(answers) {
            if let Answer::Drained { id } = &answer {
                self.logs.remove(id);
            }
            self.answer(&answer);
        }
        self.connected &= !(self.quitting && self.logs.is_empty());
    }

    fn answer(&self, answer: &Answer) {
        if let Ok(packet) = serde_json::to_vec(answer) {
            let _ = wire::send_packet(self.socket, &packet, &[]);
        }
    }
}

impl Log {
    fn at_boundary(&self) -> bool {
        self.streams.iter().all(|stream| stream.lines.at_boundary())
    }

    /// Takes what stream `index` has, after poll said that it has something. False at its end. Adds the
    /// clients that could not take it to `slow`.
    fn take(&mut self, index: usize, buffer: &mut [u8], slow: &mut Vec<u64>) -> bool {
        let Some(stream) = self.streams.get_mut(index) else { return false };
        let count = match rustix::io::read(&stream.fd, &mut *buffer) {
            Ok(count) => count,
            // A terminal is nonblocking for the sake of attached clients.
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return true,
            // A terminal whose last process has gone answers EIO.
            Err(_) => 0,
        };
        let mut entries = Vec::new();
        let kind = stream.kind;
        if count == 0 {
            stream.lines.finish(SystemTime::now(), &mut entries);
            self.clients.end(kind);
            self.streams.remove(index);
        } else {
            // First, since the disk may take its time.
            self.clients.give(kind, &buffer[..count], slow);
            stream.lines.take(&buffer[..count], SystemTime::now(), &mut entries);
        }
        self.write(kind, &entries);
        count > 0
    }

    /// A disk that is full or gone loses entries, never the container.
    fn write(&mut self, kind: usize, entries: &[u8]) {
        if let Some(file) = &mut self.file {
            file.write(kind, entries, SystemTime::now());
        }
    }

    /// Writes what is in the pipes now, at most what a pipe can hold by default, and closes them.
    fn close(&mut self, buffer: &mut [u8], slow: &mut Vec<u64>) {
        for index in (0..self.streams.len()).rev() {
            let mut looks = 0;
            while looks < 16 && self.has_output(index) && self.take(index, buffer, slow) {
                looks += 1;
            }
        }
        for mut stream in std::mem::take(&mut self.streams) {
            let mut entries = Vec::new();
            stream.lines.finish(SystemTime::now(), &mut entries);
            self.write(stream.kind, &entries);
        }
    }

    fn has_output(&self, index: usize) -> bool {
        let Some(stream) = self.streams.get(index) else { return false };
        let mut fds = [PollFd::new(&stream.fd, PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
    }
}
