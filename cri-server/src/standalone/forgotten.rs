//! Pods whose `podhold run` was killed: their end. That a run is alive is told by its lock on the state directory, not
//! here.

use std::sync::Arc;

use super::left::{is_kept, is_of_a_run, remove_pods};
use crate::{error::Result, runtime::Runtime, state::Pod};

/// Removes the pods of runs that are gone, and stops those that are to be kept; `runtime` has their directories, so that
/// no run is alive in them.
pub async fn end_forgotten(runtime: &Arc<Runtime>) -> Result<()> {
    let of = |pod: &Pod, kept: bool| is_of_a_run(runtime, pod) && is_kept(&pod.record.config) == kept;
    let removed = remove_pods(runtime, |pod| of(pod, false)).await;
    let pods = runtime.store().pods();
    let stops = pods.iter().filter(|pod| of(pod, true)).map(|pod| runtime.stop_pod(pod.record.id.as_str()));
    removed.and(futures::future::join_all(stops).await.into_iter().collect())
}
