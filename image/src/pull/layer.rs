//! How one layer is made: fetched, unpacked, sealed and committed.
//!
//! Invariant: a layer counts only as a whole that has the digests it must have, however its bytes came together.

use std::sync::Arc;

use rustix::io::Errno;
use tokio::sync::{mpsc, watch};

use super::{
    activity::add,
    partial::Partial,
    progress::LayerStage,
    underway::{LayerJob, LayerState, LayerTask, MOST_PARKED},
};
use crate::{
    Inner,
    error::{ErrorKind, ImageError, Promise, UnpackError},
    registry::{Came, Session, Source, Wish},
    store::{
        layers::{Ingest, LayerRecord, Layers},
        tree::Contents,
    },
    unpack::{self, Arriving, Budget, Expected, KeepNothing, Kept, Piece, Unpacked, Want, Wanted},
};

/// Pieces of a blob between network and unpacker; each is at most what hyper reads at once (400 KiB).
const PIECES: usize = 4;

/// A layer being made.
pub(super) struct Making {
    pub(super) inner: Arc<Inner>,
    pub(super) session: Arc<Session>,
    pub(super) job: LayerJob,
    pub(super) state: watch::Sender<LayerState>,
}

/// How one attempt at a layer ended.
enum Attempt {
    Unpacked(Ingest, Unpacked),
    /// The content is wrong: what all came from this host, or what was pieced together.
    Wrong(Option<Source>, Arc<UnpackError>),
}

impl Making {
    /// Makes it, above `parent`, the task of the layer below.
    pub(super) async fn run(&self, parent: Option<Arc<LayerTask>>) -> Result<(), ImageError> {
        let Self { inner, job, .. } = self;
        let permit = inner.underway.permit().await.map_err(|_| self.cancelled())?;
        let sources = self.session.sources();
        let (ingest, unpacked) = match self.attempt(true, &sources, true).await? {
            Attempt::Unpacked(ingest, unpacked) => (ingest, unpacked),
            Attempt::Wrong(from, error) => self.ask_each_alone(sources, from, error).await?,
        };
        drop(permit);
        // Layers are sealed side by side, so that one sync serves many; one that must look into the layers below
        // waits for these first.
        let unpacked = match parent.as_ref().filter(|_| unpacked.looks_below()) {
            Some(parent) => self.wait_below(parent, unpacked).await?,
            None => unpacked,
        };
        let (ingest, unpacked) = self.borrow(ingest, unpacked).await?;
        let blob = (job.blob.digest.clone(), job.blob.size);
        let record = LayerRecord::new(job.chain.clone(), job.diff_id.clone(), blob, &unpacked);
        let lowers = job.lowers.clone();
        let sealing = tokio::task::spawn_blocking(move || ingest.seal(record, &unpacked, &lowers));
        let sealed = sealing.await.map_err(|_| self.cancelled())??;
        // Whole by itself, it counts whatever becomes of those below; what stands on it waits for all of them.
        let committed = tokio::task::spawn_blocking(move || sealed.commit());
        committed.await.map_err(|_| self.cancelled())??;
        add(&inner.counters.layers, 1);
        match parent {
            Some(parent) => parent.done().await,
            None => Ok(()),
        }
    }

    /// Waits for the layers below. What is known of the layer lies in memory meanwhile, without a permit.
    async fn wait_below(&self, parent: &LayerTask, mut unpacked: Unpacked) -> Result<Unpacked, ImageError> {
        if unpacked.contents.are_many() && parent.state().outcome.is_none() {
            unpacked.contents = Contents::default();
        }
        let Some(_parked) = self.inner.underway.park(unpacked.weight()) else {
            let reason = format!(
                "the links and directories of the layers that wait for those below them take more than {} MiB of memory",
                MOST_PARKED >> 20
            );
            let (reference, layer) = (self.session.reference.to_string(), self.job.blob.digest.clone());
            return Err(ImageError::Layer {
                reference,
                layer,
                source: Arc::new(UnpackError::TooLarge(reason)),
            });
        };
        parent.done().await?;
        Ok(unpacked)
    }

    /// Fetches a layer anew whose content was wrong: from one host after another, each time all of it, so that what
    /// one gives does not spoil what another gives. `wrong`: the host that gave all of what was wrong.
    async fn ask_each_alone(
        &self,
        sources: Vec<Source>,
        wrong: Option<Source>,
        error: Arc<UnpackError>,
    ) -> Result<(Ingest, Unpacked), ImageError> {
        let (reference, layer) = (&self.session.reference, &self.job.blob.digest);
        let (mut kinds, mut reasons) = (vec![error.kind()], Vec::new());
        let from = wrong.as_ref().map_or_else(|| "pieces".to_owned(), Source::address);
        tracing::warn!(image = %reference, %layer, %from, %error, "layer is wrong; it is asked for elsewhere or anew");
        if let Some(wrong) = &wrong {
            reasons.push(format!("{}: {error}", wrong.address()));
        }
        let others: Vec<Source> =
            sources.into_iter().filter(|source| Some(source) != wrong.as_ref()).collect();
        for (index, source) in others.iter().enumerate() {
            add(&self.inner.counters.refetched, 1);
            let is_last = index + 1 == others.len();
            let reason = match self.attempt(false, std::slice::from_ref(source), is_last).await {
                Ok(Attempt::Unpacked(ingest, unpacked)) => return Ok((ingest, unpacked)),
                Ok(Attempt::Wrong(_, error)) => {
                    kinds.push(error.kind());
                    error.to_string()
                }
                Err(ImageError::Registry { kind, reason, .. }) => {
                    kinds.push(kind);
                    reason
                }
                Err(other) => return Err(other),
            };
            tracing::warn!(image = %reference, %layer, from = %source.address(), %reason, "layer not to be had there");
            reasons.push(format!("{}: {reason}", source.address()));
        }
        let (reference, reasons) = (reference.to_string(), reasons.join("; "));
        let kind = ErrorKind::of_all(&kinds);
        Err(ImageError::LayerNowhere { reference, layer: layer.clone(), reasons, kind })
    }

    fn cancelled(&self) -> ImageError {
        ImageError::Cancelled(self.session.reference.to_string())
    }

    /// Fetches and unpacks the layer. `resume`: what an earlier pull kept may be used.
    async fn attempt(&self, resume: bool, sources: &[Source], patient: bool) -> Result<Attempt, ImageError> {
        let Self { inner, session, job, state } = self;
        let (digest, size) = (job.blob.digest.clone(), job.blob.size);
        let partials = Arc::clone(&inner.underway.partials);
        let taken = tokio::task::spawn_blocking(move || {
            let partial = partials.take(&digest, size)?;
            match resume {
                true => Some(partial),
                false => {
                    partial.discard();
                    partials.take(&digest, size)
                }
            }
        });
        let partial = taken.await.map_err(|_| self.cancelled())?;
        let from = partial.as_ref().map_or(0, Partial::held);
        if from > 0 {
            tracing::info!(image = %session.reference, layer = %job.blob.digest, from, size, "layer goes on");
            add(&inner.counters.resumed, from);
        }
        state.send_modify(|state| {
            (state.stage, state.received, state.resumed) = (LayerStage::Downloading, from, from);
        });
        let (pieces, arriving) = mpsc::channel(PIECES);
        let want = Want::default();
        let unpacking = self.unpacking(arriving, partial, want.watched());
        let moved = |received: u64| {
            state.send_modify(|state| {
                let more = received.saturating_sub(state.received);
                add(&inner.counters.fetched, more);
                inner.store.layers.arrived(more);
                state.received = received;
            });
        };
        let wish = Wish { digest: &job.blob.digest, size: job.blob.size, from, sources, patient };
        let downloaded = session.download(&wish, &pieces, &moved).await;
        drop(pieces);
        state.send_modify(|state| state.stage = LayerStage::Unpacking);
        let unpacked = unpacking.await.map_err(|_| self.cancelled())?;
        drop(want);
        // When the download failed, the unpacker's own error is only that its input ended.
        match (downloaded, unpacked) {
            (Err(error), _) => Err(error),
            (Ok(_), Ok((ingest, unpacked))) => Ok(Attempt::Unpacked(ingest, unpacked)),
            (Ok(came), Err(ImageError::Layer { source, .. }))
                if !says_nothing_of_the_blob(&source) && !is_of_the_image(&source) =>
            {
                let whole = match came {
                    Came::WholeFrom(source) => Some(source).filter(|_| from == 0),
                    Came::InPieces => None,
                };
                Ok(Attempt::Wrong(whole, source))
            }
            (Ok(_), Err(error)) => Err(error),
        }
    }

    /// Makes the hard links to files of the layers below, which are complete.
    async fn borrow(&self, ingest: Ingest, mut unpacked: Unpacked) -> Result<(Ingest, Unpacked), ImageError> {
        if unpacked.links.is_empty() {
            return Ok((ingest, unpacked));
        }
        let lowers = self.job.lowers.clone();
        let (reference, layer) = (self.session.reference.to_string(), self.job.blob.digest.clone());
        // Dropped with this future, which ends the copying.
        let want = Want::default();
        let (wanted, limits, size) =
            (want.watched(), self.inner.underway.limits().clone(), self.job.blob.size);
        let borrowing = tokio::task::spawn_blocking(move || {
            let mut budget = Budget::new(&limits, size, &wanted);
            match ingest.borrow(&mut unpacked, &lowers, &mut budget) {
                Ok(()) => Ok((ingest, unpacked)),
                Err(source) => {
                    ingest.discard();
                    Err(ImageError::Layer { reference, layer, source: Arc::new(source) })
                }
            }
        });
        let borrowed = borrowing.await.map_err(|_| self.cancelled())?;
        drop(want);
        borrowed
    }

    /// Unpacks what arrives, on a thread that may block.
    fn unpacking(
        &self,
        arriving: mpsc::Receiver<Piece>,
        partial: Option<Partial>,
        wanted: Wanted,
    ) -> tokio::task::JoinHandle<Result<(Ingest, Unpacked), ImageError>> {
        let expected = Expected {
            digest: self.job.blob.digest.clone(),
            size: self.job.blob.size,
            diff_id: self.job.diff_id.clone(),
            limits: self.inner.underway.limits().clone(),
        };
        let (layers, reference) = (Arc::clone(&self.inner.store.layers), self.session.reference.to_string());
        tokio::task::spawn_blocking(move || {
            unpack_layer(&layers, (arriving, partial), (&expected, &wanted), reference)
        })
    }
}

/// Whether a layer could not be unpacked for a reason that is not in its bytes: the download ended, or this machine
/// is in trouble. Otherwise these bytes may be another's than the layer's, and are not used again.
fn says_nothing_of_the_blob(error: &UnpackError) -> bool {
    match error {
        UnpackError::Abandoned => true,
        // Others may come of what an entry says of itself: EINVAL, EFBIG, EMLINK, E2BIG.
        UnpackError::Io { source, .. } => source.raw_os_error().is_some_and(|raw| {
            [
                Errno::IO,
                Errno::NOSPC,
                Errno::DQUOT,
                Errno::ROFS,
                Errno::NOMEM,
                Errno::MFILE,
                Errno::NFILE,
                Errno::AGAIN,
                Errno::ACCESS,
                Errno::PERM,
                Errno::STALE,
            ]
            .contains(&Errno::from_raw_os_error(raw))
        }),
        _ => false,
    }
}

/// Whether a layer was refused although its bytes are what the manifest promises: no host has others.
fn is_of_the_image(error: &UnpackError) -> bool {
    matches!(error, UnpackError::Digest { promise: Promise::Configuration, .. })
}

/// Unpacks a layer; on failure nothing of it remains but what was kept of its blob, unless that is wrong. Blocks.
fn unpack_layer(
    layers: &Arc<Layers>,
    (pieces, mut partial): (mpsc::Receiver<Piece>, Option<Partial>),
    (expected, wanted): (&Expected, &Wanted),
    reference: String,
) -> Result<(Ingest, Unpacked), ImageError> {
    let ingest = layers.begin()?;
    let root = ingest.root()?;
    let kept: &mut dyn Kept = match &mut partial {
        Some(partial) => partial,
        None => &mut KeepNothing,
    };
    let unpacked = unpack::unpack(Arriving { pieces, kept }, root, expected, wanted);
    let of_use = matches!(&unpacked, Err(error) if says_nothing_of_the_blob(error));
    match partial {
        Some(partial) if !of_use => partial.discard(),
        other => drop(other),
    }
    match unpacked {
        Ok(unpacked) => Ok((ingest, unpacked)),
        Err(source) => {
            ingest.discard();
            let layer = expected.digest.clone();
            Err(ImageError::Layer { reference, layer, source: Arc::new(source) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_of_this_machine_says_nothing_of_the_blob() {
        let met = |errno: Errno| UnpackError::Io { operation: "write it".to_owned(), source: errno.into() };
        for errno in [Errno::IO, Errno::NOSPC, Errno::MFILE, Errno::NOMEM, Errno::ROFS] {
            assert!(says_nothing_of_the_blob(&met(errno)), "{errno}");
        }
        for errno in [Errno::INVAL, Errno::MLINK, Errno::FBIG, Errno::NAMETOOLONG] {
            assert!(!says_nothing_of_the_blob(&met(errno)), "{errno}");
        }
        assert!(!says_nothing_of_the_blob(&UnpackError::Stream("damaged".to_owned())));
    }
}
