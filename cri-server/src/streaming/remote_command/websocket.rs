//! Exec and attach over WebSocket: channels 0 to 4 are stdin, stdout, stderr, error and resize.

use std::sync::Arc;

use super::{Channels, Request};
use crate::{
    runtime::session::Sessions,
    streaming::{link::Packet, pump::Outlet, serve::Ended, websocket::channels},
};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// The channels of a session, before its connection is read.
pub(in crate::streaming) struct Prepared(Channels);

impl Prepared {
    /// Names the channels that a session uses.
    pub(in crate::streaming) fn new(wire: &mut channels::Channels, version: u8, request: &Request) -> Self {
        let streams = request.streams();
        let outlet = |channel| Outlet::Channel(wire.outgoing(channel));
        let (stdout, stderr) =
            (streams.stdout.then(|| outlet(STDOUT)), streams.stderr.then(|| outlet(STDERR)));
        let error = outlet(ERROR);
        Self(Channels {
            version,
            stdin: streams.stdin.then(|| wire.listen(STDIN)),
            resize: Some(wire.listen(RESIZE)),
            stdout,
            stderr,
            error,
            silent: Vec::new(),
        })
    }
}

/// Serves a session.
pub(in crate::streaming) async fn serve(
    Prepared(mut channels): Prepared,
    request: Request,
    sessions: Arc<dyn Sessions>,
) -> Ended {
    // As the kubelet does: an empty message says that the session is there.
    let first = channels.stdout.as_mut().or(channels.stderr.as_mut()).unwrap_or(&mut channels.error);
    if first.send(Packet::new(&[])).await.is_err() {
        return Ended::Broken("the client went");
    }
    match channels.run(request, sessions).await {
        Ok(()) => Ended::Told,
        Err(gone) => gone.into(),
    }
}
