//! Imports: the layers of all images of an archive unpacked, then all images recorded.
//!
//! Invariant: until the last layer is whole no image is recorded, and layers of an archive that is refused
//! do not stay.

use std::{fs, io::Read, sync::Arc};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{
    ImportOptions, Imported,
    plan::{self, Planned},
    stage::{self, File},
};
use crate::{
    Inner,
    digest::ChainId,
    error::{ErrorKind, ImageError},
    store::{Arrival, Image, layers::LayerRecord},
    unpack::{self, Arriving, Budget, Expected, KeepNothing, Limits, Piece, Want, Wanted},
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
        plan.images.iter().flat_map(|image| image.configuration.chain.iter().cloned()).collect();
    let before: Vec<ChainId> =
        chains.iter().filter(|chain| inner.store.layers.get(chain).is_some()).cloned().collect();
    let lease = inner.store.layers.lease(chains.clone());
    let making = Making { inner, origin: &options.origin, wanted, limits };
    let made = plan.images.iter().try_for_each(|image| making.layers(image));
    let images = made.and_then(|()| {
        plan.images.iter().map(|image| making.record(image)).collect::<Result<Vec<Arc<Image>>, _>>()
    });
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
    limits: &'a Limits,
}

impl Making<'_> {
    /// Completes the layers of an image that are not here, each above those below it.
    fn layers(&self, image: &Planned) -> Result<(), ImageError> {
        for (index, file) in image.layers.iter().enumerate() {
            if !self.inner.store.layers.is_whole(&image.configuration.chain[index]) {
                self.layer(image, index, file)?;
            }
        }
        Ok(())
    }

    fn layer(&self, image: &Planned, index: usize, file: &File) -> Result<(), ImageError> {
        let diff_id = image.configuration.diff_ids[index].clone();
        let (lowers, chain) = image.configuration.chain.split_at(index);
        let lowers: Vec<ChainId> = lowers.iter().rev().cloned().collect();
        let expected = Expected {
            digest: file.digest.clone(),
            size: file.size,
            diff_id: diff_id.clone(),
            limits: self.limits.clone(),
        };
        let content = fs::File::open(&file.path);
        let mut content = content.map_err(ImageError::io(format!("open {}", file.path.display())))?;
        let ingest = self.inner.store.layers.begin()?;
        let root = ingest.root()?;
        let (pieces, arriving) = mpsc::channel(PIECES);
        let (fed, unpacked) = std::thread::scope(|scope| {
            let feeder = scope.spawn(move || feed(&mut content, &pieces));
            let arriving = Arriving { pieces: arriving, kept: &mut KeepNothing };
            let unpacked = unpack::unpack(arriving, root, &expected, self.wanted);
            (feeder.join(), unpacked)
        });
        let mut budget = Budget::new(self.limits, file.size, self.wanted);
        let unpacked = unpacked
            .and_then(|mut unpacked| ingest.borrow(&mut unpacked, &lowers, &mut budget).map(|()| unpacked));
        let unpacked = match (fed, unpacked) {
            (Ok(Ok(())), Ok(unpacked)) => unpacked,
            (Ok(Err(error)), _) => {
                ingest.discard();
                return Err(ImageError::io(format!("read {}", file.path.display()))(error));
            }
            (_, Err(source)) => {
                ingest.discard();
                let reference = format!("archive {}", self.origin);
                return Err(ImageError::Layer {
                    reference,
                    layer: file.digest.clone(),
                    source: Arc::new(source),
                });
            }
            (Err(_), Ok(_)) => {
                ingest.discard();
                return Err(ImageError::Cancelled(format!("archive {}", self.origin)));
            }
        };
        let blob = (file.digest.clone(), file.size);
        let record = LayerRecord::new(chain[0].clone(), diff_id, blob, &unpacked);
        ingest.seal(record, &unpacked, &lowers)?.commit()
    }

    fn record(&self, image: &Planned) -> Result<Arc<Image>, ImageError> {
        let chain = &image.configuration.chain;
        if chain.iter().any(|chain| self.inner.store.layers.get(chain).is_none()) {
            let reason = "a layer was removed while the archive was imported; import it again";
            return Err(super::refuse(self.origin, ErrorKind::Unavailable, reason));
        }
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
            config: image.config.clone(),
            layers: chain.clone(),
            keep,
        })
    }
}

/// Sends a file to the unpacker. Who hears nothing more of it knows why.
fn feed(content: &mut fs::File, pieces: &mpsc::Sender<Piece>) -> std::io::Result<()> {
    loop {
        let mut piece = vec![0; PIECE];
        let got = content.read(&mut piece)?;
        piece.truncate(got);
        let next = if got == 0 { Piece::End } else { Piece::Data(Bytes::from(piece)) };
        if pieces.blocking_send(next).is_err() || got == 0 {
            return Ok(());
        }
    }
}
