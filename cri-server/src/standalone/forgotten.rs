//! Pods whose `podhold run` was killed: which they are, and their removal. That a run is alive is told by its lock on
//! the state directory, not here.

use std::{collections::HashMap, sync::Arc};

use super::left::{KEPT, RUN_BY, remove_pods};
use crate::{error::Result, runtime::Runtime};

/// The process of the `podhold run` whose pod has these annotations, and was to remove it; `None` for a pod of anybody
/// else, and one that is kept.
pub fn run_by(annotations: &HashMap<String, String>) -> Option<&str> {
    let kept = annotations.contains_key(KEPT);
    annotations.get(RUN_BY).filter(|_| !kept).map(String::as_str)
}

/// Removes the pods of runs that are gone; `runtime` has their directories, so that no run is alive in them.
pub async fn remove_forgotten(runtime: &Arc<Runtime>) -> Result<()> {
    remove_pods(runtime, |pod| run_by(&pod.record.config.annotations).is_some()).await
}
