//! Which pods, containers and images a list request asks for. Pure.

use std::collections::HashMap;

use podhold_proto::cri;

use crate::state::{Container, ContainerPhase, Pod, PodPhase};

/// Whether every wanted label is there with its value.
fn labelled(have: &HashMap<String, String>, wanted: &HashMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| have.get(key) == Some(value))
}

/// The pods a filter asks for. What is still being made is never listed.
pub(super) fn pods(all: Vec<Pod>, filter: Option<&cri::PodSandboxFilter>) -> Vec<Pod> {
    let listed = all.into_iter().filter(|pod| pod.phase != PodPhase::Creating);
    let Some(filter) = filter else { return listed.collect() };
    listed
        .filter(|pod| {
            pod.record.id.as_str().starts_with(&filter.id)
                && filter.state.as_ref().is_none_or(|wanted| wanted.state() == pod_state(pod.phase))
                && labelled(&pod.record.config.labels, &filter.label_selector)
        })
        .collect()
}

/// The containers a filter asks for. What is still being made is never listed.
pub(super) fn containers(all: Vec<Container>, filter: Option<&cri::ContainerFilter>) -> Vec<Container> {
    let listed = all.into_iter().filter(|container| container.phase != ContainerPhase::Creating);
    let Some(filter) = filter else { return listed.collect() };
    listed
        .filter(|container| {
            let record = &container.record;
            record.id.as_str().starts_with(&filter.id)
                && record.pod.as_str().starts_with(&filter.pod_sandbox_id)
                && filter.state.as_ref().is_none_or(|wanted| wanted.state() == container_state(container))
                && labelled(&record.config.labels, &filter.label_selector)
        })
        .collect()
}

/// The containers whose statistics are asked for.
pub(super) fn stats(all: Vec<Container>, filter: Option<cri::ContainerStatsFilter>) -> Vec<Container> {
    let filter = filter.map(|filter| cri::ContainerFilter {
        id: filter.id,
        pod_sandbox_id: filter.pod_sandbox_id,
        label_selector: filter.label_selector,
        state: None,
    });
    containers(all, filter.as_ref())
}

/// The pods whose statistics are asked for.
pub(super) fn pod_stats(all: Vec<Pod>, filter: Option<cri::PodSandboxStatsFilter>) -> Vec<Pod> {
    let filter = filter.map(|filter| cri::PodSandboxFilter {
        id: filter.id,
        label_selector: filter.label_selector,
        state: None,
    });
    pods(all, filter.as_ref())
}

/// A pod's state as the CRI knows it.
pub(super) fn pod_state(phase: PodPhase) -> cri::PodSandboxState {
    match phase {
        // A kubelet makes a pod anew that is not ready.
        PodPhase::Ready | PodPhase::Unanswered => cri::PodSandboxState::SandboxReady,
        PodPhase::Creating | PodPhase::Stopping | PodPhase::NotReady | PodPhase::Removing => {
            cri::PodSandboxState::SandboxNotready
        }
    }
}

/// A container's state as the CRI knows it.
pub(super) fn container_state(container: &Container) -> cri::ContainerState {
    match &container.phase {
        // One that never ran and is being removed has no exit code to tell.
        ContainerPhase::Creating
        | ContainerPhase::Created
        | ContainerPhase::Starting
        | ContainerPhase::Removing(None) => cri::ContainerState::ContainerCreated,
        ContainerPhase::Running(_) | ContainerPhase::Stopping { .. } | ContainerPhase::Unknown { .. } => {
            match container.running_since() {
                Some(_) => cri::ContainerState::ContainerRunning,
                None => cri::ContainerState::ContainerUnknown,
            }
        }
        ContainerPhase::Exited(_) | ContainerPhase::Removing(Some(_)) => cri::ContainerState::ContainerExited,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_wanted_labels_must_be_there() {
        let map = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let have = map(&[("a", "1"), ("b", "2")]);
        assert!(labelled(&have, &map(&[])));
        assert!(labelled(&have, &map(&[("b", "2")])));
        assert!(!labelled(&have, &map(&[("b", "2"), ("c", "3")])));
        assert!(!labelled(&have, &map(&[("b", "1")])));
    }
}
