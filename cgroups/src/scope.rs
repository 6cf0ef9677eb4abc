//! A pod's part of the tree: made when its first process is there, and given back.
//!
//! Invariant: beneath a scope nobody but us makes, moves or limits anything; the scope's own files are systemd's.

use std::{fs, io};

use crate::{
    CgroupError, CgroupPath, Cgroups, InvalidCgroupPath,
    handle::{enable_controllers, enable_foreign, gone},
    systemd::{Scope, Systemd},
};

/// Puts a pod's first process into `leaf`, and makes what that takes.
pub(crate) fn settle(cgroups: &Cgroups, leaf: &CgroupPath, pid: u32) -> Result<(), CgroupError> {
    let (Some(systemd), Some(scope)) = (cgroups.systemd(), leaf.scope()) else {
        if !cgroups.exists(leaf) {
            cgroups.create(leaf)?;
        }
        return cgroups.attach(leaf, pid);
    };
    let slice = scope.parent().filter(|slice| slice.name().ends_with(".slice"));
    let slice = slice.ok_or_else(|| InvalidCgroupPath {
        path: scope.to_string(),
        reason: "a scope is directly beneath a slice",
    })?;
    let wanted = Scope { unit: scope.name(), slice: slice.name(), pid };
    let made = systemd.start(wanted);
    made.map_err(|source| CgroupError::Systemd {
        unit: scope.name().to_owned(),
        operation: "make the pod's scope",
        source,
    })?;
    enable_foreign(cgroups.main_root())?;
    for above in ancestors(&slice) {
        enable_foreign(&cgroups.main_dir(&above))?;
    }
    // A cgroup that passes controllers on must not hold processes: the leaf first.
    let mut within: Vec<CgroupPath> =
        std::iter::successors(leaf.parent(), CgroupPath::parent).take_while(|path| *path != scope).collect();
    within.reverse();
    for path in within.iter().chain([leaf]) {
        make_directory(cgroups, path)?;
    }
    cgroups.attach(leaf, pid)?;
    for path in [&scope].into_iter().chain(&within) {
        enable_controllers(&cgroups.main_dir(path))?;
    }
    Ok(())
}

/// From the topmost one down to `path`.
fn ancestors(path: &CgroupPath) -> Vec<CgroupPath> {
    let mut all: Vec<CgroupPath> = std::iter::successors(Some(path.clone()), CgroupPath::parent).collect();
    all.reverse();
    all
}

pub(crate) fn make_directory(cgroups: &Cgroups, path: &CgroupPath) -> Result<(), CgroupError> {
    let dir = cgroups.main_dir(path);
    match fs::create_dir(&dir) {
        Err(error) if gone(&error) => Err(CgroupError::Missing(path.clone())),
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(CgroupError::io("create cgroup", &dir)(error))
        }
        _ => Ok(()),
    }
}

/// Makes `path`, which is within `scope`, if the scope is still there.
pub(crate) fn create_within(
    cgroups: &Cgroups,
    scope: &CgroupPath,
    path: &CgroupPath,
) -> Result<(), CgroupError> {
    let mut within: Vec<CgroupPath> = std::iter::successors(Some(path.clone()), CgroupPath::parent)
        .take_while(|path| path != scope)
        .collect();
    within.reverse();
    for path in &within {
        let parent = path.parent().expect("it is within a scope");
        enable_controllers(&cgroups.main_dir(&parent)).map_err(|error| cgroups.missing(&parent, error))?;
        make_directory(cgroups, path)?;
    }
    Ok(())
}

/// Ends all that runs in the scope, and has systemd give it back. systemd removes the directory itself, which tells
/// it that the scope has ended; one that does not answer finds the scope empty later.
pub(crate) fn end(cgroups: &Cgroups, scope: &CgroupPath) -> Result<(), CgroupError> {
    cgroups.kill(scope)?;
    if !Systemd::is_running() {
        return cgroups.remove(scope);
    }
    let systemd = cgroups.systemd().cloned().unwrap_or_default();
    match systemd.end(scope.name()) {
        Ok(()) => cgroups.remove(scope),
        Err(source) => {
            let error = CgroupError::Systemd {
                unit: scope.name().to_owned(),
                operation: "have the pod's scope ended",
                source,
            };
            tracing::warn!(error = %crate::error::with_sources(&error), "left to systemd, since nothing runs in it");
            Ok(())
        }
    }
}
