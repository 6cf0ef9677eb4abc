//! `hostUsers: false`: a range of ids of the pod's own, as a kubelet would give it one. Pure.

use podhold_proto::cri::{IdMapping, NamespaceMode, NamespaceOption, UserNamespace};

use super::request::Requests;

/// How many ids a pod gets; what Kubernetes gives.
const LENGTH: u32 = 1 << 16;
/// Where the ranges begin: above those that kubelets and /etc/subuid hand out.
const FIRST: u32 = 1 << 31;
/// How many ranges there are above that; the last ids mean nobody.
const RANGES: u32 = (1 << 15) - 1;

/// Gives the pod the range of this number, in which two runs at the same time differ.
pub(super) fn give(requests: &mut Requests, number: u32) {
    let ids = vec![IdMapping { host_id: FIRST + number % RANGES * LENGTH, container_id: 0, length: LENGTH }];
    let users = UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids.clone(), gids: ids.clone() };
    let set = |options: &mut Option<NamespaceOption>| {
        options.get_or_insert_default().userns_options = Some(users.clone());
    };
    let pod = requests.pod.linux.get_or_insert_default();
    set(&mut pod.security_context.get_or_insert_default().namespace_options);
    for request in requests.init.iter_mut().chain(&mut requests.apps) {
        let linux = request.config.linux.get_or_insert_default();
        set(&mut linux.security_context.get_or_insert_default().namespace_options);
        for mount in &mut request.config.mounts {
            (mount.uid_mappings, mount.gid_mappings) = (ids.clone(), ids.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_range_ends_before_the_ids_that_mean_nobody() {
        let last = FIRST + (RANGES - 1) * LENGTH;
        assert!(last.checked_add(2 * LENGTH - 1).is_some());
    }
}
