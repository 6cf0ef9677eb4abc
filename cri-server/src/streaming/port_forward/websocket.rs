//! Port-forward over WebSocket channels: two channels per port, data (even) and error (odd), each of which
//! begins with the port as two octets, the lower first.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::{Pair, Target};
use crate::{
    runtime::session::Sessions,
    streaming::{link::Packet, pump::Outlet, serve::Ended, websocket::channels::Channels},
};

/// The channels of all ports, before the connection is read.
pub(in crate::streaming) struct Prepared(Vec<(Pair, u16)>);

impl Prepared {
    /// Most ports, so that their channels can be numbered.
    pub(in crate::streaming) const PORTS: usize = 127;

    /// Names the channels of these ports; at most [`Self::PORTS`] of them.
    pub(in crate::streaming) fn new(wire: &mut Channels, ports: &[u16]) -> Self {
        let pairs = (0..).step_by(2).zip(ports).map(|(channel, port)| {
            let pair = Pair {
                incoming: wire.listen(channel),
                data: Outlet::Channel(wire.outgoing(channel)),
                error: Outlet::Channel(wire.outgoing(channel + 1)),
                half_close: false,
            };
            (pair, *port)
        });
        Self(pairs.collect())
    }
}

/// Connects to all ports and relays until all connections have ended.
pub(in crate::streaming) async fn serve(
    Prepared(pairs): Prepared,
    pod: String,
    sessions: Arc<dyn Sessions>,
) -> Ended {
    let target = Target { sessions, pod: pod.into() };
    let mut running = JoinSet::new();
    for (mut pair, port) in pairs {
        for outlet in [&mut pair.data, &mut pair.error] {
            if outlet.send(Packet::new(&port.to_le_bytes())).await.is_err() {
                return Ended::Broken("the client went");
            }
        }
        running.spawn(pair.forward(target.clone(), port));
    }
    while running.join_next().await.is_some() {}
    Ended::Told
}
