//! Removes whole cgroup trees.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    CgroupError, CgroupPath, Cgroups,
    events::{settle, wait_ended},
    handle::gone,
    kill::{PATIENCE, children, open_all, procs_beneath},
};

pub(crate) fn remove(cgroups: &Cgroups, path: &CgroupPath) -> Result<(), CgroupError> {
    let begun = Instant::now();
    for dir in cgroups.dirs(path) {
        remove_tree(path, &dir, begun)?;
    }
    Ok(())
}

/// Depth first; a busy directory is tried again when its processes have ended.
fn remove_tree(path: &CgroupPath, dir: &Path, begun: Instant) -> Result<(), CgroupError> {
    loop {
        let busy = match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if gone(&error) => return Ok(()),
            Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) => error,
            Err(error) => return Err(CgroupError::io("remove", dir)(error)),
        };
        let beneath = children(dir)?;
        for child in &beneath {
            remove_tree(path, child, begun)?;
        }
        if !beneath.is_empty() {
            continue;
        }
        let pids = procs_beneath(dir)?;
        if begun.elapsed() > PATIENCE {
            if pids.is_empty() {
                return Err(CgroupError::io("remove", dir)(busy));
            }
            let waited_ms = begun.elapsed().as_millis();
            return Err(CgroupError::Busy {
                path: path.clone(),
                pids: pids.into_iter().take(8).collect(),
                waited_ms,
            });
        }
        let processes = open_all(&pids);
        if processes.is_empty() {
            settle(Duration::from_millis(1));
        }
        wait_ended(processes, begun + PATIENCE);
    }
}

pub(crate) fn prune(cgroups: &Cgroups, path: &CgroupPath) -> Result<(), CgroupError> {
    for dir in cgroups.dirs(path) {
        match fs::remove_dir(&dir) {
            Ok(()) => {}
            Err(error) if gone(&error) || error.raw_os_error() == Some(nix::libc::EBUSY) => {}
            Err(error) => return Err(CgroupError::io("remove", dir)(error)),
        }
    }
    Ok(())
}
