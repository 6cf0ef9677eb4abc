//! Names of cgroups under either driver. No I/O.
//!
//! Invariant: what the kubelet names and what is made here agree with the kubelet's own naming rules.

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

    /// The leaf for `id` beneath `parent`: a directory named by the id, or a scope.
    #[must_use]
    pub fn leaf(self, parent: &CgroupPath, id: &str) -> CgroupPath {
        match self {
            Self::Cgroupfs => parent.child(id),
            Self::Systemd => parent.child(&format!("podhold-{id}.scope")),
        }
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
    fn leaves_are_scopes_under_systemd_and_ids_under_cgroupfs() {
        let slice = Driver::Systemd.parent("kubepods-podx.slice").unwrap();
        assert_eq!(
            Driver::Systemd.leaf(&slice, "abc").as_str(),
            "/kubepods.slice/kubepods-podx.slice/podhold-abc.scope"
        );
        let parent = Driver::Cgroupfs.parent("/kubepods/podx").unwrap();
        assert_eq!(Driver::Cgroupfs.leaf(&parent, "abc").as_str(), "/kubepods/podx/abc");
    }
}
