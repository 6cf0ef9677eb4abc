//! Port-forward: joins pairs of streams (data and error) with TCP connections in a pod.
//!
//! Invariants: a connection that fails harms its own pair alone; both directions end independently.

mod spdy;
mod websocket;

use std::{pin::Pin, sync::Arc};

use tokio::{io::AsyncWriteExt, sync::oneshot};

pub(super) use self::{
    spdy::serve as serve_spdy,
    websocket::{Prepared, serve as serve_websocket},
};
use super::{
    inbox::Receiver,
    link::Packet,
    pump::{self, Outlet, Poured},
};
use crate::{
    error::chain,
    runtime::session::{Duplex, Sessions},
};

/// Where connections go.
#[derive(Clone)]
struct Target {
    sessions: Arc<dyn Sessions>,
    pod: Arc<str>,
}

/// The streams of one connection to a port.
struct Pair {
    incoming: Receiver,
    data: Outlet,
    error: Outlet,
    /// The client can end one direction alone.
    half_close: bool,
}

impl Pair {
    /// Connects to a port and relays until both sides are done.
    async fn forward(mut self, target: Target, port: u16) {
        match target.sessions.connect(&target.pod, port).await {
            Ok(connection) => relay(self.incoming, self.data, connection, self.half_close).await,
            Err(error) => {
                let pod = &target.pod;
                let words = format!("error forwarding port {port} to pod {pod}: {}", chain(&error));
                // It fails when the client is gone.
                let _gone = self.error.send(Packet::new(words.as_bytes())).await;
            }
        }
        let _gone = self.error.finish().await;
    }
}

/// Moves bytes both ways until both have ended, or the client tears the stream down.
async fn relay(mut incoming: Receiver, mut data: Outlet, connection: Pin<Box<dyn Duplex>>, half_close: bool) {
    let (mut from, mut into) = tokio::io::split(connection);
    let (done, finished) = oneshot::channel();
    let upload = async {
        match pump::pour(&mut incoming, &mut into).await {
            Poured::Reset => return,
            // It fails when the other end is closed already.
            Poured::Finished => drop(into.shutdown().await),
            Poured::Refused => incoming.discard(),
        }
        // Nobody waits when the other direction has ended first.
        let _ended = done.send(());
        incoming.torn().await;
    };
    let download = async {
        // A connection that breaks ends as one that is closed: the error stream would end them all.
        while let Ok(Some(packet)) = pump::read(&mut from).await {
            if data.send(packet).await.is_err() {
                return;
            }
        }
        if data.finish().await.is_ok() && half_close {
            let _uploaded = finished.await;
        }
    };
    tokio::select! {
        () = upload => {}
        () = download => {}
    }
}
