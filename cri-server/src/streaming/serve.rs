//! One upgraded connection from its first frame to its end: who reads, who writes, who waits.
//!
//! Invariant: when the client goes, nothing moves for too long, or the pod of forwarded ports is stopped, the
//! session is dropped at once.

use std::{io, sync::Arc, time::Duration};

use bytes::BytesMut;
use tokio::{net::TcpStream, task::JoinHandle, time::timeout};

use super::{
    Settings,
    link::{Link, Source},
    port_forward,
    remote_command::{self, Request},
    spdy::{
        connection::{Connection, Intake},
        frame,
    },
    websocket::{
        self, Reader,
        channels::{Channels, Codec},
    },
};
use crate::runtime::session::Sessions;

/// Streams of a command: five, and some that are refused.
const COMMAND_STREAMS: usize = 16;
/// Streams of a port-forward, two per connection.
const FORWARD_STREAMS: usize = 2048;
/// How long the last frames may take to leave.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long a client may take to close after it was told the end. Closing before would throw away what it has
/// not read yet, when octets of it are unread here.
const LINGER: Duration = Duration::from_secs(2);
/// A WebSocket's orderly end (RFC 6455, section 7.4.1).
const NORMAL: u16 = 1000;

/// What an upgraded connection is for.
pub(super) enum Job {
    /// Exec or attach; versions 1 to 5.
    Command { version: u8, carrier: Carrier, request: Request },
    /// Port-forward.
    Forward { carrier: Carrier, pod: String, ports: Vec<u16> },
}

/// How streams travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carrier {
    /// As SPDY streams.
    Spdy,
    /// As SPDY streams in the binary messages of a WebSocket.
    Tunnel,
    /// As channels of a WebSocket.
    Channels(Codec),
}

/// How a session ended for its client.
pub(super) enum Ended {
    /// It was told everything.
    Told,
    /// It did not take in time what was sent before that.
    Late,
    /// It was not, for this reason.
    Broken(&'static str),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => Self::Late,
            _ => Self::Broken("the client went"),
        }
    }
}

/// Serves a connection to its end.
pub(super) async fn serve(
    (tcp, begun): (TcpStream, &[u8]),
    job: Job,
    sessions: Arc<dyn Sessions>,
    settings: Settings,
) {
    let link = Link::new(tcp);
    let source = Source::new(link.clone(), begun);
    let patience = settings.stream_creation;
    match job {
        Job::Command { version, carrier: Carrier::Channels(codec), request } => {
            let mut wire = Channels::new(Reader::new(source), codec, version >= 5);
            let prepared = remote_command::Prepared::new(&mut wire, version, &request);
            let session = remote_command::serve_websocket(prepared, request, sessions);
            let line = Line::new(link, read_channels(wire), websocket::close(NORMAL));
            line.serve(session, settings.idle).await;
        }
        Job::Command { version, carrier, request } => {
            let (connection, offers) =
                Connection::new(link.clone(), intake(source, carrier), COMMAND_STREAMS);
            let session = remote_command::serve_spdy(offers, version, request, sessions, patience);
            let line = Line::new(link, read_spdy(connection), farewell(carrier));
            line.serve(session, settings.idle).await;
        }
        Job::Forward { carrier: Carrier::Channels(codec), pod, ports } => {
            let mut wire = Channels::new(Reader::new(source), codec, false);
            let prepared = port_forward::Prepared::new(&mut wire, &ports);
            let session = port_forward::serve_websocket(prepared, pod.clone(), sessions.clone());
            let session = until_stopped(session, pod, sessions);
            let line = Line::new(link, read_channels(wire), websocket::close(NORMAL));
            line.serve(session, settings.idle).await;
        }
        Job::Forward { carrier, pod, .. } => {
            let (connection, offers) =
                Connection::new(link.clone(), intake(source, carrier), FORWARD_STREAMS);
            let session = port_forward::serve_spdy(offers, pod.clone(), sessions.clone(), patience);
            let session = until_stopped(session, pod, sessions);
            let line = Line::new(link, read_spdy(connection), farewell(carrier));
            line.serve(session, settings.idle).await;
        }
    }
}

async fn until_stopped(
    session: impl Future<Output = Ended>,
    pod: String,
    sessions: Arc<dyn Sessions>,
) -> Ended {
    tokio::select! {
        biased;
        ended = session => ended,
        () = sessions.stopped(&pod) => Ended::Broken("the pod was stopped"),
    }
}

fn intake(source: Source, carrier: Carrier) -> Intake {
    match carrier {
        Carrier::Tunnel => Intake::Tunnel(Reader::new(source), BytesMut::new()),
        Carrier::Spdy | Carrier::Channels(_) => Intake::Plain(source),
    }
}

fn farewell(carrier: Carrier) -> Vec<u8> {
    match carrier {
        Carrier::Tunnel => websocket::close(NORMAL),
        Carrier::Spdy | Carrier::Channels(_) => frame::go_away(0, 0),
    }
}

async fn read_spdy(connection: Connection) {
    let end = connection.run().await;
    tracing::debug!(reason = %end, "a streaming connection ended");
}

async fn read_channels(channels: Channels) {
    if let Err(end) = channels.run().await {
        tracing::debug!(reason = %end, "a streaming connection ended");
    }
}

/// A connection with its reader and its writer.
struct Line {
    link: Arc<Link>,
    reader: Task,
    writer: Task,
    farewell: Vec<u8>,
}

impl Line {
    fn new(link: Arc<Link>, reader: impl Future<Output = ()> + Send + 'static, farewell: Vec<u8>) -> Self {
        let writer = link.clone();
        let writer = async move {
            // Who reads learns of a broken connection as well.
            let _broken = writer.write_posted().await;
        };
        Self { link, reader: Task::spawn(reader), writer: Task::spawn(writer), farewell }
    }

    async fn serve(mut self, session: impl Future<Output = Ended>, idle: Duration) {
        let ended = tokio::select! {
            ended = session => ended,
            _ = &mut self.reader.0 => Ended::Broken("the client went"),
            _ = &mut self.writer.0 => Ended::Broken("the connection broke"),
            () = self.link.idle(idle) => Ended::Broken("nothing moved for too long"),
        };
        match ended {
            Ended::Told => {}
            Ended::Broken(reason) => tracing::debug!(reason, "a streaming session was ended"),
            Ended::Late => {
                tracing::debug!("a streaming session was cut off");
                return self.link.break_off();
            }
        }
        self.link.post_now(&self.farewell);
        // Neither matters to a client that is gone.
        let flushed = timeout(FAREWELL, self.link.flush()).await;
        match flushed {
            Ok(_) => self.link.finish(),
            Err(_) => self.link.break_off(),
        }
        if !self.reader.0.is_finished() {
            let _late = timeout(LINGER, &mut self.reader.0).await;
        }
    }
}

/// A task that ends with its handle.
struct Task(JoinHandle<()>);

impl Task {
    fn spawn(work: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(work))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}
