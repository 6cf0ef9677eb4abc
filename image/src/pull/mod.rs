//! Pulling: manifest, configuration, layers side by side, and the record that makes the image count.
//!
//! A layer under way is a task of its own (`underway`, `layer`), shared by every pull that wants it and ended when
//! the last of them is gone. Layers are unpacked, synced and committed in any order; the task of each ends after that
//! of the one below it.
//!
//! Invariant: a dropped pull leaves whole layers, and of the others at most the beginnings of their blobs
//! (`partial`).

mod activity;
mod layer;
mod partial;
mod progress;
mod underway;

use std::sync::Arc;

use tokio::sync::watch;

pub use self::{
    activity::Activity,
    progress::{LayerProgress, LayerStage, Progress},
};
pub(crate) use self::{
    activity::{Counters, add},
    partial::Partials,
    progress::Teller,
    underway::Underway,
};
use self::{
    progress::{Followed, follow},
    underway::{LayerJob, LayerTask, join_or_start},
};
use crate::{
    Inner,
    digest::Digest,
    documents,
    error::{ErrorKind, ImageError},
    manifest::{self, Configuration, Layout},
    reference::Reference,
    registry::{self, Session},
    store::{Arrival, Image},
};

/// Brings an image here. See [`crate::Images::pull`].
pub(crate) async fn pull(
    inner: &Arc<Inner>,
    reference: &Reference,
    credentials: Option<registry::Credentials>,
    progress: Option<watch::Sender<Progress>>,
) -> Result<Arc<Image>, ImageError> {
    let begun = inner.counters.begin();
    let pulled = bring(inner, reference, credentials, progress).await;
    begun.end(&pulled);
    pulled
}

async fn bring(
    inner: &Arc<Inner>,
    reference: &Reference,
    credentials: Option<registry::Credentials>,
    progress: Option<watch::Sender<Progress>>,
) -> Result<Arc<Image>, ImageError> {
    let session = Arc::new(inner.registry.session(reference, credentials).await?);
    let top = session.resolve().await?;
    if let Some(image) = inner.store.known(&top.digest)
        && let Ok(id) = Digest::parse(&image.id)
    {
        let (tags, digests) = names(reference, &top.digest);
        let arrival = Arrival {
            tags,
            digests,
            id,
            target: top.digest.clone(),
            manifests: vec![top.digest],
            size: image.size,
            config: String::new(),
            layers: image.layers.clone(),
            keep: Vec::new(),
        };
        return commit(inner, reference, arrival).await;
    }
    let target = top.digest.clone();
    let (document, layout) = documents::image_manifest(&session, &inner.platform, top).await?;
    let (raw, configuration) = documents::configuration(&session, inner, &layout).await?;
    manifest::check(reference, &layout, &configuration, &inner.platform)?;
    let lease = inner.store.layers.lease(configuration.chain.clone());
    let jobs = jobs(&layout, &configuration);
    fetch_layers(inner, &session, &jobs, progress.as_ref()).await?;
    let blobs: u64 = layout.layers.iter().map(|layer| layer.size).fold(0, u64::saturating_add);
    let (tags, digests) = names(reference, &target);
    let arrival = Arrival {
        tags,
        digests,
        id: layout.config.digest.clone(),
        manifests: if target == document.digest {
            vec![document.digest]
        } else {
            vec![target.clone(), document.digest]
        },
        target,
        size: blobs.saturating_add(layout.config.size).saturating_add(document.body.len() as u64),
        config: raw,
        layers: configuration.chain,
        keep: Vec::new(),
    };
    let image = commit(inner, reference, arrival).await;
    drop(lease);
    image
}

fn jobs(layout: &Layout, configuration: &Configuration) -> Vec<LayerJob> {
    let below = |index: usize| configuration.chain[..index].iter().rev().cloned().collect();
    let parts = layout.layers.iter().zip(&configuration.diff_ids).zip(&configuration.chain).enumerate();
    parts
        .map(|(index, ((blob, diff_id), chain))| LayerJob {
            blob: blob.clone(),
            diff_id: diff_id.clone(),
            lowers: below(index),
            chain: chain.clone(),
        })
        .collect()
}

/// The names that a pull gives: the tag it asked for, if it named no digest, and the name by digest.
fn names(reference: &Reference, target: &Digest) -> (Vec<String>, Vec<String>) {
    let name = reference.name();
    let tag = reference.tag().filter(|_| reference.digest().is_none());
    (tag.map(|tag| format!("{name}:{tag}")).into_iter().collect(), vec![format!("{name}@{target}")])
}

/// Records the image. Not undone when the caller goes away meanwhile.
async fn commit(
    inner: &Arc<Inner>,
    reference: &Reference,
    arrival: Arrival,
) -> Result<Arc<Image>, ImageError> {
    let (inner, owned) = (Arc::clone(inner), reference.to_string());
    let lease = inner.store.layers.lease(arrival.layers.clone());
    let commit = tokio::task::spawn_blocking(move || {
        if arrival.layers.iter().any(|chain| inner.store.layers.get(chain).is_none()) {
            let reason = "it was removed while it was pulled; pull again";
            return Err(ImageError::image(&owned, ErrorKind::Unavailable, reason));
        }
        let image = inner.store.record(&arrival);
        drop(lease);
        image
    });
    commit.await.unwrap_or_else(|_| Err(ImageError::Cancelled(reference.to_string())))
}

/// Completes all layers that are not here. A layer that another pull had under way and that failed for
/// that pull (its credentials, its registry) is tried once more with our own session.
async fn fetch_layers(
    inner: &Arc<Inner>,
    session: &Arc<Session>,
    jobs: &[LayerJob],
    progress: Option<&watch::Sender<Progress>>,
) -> Result<(), ImageError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let mut joined = false;
        let mut layers: Vec<Followed> = Vec::new();
        let mut parent: Option<Arc<LayerTask>> = None;
        for job in jobs {
            let (digest, size) = (Arc::new(job.blob.digest.clone()), job.blob.size);
            let mut task = None;
            if !inner.store.layers.is_whole(&job.chain) {
                // One that is made anew may have whole layers between it and the next one that is.
                let (made, ours) = join_or_start(inner, session, job, parent.take());
                joined |= !ours;
                parent = Some(Arc::clone(&made));
                task = Some(made);
            }
            layers.push(Followed { digest, size, task });
        }
        match follow(&session.reference, &layers, progress).await {
            Err(error) if joined && tries < 3 => {
                tracing::debug!(%error, "a layer of another pull failed; trying by ourselves")
            }
            other => return other,
        }
    }
}
