//! Removes the cgroups that tests have made. Touches only those with our prefix.

use std::{
    fs,
    path::{Path, PathBuf},
};

const PREFIX: &str = "podhold-it-";

/// Mount points of all cgroup hierarchies.
fn hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let point = |line: &str| {
        let mut words = line.split(' ').skip(1);
        let point = words.next()?;
        matches!(words.next()?, "cgroup" | "cgroup2").then(|| PathBuf::from(point))
    };
    mounts.lines().filter_map(point).collect()
}

/// Removes the cgroup `name` with all beneath it, as far as no process is in it; whether it is gone.
pub fn remove(name: &str) -> bool {
    assert!(name.starts_with(PREFIX), "{name} is not a cgroup of a test");
    let places: Vec<PathBuf> = hierarchies().iter().map(|hierarchy| hierarchy.join(name)).collect();
    places.iter().for_each(|place| remove_directory(place));
    !places.iter().any(|place| place.exists())
}

/// Removes cgroups of test programs that run no more.
pub fn remove_abandoned() {
    for hierarchy in hierarchies() {
        for entry in fs::read_dir(hierarchy).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
            if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                remove_directory(&entry.path());
            }
        }
    }
}

/// A cgroup's files cannot be removed and need not be: only directories are, from below.
fn remove_directory(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_directory(&entry.path());
        }
    }
    // Busy or gone: the next run tries again.
    let _ = fs::remove_dir(directory);
}
