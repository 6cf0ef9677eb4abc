//! Makes changes of limits whole or none: remembers the files that may change, and writes them back.

use std::path::PathBuf;

use oci_spec::runtime::LinuxResources;

use crate::{CgroupPath, Cgroups, Version, handle::write, stats::page_sizes};

/// By controller, in an order in which they can be written back to a cgroup whose limits were lowered.
const V1: [(&str, &[&str]); 4] = [
    ("cpu", &["cpu.cfs_period_us", "cpu.cfs_quota_us", "cpu.shares"]),
    ("cpuset", &["cpuset.cpus", "cpuset.mems"]),
    ("memory", &["memory.memsw.limit_in_bytes", "memory.limit_in_bytes"]),
    ("pids", &["pids.max"]),
];
const V2: [&str; 9] = [
    "cpu.max",
    "cpu.weight",
    "cpuset.cpus",
    "cpuset.mems",
    "memory.max",
    "memory.swap.max",
    "memory.low",
    "memory.high",
    "pids.max",
];

/// What the limits of a cgroup were.
#[derive(Debug)]
pub(crate) struct Saved(Vec<(PathBuf, String)>);

impl Saved {
    /// Reads what applying `resources` may change. What cannot be read is left out.
    pub(crate) fn of(cgroups: &Cgroups, path: &CgroupPath, resources: &LinuxResources) -> Self {
        let mut files: Vec<PathBuf> = match cgroups.version() {
            Version::V1 => V1
                .iter()
                .filter_map(|(controller, names)| Some((cgroups.dir_of(controller, path)?, names)))
                .flat_map(|(dir, names)| names.iter().map(move |name| dir.join(name)))
                .collect(),
            Version::V2 => {
                let dir = cgroups.main_dir(path);
                let unified = resources.unified().iter().flat_map(|map| map.keys().map(String::as_str));
                V2.into_iter().chain(unified).map(|name| dir.join(name)).collect()
            }
        };
        if let Some(dir) = cgroups.dir_of("hugetlb", path) {
            let unified = cgroups.root_of("hugetlb") == cgroups.unified_root();
            let limit = if unified { "max" } else { "limit_in_bytes" };
            files.extend(page_sizes().iter().map(|size| dir.join(format!("hugetlb.{size}.{limit}"))));
        }
        let read = |file: PathBuf| std::fs::read_to_string(&file).ok().map(|text| (file, text));
        Self(files.into_iter().filter_map(read).collect())
    }

    /// Writes back what has changed.
    pub(crate) fn restore(&self) {
        // Twice: of limits that depend on each other, the one that has to wait is written the second time.
        for last in [false, true] {
            for (file, old) in &self.0 {
                let now = std::fs::read_to_string(file);
                if now.is_ok_and(|now| now == *old) {
                    continue;
                }
                // An empty list is written as a line without anything in it.
                if let Err(error) = write(file, &format!("{}\n", old.trim_end()))
                    && last
                {
                    tracing::warn!(file = %file.display(), %error, "limit not put back");
                }
            }
        }
    }
}
