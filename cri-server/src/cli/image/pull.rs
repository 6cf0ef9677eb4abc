//! `podhold image pull`.

use std::io::IsTerminal;

use podhold_image::Progress;
use podhold_proto::images::{Image, PullRequest, PullResponse, pull_response::What};
use tokio::sync::watch;
use tonic::Streaming;

use super::client::{Client, said};
use crate::cli::Failure;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Such as `busybox`, `quay.io/team/app:1.2` or `app@sha256:...`
    reference: String,
}

pub(super) async fn run(mut client: Client, arguments: &Arguments) -> Result<(), Failure> {
    let reference = arguments.reference.clone();
    let (tell, told) = watch::channel(Progress::default());
    let shown = tokio::spawn(show(reference.clone(), told));
    let answer = client.pull(PullRequest { reference }).await.map_err(|status| said(&status))?;
    let pulled = follow(answer.into_inner(), tell).await;
    shown.await?;
    println!("{}", pulled?.id);
    Ok(())
}

/// Passes on how far the pull is, until its end.
async fn follow(
    mut messages: Streaming<PullResponse>,
    tell: watch::Sender<Progress>,
) -> Result<Image, Failure> {
    while let Some(message) = messages.message().await.map_err(|status| said(&status))? {
        match message.what {
            Some(What::Progress(now)) => drop(tell.send_replace(Progress {
                layers: now.layers as usize,
                layers_done: now.layers_done as usize,
                bytes: now.bytes,
                bytes_done: now.bytes_done,
            })),
            Some(What::Image(image)) => return Ok(image),
            None => {}
        }
    }
    Err(Failure("the daemon ended before the pull did; pull again".to_owned()))
}

/// Shows how far a pull is, until its sender is gone.
async fn show(reference: String, mut told: watch::Receiver<Progress>) {
    if !std::io::stderr().is_terminal() {
        return;
    }
    while told.changed().await.is_ok() {
        let now = *told.borrow_and_update();
        let (done, all) = (now.bytes_done as f64 / 1e6, now.bytes as f64 / 1e6);
        eprint!(
            "\r\x1b[Kpulling {reference}: {}/{} layers, {done:.1} of {all:.1} MB",
            now.layers_done, now.layers
        );
    }
    eprint!("\r\x1b[K");
}
