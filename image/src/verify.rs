//! Verifying: whether layers on disk are what was unpacked, and making again only those that are not: from blobs that
//! are kept (of imported images), else by fetching them.
//!
//! Nothing that is in use is changed: a layer that is fetched again gets a directory of its own, which serves new
//! containers; the wrong one stays until no snapshot can have it mounted.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    sync::Arc,
};

use tokio::sync::watch;

use crate::{
    Inner,
    archive::{self, Made},
    digest::{ChainId, Digest},
    error::{ErrorKind, ImageError},
    pull::{self, LayerStage, Progress, Teller},
    reference::Reference,
    store::{
        Image,
        layers::Layer,
        tree::{self, Difference},
    },
    unpack::Want,
};

/// Differences told of one layer.
const MOST: usize = 20;

/// What a layer turned out to be.
#[derive(Debug, Clone)]
pub enum Finding {
    /// As it was unpacked.
    Whole,
    /// Not as it was unpacked.
    Wrong {
        /// The first differences.
        differences: Vec<Difference>,
        /// How many there are.
        count: u64,
    },
    /// Not to be told: the reason.
    Unknown(String),
}

/// A layer that was looked at.
#[derive(Debug, Clone)]
pub struct Verified {
    /// The layer.
    pub chain: ChainId,
    /// The blob it came in; `None` when the layer is missing.
    pub blob: Option<Digest>,
    /// Names of the images that have it.
    pub images: Vec<String>,
    /// What was found.
    pub finding: Finding,
    /// What came of fetching it again, when that was asked for.
    pub repair: Option<Result<(), ImageError>>,
}

impl Verified {
    /// Whether it is known to be right, now.
    pub fn is_right(&self) -> bool {
        matches!(self.finding, Finding::Whole) || matches!(self.repair, Some(Ok(())))
    }
}

/// See [`crate::Images::verify`].
pub(crate) async fn verify(
    inner: &Arc<Inner>,
    images: Vec<Arc<Image>>,
    repair: bool,
    progress: Option<watch::Sender<Progress>>,
) -> Result<Vec<Verified>, ImageError> {
    let mut users: BTreeMap<ChainId, Vec<Arc<Image>>> = BTreeMap::new();
    for image in &images {
        // A layer may be in an image twice, when nothing changes in between.
        for chain in image.layers.iter().collect::<BTreeSet<_>>() {
            users.entry(chain.clone()).or_default().push(Arc::clone(image));
        }
    }
    let _lease = inner.store.layers.lease(users.keys().cloned().collect());
    let mut all = Vec::new();
    let blob = |chain: &ChainId| {
        let record = inner.store.layers.get(chain).map(|layer| layer.record);
        // A missing layer has no blob; its chain id is one, and stands for it.
        record.map_or_else(|| (chain.digest().clone(), 0), |it| (it.blob().clone(), it.blob_size()))
    };
    let sizes: Vec<(Digest, u64)> = users.keys().map(blob).collect();
    let teller = Teller::begin(progress.clone(), sizes.iter().cloned());
    for (number, (chain, images)) in users.iter().enumerate() {
        teller.layer(number, LayerStage::Reading, 0);
        let (reader, key) = (Arc::clone(inner), chain.clone());
        let looked = tokio::task::spawn_blocking(move || {
            let layer = reader.store.layers.get(&key);
            (layer.as_ref().map(|layer| layer.record.blob().clone()), look(layer))
        });
        let looked = looked.await.map_err(|_| ImageError::Cancelled("verify".to_owned()))?;
        let (blob, finding) = looked;
        let names =
            images.iter().flat_map(|image| image.tags.iter().chain(&image.digests)).cloned().collect();
        all.push(Verified { chain: chain.clone(), blob, images: names, finding, repair: None });
        teller.layer(number, LayerStage::Done, sizes[number].1);
    }
    if repair {
        fetch_again(inner, &users, &mut all, progress.as_ref()).await;
    }
    Ok(all)
}

/// Compares a layer with what was noted of it. Blocks.
fn look(layer: Option<Layer>) -> Finding {
    let Some(layer) = layer else {
        return Finding::Unknown("it is missing; pull its images again".to_owned());
    };
    let Some(hash) = &layer.record.tree else {
        let reason =
            "an earlier build made it, which noted nothing; remove and pull its images to have it noted";
        return Finding::Unknown(reason.to_owned());
    };
    let place = layer.fs.with_file_name("tree");
    let compared = File::open(&layer.fs).and_then(|root| tree::compare(&root.into(), (&place, hash), MOST));
    match compared {
        Ok((_, 0)) => Finding::Whole,
        Ok((differences, count)) => Finding::Wrong { differences, count },
        Err(error) => {
            let what = format!("cannot be compared: {error}");
            let differences = vec![Difference { path: "/".to_owned(), what }];
            Finding::Wrong { differences, count: 1 }
        }
    }
}

/// Makes wrong layers again, all of an image at once: from what is kept, then by the names of one image after another.
async fn fetch_again(
    inner: &Arc<Inner>,
    users: &BTreeMap<ChainId, Vec<Arc<Image>>>,
    all: &mut [Verified],
    progress: Option<&watch::Sender<Progress>>,
) {
    let wrong = |verified: &&mut Verified| matches!(verified.finding, Finding::Wrong { .. });
    for verified in all.iter().filter(|verified| matches!(verified.finding, Finding::Wrong { .. })) {
        inner.store.layers.suspect(&verified.chain, true);
    }
    for verified in all.iter_mut().filter(wrong) {
        let reason = "its images have no name by digest to fetch it by; remove them and pull them again";
        let of = verified.images.first().unwrap_or(&verified.chain.to_string()).clone();
        let mut result = Err(ImageError::image(&of, ErrorKind::FailedPrecondition, reason));
        for image in &users[&verified.chain] {
            if inner.store.layers.is_whole(&verified.chain) {
                result = Ok(());
            } else if let Err(error) = unpack_kept(inner, image).await {
                tracing::warn!(layer = %verified.chain, %error, "layer not made again from the blob that is kept");
                result = Err(error);
            }
        }
        for name in users[&verified.chain].iter().flat_map(|image| &image.digests) {
            // One pull fetches all wrong layers of its image.
            if inner.store.layers.is_whole(&verified.chain) {
                result = Ok(());
                break;
            }
            result = match Reference::parse(name) {
                Ok(reference) => pull::pull(inner, &reference, None, progress.cloned()).await.map(drop),
                Err(error) => Err(error.into()),
            };
        }
        result = match (inner.store.layers.is_whole(&verified.chain), result) {
            (true, _) => Ok(()),
            (false, Ok(())) => {
                let reason = "another pull had just made the layer; verify it again";
                Err(ImageError::image(&of, ErrorKind::Unavailable, reason))
            }
            (false, failed) => failed,
        };
        // It stays in use as it is: nothing better is to be had now.
        inner.store.layers.suspect(&verified.chain, false);
        verified.repair = Some(result);
    }
}

/// Makes the layers of an image again that are not whole, as far as their blobs are kept.
async fn unpack_kept(inner: &Arc<Inner>, image: &Arc<Image>) -> Result<(), ImageError> {
    let want = Want::default();
    let (maker, image, wanted) = (Arc::clone(inner), Arc::clone(image), want.watched());
    let name = image.tags.first().or(image.digests.first()).unwrap_or(&image.id).clone();
    let cancelled = ImageError::Cancelled(name.clone());
    let work = tokio::task::spawn_blocking(move || {
        for (index, chain) in image.layers.iter().enumerate() {
            if maker.store.layers.is_whole(chain) {
                continue;
            }
            let kept = maker.store.layers.get(chain).and_then(|Layer { record, .. }| {
                let (content, size) = maker.store.blobs.get(record.blob())?;
                Some((content, (record.blob().clone(), size), record.diff_id().clone()))
            });
            // Those above may need it.
            let Some((content, blob, diff_id)) = kept else { return Ok(()) };
            let lowers = image.layers[..index].iter().rev().cloned().collect();
            let made = Made { content, blob, diff_id, lowers, chain: chain.clone() };
            archive::make(&maker, &name, made, &wanted, &|_| {})?;
        }
        Ok(())
    });
    let worked = work.await;
    drop(want);
    worked.unwrap_or(Err(cancelled))
}

/// The images of these names; all when there is none.
pub(crate) fn choose(inner: &Inner, names: &[String]) -> Result<Vec<Arc<Image>>, ImageError> {
    if names.is_empty() {
        return Ok(inner.store.list());
    }
    let find = |name: &String| {
        let missing = || ImageError::image(name, ErrorKind::NotFound, "there is no such image here");
        inner.store.find(name).ok_or_else(missing)
    };
    let mut images = names.iter().map(find).collect::<Result<Vec<_>, _>>()?;
    images.sort_by(|left, right| left.id.cmp(&right.id));
    images.dedup_by(|left, right| left.id == right.id);
    Ok(images)
}
