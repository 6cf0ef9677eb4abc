//! Attach sessions, seen from the daemon.
//!
//! A session has a socket of its own: the shim sees at its end that the client, or the daemon, is gone,
//! and says on it why the session has ended. So nothing is to be said or remembered when one is dropped.

use std::{io, os::fd::OwnedFd};

use async_trait::async_trait;
use podhold_proto::shim::{self as wire, Attach, attach_end::Why, reply::Result as Outcome, request::Call};
use prost::Message;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair};
use tokio::io::{Interest, unix::AsyncFd};

use super::{ShimPod, convert};
use crate::{
    PodId,
    launch::{AttachEnd, AttachSession, AttachSpec, Attached, LaunchError},
    sys,
    wire::receive_packet,
};

impl ShimPod {
    pub(super) async fn attach_to(&self, attach: AttachSpec) -> Result<Attached, LaunchError> {
        if !self.version.can_attach() {
            return Err(LaunchError::TooOld { pod: self.id.clone(), what: "attach clients to containers" });
        }
        let failed = |source| LaunchError::Io {
            operation: format!("make the sockets to attach to container {}", attach.container),
            source,
        };
        let (near, far) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags(), None)
            .map_err(|error| failed(error.into()))?;
        let socket = sys::watch(near, Interest::READABLE).map_err(failed)?;
        let mut files = vec![far];
        let mut stream = |wanted: bool| -> Result<Option<OwnedFd>, LaunchError> {
            let made = wanted.then(output).transpose().map_err(failed)?;
            Ok(made.map(|(reading, writing)| {
                files.push(writing);
                reading
            }))
        };
        let (stdout, stderr) = (stream(attach.stdout)?, stream(attach.stderr)?);
        let call = Attach {
            container: attach.container.to_string(),
            stdin: attach.stdin,
            stdout: attach.stdout,
            stderr: attach.stderr,
        };
        let answered = self.line.request(Call::Attach(call), files).await;
        let (outcome, mut files) =
            answered.map_err(|error| convert::name_container(error, Some(&attach.container)))?;
        let Outcome::Attach(reply) = outcome else { return Err(self.unexpected(&outcome)) };
        let file = files.pop();
        let (terminal, stdin) = if reply.terminal { (file, None) } else { (None, file) };
        let session = Session { pod: self.id.clone(), socket };
        Ok(Attached { stdin, stdout, stderr, terminal, session: Box::new(session) })
    }
}

fn flags() -> SocketFlags {
    SocketFlags::CLOEXEC | SocketFlags::NONBLOCK
}

/// A stream's reading end, and the writing end. The logger, which knows who shares the container's budget,
/// says how much they keep.
fn output() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::STREAM, flags(), None)?)
}

struct Session {
    pod: PodId,
    socket: AsyncFd<OwnedFd>,
}

#[async_trait]
impl AttachSession for Session {
    fn give_up_stdin(&self) {
        // Fails only when the shim has closed its end: then there is nothing to give up.
        let _ = shutdown(self.socket.get_ref(), Shutdown::Write);
    }

    async fn ended(&self) -> Result<AttachEnd, LaunchError> {
        let gone = || LaunchError::Gone { pod: self.pod.clone() };
        loop {
            let mut ready = self.socket.readable().await.map_err(|_| gone())?;
            match receive_packet(self.socket.get_ref()) {
                Ok(None) => ready.clear_ready(),
                Ok(Some((packet, _))) if !packet.is_empty() => {
                    let end = wire::AttachEnd::decode(packet.as_slice()).ok().and_then(|end| end.why);
                    return match end {
                        Some(Why::Exited(code)) => Ok(AttachEnd::Exited(code)),
                        Some(Why::TooSlow(_)) => Ok(AttachEnd::TooSlow),
                        None => Err(LaunchError::Protocol {
                            pod: self.pod.clone(),
                            reason: "an attach session ended for a reason that is not known".to_owned(),
                        }),
                    };
                }
                Ok(Some(_)) | Err(_) => return Err(gone()),
            }
        }
    }
}
