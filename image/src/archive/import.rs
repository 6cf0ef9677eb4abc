//! Imports: the layers of all images of an archive unpacked, then all images recorded.
//!
//! Invariant: until the last layer is whole no image is recorded, and layers of an archive that is refused
//! do not stay.

use std::{collections::HashSet, fs, io::Read, sync::Arc};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::{
    ImportOptions, Imported,
    plan::{self, Planned},
    stage,
};
use crate::{
    Inner,
    digest::{ChainId, Digest},
    error::{ErrorKind, ImageError},
    pull::{LayerStage, Progress, Teller},
    store::{Arrival, Image, layers::LayerRecord},
    unpack::{self, Arriving, Budget, Expected, KeepNothing, Piece, Want, Wanted},
};

/// Bytes of a layer on their way to the unpacker: pieces, and the size of each.
const PIECES: usize = 4;
const PIECE: usize = 256 << 10;

/// See [`crate::Images::import`].
pub(crate) async fn import(
    inner: &Arc<Inner>,
    input: Box<dyn Read + Send>,
    options: ImportOptions,
) -> Result<Imported, ImageError> {
    let want = Want::default();
    let (inner, wanted) = (Arc::clone(inner), want.watched());
    let cancelled = ImageError::Cancelled(format!("archive {}", options.origin));
    let work = tokio::task::spawn_blocking(move || run(&inner, input, &options, &wanted));
    let outcome = work.await;
    drop(want);
    outcome.unwrap_or(Err(cancelled))
}

fn run(
    inner: &Inner,
    input: Box<dyn Read + Send>,
    options: &ImportOptions,
    wanted: &Wanted,
) -> Result<Imported, ImageError> {
    let limits = inner.underway.limits();
    let mut staged = stage::stage(input, &options.origin, inner.store.stage()?, limits, wanted)?;
    let mut plan = plan::plan(&mut staged, &inner.platform)?;
    if let Some(tag) = &options.tag {
        plan.rename(&options.origin, tag)?;
    }
    let chains: Vec<ChainId> =
        plan.images.iter().flat_map(|image| image.stack.chain.iter().cloned()).collect();
    let before: Vec<ChainId> =
        chains.iter().filter(|chain| inner.store.layers.get(chain).is_some()).cloned().collect();
    let lease = inner.store.layers.lease(chains.clone());
    let making = Making { inner, origin: &options.origin, wanted };
    let made = making.layers(&plan.images, options.progress.clone());
    let images = made.and_then(|()| making.record_all(&plan.images));
    drop(lease);
    if images.is_err() {
        let new = |chain: &ChainId| chains.contains(chain) && !before.contains(chain);
        if let Err(error) = inner.store.layers.collect_among(new) {
            tracing::warn!(%error, "layers of an archive that was refused are not deleted");
        }
    }
    Ok(Imported { images: images?, skipped: plan.skipped })
}

struct Making<'a> {
    inner: &'a Inner,
    origin: &'a str,
    wanted: &'a Wanted,
}

impl Making<'_> {
    /// Completes the layers that are not here, each above those below it.
    fn layers(
        &self,
        images: &[Planned],
        progress: Option<watch::Sender<Progress>>,
    ) -> Result<(), ImageError> {
        let all = images.iter().flat_map(|image| (0..image.layers.len()).map(move |index| (image, index)));
        let mut seen = HashSet::new();
        let all: Vec<_> = all.filter(|(image, index)| seen.insert(&image.stack.chain[*index])).collect();
        let blob = |(image, index): &(&Planned, usize)| {
            let file = &image.layers[*index];
            (file.digest.clone(), file.size)
        };
        let teller = Teller::begin(progress, all.iter().map(blob));
        for (number, (image, index)) in all.into_iter().enumerate() {
            let file = &image.layers[index];
            if self.inner.store.layers.is_whole(&image.stack.chain[index]) {
                teller.layer(number, LayerStage::AlreadyHere, file.size);
                continue;
            }
            let content = fs::File::open(&file.path);
            let content = content.map_err(ImageError::io(format!("open {}", file.path.display())))?;
            let diff_id = image.stack.diff_ids[index].clone();
            let (lowers, above) = image.stack.chain.split_at(index);
            let made = Made {
                content,
                blob: (file.digest.clone(), file.size),
                diff_id,
                lowers: lowers.iter().rev().cloned().collect(),
                chain: above[0].clone(),
            };
            let moved = |bytes| teller.layer(number, LayerStage::Unpacking, bytes);
            make(self.inner, &format!("archive {}", self.origin), made, self.wanted, &moved)?;
            teller.layer(number, LayerStage::Done, file.size);
        }
        Ok(())
    }

    /// Records the images; when one cannot be, those that came with this archive go again.
    fn record_all(&self, images: &[Planned]) -> Result<Vec<Arc<Image>>, ImageError> {
        let mut recorded: Vec<(Arc<Image>, bool)> = Vec::new();
        for image in images {
            let new = self.inner.store.find(image.config.digest.as_str()).is_none();
            match self.record(image) {
                Ok(image) => recorded.push((image, new)),
                Err(error) => {
                    for (image, _) in recorded.iter().filter(|(_, new)| *new) {
                        if let Err(error) = self.inner.store.remove(&image.id) {
                            tracing::warn!(image = image.id, %error, "image of an archive that was refused is not removed");
                        }
                    }
                    return Err(error);
                }
            }
        }
        Ok(recorded.into_iter().map(|(image, _)| image).collect())
    }

    fn record(&self, image: &Planned) -> Result<Arc<Image>, ImageError> {
        let chain = &image.stack.chain;
        if chain.iter().any(|chain| self.inner.store.layers.get(chain).is_none()) {
            let reason = "a layer was removed while the archive was imported; import it again";
            return Err(super::refuse(self.origin, ErrorKind::Unavailable, reason));
        }
        let config = fs::read_to_string(&image.config.path);
        let config = config.map_err(ImageError::io(format!("read {}", image.config.path.display())))?;
        let (mut tags, mut digests) = (Vec::new(), Vec::new());
        for name in &image.names {
            match (name.tag(), name.digest()) {
                (Some(tag), None) => tags.push(format!("{}:{tag}", name.name())),
                (_, Some(digest)) if *digest != image.target => continue,
                _ => {}
            }
            if image.published {
                digests.push(format!("{}@{}", name.name(), image.target));
            }
        }
        let manifest = image.documents.last().map(|file| file.digest.clone());
        let mut manifests = vec![image.target.clone()];
        manifests.extend(manifest.filter(|manifest| *manifest != image.target));
        let mut keep: Vec<_> = Vec::new();
        if self.inner.keep_imported {
            for file in image.documents.iter().chain(&image.layers) {
                let kept = self.inner.store.blobs.get(&file.digest).is_some();
                let file = (file.digest.clone(), (!kept).then(|| file.path.clone()));
                if !keep.contains(&file) {
                    keep.push(file);
                }
            }
        }
        self.inner.store.record(&Arrival {
            tags,
            digests,
            id: image.id.clone(),
            target: image.target.clone(),
            manifests,
            size: image.size,
            config,
            layers: chain.clone(),
            keep,
        })
    }
}

/// A layer to be made from a blob that is here.
pub(crate) struct Made {
    pub(crate) content: fs::File,
    /// Its digest and size.
    pub(crate) blob: (Digest, u64),
    pub(crate) diff_id: Digest,
    /// The chain ids of the layers below, which are whole; the nearest first.
    pub(crate) lowers: Vec<ChainId>,
    pub(crate) chain: ChainId,
}

/// Unpacks a layer, verifies it, and makes it count. `reference` is whose it is, for messages; `moved` is told how many
/// bytes of its blob are taken in. Blocks.
pub(crate) fn make(
    inner: &Inner,
    reference: &str,
    made: Made,
    wanted: &Wanted,
    moved: &(dyn Fn(u64) + Sync),
) -> Result<(), ImageError> {
    let Made { mut content, blob, diff_id, lowers, chain } = made;
    let limits = inner.underway.limits();
    let (digest, size) = blob.clone();
    let expected = Expected { digest, size, diff_id: diff_id.clone(), limits: limits.clone() };
    let ingest = inner.store.layers.begin()?;
    let root = ingest.root()?;
    let (pieces, arriving) = mpsc::channel(PIECES);
    let (fed, unpacked) = std::thread::scope(|scope| {
        let feeder = scope.spawn(move || feed(&mut content, &pieces, moved));
        let arriving = Arriving { pieces: arriving, kept: &mut KeepNothing };
        let unpacked = unpack::unpack(arriving, root, &expected, wanted);
        (feeder.join(), unpacked)
    });
    let mut budget = Budget::new(limits, size, wanted);
    let unpacked = unpacked
        .and_then(|mut unpacked| ingest.borrow(&mut unpacked, &lowers, &mut budget).map(|()| unpacked));
    let unpacked = match (fed, unpacked) {
        (Ok(Ok(())), Ok(unpacked)) => unpacked,
        (Ok(Err(error)), _) => {
            ingest.discard();
            return Err(ImageError::io(format!("read the blob {}", expected.digest))(error));
        }
        (_, Err(source)) => {
            ingest.discard();
            let (reference, layer) = (reference.to_owned(), expected.digest);
            return Err(ImageError::Layer { reference, layer, source: Arc::new(source) });
        }
        (Err(_), Ok(_)) => {
            ingest.discard();
            return Err(ImageError::Cancelled(reference.to_owned()));
        }
    };
    let record = LayerRecord::new(chain, diff_id, blob, &unpacked);
    ingest.seal(record, &unpacked, &lowers)?.commit()
}

/// Sends a file to the unpacker. Who hears nothing more of it knows why.
fn feed(
    content: &mut fs::File,
    pieces: &mpsc::Sender<Piece>,
    moved: &(dyn Fn(u64) + Sync),
) -> std::io::Result<()> {
    let mut done = 0;
    loop {
        let mut piece = vec![0; PIECE];
        let got = content.read(&mut piece)?;
        piece.truncate(got);
        done += got as u64;
        moved(done);
        let next = if got == 0 { Piece::End } else { Piece::Data(Bytes::from(piece)) };
        if pieces.blocking_send(next).is_err() || got == 0 {
            return Ok(());
        }
    }
}
