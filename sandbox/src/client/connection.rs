//! One connection to a shim: a task that owns the socket, and the table of what is awaited.
//!
//! Invariant: replies and events are handled in the order the shim sent them, so the end of an exec is
//! never seen before its start. Nobody waits for ever for a shim that says nothing at all: one that is
//! waited for is asked for a sign of life now and then (see [`Connection::silent`]).

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use podhold_proto::shim::{
    Answer, Hello, KillExec, Request, answer::Body, event::What, reply::Result as Outcome, request::Call,
};
use tokio::{
    io::Interest,
    net::UnixStream,
    sync::{Notify, mpsc, oneshot, watch},
};

use super::{convert, dial::Process};
use crate::{
    PodId,
    launch::{ExecEnd, LaunchError, PodEvent},
    wire::{Inbox, Outbox, Received, VERSION, is_out_of_descriptors},
};

/// How an exec ended; `None` while it runs.
pub(super) type Ended = Option<ExecEnd>;
/// The answer to a request, with the files that came with it.
pub(super) type Answered = Result<(Outcome, Vec<OwnedFd>), LaunchError>;

/// Requests that wait to be sent; more make their callers wait.
const QUEUE: usize = 64;

/// How long an answer may take before the shim is asked whether it is there at all, and how long it may
/// take to say so: its steps are short, and whatever waits is done by its children.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a shim that is known to be silent gets for each further request.
const LAST_CHANCE: Duration = Duration::from_millis(500);
/// Numbers of requests whose answers nobody awaits begin here.
const UNAWAITED: u64 = 1 << 63;

/// The shared end: requests go in here.
pub(super) struct Connection {
    pod: PodId,
    requests: mpsc::Sender<(Request, Vec<OwnedFd>)>,
    table: Arc<Table>,
    next: AtomicU64,
    gone: watch::Receiver<bool>,
    /// The shim has ended.
    died: Arc<Notify>,
    /// The shim's pid; 0 until it has told it.
    shim: AtomicU32,
}

/// What is awaited.
struct Table {
    state: Mutex<State>,
    events: mpsc::UnboundedSender<PodEvent>,
}

#[derive(Default)]
struct State {
    closed: bool,
    /// Since when a question whether the shim is there is open. Whatever it says answers that.
    asked: Option<Instant>,
    replies: HashMap<u64, oneshot::Sender<Answered>>,
    execs: HashMap<u64, watch::Sender<Ended>>,
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in the critical sections can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// Starts the task that owns the socket.
    pub(super) fn open(
        pod: PodId,
        socket: std::os::unix::net::UnixStream,
    ) -> Result<(Arc<Self>, mpsc::UnboundedReceiver<PodEvent>), LaunchError> {
        let failed =
            |source| LaunchError::Io { operation: format!("set up the socket of pod {pod}"), source };
        socket.set_nonblocking(true).map_err(failed)?;
        let socket = UnixStream::from_std(socket).map_err(failed)?;
        let (events, received) = mpsc::unbounded_channel();
        let (requests, queue) = mpsc::channel(QUEUE);
        let (closed, gone) = watch::channel(false);
        let table = Arc::new(Table { state: Mutex::default(), events });
        let died = Arc::new(Notify::new());
        let task =
            Task { pod: pod.clone(), socket, queue, table: Arc::clone(&table), died: Arc::clone(&died) };
        tokio::spawn(async move {
            task.run().await;
            closed.send_replace(true);
        });
        let (next, shim) = (AtomicU64::new(1), AtomicU32::new(0));
        Ok((Arc::new(Self { pod, requests, table, next, gone, died, shim }), received))
    }

    /// Takes note of the shim's pid, for messages.
    pub(super) fn is_of(&self, shim: u32) {
        self.shim.store(shim, Ordering::Relaxed);
    }

    /// Asks and waits for the answer, as long as the shim shows that it lives; otherwise the error is
    /// [`LaunchError::Silent`], and what was asked for may still be done when it goes on. A failure the shim
    /// reports is an error.
    pub(super) async fn request(&self, call: Call, files: Vec<OwnedFd>) -> Answered {
        tokio::select! {
            answered = self.request_patiently(call, files) => answered,
            silent = self.silent() => Err(silent),
        }
    }

    /// Completes when the shim has said nothing at all for a while, although it was asked to.
    pub(super) async fn silent(&self) -> LaunchError {
        loop {
            let patience = if self.is_silent() { LAST_CHANCE } else { PATIENCE };
            tokio::time::sleep(patience).await;
            self.ask_for_life();
            if self.is_silent() {
                let seconds = self.table.lock().asked.map_or(0, |asked| asked.elapsed().as_secs());
                let shim = self.shim.load(Ordering::Relaxed);
                return LaunchError::Silent { pod: self.pod.clone(), shim, seconds };
            }
        }
    }

    /// Whether the shim has left a question unanswered.
    pub(super) fn is_silent(&self) -> bool {
        self.table.lock().asked.is_some_and(|asked| asked.elapsed() >= PATIENCE)
    }

    /// Asks for a sign of life, unless that question is open.
    fn ask_for_life(&self) {
        {
            let mut state = self.table.lock();
            if state.closed || state.asked.is_some() {
                return;
            }
            state.asked = Some(Instant::now());
        }
        let id = UNAWAITED | self.next.fetch_add(1, Ordering::Relaxed);
        let call = Some(Call::Hello(Hello { version: VERSION, features: Vec::new() }));
        // A queue that is full says as much as no answer.
        let _ = self.requests.try_send((Request { id, fds: 0, call }, Vec::new()));
    }

    /// Asks and waits for the answer, however long the shim says nothing. [`LaunchError::Lost`] when the
    /// connection has ended: this does not know whether the shim lives.
    pub(super) async fn request_patiently(&self, call: Call, files: Vec<OwnedFd>) -> Answered {
        let gone = || lost(&self.pod);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        {
            let mut state = self.table.lock();
            if state.closed {
                return Err(gone());
            }
            state.replies.insert(id, sender);
        }
        let _awaited = Awaited { table: &self.table, id };
        let fds = u32::try_from(files.len()).unwrap_or(0);
        let request = Request { id, fds, call: Some(call) };
        self.requests.send((request, files)).await.map_err(|_| gone())?;
        receiver.await.map_err(|_| gone())?
    }

    /// The end of an exec whose reply has come.
    pub(super) fn exec_ended(&self, number: u64) -> watch::Receiver<Ended> {
        let mut state = self.table.lock();
        if state.closed {
            // The sender is dropped at once: waiting ends.
            return watch::channel(None).1;
        }
        state.execs.entry(number).or_insert_with(|| watch::channel(None).0).subscribe()
    }

    /// The end of this exec will not be asked for (again).
    pub(super) fn forget_exec(&self, number: u64) {
        self.table.lock().execs.remove(&number);
    }

    /// Puts an event in the channel as if the shim had sent it.
    pub(super) fn tell(&self, event: PodEvent) {
        let _ = self.table.events.send(event);
    }

    /// Ends the connection when `process`, a pidfd of the shim, ends. What the shim was making processes
    /// with may hold its end of the socket for longer. What it has said is heard first.
    pub(super) fn end_with(&self, process: Process) {
        let (died, mut gone) = (Arc::clone(&self.died), self.gone.clone());
        tokio::spawn(async move {
            tokio::select! {
                _ = process.readable() => died.notify_one(),
                _ = gone.wait_for(|gone| *gone) => {}
            }
        });
    }

    /// Waits until the connection has ended.
    pub(super) async fn gone(&self) {
        let _ = self.gone.clone().wait_for(|gone| *gone).await;
    }
}

fn lost(pod: &PodId) -> LaunchError {
    LaunchError::Lost { pod: pod.clone(), reason: "it has ended".to_owned() }
}

/// Takes a request off the table when nobody waits for its answer any more.
struct Awaited<'a> {
    table: &'a Table,
    id: u64,
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        self.table.lock().replies.remove(&self.id);
    }
}

struct Task {
    pod: PodId,
    socket: UnixStream,
    queue: mpsc::Receiver<(Request, Vec<OwnedFd>)>,
    table: Arc<Table>,
    died: Arc<Notify>,
}

impl Task {
    async fn run(mut self) {
        let reason = match self.exchange().await {
            Ok(()) => return self.close(None),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => "its shim has closed it".to_owned(),
            Err(error) => format!("what its shim says cannot be understood: {error}"),
        };
        self.close(Some(reason));
    }

    fn close(self, reason: Option<String>) {
        let (replies, execs) = {
            let mut state = self.table.lock();
            state.closed = true;
            (std::mem::take(&mut state.replies), std::mem::take(&mut state.execs))
        };
        for reply in replies.into_values() {
            let _ = reply.send(Err(lost(&self.pod)));
        }
        drop(execs);
        if let Some(reason) = reason {
            let _ = self.table.events.send(PodEvent::Gone(reason));
        }
    }

    /// Ends well when every handle has been dropped, and in error when the shim is gone.
    async fn exchange(&mut self) -> io::Result<()> {
        let (mut inbox, mut outbox) = (Inbox::default(), Outbox::default());
        loop {
            let interest =
                if outbox.is_empty() { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
            tokio::select! {
                request = self.queue.recv(), if outbox.size() < crate::wire::MAX_FRAME => match request {
                    None => return Ok(()),
                    Some((request, files)) => {
                        self.send(&mut outbox, &request, files);
                        outbox.send(&self.socket)?;
                    }
                },
                () = self.died.notified() => {
                    // What it has sent is read, then the end. Fails when that has come already.
                    let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
                }
                ready = self.socket.ready(interest) => {
                    let ready = ready?;
                    if ready.is_writable() {
                        self.attempt(Interest::WRITABLE, || outbox.send(&self.socket))?;
                    }
                    if ready.is_readable() {
                        self.attempt(Interest::READABLE, || match inbox.receive(&self.socket)? {
                            Received::Nothing => Ok(false),
                            Received::End => Err(io::ErrorKind::UnexpectedEof.into()),
                            Received::Some => Ok(true),
                        })?;
                        self.take(&mut inbox, &mut outbox)?;
                    }
                }
            }
        }
    }

    /// Does I/O that answers whether it went as far as it could; the runtime learns when it did not.
    fn attempt(&self, interest: Interest, io: impl FnOnce() -> io::Result<bool>) -> io::Result<()> {
        let done = self.socket.try_io(interest, || match io()? {
            true => Ok(()),
            false => Err(io::ErrorKind::WouldBlock.into()),
        });
        done.or_else(|error| if error.kind() == io::ErrorKind::WouldBlock { Ok(()) } else { Err(error) })
    }

    fn send(&self, outbox: &mut Outbox, request: &Request, files: Vec<OwnedFd>) {
        if let Err(source) = outbox.push(request, files)
            && let Some(reply) = self.table.lock().replies.remove(&request.id)
        {
            let operation = format!("send a request to the shim of pod {}", self.pod);
            let _ = reply.send(Err(LaunchError::Io { operation, source }));
        }
    }

    fn take(&self, inbox: &mut Inbox, outbox: &mut Outbox) -> io::Result<()> {
        while let Some(answer) = inbox.next::<Answer>()? {
            self.table.lock().asked = None;
            let files = match inbox.files(answer.fds) {
                Err(error) if !is_out_of_descriptors(&error) => return Err(error),
                files => files,
            };
            match answer.body {
                Some(Body::Reply(reply)) => {
                    let outcome = convert::outcome(&self.pod, reply.result);
                    let (outcome, files) = match files {
                        Ok(files) => (outcome, files.into()),
                        Err(error) => (Err(self.without_files(outcome, error, outbox)), Vec::new()),
                    };
                    let exec = match &outcome {
                        Ok(Outcome::Exec(exec)) => Some(exec.exec),
                        _ => None,
                    };
                    let mut state = self.table.lock();
                    let waiting = state.replies.remove(&reply.id);
                    if let Some(exec) = exec {
                        state.execs.insert(exec, watch::channel(None).0);
                    }
                    drop(state);
                    let heard = waiting
                        .is_some_and(|waiting| waiting.send(outcome.map(|outcome| (outcome, files))).is_ok());
                    if let Some(exec) = exec.filter(|_| !heard) {
                        self.end_exec(exec, outbox);
                    }
                }
                Some(Body::Event(event)) => self.event(event.what)?,
                // A later version's body: not for us.
                None => {}
            }
        }
        Ok(())
    }

    /// Ends a command whose caller had gone before it began.
    fn end_exec(&self, exec: u64, outbox: &mut Outbox) {
        self.table.lock().execs.remove(&exec);
        let call = Some(Call::KillExec(KillExec { exec }));
        self.send(outbox, &Request { id: UNAWAITED | exec, fds: 0, call }, Vec::new());
    }

    /// The error in place of an answer whose files had no room in this process. What was begun is ended.
    fn without_files(
        &self,
        outcome: Result<Outcome, LaunchError>,
        source: io::Error,
        outbox: &mut Outbox,
    ) -> LaunchError {
        if let Ok(Outcome::Exec(exec)) = outcome {
            self.end_exec(exec.exec, outbox);
        }
        let operation = format!("take the files of an answer of the shim of pod {}", self.pod);
        LaunchError::Io { operation, source }
    }

    fn event(&self, what: Option<What>) -> io::Result<()> {
        match what {
            Some(What::Exited(exited)) => {
                let event = convert::exited(exited).map_err(io::Error::other)?;
                let _ = self.table.events.send(event);
            }
            Some(What::PauseExited(_)) => {
                let _ = self.table.events.send(PodEvent::PauseExited);
            }
            Some(What::ExecExited(ended)) => {
                let end = if ended.timed_out { ExecEnd::TimedOut } else { ExecEnd::Exited(ended.code) };
                if let Some(waiting) = self.table.lock().execs.get(&ended.exec) {
                    waiting.send_replace(Some(end));
                }
            }
            None => {}
        }
        Ok(())
    }
}
