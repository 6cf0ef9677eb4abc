//! Reads records into the store, with suspicion: what is not as a daemon has written it is reported, and
//! hides its object alone. Blocks.

use std::{fs, path::PathBuf};

use podhold_sandbox::{
    ContainerId, PodId,
    record::{self, RecordError},
};
use tracing::{info, warn};

use super::names;
use crate::{
    error::Result,
    runtime::{Runtime, damaged::container_names},
    state::{
        Container, ContainerPhase, ContainerRecord, ContainerStatusRecord, Hidden, Pod, PodPhase, PodRecord,
        Reserve, Wait,
    },
};

/// A path and what is wrong with it.
type Wrong = (PathBuf, String);

impl Runtime {
    /// Reads the records of one pod, by the name of its directory; `None` when they cannot be used.
    pub(super) fn load_pod(&self, name: &str) -> Option<PodId> {
        let id = match PodId::parse(name) {
            Ok(id) => id,
            Err(reason) => {
                let path = self.layout.pods_state().join(name);
                self.report_damage(path, format!("it is not a pod's directory: {reason}"), Hidden::Nothing);
                return None;
            }
        };
        let read = match self.read_pod_record(&id) {
            Ok(Some(record)) => self.add_loaded(record),
            Ok(None) => return None,
            Err(wrong) => Err(wrong),
        };
        if let Err((path, reason)) = read {
            for container in container_names(&self.layout, &id) {
                let hides = Hidden::Container(id.clone(), container);
                self.report_damage(path.clone(), format!("its pod is damaged: {reason}"), hides);
            }
            self.report_damage(path, reason, Hidden::Pod(id));
            return None;
        }
        self.load_containers(&id);
        Some(id)
    }

    /// Reports pods of this boot that have something in the run directory, and nothing in the state directory:
    /// they may run. What is left of an earlier boot is swept.
    pub(super) fn report_lost(&self) -> Result<()> {
        if self.boot.rebooted {
            return Ok(());
        }
        for name in names(&self.layout.pods_run())? {
            let Ok(id) = PodId::parse(&name) else { continue };
            if self.layout.pod_state(&id).symlink_metadata().is_ok() {
                continue;
            }
            for container in container_names(&self.layout, &id) {
                let hides = Hidden::Container(id.clone(), container);
                self.report_damage(self.layout.pod_state(&id), "it is missing".to_owned(), hides);
            }
            let reason = "it is missing, and something of the pod is left".to_owned();
            self.report_damage(self.layout.pod_state(&id), reason, Hidden::Pod(id));
        }
        Ok(())
    }

    fn add_loaded(&self, record: PodRecord) -> std::result::Result<(), Wrong> {
        let path = self.layout.pod_record(&record.id);
        let mut pod = match (record.complete, self.is_of_earlier_boot(&record)) {
            (false, _) => Pod::new(record, PodPhase::Creating),
            (true, true) => Pod::new(record, PodPhase::NotReady),
            // Until its shim is known to be dead it is as the record says.
            (true, false) => Pod::new(record, PodPhase::Unanswered),
        };
        if pod.phase == PodPhase::Unanswered {
            pod.ips.clone_from(&pod.record.ips);
            pod.wait = Some(Wait::new("it was dialled when this daemon started, and has said nothing yet"));
        }
        let added = self.store.add_pod(pod);
        match added {
            Reserve::Taken(other) => Err((path, format!("pod {} has the same name", other.record.id))),
            Reserve::New | Reserve::NotReady(_) => Ok(()),
        }
    }

    /// A pod's record; `None` when it was never written, and so nothing of the pod was made.
    pub(super) fn read_pod_record(&self, id: &PodId) -> std::result::Result<Option<PodRecord>, Wrong> {
        let (state, run, path) =
            (self.layout.pod_state(id), self.layout.pod_run(id), self.layout.pod_record(id));
        check_directory(state.clone())?;
        match check_directory(run.clone()) {
            Err(_) if run.symlink_metadata().is_err() => {}
            checked => checked?,
        }
        match record::read::<PodRecord>(&path) {
            Ok(record) => match record.check(id) {
                Ok(()) => Ok(Some(record)),
                Err(reason) => Err((path, reason)),
            },
            Err(error) if error.is_missing() && forget_unwritten(&state) => Ok(None),
            Err(error) => Err((path, words(&error))),
        }
    }

    fn load_containers(&self, pod: &PodId) {
        let directory = self.layout.pod_state(pod).join("containers");
        let containers = container_names(&self.layout, pod);
        for id in &containers {
            let loaded = match self.is_in_its_place(pod, id) {
                Ok(true) => self.load_container(pod, id),
                Ok(false) => Ok(()),
                Err(wrong) => Err(wrong),
            };
            if let Err((path, reason)) = loaded {
                self.report_damage(path, reason, Hidden::Container(pod.clone(), id.clone()));
            }
        }
        // Told once for each container it hides, or for itself.
        if containers.is_empty()
            && directory.symlink_metadata().is_ok()
            && let Err((path, reason)) = check_directory(directory)
        {
            self.report_damage(path, reason, Hidden::Nothing);
        }
    }

    /// Whether there is a directory to load a container from. One that is missing while something of the container
    /// is left in the run directory is damage, but for what an earlier boot left, which is swept.
    pub(super) fn is_in_its_place(&self, pod: &PodId, id: &ContainerId) -> std::result::Result<bool, Wrong> {
        let all = self.layout.pod_state(pod).join("containers");
        let own = self.layout.container_state(pod, id);
        for directory in [&all, &own] {
            if directory.symlink_metadata().is_err() {
                let reason = "it is missing, and something of the container is left".to_owned();
                return if self.boot.rebooted { Ok(false) } else { Err((directory.clone(), reason)) };
            }
            check_directory(directory.clone())?;
        }
        Ok(true)
    }

    pub(super) fn load_container(&self, pod: &PodId, id: &ContainerId) -> std::result::Result<(), Wrong> {
        let state = self.layout.container_state(pod, id);
        let Some(owner) = self.store.pod(pod) else { return Ok(()) };
        let path = self.layout.container_record(pod, id);
        let record = match record::read::<ContainerRecord>(&path) {
            Ok(record) => record,
            Err(error) if error.is_missing() && forget_unwritten(&state) => return Ok(()),
            Err(error) => return Err((path, words(&error))),
        };
        record.check(id, &owner.record).map_err(|reason| (path.clone(), reason))?;
        let status = self.read_status(pod, id);
        let half_removed = self.is_half_removed(&record, status.as_ref());
        if half_removed && !self.is_of_earlier_boot(&owner.record) && self.finish_removal(&record) {
            return Ok(());
        }
        let asked = record.config.linux.as_ref().and_then(|linux| linux.resources.clone());
        let resources = status.as_ref().map(|status| status.resources.clone()).or(asked).unwrap_or_default();
        // Of one that has no process any more it is not said that it runs.
        let runs = self.cgroups.procs(&record.cgroup).is_ok_and(|pids| !pids.is_empty());
        let started_at = status.as_ref().and_then(|status| status.started_at).filter(|_| runs);
        let phase = match status.and_then(|status| status.ended) {
            Some(ended) => ContainerPhase::Exited(ended),
            None => ContainerPhase::Unknown { started_at },
        };
        let loaded = self.store.load_container(Container::new(record, phase, resources));
        match loaded {
            Reserve::Taken(other) => Err((path, format!("container {} has the same name", other.record.id))),
            Reserve::New | Reserve::NotReady(_) => Ok(()),
        }
    }

    /// Whether all that a container had in the run directory is gone, and nothing tells that it ever ran: its
    /// removal was cut short.
    fn is_half_removed(&self, record: &ContainerRecord, status: Option<&ContainerStatusRecord>) -> bool {
        let (pod, id) = (&record.pod, &record.id);
        let missing = |path: PathBuf| path.symlink_metadata().is_err();
        let untold = match status {
            Some(status) => status.started_at.is_none() && status.ended.is_none(),
            None => missing(self.layout.container_status(pod, id)),
        };
        untold && missing(self.layout.bundle(pod, id))
    }

    /// False when its disk takes no change: then it is there to be removed again.
    fn finish_removal(&self, record: &ContainerRecord) -> bool {
        let volumes: Vec<usize> = record.volumes.keys().copied().collect();
        let finished = self.delete_files_of(&record.pod, &record.id, &volumes);
        match &finished {
            Ok(()) => info!(container = %record.id, "its removal was under way; finished"),
            Err(error) => warn!(container = %record.id, %error, "its removal was under way; not finished"),
        }
        finished.is_ok()
    }

    /// What is known of a container's life; damage is reported and hides nothing.
    fn read_status(&self, pod: &PodId, id: &ContainerId) -> Option<ContainerStatusRecord> {
        let path = self.layout.container_status(pod, id);
        match record::read(&path) {
            Ok(status) => Some(status),
            Err(error) if error.is_missing() => None,
            Err(error) => {
                self.report_damage(path, words(&error), Hidden::Nothing);
                None
            }
        }
    }
}

pub(super) fn check_directory(path: PathBuf) -> std::result::Result<(), Wrong> {
    record::check_directory(&path).map_err(|error| (path, words(&error)))
}

/// What is wrong, without the path.
fn words(error: &RecordError) -> String {
    match error {
        RecordError::Invalid { reason, .. } => reason.clone(),
        RecordError::Io { operation, source, .. } => format!("cannot {operation} it: {source}"),
    }
}

/// Removes a directory in which no record has ever been; `false` when there is anything else.
fn forget_unwritten(directory: &std::path::Path) -> bool {
    let entries = fs::read_dir(directory).into_iter().flatten().filter_map(std::result::Result::ok);
    let names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
    // A record is written beside its place first.
    let unwritten = names
        .iter()
        .all(|name| name.to_str().is_some_and(|name| name.starts_with('.') && name.ends_with(".json.new")));
    unwritten && super::super::tree::remove_tree(directory).is_ok()
}
