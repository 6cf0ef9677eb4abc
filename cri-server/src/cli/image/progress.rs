//! How far work of the service is, from its messages to the bars.

use std::sync::{Arc, Weak};

use podhold_image::{Digest, LayerProgress, LayerStage, Progress};
use podhold_proto::images::{self, layer_progress::Stage};
use tokio::{sync::watch, task::JoinHandle};

use crate::cli::{Failure, bars};

/// Bars that follow some work until it is ended.
pub(super) struct Shown {
    tell: Arc<watch::Sender<Progress>>,
    bars: JoinHandle<()>,
}

impl Shown {
    pub(super) fn begin() -> Self {
        let (tell, told) = watch::channel(Progress::default());
        Self { tell: Arc::new(tell), bars: tokio::spawn(bars::show(told)) }
    }

    /// For who reads an archive, and may go on with that when all is over.
    pub(super) fn teller(&self) -> Weak<watch::Sender<Progress>> {
        Arc::downgrade(&self.tell)
    }

    /// Shows what a message says; what is known of an archive stays.
    pub(super) fn tell(&self, now: images::Progress) {
        self.tell.send_modify(|shown| {
            *shown = Progress {
                layers: now.layers as usize,
                layers_done: now.layers_done as usize,
                bytes: now.bytes,
                bytes_done: now.bytes_done,
                each: now.each.into_iter().filter_map(layer).collect(),
                archive: shown.archive,
            };
        });
    }

    /// Ends the bars, so that what is written next comes after them.
    pub(super) async fn end(self) -> Result<(), Failure> {
        drop(self.tell);
        Ok(self.bars.await?)
    }
}

/// A layer as the service tells of it; `None` when what it says makes no sense.
fn layer(now: images::LayerProgress) -> Option<LayerProgress> {
    let stage = match now.stage() {
        Stage::Waiting => LayerStage::Waiting,
        Stage::Downloading => LayerStage::Downloading,
        Stage::Unpacking => LayerStage::Unpacking,
        Stage::Done => LayerStage::Done,
        Stage::AlreadyHere => LayerStage::AlreadyHere,
        Stage::Reading => LayerStage::Reading,
        Stage::Writing => LayerStage::Writing,
    };
    let digest = Arc::new(Digest::parse(&now.digest).ok()?);
    Some(LayerProgress { digest, size: now.size, received: now.received, resumed: now.resumed, stage })
}
