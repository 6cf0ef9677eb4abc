//! The streaming server: exec, attach and port-forward over SPDY/3.1 and over WebSocket.
//!
//! A CRI client asks for a URL over gRPC and dials it; the URL serves one upgrade within a minute. From there
//! on the server joins the client's streams with what [`Sessions`] opens. It knows neither containers nor
//! namespaces.
//!
//! ```text
//! server     listener, HTTP head, tokens, upgrade
//! closing    sessions that end in words when the server does
//! heads      connections without a token      budget     open files of all sessions
//! serve      one upgraded connection: its reader, its writer, its session, its end
//! link       the socket: whole frames out, octets in      inbox   bounded queue per stream
//! spdy/      frames, headers, streams                     websocket/  messages, channels
//! remote_command/  exec and attach                        port_forward/  pairs of streams
//! ```

mod budget;
mod closing;
#[cfg(fuzzing)]
pub mod fuzzing;
mod heads;
mod inbox;
mod link;
mod port_forward;
mod pump;
mod remote_command;
mod serve;
mod server;
mod spdy;
mod tokens;
mod upgrade;
mod websocket;

#[cfg(test)]
mod tests;

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};
use tonic::Code;

use self::{
    remote_command::Request,
    server::Server,
    tokens::{TokenError, Tokens},
};
use crate::{
    descriptors,
    error::{Error, Result, chain},
    runtime::session::{AttachRequest, ExecRequest, Sessions},
};

/// How long a URL is good.
const URL_LIFE: Duration = Duration::from_secs(60);
/// URLs that wait to be used.
const URLS: usize = 1000;
/// What they stand for, in bytes of memory; more than any one can take.
const URLS_BYTES: usize = 16 << 20;
/// What a URL and each word of a command take besides their characters: a string, and the least that an
/// allocation takes.
const URL_BYTES: usize = 1024;
const WORD_BYTES: usize = 24 + 32;

/// The server cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("the streaming server cannot listen on {address}")]
pub struct BindError {
    /// Where.
    pub address: SocketAddr,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Times and limits of the streaming server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// A session in which no byte moves for so long is ended.
    pub idle: Duration,
    /// A client must open the streams of a session within this time.
    pub stream_creation: Duration,
    /// A URL must be used within this time.
    pub url_life: Duration,
    /// Files that connections and sessions may have open, all together.
    pub files: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(4 * 60 * 60),
            stream_creation: Duration::from_secs(30),
            url_life: URL_LIFE,
            files: descriptors::for_streaming(),
        }
    }
}

/// A running streaming server; closed with its last clone.
#[derive(Clone)]
pub struct Streaming {
    address: SocketAddr,
    tokens: Arc<Tokens<Wanted>>,
    open: Arc<watch::Sender<()>>,
    places: Arc<Semaphore>,
}

impl fmt::Debug for Streaming {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Streaming").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Streaming {
    /// Listens on an address (port 0: a free one) and serves until the last clone is dropped, which ends
    /// all sessions.
    pub async fn bind(
        address: SocketAddr,
        sessions: Arc<dyn Sessions>,
    ) -> std::result::Result<Self, BindError> {
        Self::bind_with(address, sessions, Settings::default()).await
    }

    /// [`Self::bind`] with other times.
    pub async fn bind_with(
        address: SocketAddr,
        sessions: Arc<dyn Sessions>,
        settings: Settings,
    ) -> std::result::Result<Self, BindError> {
        let failed = |source| BindError { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let tokens = Arc::new(Tokens::new(settings.url_life, URLS, URLS_BYTES));
        let (open, closed) = watch::channel(());
        let server = Server::new(tokens.clone(), sessions, settings, closed);
        let places = server.places();
        tokio::spawn(server.run(listener));
        Ok(Self { address, tokens, open: Arc::new(open), places })
    }

    /// Accepts nobody any more, tells the clients of commands and attachments that the server ends, and
    /// waits for them to go, two seconds at most.
    pub async fn close(&self) {
        // It fails when the server has ended already.
        let _gone = self.open.send(());
        let _late = tokio::time::timeout(server::FAREWELL, Server::deserted(&self.places)).await;
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A URL that starts a command once (CRI `ExecResponse.url`).
    ///
    /// Fails with RESOURCE_EXHAUSTED while 1000 URLs, or requests of 16 MiB, wait to be used.
    pub fn exec_url(&self, request: ExecRequest) -> Result<String> {
        self.url(Wanted::Command(Request::Exec(request)))
    }

    /// A URL that joins a container once (CRI `AttachResponse.url`). Fails as [`Self::exec_url`].
    pub fn attach_url(&self, request: AttachRequest) -> Result<String> {
        self.url(Wanted::Command(Request::Attach(request)))
    }

    /// A URL that forwards ports of a pod (CRI `PortForwardResponse.url`). Clients over SPDY name the ports
    /// themselves; `ports` are for those over WebSocket channels. Fails as [`Self::exec_url`].
    pub fn port_forward_url(&self, pod: String, ports: Vec<u16>) -> Result<String> {
        self.url(Wanted::Forward { pod, ports })
    }

    fn url(&self, wanted: Wanted) -> Result<String> {
        let (kind, bytes) = (wanted.kind(), wanted.bytes());
        let token = self.tokens.give(wanted, bytes).map_err(|error| {
            let code = match error {
                TokenError::TooMany(_) | TokenError::TooLarge(_) => Code::ResourceExhausted,
                TokenError::Random(_) => Code::Internal,
            };
            Error::Failed { operation: format!("URL for {kind}"), code, cause: chain(&error).into() }
        })?;
        Ok(format!("http://{}/{kind}/{token}", reachable(self.address)))
    }
}

/// A server on all addresses is dialled on the loopback one.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// What a URL stands for.
enum Wanted {
    Command(Request),
    Forward { pod: String, ports: Vec<u16> },
}

impl Wanted {
    /// The first words of the paths of URLs.
    const KINDS: [&'static str; 3] = ["exec", "attach", "portforward"];

    /// How much memory it takes, at most.
    fn bytes(&self) -> usize {
        let words: usize = match self {
            Self::Command(Request::Exec(exec)) => {
                exec.command.iter().map(|word| word.capacity() + WORD_BYTES).sum()
            }
            Self::Command(Request::Attach(_)) | Self::Forward { .. } => 0,
        };
        URL_BYTES + words
    }

    fn kind(&self) -> &'static str {
        let [exec, attach, port_forward] = Self::KINDS;
        match self {
            Self::Command(Request::Exec(_)) => exec,
            Self::Command(Request::Attach(_)) => attach,
            Self::Forward { .. } => port_forward,
        }
    }
}
