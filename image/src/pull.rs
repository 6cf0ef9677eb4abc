//! Pulling: manifest, configuration, layers side by side, and the record that makes the image count.
//!
//! A layer under way is a task of its own, shared by every pull that wants it and ended when the last of
//! them is gone. Layers are unpacked and synced in any order; each becomes complete after the one below it.
//!
//! Invariant: a dropped pull leaves whole layers or nothing.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
};

use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::{AbortHandle, JoinSet},
};

use crate::{
    Inner,
    digest::{ChainId, Digest},
    documents,
    error::{ErrorKind, ImageError},
    manifest::{self, Blob, Configuration, Layout},
    reference::Reference,
    registry::{self, Session},
    store::{
        Image, NewImage,
        layers::{Ingest, LayerRecord},
    },
    unpack::{self, Expected, Limits, Piece, Unpacked, Want, Wanted},
};

/// Pieces of a blob between network and unpacker; each is at most what hyper reads at once (400 KiB).
const PIECES: usize = 6;

/// How far a pull is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Layers of the image.
    pub layers: usize,
    /// Layers that are complete.
    pub layers_done: usize,
    /// Bytes of the layers that must be fetched.
    pub bytes: u64,
    /// Bytes of them that have arrived.
    pub bytes_done: u64,
}

/// Layers under way.
pub(crate) struct Underway {
    tasks: Mutex<HashMap<ChainId, Weak<LayerTask>>>,
    permits: Semaphore,
    limits: Limits,
}

impl Underway {
    pub(crate) fn new(parallel: usize, limits: Limits) -> Self {
        Self { tasks: Mutex::default(), permits: Semaphore::new(parallel.max(1)), limits }
    }
}

/// Where a layer under way stands.
#[derive(Clone, Default)]
struct LayerState {
    received: u64,
    outcome: Option<Result<(), ImageError>>,
}

/// A layer under way; dropped by the last pull that wants it.
struct LayerTask {
    state: watch::Receiver<LayerState>,
    abort: AbortHandle,
}

impl Drop for LayerTask {
    fn drop(&mut self) {
        self.abort.abort();
    }
}

impl LayerTask {
    async fn done(&self) -> Result<(), ImageError> {
        let mut state = self.state.clone();
        let finished = state.wait_for(|state| state.outcome.is_some()).await;
        let outcome = finished.ok().and_then(|state| state.outcome.clone());
        outcome.unwrap_or_else(|| Err(ImageError::Cancelled("layer".to_owned())))
    }
}

/// One layer to be made.
#[derive(Clone)]
struct LayerJob {
    blob: Blob,
    diff_id: Digest,
    /// The chain ids of the layers below, nearest first.
    lowers: Vec<ChainId>,
    chain: ChainId,
}

/// Brings an image here. See [`crate::Images::pull`].
pub(crate) async fn pull(
    inner: &Arc<Inner>,
    reference: &Reference,
    credentials: Option<registry::Credentials>,
    progress: Option<watch::Sender<Progress>>,
) -> Result<Arc<Image>, ImageError> {
    let session = Arc::new(inner.registry.session(reference, credentials).await?);
    let top = session.resolve().await?;
    if let Some((image, config)) = inner.store.known(&top.digest) {
        let new = NewImage {
            reference: reference.clone(),
            id: Digest::of(config.as_bytes()),
            target: top.digest.clone(),
            manifests: vec![top.digest],
            size: image.size,
            config,
            layers: image.layers.clone(),
        };
        return commit(inner, new, image.layers.clone()).await;
    }
    let target = top.digest.clone();
    let (document, layout) = documents::image_manifest(&session, &inner.platform, top).await?;
    let (raw, configuration) = documents::configuration(&session, &inner.store, &layout).await?;
    manifest::check(reference, &layout, &configuration, &inner.platform)?;
    let lease = inner.store.layers.lease(configuration.chain.clone());
    let jobs = jobs(&layout, &configuration);
    fetch_layers(inner, &session, &jobs, progress.as_ref()).await?;
    let blobs: u64 = layout.layers.iter().map(|layer| layer.size).fold(0, u64::saturating_add);
    let new = NewImage {
        reference: reference.clone(),
        id: layout.config.digest.clone(),
        manifests: if target == document.digest {
            vec![document.digest]
        } else {
            vec![target.clone(), document.digest]
        },
        target,
        size: blobs.saturating_add(layout.config.size).saturating_add(document.body.len() as u64),
        config: raw,
        layers: configuration.chain.clone(),
    };
    let image = commit(inner, new, configuration.chain).await;
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

/// Records the image. Not undone when the caller goes away meanwhile.
async fn commit(inner: &Arc<Inner>, new: NewImage, chain: Vec<ChainId>) -> Result<Arc<Image>, ImageError> {
    let (inner, reference) = (Arc::clone(inner), new.reference.to_string());
    let lease = inner.store.layers.lease(chain.clone());
    let commit = tokio::task::spawn_blocking(move || {
        if chain.iter().any(|chain| inner.store.layers.get(chain).is_none()) {
            return Err(ImageError::image(
                &new.reference,
                ErrorKind::Unavailable,
                "it was removed while it was pulled; pull again",
            ));
        }
        let image = inner.store.commit(new);
        drop(lease);
        image
    });
    commit.await.unwrap_or(Err(ImageError::Cancelled(reference)))
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
        let mut tasks: Vec<Arc<LayerTask>> = Vec::new();
        let mut sizes = Vec::new();
        let mut parent = None;
        for job in jobs {
            if inner.store.layers.get(&job.chain).is_some() {
                parent = None;
                continue;
            }
            let (task, ours) = join_or_start(inner, session, job, parent.take());
            joined |= !ours;
            parent = Some(Arc::clone(&task));
            tasks.push(task);
            sizes.push(job.blob.size);
        }
        match watch_tasks(&tasks, &sizes, jobs.len(), progress).await {
            Err(error) if joined && tries < 3 => {
                tracing::debug!(%error, "a layer of another pull failed; trying by ourselves")
            }
            other => return other,
        }
    }
}

/// Waits for all tasks, or the first error; tells the progress meanwhile.
async fn watch_tasks(
    tasks: &[Arc<LayerTask>],
    sizes: &[u64],
    layers: usize,
    progress: Option<&watch::Sender<Progress>>,
) -> Result<(), ImageError> {
    let tell = || {
        let Some(progress) = progress else { return };
        let states: Vec<LayerState> = tasks.iter().map(|task| task.state.borrow().clone()).collect();
        let open = states.iter().filter(|state| state.outcome.is_none()).count();
        let bytes_done = states.iter().map(|state| state.received).sum();
        progress.send_replace(Progress {
            layers,
            layers_done: layers - open,
            bytes: sizes.iter().sum(),
            bytes_done,
        });
    };
    tell();
    let detailed = progress.is_some();
    let (changed, mut changes) = mpsc::channel::<Option<Result<(), ImageError>>>(1);
    let mut watchers = JoinSet::new();
    for task in tasks {
        let (mut state, changed) = (task.state.clone(), changed.clone());
        watchers.spawn(async move {
            loop {
                let outcome = state.borrow_and_update().outcome.clone();
                let last = outcome.is_some();
                let told = if detailed || last { changed.send(outcome).await } else { Ok(()) };
                if told.is_err() || last {
                    return;
                }
                if state.changed().await.is_err() {
                    let _ = changed.send(Some(Err(ImageError::Cancelled("layer".to_owned())))).await;
                    return;
                }
            }
        });
    }
    drop(changed);
    while let Some(outcome) = changes.recv().await {
        tell();
        outcome.unwrap_or(Ok(()))?;
    }
    Ok(())
}

/// The task that makes a layer; true when it was started here.
fn join_or_start(
    inner: &Arc<Inner>,
    session: &Arc<Session>,
    job: &LayerJob,
    parent: Option<Arc<LayerTask>>,
) -> (Arc<LayerTask>, bool) {
    let mut tasks = inner.underway.tasks.lock().expect("no panics under this lock");
    let known = tasks.get(&job.chain).and_then(Weak::upgrade);
    if let Some(task) = known.filter(|task| !matches!(task.state.borrow().outcome, Some(Err(_)))) {
        return (task, false);
    }
    tasks.retain(|_, task| task.strong_count() > 0);
    let (sender, state) = watch::channel(LayerState::default());
    let (run_inner, run_session, run_job) = (Arc::clone(inner), Arc::clone(session), job.clone());
    let handle = tokio::spawn(async move {
        let outcome = run_layer(&run_inner, &run_session, &run_job, parent, &sender).await;
        sender.send_modify(|state| state.outcome = Some(outcome));
    });
    let task = Arc::new(LayerTask { state, abort: handle.abort_handle() });
    tasks.insert(job.chain.clone(), Arc::downgrade(&task));
    (task, true)
}

async fn run_layer(
    inner: &Arc<Inner>,
    session: &Session,
    job: &LayerJob,
    parent: Option<Arc<LayerTask>>,
    state: &watch::Sender<LayerState>,
) -> Result<(), ImageError> {
    let cancelled = || ImageError::Cancelled(session.reference.to_string());
    let permit = inner.underway.permits.acquire().await.map_err(|_| cancelled())?;
    let (pieces, arriving) = mpsc::channel(PIECES);
    let expected = Expected {
        digest: job.blob.digest.clone(),
        size: job.blob.size,
        diff_id: job.diff_id.clone(),
        limits: inner.underway.limits.clone(),
    };
    let (layers, reference) = (Arc::clone(&inner.store.layers), session.reference.to_string());
    let want = Want::default();
    let wanted = want.watched();
    let unpacking = tokio::task::spawn_blocking(move || {
        let ingest = layers.begin()?;
        unpack_into(ingest, arriving, (&expected, &wanted), reference)
    });
    let moved = |received| state.send_modify(|state| state.received = received);
    let downloaded = session.download(&job.blob.digest, job.blob.size, &pieces, &moved).await;
    drop(pieces);
    let unpacked = unpacking.await.map_err(|_| cancelled())?;
    drop(want);
    // When the download failed, the unpacker's own error is only that its input ended.
    let (ingest, unpacked) = match downloaded {
        Err(error) => {
            if let Ok((ingest, _)) = unpacked {
                drop(ingest);
            }
            return Err(error);
        }
        Ok(()) => unpacked?,
    };
    drop(permit);
    let blob = (job.blob.digest.clone(), job.blob.size);
    let record = LayerRecord::new(job.chain.clone(), job.diff_id.clone(), blob, &unpacked);
    let lowers = job.lowers.clone();
    // Layers are sealed side by side, so that one sync serves many; one that must look into the layers below
    // waits for these first.
    if let Some(parent) = parent.as_ref().filter(|_| !unpacked.implicit.is_empty()) {
        parent.done().await?;
    }
    let sealing = tokio::task::spawn_blocking(move || ingest.seal(record, &unpacked, &lowers));
    let sealed = sealing.await.map_err(|_| cancelled())??;
    if let Some(parent) = parent {
        parent.done().await?;
    }
    let committed = tokio::task::spawn_blocking(move || sealed.commit());
    committed.await.map_err(|_| cancelled())?
}

/// Unpacks a layer; on failure nothing of it remains. Blocks.
fn unpack_into(
    ingest: Ingest,
    arriving: mpsc::Receiver<Piece>,
    (expected, wanted): (&Expected, &Wanted),
    reference: String,
) -> Result<(Ingest, Unpacked), ImageError> {
    let root = ingest.root()?;
    match unpack::unpack(arriving, root, expected, wanted) {
        Ok(unpacked) => Ok((ingest, unpacked)),
        Err(source) => {
            ingest.discard();
            let layer = expected.digest.clone();
            Err(ImageError::Layer { reference, layer, source: Arc::new(source) })
        }
    }
}
