//! Exec and attach over SPDY: one stream each for stdin, stdout, stderr, error and resize.

use std::{sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::timeout};

use super::{Channels, Request};
use crate::{
    runtime::session::{Sessions, Streams},
    streaming::{
        pump::Outlet,
        serve::Ended,
        spdy::stream::{Offer, Stream},
    },
};

/// Serves a session over the streams a client opens within a time.
pub(in crate::streaming) async fn serve(
    mut offers: mpsc::Receiver<Offer>,
    version: u8,
    request: Request,
    sessions: Arc<dyn Sessions>,
    patience: Duration,
) -> Ended {
    let gathered = timeout(patience, gather(&mut offers, version, request.streams())).await;
    // Streams that are opened from here on are refused.
    drop(offers);
    match gathered {
        Err(_late) => Ended::Broken("the client did not open its streams in time"),
        Ok(None) => Ended::Broken("the client went before it had opened its streams"),
        Ok(Some(channels)) => match channels.run(request, sessions).await {
            Ok(()) => Ended::Told,
            Err(gone) => gone.into(),
        },
    }
}

/// Waits for all streams of a session; `None` when the client goes before.
async fn gather(offers: &mut mpsc::Receiver<Offer>, version: u8, wanted: Streams) -> Option<Channels> {
    let resizes = wanted.tty && version >= 3;
    let mut error = None;
    let [mut stdin, mut stdout, mut stderr, mut resize]: [Option<Stream>; 4] = Default::default();
    let mut silent = Vec::new();
    while error.is_none()
        || wanted.stdin && stdin.is_none()
        || wanted.stdout && stdout.is_none()
        || wanted.stderr && stderr.is_none()
        || resizes && resize.is_none()
    {
        let offer = offers.recv().await?;
        let (place, used) = match offer.kind() {
            "error" => (&mut error, true),
            "stdin" => (&mut stdin, wanted.stdin),
            "stdout" => (&mut stdout, wanted.stdout),
            "stderr" => (&mut stderr, wanted.stderr),
            "resize" => (&mut resize, resizes),
            // Dropping it refuses it.
            _ => continue,
        };
        if !used {
            // As in the kubelet: open, and nothing ever comes.
            silent.push(Outlet::Spdy(offer.accept().outgoing));
        } else if place.is_none() {
            *place = Some(offer.accept());
        }
    }
    let (stdin, stdin_back) = stdin.map(|stream| (stream.incoming, stream.outgoing)).unzip();
    let (resize, resize_back) = resize.map(|stream| (stream.incoming, stream.outgoing)).unzip();
    silent.extend([stdin_back, resize_back].into_iter().flatten().map(Outlet::Spdy));
    Some(Channels {
        version,
        stdin,
        resize,
        stdout: stdout.map(|stream| Outlet::Spdy(stream.outgoing)),
        stderr: stderr.map(|stream| Outlet::Spdy(stream.outgoing)),
        error: Outlet::Spdy(error?.outgoing),
        silent,
    })
}
