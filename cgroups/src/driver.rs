//! Names of cgroups under either driver. No I/O.
//!
//! Invariant: what the kubelet names and what is made here agree with the kubelet's own naming rules.

use std::fmt;

use crate::{CgroupPath, InvalidCgroupPath};

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// This program makes directories.
    #[default]
    Cgroupfs,
    /// systemd owns the tree; names are those of slices and scopes.
    Systemd,
}

impl Driver {
    /// The cgroup that a CRI `cgroup_parent` names: a path for cgroupfs, the name of a slice (such as
    /// `kubepods-burstable-podX.slice`) for systemd.
    pub fn parent(self, cgroup_parent: &str) -> Result<CgroupPath, InvalidCgroupPath> {
        match self {
            Self::Cgroupfs => CgroupPath::parse(cgroup_parent),
            Self::Systemd => slice_directory(cgroup_parent),
        }
    }

    /// The cgroup of the pod `id`, whose containers are in it. `given` is the one that its caller has made for it,
    /// with its limits; else it is made for the pod beneath `parent`, with limits of ours.
    #[must_use]
    pub fn pod(self, place: Place<'_>, id: &str) -> CgroupPath {
        let scope = |parent: &CgroupPath| parent.child(&scope_name(id));
        match (self, place) {
            (Self::Cgroupfs, Place::Given(given)) => given.clone(),
            (Self::Cgroupfs, Place::Beneath(parent)) => parent.child(id),
            (Self::Systemd, Place::Given(given)) => scope(given),
            // The limits of a scope's own cgroup are systemd's to write; beneath it, all is ours.
            (Self::Systemd, Place::Beneath(parent)) => scope(parent).child(LIMITED),
        }
    }
}

/// Where a pod goes.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// Into this cgroup, made for it alone.
    Given(&'a CgroupPath),
    /// Into one of its own beneath this cgroup.
    Beneath(&'a CgroupPath),
}

/// The cgroup within a scope that has the pod's limits.
const LIMITED: &str = "pod";

/// The name of a pod's scope.
fn scope_name(id: &str) -> String {
    format!("podhold-{id}.scope")
}

impl CgroupPath {
    /// The scope of ours that this cgroup is, or is in.
    pub fn scope(&self) -> Option<Self> {
        let mut above = std::iter::successors(Some(self.clone()), Self::parent);
        above.find(|path| path.pod_of_scope().is_some())
    }

    /// The id of the pod whose scope this is.
    pub fn pod_of_scope(&self) -> Option<&str> {
        pod_of_scope(self.name())
    }
}

/// The id of the pod whose scope has this name.
pub fn pod_of_scope(name: &str) -> Option<&str> {
    name.strip_prefix("podhold-")?.strip_suffix(".scope").filter(|id| !id.is_empty())
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cgroupfs => "cgroupfs",
            Self::Systemd => "systemd",
        })
    }
}

/// Expands the name of a slice to its directory, as systemd.slice(5) defines it: each dash is a level,
/// so `a-b.slice` is `/a.slice/a-b.slice`.
fn slice_directory(name: &str) -> Result<CgroupPath, InvalidCgroupPath> {
    let refuse = |reason| Err(InvalidCgroupPath { path: name.to_owned(), reason });
    let Some(stem) = name.strip_suffix(".slice") else {
        return refuse("under the systemd driver it must be the name of a slice, ending in \".slice\"");
    };
    if name.contains('/') {
        return refuse("under the systemd driver it must be the name of a slice, not a path");
    }
    if stem.is_empty() || stem == "-" {
        return refuse("the root slice cannot hold a pod");
    }
    if stem.split('-').any(str::is_empty) {
        return refuse("a slice's name must not begin or end with a dash, nor hold two in a row");
    }
    let mut directory = String::new();
    let dashes = stem.match_indices('-').map(|(at, _)| at);
    for end in dashes.chain([stem.len()]) {
        directory.push('/');
        directory.push_str(&stem[..end]);
        directory.push_str(".slice");
    }
    CgroupPath::parse(&directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_expands_to_the_directory_systemd_gives_it() {
        let expand = |name| Driver::Systemd.parent(name).map(|path| path.to_string());
        assert_eq!(expand("kubepods.slice").unwrap(), "/kubepods.slice");
        assert_eq!(
            expand("kubepods-burstable-pod1_2.slice").unwrap(),
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice"
        );
        for bad in
            ["", ".slice", "-.slice", "a", "/a.slice", "a--b.slice", "-a.slice", "a-.slice", "a/b.slice"]
        {
            assert!(expand(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_pod_is_in_its_scope_under_systemd_and_where_it_was_told_under_cgroupfs() {
        let slice = Driver::Systemd.parent("kubepods-podx.slice").unwrap();
        let given = Driver::Systemd.pod(Place::Given(&slice), "abc");
        assert_eq!(given.as_str(), "/kubepods.slice/kubepods-podx.slice/podhold-abc.scope");
        let own = Driver::Systemd.pod(Place::Beneath(&slice), "abc");
        assert_eq!(own, given.child("pod"));
        assert_eq!(own.child("container").scope().as_ref(), Some(&given));
        assert_eq!((given.pod_of_scope(), slice.scope()), (Some("abc"), None));
        let parent = Driver::Cgroupfs.parent("/kubepods/podx").unwrap();
        assert_eq!(Driver::Cgroupfs.pod(Place::Given(&parent), "abc"), parent);
        assert_eq!(Driver::Cgroupfs.pod(Place::Beneath(&parent), "abc"), parent.child("abc"));
        assert_eq!(parent.scope(), None);
    }
}
