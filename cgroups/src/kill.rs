//! Finds and kills every process in a cgroup.
//!
//! Invariant: a process that forks while it is being killed is found too: by `cgroup.kill`, which the
//! kernel makes atomic, by freezing first, or by looking again until none is left.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use libcgroups::common::FreezerState;

use crate::{
    CgroupError, CgroupPath, Cgroups, Version,
    events::{Process, settle, wait_ended},
    handle::{gone, write},
    limits,
};

pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

pub(crate) fn kill(cgroups: &Cgroups, path: &CgroupPath) -> Result<(), CgroupError> {
    let dir = cgroups.main_dir(path);
    let begun = Instant::now();
    if !dir.is_dir() {
        return Ok(());
    }
    let by_kernel = cgroups.version() == Version::V2 && write(&dir.join("cgroup.kill"), "1").is_ok();
    loop {
        let pids = procs_beneath(&dir)?;
        if pids.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            return Err(CgroupError::Busy {
                path: path.clone(),
                pids: pids.into_iter().take(8).collect(),
                waited_ms: begun.elapsed().as_millis(),
            });
        }
        let processes = if by_kernel { open_all(&pids) } else { kill_frozen(cgroups, path, &dir)? };
        if processes.is_empty() {
            settle(Duration::from_millis(1));
        }
        wait_ended(processes, begun + PATIENCE);
    }
}

/// Freezes, so that nothing forks, sends KILL to all, thaws. A process in uninterruptible sleep keeps
/// the cgroup from freezing; then the caller's loop has to be enough.
fn kill_frozen(cgroups: &Cgroups, path: &CgroupPath, dir: &Path) -> Result<Vec<Process>, CgroupError> {
    // Small trees end faster than they freeze; the loop catches what they fork meanwhile.
    let freeze = procs_beneath(dir)?.len() > 8;
    if freeze && let Err(error) = limits::freeze(cgroups, path, FreezerState::Frozen) {
        tracing::debug!(cgroup = %path, %error, "killing without freezing");
    }
    let found = procs_beneath(dir).map(|pids| open_all(&pids));
    if let Ok(processes) = &found {
        processes.iter().for_each(Process::kill);
    }
    // Also one that somebody froze before: the KILL waits for the thaw. Asking first, since libcgroups
    // needs milliseconds to find its hierarchies.
    if is_thawed(dir) {
        return found;
    }
    match limits::freeze(cgroups, path, FreezerState::Thawed) {
        Err(error) if dir.is_dir() => Err(error),
        _ => found,
    }
}

fn is_thawed(dir: &Path) -> bool {
    let says = |name: &str, thawed: &str| {
        fs::read_to_string(dir.join(name)).is_ok_and(|state| state.trim() == thawed)
    };
    says("freezer.state", "THAWED") || says("cgroup.freeze", "0")
}

pub(crate) fn open_all(pids: &[u32]) -> Vec<Process> {
    // Bounded by the files that may be open; the caller comes back for the others.
    pids.iter().take(400).filter_map(|pid| Process::open(*pid)).collect()
}

/// The processes in `dir` and in all directories beneath it, however deep, sorted.
pub(crate) fn procs_beneath(dir: &Path) -> Result<Vec<u32>, CgroupError> {
    let mut pids = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        collect(&dir, &mut pids)?;
        todo.extend(children(&dir)?);
    }
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}

fn collect(dir: &Path, pids: &mut Vec<u32>) -> Result<(), CgroupError> {
    let file = dir.join("cgroup.procs");
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        // Gone meanwhile; or a threaded cgroup of v2, whose processes its root lists.
        Err(error) if gone(&error) || error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => return Ok(()),
        Err(error) => return Err(CgroupError::io("read", file)(error)),
    };
    for line in text.lines() {
        let pid: u32 = line.parse().map_err(|_| CgroupError::malformed(&file, line))?;
        // 0 stands for a process outside our pid namespace.
        if pid != 0 {
            pids.push(pid);
        }
    }
    Ok(())
}

/// The cgroups directly beneath `dir`.
pub(crate) fn children(dir: &Path) -> Result<Vec<std::path::PathBuf>, CgroupError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if gone(&error) => return Ok(Vec::new()),
        Err(error) => return Err(CgroupError::io("list", dir)(error)),
    };
    let directories = entries.filter_map(Result::ok).filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    Ok(directories.map(|entry| entry.path()).collect())
}
