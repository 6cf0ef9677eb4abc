//! How far a pull, an import, an export or a verification is: for whoever asked for it, and in the log when a pull takes
//! long. No I/O.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::JoinSet, time::MissedTickBehavior};

use super::underway::LayerTask;
use crate::{digest::Digest, error::ImageError, reference::Reference};

/// How often the progress is told anew.
const TELL: Duration = Duration::from_millis(100);
/// How often a pull that takes long says so in the log.
const LOG: Duration = Duration::from_secs(10);

/// How far a pull is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Layers of the image.
    pub layers: usize,
    /// Layers that are complete.
    pub layers_done: usize,
    /// Bytes of the layers that must be fetched.
    pub bytes: u64,
    /// Bytes of them that have arrived.
    pub bytes_done: u64,
    /// Each layer, the lowest first.
    pub each: Vec<LayerProgress>,
    /// Bytes of an archive that have been taken in, and how many there are, 0 when that is not known. Set by who reads
    /// the archive.
    pub archive: Option<(u64, u64)>,
}

/// How far a layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerProgress {
    /// Digest of its blob.
    pub digest: Arc<Digest>,
    /// Size of its blob, in bytes.
    pub size: u64,
    /// Bytes of it that have arrived, those an earlier pull kept included.
    pub received: u64,
    /// Bytes of it that an earlier pull had kept.
    pub resumed: u64,
    /// What is being done.
    pub stage: LayerStage,
}

/// What is being done with a layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LayerStage {
    /// It waits for other layers.
    #[default]
    Waiting,
    /// It arrives, and is unpacked meanwhile.
    Downloading,
    /// All of it has arrived; the rest is unpacked and synced.
    Unpacking,
    /// It is complete.
    Done,
    /// It was complete before this pull.
    AlreadyHere,
    /// Its files are read, to be compared.
    Reading,
    /// Its blob is written into an archive.
    Writing,
}

/// A layer as a pull follows it.
pub(super) struct Followed {
    pub(super) digest: Arc<Digest>,
    pub(super) size: u64,
    /// `None`: it was here already.
    pub(super) task: Option<Arc<LayerTask>>,
}

impl Followed {
    fn progress(&self) -> LayerProgress {
        let Self { digest, size, task } = self;
        let (received, resumed, stage) = match task {
            None => (*size, 0, LayerStage::AlreadyHere),
            Some(task) => {
                let state = task.state();
                let done = matches!(state.outcome, Some(Ok(())));
                (state.received, state.resumed, if done { LayerStage::Done } else { state.stage })
            }
        };
        LayerProgress { digest: Arc::clone(digest), size: *size, received, resumed, stage }
    }
}

fn of_all(layers: &[Followed]) -> Progress {
    let each: Vec<LayerProgress> = layers.iter().map(Followed::progress).collect();
    let done = |layer: &&LayerProgress| matches!(layer.stage, LayerStage::Done | LayerStage::AlreadyHere);
    let fetched = || each.iter().filter(|layer| layer.stage != LayerStage::AlreadyHere);
    Progress {
        layers: each.len(),
        layers_done: each.iter().filter(done).count(),
        bytes: fetched().map(|layer| layer.size).fold(0, u64::saturating_add),
        bytes_done: fetched().map(|layer| layer.received).fold(0, u64::saturating_add),
        each,
        archive: None,
    }
}

/// Tells how far work on layers is that is no pull.
pub(crate) struct Teller(Option<watch::Sender<Progress>>);

impl Teller {
    /// Begins with these layers, each with the digest and the size of its blob.
    pub(crate) fn begin(
        told: Option<watch::Sender<Progress>>,
        layers: impl IntoIterator<Item = (Digest, u64)>,
    ) -> Self {
        if let Some(told) = &told {
            let waiting = |(digest, size)| LayerProgress {
                digest: Arc::new(digest),
                size,
                received: 0,
                resumed: 0,
                stage: LayerStage::Waiting,
            };
            let each: Vec<LayerProgress> = layers.into_iter().map(waiting).collect();
            let bytes = each.iter().map(|layer| layer.size).fold(0, u64::saturating_add);
            told.send_replace(Progress { layers: each.len(), bytes, each, ..Progress::default() });
        }
        Self(told)
    }

    /// What is being done with a layer now, and how many bytes of it are done.
    pub(crate) fn layer(&self, index: usize, stage: LayerStage, received: u64) {
        let Some(told) = &self.0 else { return };
        told.send_modify(|now| {
            let Some(layer) = now.each.get_mut(index) else { return };
            let done = |stage| matches!(stage, LayerStage::Done | LayerStage::AlreadyHere);
            now.layers_done += usize::from(done(stage) && !done(layer.stage));
            match stage {
                LayerStage::AlreadyHere => now.bytes = now.bytes.saturating_sub(layer.size),
                _ => now.bytes_done = now.bytes_done.saturating_add(received).saturating_sub(layer.received),
            }
            (layer.stage, layer.received) = (stage, received);
        });
    }
}

/// Waits for all layers, or the first error; tells the progress meanwhile.
pub(super) async fn follow(
    reference: &Reference,
    layers: &[Followed],
    told: Option<&watch::Sender<Progress>>,
) -> Result<(), ImageError> {
    let tell = || {
        if let Some(told) = told {
            let now = of_all(layers);
            told.send_if_modified(|before| {
                let changed = *before != now;
                *before = now;
                changed
            });
        }
    };
    tell();
    let mut waiting = JoinSet::new();
    for task in layers.iter().filter_map(|layer| layer.task.as_ref()) {
        waiting.spawn(task.done());
    }
    let mut log = Log { since: Instant::now(), bytes: of_all(layers).bytes_done };
    let mut tells = tokio::time::interval(if told.is_some() { TELL } else { LOG });
    tells.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            ended = waiting.join_next() => match ended {
                None => return Ok(()),
                Some(ended) => {
                    tell();
                    ended.unwrap_or_else(|_| Err(ImageError::Cancelled(reference.to_string())))?;
                }
            },
            _ = tells.tick() => {
                tell();
                log.write(reference, layers);
            }
        }
    }
}

/// When a pull was last written of in the log.
struct Log {
    since: Instant,
    bytes: u64,
}

impl Log {
    fn write(&mut self, reference: &Reference, layers: &[Followed]) {
        let passed = self.since.elapsed();
        if passed < LOG.mul_f64(0.9) {
            return;
        }
        let now = of_all(layers);
        let rate = now.bytes_done.saturating_sub(self.bytes) as f64 / 1e6 / passed.as_secs_f64();
        tracing::info!(
            image = %reference,
            bytes_done = now.bytes_done,
            bytes = now.bytes,
            layers_done = now.layers_done,
            layers = now.layers,
            mb_per_second = format_args!("{rate:.1}"),
            "pull goes on"
        );
        *self = Self { since: Instant::now(), bytes: now.bytes_done };
    }
}
