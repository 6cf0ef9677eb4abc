//! Connections to ports of pods.
//!
//! A socket belongs to the network namespace it was made in. It is made there by a thread of its own
//! ([`podhold_sandbox::netns`]) and connected here.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    path::PathBuf,
    pin::Pin,
    time::Duration,
};

use podhold_sandbox::{PodId, netns};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tokio::{net::TcpSocket, time::timeout};
use tonic::Code;

use super::Duplex;
use crate::{
    error::{Error, Result},
    runtime::{Runtime, blocking},
    state::{Pod, PodPhase},
};

/// How long a program in the pod may take to accept; only a full backlog takes any time.
const PATIENCE: Duration = Duration::from_secs(10);

impl Runtime {
    pub(super) async fn open_port(&self, pod: &str, port: u16) -> Result<Pin<Box<dyn Duplex>>> {
        let pod = PodId::parse(pod)
            .ok()
            .and_then(|id| self.store.pod(&id))
            .ok_or_else(|| Error::not_found("pod", pod))?;
        let id = &pod.record.id;
        if !pod.phase.is_up() {
            let phase = pod.phase.name();
            return Err(Error::Precondition(format!("pod {id} is {phase}; only a ready one has ports")));
        }
        let [first, second] = sockets(self.netns(&pod)).await?;
        let refusal = match connect(first, Ipv4Addr::LOCALHOST.into(), port).await {
            Ok(stream) => return Ok(stream),
            Err(refusal) => refusal,
        };
        match connect(second, Ipv6Addr::LOCALHOST.into(), port).await {
            Ok(stream) => Ok(stream),
            // Without IPv6, the first answer is the one that counts.
            Err(_) => Err(unreachable(id, port, &refusal)),
        }
    }

    pub(super) async fn pod_stopped(&self, pod: &str) {
        let ready = PodId::parse(pod).ok().and_then(|id| self.store.pod(&id));
        match ready.filter(|pod| pod.phase.is_up()) {
            Some(pod) => {
                let up = |phase| phase == PodPhase::Stopping || PodPhase::is_up(phase);
                let done = |pod: Option<&Pod>| (!pod.is_some_and(|pod| up(pod.phase))).then_some(());
                self.store.wait_pod(&pod.record.id, done).await;
            }
            None => std::future::pending().await,
        }
    }
}

fn unreachable(pod: &PodId, port: u16, error: &io::Error) -> Error {
    let cause = match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            "connection refused: nothing listens on it on 127.0.0.1 or ::1 in the pod".to_owned()
        }
        io::ErrorKind::TimedOut => format!("not accepted within {} s", PATIENCE.as_secs()),
        _ => error.to_string(),
    };
    Error::Failed {
        operation: format!("pod {pod}: port {port}"),
        code: Code::Unavailable,
        cause: cause.into(),
    }
}

type Made = io::Result<OwnedFd>;

/// A socket of each family, made in the namespace; none is the host's.
async fn sockets(netns: Option<PathBuf>) -> Result<[Made; 2]> {
    let make = || {
        [AddressFamily::INET, AddressFamily::INET6].map(|family| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            socket_with(family, SocketType::STREAM, flags, None).map_err(io::Error::from)
        })
    };
    match netns {
        None => Ok(make()),
        Some(path) => {
            blocking("socket", move || netns::run_in(&path, make).map_err(Error::doing("socket"))).await
        }
    }
}

async fn connect(socket: Made, address: IpAddr, port: u16) -> io::Result<Pin<Box<dyn Duplex>>> {
    let socket = TcpSocket::from_std_stream(socket?.into());
    let connecting = socket.connect(SocketAddr::new(address, port));
    let stream = timeout(PATIENCE, connecting).await.map_err(|_| io::ErrorKind::TimedOut)??;
    // What is small is not held back; what is large is sent whole anyway.
    stream.set_nodelay(true)?;
    Ok(Box::pin(stream))
}
