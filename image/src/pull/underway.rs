//! Layers under way: a task for each, shared by every pull that wants it and ended when the last of them is gone.
//!
//! Invariant: a layer has one task at a time. What a task does is in [`super::layer`].

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    sync::{AcquireError, Semaphore, SemaphorePermit, watch},
    task::AbortHandle,
};

use super::{layer::Making, partial::Partials, progress::LayerStage};
use crate::{
    Inner,
    digest::{ChainId, Digest},
    error::ImageError,
    manifest::Blob,
    registry::Session,
    unpack::Limits,
};

/// Most bytes of memory that all layers take which wait for those below them.
pub(super) const MOST_PARKED: u64 = 256 << 20;

/// Layers under way.
pub(crate) struct Underway {
    tasks: Mutex<HashMap<ChainId, Weak<LayerTask>>>,
    permits: Semaphore,
    limits: Limits,
    pub(crate) partials: Arc<Partials>,
    /// Bytes of memory that layers take which wait for those below them.
    parked: AtomicU64,
}

impl Underway {
    pub(crate) fn new(parallel: usize, limits: Limits, partials: Arc<Partials>) -> Self {
        let permits = Semaphore::new(parallel.max(1));
        Self { tasks: Mutex::default(), permits, limits, partials, parked: AtomicU64::new(0) }
    }

    /// The right to fetch and unpack a layer.
    pub(super) async fn permit(&self) -> Result<SemaphorePermit<'_>, AcquireError> {
        self.permits.acquire().await
    }

    /// The right to that many bytes of memory while other layers are waited for; `None` when all together would take
    /// more than [`MOST_PARKED`].
    pub(super) fn park(&self, weight: u64) -> Option<Parked<'_>> {
        let others = self.parked.fetch_add(weight, Ordering::Relaxed);
        let parked = Parked { all: &self.parked, weight };
        (others.saturating_add(weight) <= MOST_PARKED).then_some(parked)
    }

    /// Bounds on one unpacked layer.
    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }
}

/// The right to take memory while other layers are waited for.
pub(super) struct Parked<'a> {
    all: &'a AtomicU64,
    weight: u64,
}

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(self.weight, Ordering::Relaxed);
    }
}

/// Where a layer under way stands.
#[derive(Clone, Default)]
pub(super) struct LayerState {
    pub(super) stage: LayerStage,
    pub(super) received: u64,
    pub(super) resumed: u64,
    pub(super) outcome: Option<Result<(), ImageError>>,
}

/// A layer under way; dropped by the last pull that wants it.
pub(super) struct LayerTask {
    state: watch::Receiver<LayerState>,
    abort: AbortHandle,
}

impl Drop for LayerTask {
    fn drop(&mut self) {
        self.abort.abort();
    }
}

impl LayerTask {
    pub(super) fn state(&self) -> LayerState {
        self.state.borrow().clone()
    }

    /// Waits for its end; does not keep it going.
    pub(super) fn done(&self) -> impl Future<Output = Result<(), ImageError>> + Send + use<> {
        let mut state = self.state.clone();
        async move {
            let finished = state.wait_for(|state| state.outcome.is_some()).await;
            let outcome = finished.ok().and_then(|state| state.outcome.clone());
            outcome.unwrap_or_else(|| Err(ImageError::Cancelled("layer".to_owned())))
        }
    }
}

/// One layer to be made.
#[derive(Clone)]
pub(super) struct LayerJob {
    pub(super) blob: Blob,
    pub(super) diff_id: Digest,
    /// The chain ids of the layers below, nearest first.
    pub(super) lowers: Vec<ChainId>,
    pub(super) chain: ChainId,
}

/// The task that makes a layer; true when it was started here.
pub(super) fn join_or_start(
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
    let making =
        Making { inner: Arc::clone(inner), session: Arc::clone(session), job: job.clone(), state: sender };
    let handle = tokio::spawn(async move {
        let outcome = making.run(parent).await;
        making.state.send_modify(|state| state.outcome = Some(outcome));
    });
    let task = Arc::new(LayerTask { state, abort: handle.abort_handle() });
    tasks.insert(job.chain.clone(), Arc::downgrade(&task));
    (task, true)
}
