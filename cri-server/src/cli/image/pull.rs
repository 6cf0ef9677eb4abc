//! `podhold image pull`.

use std::sync::Arc;

use podhold_image::{Digest, LayerProgress, LayerStage, Progress};
use podhold_proto::images::{
    self, Image, PullRequest, PullResponse, layer_progress::Stage, pull_response::What,
};
use tokio::sync::watch;
use tonic::Streaming;

use super::client::{Client, said};
use crate::cli::{Failure, bars};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Such as `busybox`, `quay.io/team/app:1.2` or `app@sha256:...`
    reference: String,
}

pub(super) async fn run(mut client: Client, arguments: &Arguments) -> Result<(), Failure> {
    let reference = arguments.reference.clone();
    let (tell, told) = watch::channel(Progress::default());
    let shown = tokio::spawn(bars::show(told));
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
                each: now.each.into_iter().filter_map(layer).collect(),
            })),
            Some(What::Image(image)) => return Ok(image),
            None => {}
        }
    }
    Err(Failure("the daemon ended before the pull did; pull again".to_owned()))
}

/// A layer as the service tells of it; `None` when what it says makes no sense.
fn layer(now: images::LayerProgress) -> Option<LayerProgress> {
    let stage = match now.stage() {
        Stage::Waiting => LayerStage::Waiting,
        Stage::Downloading => LayerStage::Downloading,
        Stage::Unpacking => LayerStage::Unpacking,
        Stage::Done => LayerStage::Done,
        Stage::AlreadyHere => LayerStage::AlreadyHere,
    };
    let digest = Arc::new(Digest::parse(&now.digest).ok()?);
    Some(LayerProgress { digest, size: now.size, received: now.received, resumed: now.resumed, stage })
}
