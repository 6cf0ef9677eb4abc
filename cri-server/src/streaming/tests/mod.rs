//! The server as its clients see it: real sockets, real processes, the clients' own framing.

mod backend;
mod channels;
mod client;
mod commands;
mod crowds;
mod forwards;
mod hostile;
mod life;

use std::{sync::Arc, time::Duration};

use self::backend::Host;
use super::{Settings, Streaming};
use crate::runtime::session::{AttachRequest, ExecRequest, Streams};

const LOOPBACK: std::net::SocketAddr =
    std::net::SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// A server over this machine.
struct Rig {
    host: Arc<Host>,
    streaming: Streaming,
}

impl Rig {
    async fn new() -> Self {
        Self::with(Settings::default()).await
    }

    async fn with(settings: Settings) -> Self {
        let host = Arc::new(Host::default());
        let streaming = Streaming::bind_with(LOOPBACK, host.clone(), settings).await.unwrap();
        Self { host, streaming }
    }

    fn exec(&self, script: &str, streams: Streams) -> String {
        let command = ["sh", "-c", script].map(String::from).to_vec();
        self.streaming.exec_url(ExecRequest { container: "c".into(), command, streams }).unwrap()
    }

    fn attach(&self) -> String {
        self.streaming.attach_url(AttachRequest { container: "c".into(), streams: ALL }).unwrap()
    }
}

const ALL: Streams = Streams { tty: false, stdin: true, stdout: true, stderr: true };
const OUTPUT: Streams = Streams { tty: false, stdin: false, stdout: true, stderr: false };
const TERMINAL: Streams = Streams { tty: true, stdin: true, stdout: true, stderr: false };

/// Fails what hangs.
async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), work).await.expect("it does not hang")
}
