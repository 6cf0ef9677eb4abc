//! A client of the streaming server: WebSocket, one session each.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use podhold_proto::cri::{AttachRequest, ExecRequest, PortForwardRequest};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message, client::IntoClientRequest, http::StatusCode},
};

use crate::{cri::Cri, machine::Machine};

/// Exec and attach with half close; see Kubernetes' `remotecommand` constants.
pub const V5: &str = "v5.channel.k8s.io";
/// Exec, attach, and port-forward by channels.
pub const V4: &str = "v4.channel.k8s.io";

/// Channels of exec and attach.
pub const STDIN: u8 = 0;
/// See [`STDIN`].
pub const STDOUT: u8 = 1;
/// See [`STDIN`].
pub const STDERR: u8 = 2;
/// How a session ended, as a Kubernetes `Status` in JSON.
pub const ERROR: u8 = 3;
/// Terminal sizes.
pub const RESIZE: u8 = 4;
/// Ends another channel.
const CLOSE: u8 = 255;

/// How long a server may take for one message.
const PATIENCE: Duration = Duration::from_secs(20);

/// Which standard streams a session has.
#[derive(Debug, Clone, Copy)]
pub struct Streams {
    /// A terminal, which has no stderr.
    pub tty: bool,
    /// Standard input.
    pub stdin: bool,
}

/// Input and both outputs.
pub const PIPES: Streams = Streams { tty: false, stdin: true };
/// Both outputs.
pub const OUTPUT: Streams = Streams { tty: false, stdin: false };
/// A terminal.
pub const TERMINAL: Streams = Streams { tty: true, stdin: true };

impl Cri {
    /// Exec; answers the URL.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn exec_url(&self, container: &str, command: &[&str], streams: Streams) -> String {
        let request = ExecRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            tty: streams.tty,
            stdin: streams.stdin,
            stdout: true,
            stderr: !streams.tty,
        };
        self.runtime.clone().exec(request).await.expect("a URL for exec").into_inner().url
    }

    /// Attach; answers the URL.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn attach_url(&self, container: &str, streams: Streams) -> String {
        let request = AttachRequest {
            container_id: container.to_owned(),
            tty: streams.tty,
            stdin: streams.stdin,
            stdout: true,
            stderr: !streams.tty,
        };
        self.runtime.clone().attach(request).await.expect("a URL for attach").into_inner().url
    }

    /// PortForward; answers the URL.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn forward_url(&self, pod: &str, port: i32) -> String {
        let request = PortForwardRequest { pod_sandbox_id: pod.to_owned(), port: vec![port] };
        self.runtime.clone().port_forward(request).await.expect("a URL for port-forward").into_inner().url
    }
}

/// A connected client. Dropping it is the end of a client that has crashed: no close, no last word.
#[derive(Debug)]
pub struct Client(WebSocketStream<TcpStream>);

/// Everything that came until the server's end.
#[derive(Debug, Default)]
pub struct Rest {
    /// Of channel [`STDOUT`].
    pub stdout: Vec<u8>,
    /// Of channel [`STDERR`].
    pub stderr: Vec<u8>,
    /// Of channel [`ERROR`].
    pub error: String,
    /// The server has closed in order, rather than by an end of the connection.
    pub closed: bool,
}

impl Client {
    /// Dials a URL inside the machine. An error is the status of the answer.
    ///
    /// # Panics
    /// When there is no server, or it does not speak the protocol.
    pub async fn dial(machine: &Machine, url: &str, protocol: &str) -> Result<Self, StatusCode> {
        let mut request = url.replacen("http:", "ws:", 1).into_client_request().expect("a URL");
        let address: SocketAddr =
            request.uri().authority().and_then(|it| it.as_str().parse().ok()).expect("an address in the URL");
        let protocol = protocol.parse().expect("a header's value");
        request.headers_mut().insert("sec-websocket-protocol", protocol);
        let connect = move || std::net::TcpStream::connect(address);
        let tcp = machine.in_network(connect).await.expect("enter the machine").expect("connect");
        tcp.set_nonblocking(true).expect("a socket");
        let tcp = TcpStream::from_std(tcp).expect("a socket");
        match timeout(PATIENCE, client_async(request, tcp)).await.expect("an answer in time") {
            Ok((socket, _)) => Ok(Self(socket)),
            Err(Error::Http(answer)) => Err(answer.status()),
            Err(error) => panic!("{error}"),
        }
    }

    /// Dials the URL of an exec or attach.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn command(machine: &Machine, url: &str) -> Self {
        Self::dial(machine, url, V5).await.expect("the URL serves")
    }

    /// Sends on a channel; false when the server has gone.
    pub async fn send(&mut self, channel: u8, octets: &[u8]) -> bool {
        let message = [&[channel], octets].concat();
        let sent = timeout(PATIENCE, self.0.send(Message::Binary(message.into()))).await;
        sent.expect("the server takes a message in time").is_ok()
    }

    /// Ends a channel (from version 5 on).
    pub async fn end(&mut self, channel: u8) -> bool {
        self.send(CLOSE, &[channel]).await
    }

    /// Tells the size of the terminal.
    pub async fn resize(&mut self, columns: u16, rows: u16) -> bool {
        let size = format!("{{\"Width\":{columns},\"Height\":{rows}}}");
        self.send(RESIZE, size.as_bytes()).await
    }

    /// The next message that is not empty; `Err(true)` is the server's close, `Err(false)` the end of the
    /// connection.
    ///
    /// # Panics
    /// When none comes for 20 s.
    pub async fn next(&mut self) -> Result<(u8, Bytes), bool> {
        loop {
            let message = timeout(PATIENCE, self.0.next()).await.expect("the server says something in time");
            match message {
                Some(Ok(Message::Binary(octets))) => match octets.split_first() {
                    // The end of a channel is no news to these tests.
                    None | Some((_, []) | (&CLOSE, _)) => {}
                    Some((&channel, _)) => return Ok((channel, octets.slice(1..))),
                },
                Some(Ok(Message::Close(_))) => return Err(true),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(false),
            }
        }
    }

    /// Reads a channel until it has told this text; answers all it told.
    ///
    /// # Panics
    /// When the session ends before.
    pub async fn until(&mut self, channel: u8, text: &str) -> String {
        let mut told = String::new();
        while !told.contains(text) {
            match self.next().await {
                Ok((from, octets)) if from == channel => told.push_str(&String::from_utf8_lossy(&octets)),
                Ok((from, octets)) => panic!("channel {from}: {}", String::from_utf8_lossy(&octets)),
                Err(closed) => panic!("ended (closed: {closed}) after {told:?} and before {text:?}"),
            }
        }
        told
    }

    /// Reads to the end.
    ///
    /// # Panics
    /// When the server says nothing for 20 s.
    pub async fn rest(mut self) -> Rest {
        let mut rest = Rest::default();
        loop {
            match self.next().await {
                Ok((STDOUT, octets)) => rest.stdout.extend_from_slice(&octets),
                Ok((STDERR, octets)) => rest.stderr.extend_from_slice(&octets),
                Ok((ERROR, octets)) => rest.error.push_str(&String::from_utf8_lossy(&octets)),
                Ok((channel, _)) => panic!("something came on channel {channel}"),
                Err(closed) => {
                    rest.closed = closed;
                    return rest;
                }
            }
        }
    }
}
