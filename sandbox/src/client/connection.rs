//! One connection to a shim: a task that owns the socket, and the table of what is awaited.
//!
//! Invariant: replies and events are handled in the order the shim sent them, so the end of an exec is
//! never seen before its start.

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use podhold_proto::shim::{
    Answer, KillExec, Request, answer::Body, event::What, reply::Result as Outcome, request::Call,
};
use tokio::{
    io::Interest,
    net::UnixStream,
    sync::{mpsc, oneshot, watch},
};

use super::convert;
use crate::{
    PodId,
    launch::{ExecEnd, LaunchError, PodEvent},
    wire::{Inbox, Outbox, Received, is_out_of_descriptors},
};

/// How an exec ended; `None` while it runs.
pub(super) type Ended = Option<ExecEnd>;
type Answered = Result<(Outcome, Vec<OwnedFd>), LaunchError>;

/// Requests that wait to be sent; more make their callers wait.
const QUEUE: usize = 64;

/// The shared end: requests go in here.
pub(super) struct Connection {
    pod: PodId,
    requests: mpsc::Sender<(Request, Vec<OwnedFd>)>,
    table: Arc<Table>,
    next: AtomicU64,
    gone: watch::Receiver<bool>,
}

/// What is awaited.
struct Table {
    state: Mutex<State>,
    events: mpsc::UnboundedSender<PodEvent>,
}

#[derive(Default)]
struct State {
    closed: bool,
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
        let task = Task { pod: pod.clone(), socket, queue, table: Arc::clone(&table) };
        tokio::spawn(async move {
            task.run().await;
            closed.send_replace(true);
        });
        Ok((Arc::new(Self { pod, requests, table, next: AtomicU64::new(1), gone }), received))
    }

    /// Asks and waits for the answer. A failure the shim reports is an error.
    pub(super) async fn request(&self, call: Call, files: Vec<OwnedFd>) -> Answered {
        let gone = || LaunchError::Gone { pod: self.pod.clone() };
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        {
            let mut state = self.table.lock();
            if state.closed {
                return Err(gone());
            }
            state.replies.insert(id, sender);
        }
        // A caller that goes away leaves its entry behind; the reply takes it out.
        let fds = u32::try_from(files.len()).unwrap_or(0);
        let request = Request { id, fds, call: Some(call) };
        self.requests.send((request, files)).await.map_err(|_| gone())?;
        receiver.await.map_err(|_| gone())?
    }

    /// The end of an exec whose reply has come.
    pub(super) fn exec_ended(&self, number: u64) -> watch::Receiver<Ended> {
        let mut state = self.table.lock();
        if state.closed {
            // The sender is dropped at once: waiting gives Gone.
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

    /// Waits until the shim has closed its end.
    pub(super) async fn gone(&self) {
        let _ = self.gone.clone().wait_for(|gone| *gone).await;
    }
}

struct Task {
    pod: PodId,
    socket: UnixStream,
    queue: mpsc::Receiver<(Request, Vec<OwnedFd>)>,
    table: Arc<Table>,
}

impl Task {
    async fn run(mut self) {
        let reason = match self.exchange().await {
            Ok(()) => return self.close(None),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => "its shim has ended".to_owned(),
            Err(error) => format!("its shim cannot be understood: {error}"),
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
            let _ = reply.send(Err(LaunchError::Gone { pod: self.pod.clone() }));
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
                    let mut state = self.table.lock();
                    let waiting = state.replies.remove(&reply.id);
                    if let Ok(Outcome::Exec(exec)) = &outcome {
                        state.execs.insert(exec.exec, watch::channel(None).0);
                    }
                    drop(state);
                    if let Some(waiting) = waiting {
                        let _ = waiting.send(outcome.map(|outcome| (outcome, files)));
                    }
                }
                Some(Body::Event(event)) => self.event(event.what)?,
                // A later version's body: not for us.
                None => {}
            }
        }
        Ok(())
    }

    /// The error in place of an answer whose files had no room in this process. What was begun is ended.
    fn without_files(
        &self,
        outcome: Result<Outcome, LaunchError>,
        source: io::Error,
        outbox: &mut Outbox,
    ) -> LaunchError {
        if let Ok(Outcome::Exec(exec)) = outcome {
            // Its answer has no number that anybody waits for.
            let call = Some(Call::KillExec(KillExec { exec: exec.exec }));
            let _unsent = outbox.push(&Request { id: 0, fds: 0, call }, Vec::new());
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
