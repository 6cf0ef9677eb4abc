//! What earlier runs have left in the directories of `podhold run`, and its removal.
//!
//! Invariant: only what is a run's is removed. A pod that somebody else has run there, for one a daemon that is down,
//! keeps every run from these directories.

use std::{
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use podhold_proto::cri::PodSandboxConfig;

use super::{plan::RUNS, volume};
use crate::{
    error::{Error, Result},
    output,
    runtime::Runtime,
    state::{Hidden, Pod},
};

/// The annotation of a pod that outlives its `podhold run`.
pub(super) const KEPT: &str = "podhold.io/keep";
/// The annotation with the process id of the `podhold run` whose pod it is.
pub const RUN_BY: &str = "podhold.io/run-by";

/// Whether a pod outlives the command that ran it.
pub fn is_kept(pod: &PodSandboxConfig) -> bool {
    pod.annotations.contains_key(KEPT)
}

/// The process of the `podhold run` whose pod this is. Whoever makes a pod writes its annotations, so that its logs have
/// to be where those of a run are, too.
pub fn run_by<'p>(pod: &'p PodSandboxConfig, run_dir: &Path) -> Option<&'p str> {
    let logs = Path::new(&pod.log_directory);
    let is_plain = logs.components().all(|part| part != Component::ParentDir);
    let is_of_a_run = is_plain && logs.starts_with(run_dir.join(RUNS));
    pod.annotations.get(RUN_BY).filter(|_| is_of_a_run).map(String::as_str)
}

/// Whether a pod is one of `podhold run`.
pub(super) fn is_of_a_run(runtime: &Runtime, pod: &Pod) -> bool {
    run_by(&pod.record.config, &runtime.config().run_dir).is_some()
}

/// Makes sure that the directories are those of `podhold run`: what is left in them is removed as nobody's.
pub(super) fn claim_directories(runtime: &Arc<Runtime>) -> Result<()> {
    let state = &runtime.config().state_dir;
    let refuse = |what: String| {
        Err(Error::Precondition(format!(
            "{}: {what}; give podhold run directories of its own with --run-dir and --state-dir",
            state.display()
        )))
    };
    if let Some(other) = runtime.store().pods().iter().find(|pod| !is_of_a_run(runtime, pod)) {
        let name = other.record.config.metadata.clone().unwrap_or_default();
        return refuse(format!("holds pods of a daemon ({}/{})", name.namespace, name.name));
    }
    let own = state.join(RUNS);
    let damaged = runtime.store().damaged();
    if let Some(damage) = damaged.iter().find(|damage| matches!(damage.hides, Hidden::Pod(_)))
        && !own.is_dir()
    {
        return refuse(format!("holds a damaged pod, perhaps of a daemon ({})", damage.path.display()));
    }
    std::fs::create_dir_all(&own).map_err(Error::doing(format!("making {}", own.display())))
}

/// Removes what earlier runs have left that is not to be kept, and the directories of pods that are gone.
pub(super) async fn remove_earlier(runtime: &Arc<Runtime>) -> Result<()> {
    let is_left = |pod: &Pod| is_of_a_run(runtime, pod) && !is_kept(&pod.record.config);
    let left = remove_pods(runtime, is_left).await.and(remove_damaged(runtime).await);
    remove_directories(runtime);
    left
}

/// Removes the directories of runs that have no pod any more, with what is mounted in them. None while a pod cannot be
/// read: its containers may run, and nobody knows which of the directories are theirs.
pub fn remove_directories(runtime: &Arc<Runtime>) {
    if runtime.store().damaged().iter().any(|damage| matches!(damage.hides, Hidden::Pod(_))) {
        return;
    }
    let pods = runtime.store().pods();
    let logs = |pod: &Pod| PathBuf::from(&pod.record.config.log_directory);
    let used: Vec<PathBuf> = pods.iter().map(logs).collect();
    let is_used = |path: &Path| used.iter().any(|logs| logs.parent().is_some_and(|run| run.ends_with(path)));
    let config = runtime.config();
    for directory in [&config.run_dir, &config.state_dir].map(|directory| directory.join(RUNS)) {
        let Ok(entries) = std::fs::read_dir(directory) else { continue };
        for entry in entries.flatten().filter(|entry| !is_used(Path::new(&entry.file_name()))) {
            if let Err(error) = volume::remove(&entry.path()) {
                tracing::warn!(%error, "what a run of a pod left stays");
            }
        }
    }
}

/// Removes the pods that `which` chooses; after a kill there are pods of earlier runs.
pub(super) async fn remove_pods(runtime: &Arc<Runtime>, which: impl Fn(&Pod) -> bool) -> Result<()> {
    let pods = runtime.store().pods();
    let removals = pods.iter().filter(|pod| which(pod)).map(|pod| runtime.remove_pod(pod.record.id.as_str()));
    futures::future::join_all(removals).await.into_iter().collect()
}

/// Removes the pods of earlier runs whose records cannot be used any more: nobody else will.
async fn remove_damaged(runtime: &Arc<Runtime>) -> Result<()> {
    for damage in runtime.store().damaged() {
        if let Hidden::Pod(id) = &damage.hides {
            let (path, reason) = (damage.path.display(), &damage.reason);
            output::note(format_args!("removing a pod of an earlier run: {path}: {reason}"));
            runtime.remove_pod(id.as_str()).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_with_the_annotation_alone_is_none_of_a_run() {
        for (logs, of_a_run) in [
            ("/run/p/runs/run-1-2/logs", true),
            ("/var/log/pods/default_web_1", false),
            ("/run/p/runs/../../../var/log/pods/x", false),
            ("/run/p/runs-of-others/x", false),
            ("", false),
        ] {
            let annotations = [(RUN_BY.to_owned(), "1".to_owned())].into();
            let pod = PodSandboxConfig { log_directory: logs.to_owned(), annotations, ..Default::default() };
            assert_eq!(run_by(&pod, Path::new("/run/p")), of_a_run.then_some("1"), "{logs}");
        }
        let pod = PodSandboxConfig { log_directory: "/run/p/runs/a/logs".to_owned(), ..Default::default() };
        assert_eq!(run_by(&pod, Path::new("/run/p")), None);
    }
}
