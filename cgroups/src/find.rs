//! Finds a cgroup by its own name, wherever it is. For what has lost its record.

use std::{fs, path::Path};

use crate::{CgroupPath, Cgroups};

/// How deep cgroups are nested at most where pods are: a kubelet's are four deep.
const DEEPEST: usize = 12;

pub(crate) fn find(cgroups: &Cgroups, name: &str) -> Option<CgroupPath> {
    let root = cgroups.main_root();
    let path = beneath(root, name, DEEPEST)?;
    CgroupPath::parse(&format!("/{}", path.strip_prefix(root).ok()?.to_str()?)).ok()
}

fn beneath(directory: &Path, name: &str, depth: usize) -> Option<std::path::PathBuf> {
    let child = directory.join(name);
    if child.is_dir() {
        return Some(child);
    }
    if depth == 0 {
        return None;
    }
    let entries = fs::read_dir(directory).ok()?.filter_map(Result::ok);
    let mut children = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    children.find_map(|entry| beneath(&entry.path(), name, depth - 1))
}
