//! The listener: from a TCP connection to an upgraded one, or a refusal.
//!
//! Invariants: nothing but an upgrade to a session that was asked for is served; a client that has shown no
//! token yet holds little for a short time, and keeps nobody out; tokens are not logged.

use std::{convert::Infallible, sync::Arc, time::Duration};

use hyper::{
    Request as HttpRequest, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn,
    upgrade::OnUpgrade,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
};

use super::{
    Settings, Wanted,
    budget::{Bounded, Budget},
    closing::Closing,
    heads::{Head, Heads, Turn},
    port_forward::Prepared,
    remote_command::Request,
    serve::{self, Carrier, Job},
    tokens::Tokens,
    upgrade::{Refusal, Wire, negotiate, switch, wire},
    websocket::channels::Codec,
};
use crate::runtime::session::Sessions;

/// Connections whose request is being read, at most, and as a part of all files.
const HEADS: usize = 512;
const HEADS_PART: usize = 8;
/// How long a request may take to arrive.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// How long a request and its headers may be.
const HEAD_LIMIT: usize = 16 * 1024;
/// Connections that were upgraded.
const SESSIONS: usize = 4096;
/// How long to wait when no connection can be accepted (no descriptors left); the kernel tells no end of it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a session may take to end once the server is closed.
pub(super) const FAREWELL: Duration = Duration::from_secs(2);

const SPDY_COMMANDS: &[&str] =
    &["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
const CHANNEL_COMMANDS: &[&str] = &[
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
];
const SPDY_FORWARDS: &[&str] = &["portforward.k8s.io"];
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const CHANNEL_FORWARDS: &[&str] = &[TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io"];

/// What a session holds of [`SESSIONS`] and of the open files.
type Room = [OwnedSemaphorePermit; 2];

/// What requests are answered from.
pub(super) struct Server {
    pub(super) tokens: Arc<Tokens<Wanted>>,
    pub(super) sessions: Arc<dyn Sessions>,
    pub(super) settings: Settings,
    pub(super) closed: watch::Receiver<()>,
    room: Arc<Semaphore>,
    heads: Heads,
    budget: Budget,
}

impl Server {
    /// A server that ends when `closed` does.
    pub(super) fn new(
        tokens: Arc<Tokens<Wanted>>,
        sessions: Arc<dyn Sessions>,
        settings: Settings,
        closed: watch::Receiver<()>,
    ) -> Arc<Self> {
        let heads = HEADS.min(settings.files / HEADS_PART);
        let budget = Budget::new(settings.files - heads);
        let sessions = Arc::new(Bounded::new(sessions, budget.clone()));
        let room = Arc::new(Semaphore::new(SESSIONS));
        let sessions = Arc::new(Closing { sessions, closed: closed.clone() });
        Arc::new(Self { tokens, sessions, settings, closed, room, heads: Heads::new(heads), budget })
    }

    /// Waits until no session is left.
    pub(super) async fn deserted(places: &Semaphore) {
        let all = u32::try_from(SESSIONS).expect("a small number");
        // An error is a semaphore that was closed, which nobody does.
        let _all = places.acquire_many(all).await;
    }

    /// What has a permit for every session that may be there.
    pub(super) fn places(&self) -> Arc<Semaphore> {
        self.room.clone()
    }

    /// Accepts connections until it is closed.
    pub(super) async fn run(self: Arc<Self>, listener: TcpListener) {
        let mut closed = self.closed.clone();
        let mut connections = JoinSet::new();
        let sweep = self.tokens.sweep();
        tokio::pin!(sweep);
        loop {
            let accepted = tokio::select! {
                _ = closed.changed() => return,
                never = &mut sweep => match never {},
                Some(_) = connections.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((tcp, _client)) => {
                    let (head, turn) = self.heads.join();
                    connections.spawn(self.clone().read_head(tcp, head, turn));
                }
                Err(error) => {
                    tracing::warn!(%error, "a streaming connection cannot be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Reads and answers the one request of a connection.
    async fn read_head(self: Arc<Self>, tcp: TcpStream, head: Head, turn: Turn) {
        let service = service_fn(|request| {
            let answer = self.clone().answer(request, &head);
            async { Ok::<_, Infallible>(answer) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME)
            .max_buf_size(HEAD_LIMIT)
            .serve_connection(TokioIo::new(tcp), service)
            .with_upgrades();
        // A refused client may still send a body or read slowly; it gets no longer than its head.
        tokio::select! {
            ended = tokio::time::timeout(2 * HEAD_TIME, connection) => {
                if let Ok(Err(error)) = ended {
                    tracing::debug!(%error, "no streaming request");
                }
            }
            () = turn.come() => tracing::debug!("a silent connection made room for others"),
        }
    }

    fn answer(self: Arc<Self>, mut request: HttpRequest<Incoming>, head: &Head) -> Response<String> {
        let upgrade = hyper::upgrade::on(&mut request);
        match self.accept(&request) {
            Ok((job, room, answer)) => {
                head.pass();
                tokio::spawn(self.serve(upgrade, job, room));
                answer
            }
            Err(refusal) => refusal.answer(),
        }
    }

    async fn serve(self: Arc<Self>, upgrade: OnUpgrade, job: Job, _room: Room) {
        let upgraded = match upgrade.await {
            Ok(upgraded) => upgraded,
            Err(error) => {
                tracing::debug!(%error, "a streaming connection was not upgraded");
                return;
            }
        };
        let Ok(parts) = upgraded.downcast::<TokioIo<TcpStream>>() else {
            tracing::error!("an upgraded streaming connection is no TCP connection");
            return;
        };
        let mut closed = self.closed.clone();
        let tcp = (parts.io.into_inner(), &parts.read_buf[..]);
        let serving = serve::serve(tcp, job, self.sessions.clone(), self.settings);
        let overdue = async {
            // Told or dropped: both are the end. The client is told meanwhile.
            let _end = closed.changed().await;
            tokio::time::sleep(FAREWELL).await;
        };
        tokio::select! {
            () = serving => {}
            () = overdue => {}
        }
    }

    /// Room for one more session and for its connection.
    fn room(&self) -> Option<Room> {
        Some([self.room.clone().try_acquire_owned().ok()?, self.budget.take(1)?])
    }

    fn accept(&self, request: &HttpRequest<Incoming>) -> Result<(Job, Room, Response<String>), Refusal> {
        let not_found = || Refusal::new(StatusCode::NOT_FOUND, "unknown, used or expired streaming URL");
        let (kind, token) = request
            .uri()
            .path()
            .strip_prefix('/')
            .and_then(|path| path.split_once('/'))
            .ok_or_else(not_found)?;
        if !Wanted::KINDS.contains(&kind) {
            return Err(not_found());
        }
        let headers = request.headers();
        let wire = wire(request.method(), headers)?;
        let room = self.room().ok_or_else(|| {
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "too many streaming sessions; end some first")
        })?;
        let wanted = self.tokens.take(token, |wanted| wanted.kind() == kind).ok_or_else(not_found)?;
        let (job, protocol) = match wanted {
            Wanted::Command(request) => {
                let known = if wire == Wire::Spdy { SPDY_COMMANDS } else { CHANNEL_COMMANDS };
                let protocol = negotiate(wire, headers, known)?;
                (command(wire, protocol, request), protocol)
            }
            Wanted::Forward { pod, ports } => {
                let known = if wire == Wire::Spdy { SPDY_FORWARDS } else { CHANNEL_FORWARDS };
                let protocol = negotiate(wire, headers, known)?;
                (forward(wire, protocol, pod, ports)?, protocol)
            }
        };
        Ok((job, room, switch(wire, headers, protocol)))
    }
}

/// A client that names no protocol speaks the first version.
fn command(wire: Wire, protocol: Option<&str>, request: Request) -> Job {
    let protocol = protocol.unwrap_or_default();
    let version = match protocol.as_bytes() {
        [b'v', version, b'.', ..] => version - b'0',
        _ => 1,
    };
    let carrier = match wire {
        Wire::Spdy => Carrier::Spdy,
        Wire::WebSocket => Carrier::Channels(codec(protocol)),
    };
    Job::Command { version, carrier, request }
}

fn forward(wire: Wire, protocol: Option<&str>, pod: String, ports: Vec<u16>) -> Result<Job, Refusal> {
    let carrier = match (wire, protocol) {
        (Wire::Spdy, _) => Carrier::Spdy,
        (Wire::WebSocket, Some(TUNNEL)) => Carrier::Tunnel,
        (Wire::WebSocket, protocol) => Carrier::Channels(codec(protocol.unwrap_or_default())),
    };
    if matches!(carrier, Carrier::Channels(_)) && !(1..=Prepared::PORTS).contains(&ports.len()) {
        let text = format!("this protocol forwards 1 to {} ports named in the request", Prepared::PORTS);
        return Err(Refusal::new(StatusCode::BAD_REQUEST, text));
    }
    Ok(Job::Forward { carrier, pod, ports })
}

fn codec(protocol: &str) -> Codec {
    if protocol.contains("base64") { Codec::Base64 } else { Codec::Binary }
}
