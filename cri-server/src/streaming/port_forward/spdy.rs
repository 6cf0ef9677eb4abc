//! Port-forward over SPDY: two streams per connection, paired by the header `requestid`.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::{sync::mpsc, task::JoinSet, time::Instant};

use super::{Pair, Target};
use crate::{
    runtime::session::Sessions,
    streaming::{
        link::Packet,
        pump::Outlet,
        serve::Ended,
        spdy::stream::{Offer, Stream},
    },
};

/// The longest request id.
const ID_LIMIT: usize = 64;

/// A pair that lacks a stream.
struct Half {
    id: String,
    port: u16,
    deadline: Instant,
    stream: Stream,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Error,
}

/// Serves a client's connections until it goes.
pub(in crate::streaming) async fn serve(
    mut offers: mpsc::Receiver<Offer>,
    pod: String,
    sessions: Arc<dyn Sessions>,
    patience: Duration,
) -> Ended {
    let target = Target { sessions, pod: pod.into() };
    let mut pairs = JoinSet::new();
    // In the order of their deadlines.
    let mut halves: VecDeque<Half> = VecDeque::new();
    loop {
        let deadline = halves.front().map(|half| half.deadline);
        tokio::select! {
            offer = offers.recv() => {
                let Some(offer) = offer else { return Ended::Broken("the client went") };
                if let Some((pair, port)) = pair(offer, &mut halves, patience) {
                    pairs.spawn(pair.forward(target.clone(), port));
                }
            }
            () = passed(deadline) => {
                if let Some(late) = halves.pop_front() {
                    pairs.spawn(late.expire());
                }
            }
            Some(_) = pairs.join_next() => {}
        }
    }
}

async fn passed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Accepts a stream; gives back the pair that it completes. What is no half of a pair is refused.
fn pair(offer: Offer, halves: &mut VecDeque<Half>, patience: Duration) -> Option<(Pair, u16)> {
    let kind = match offer.kind() {
        "data" => Kind::Data,
        "error" => Kind::Error,
        _ => return None,
    };
    let port: u16 = offer.headers().get("port")?.parse().ok().filter(|port| *port != 0)?;
    let id = match offer.headers().get("requestid") {
        Some(id) if id.len() > ID_LIMIT => return None,
        Some(id) => id.to_owned(),
        // Clients before request ids open the error stream, and right after it the data stream.
        None if kind == Kind::Error => offer.id().to_string(),
        None => offer.id().checked_sub(2)?.to_string(),
    };
    let Some(at) = halves.iter().position(|half| half.id == id) else {
        let deadline = Instant::now() + patience;
        halves.push_back(Half { id, port, deadline, stream: offer.accept(), kind });
        return None;
    };
    if halves[at].kind == kind || halves[at].port != port {
        return None;
    }
    let half = halves.remove(at)?;
    let (data, error) = match kind {
        Kind::Data => (offer.accept(), half.stream),
        Kind::Error => (half.stream, offer.accept()),
    };
    let pair = Pair {
        incoming: data.incoming,
        data: Outlet::Spdy(data.outgoing),
        error: Outlet::Spdy(error.outgoing),
        half_close: true,
    };
    Some((pair, port))
}

impl Half {
    /// Tells the client that the other stream did not come.
    async fn expire(mut self) {
        if self.kind == Kind::Error {
            let words = format!("request {}: timed out waiting for its data stream", self.id);
            // Both fail when the client is gone.
            let _gone = self.stream.outgoing.send(Packet::new(words.as_bytes())).await;
            let _gone = self.stream.outgoing.finish().await;
        }
    }
}
