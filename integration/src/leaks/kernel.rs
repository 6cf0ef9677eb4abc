//! What `/proc`, cgroupfs and the file system show. Reads only.
//!
//! Processes end while they are looked at; what cannot be read any more is left out.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

/// One line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
pub(super) struct Mount {
    root: String,
    point: PathBuf,
    kind: String,
    source: String,
}

impl Mount {
    pub(super) fn describe(&self) -> String {
        format!("{} on {} ({} of {})", self.kind, self.point.display(), self.root, self.source)
    }
}

pub(super) fn mounts() -> io::Result<Vec<Mount>> {
    let parse = |line: &str| {
        let (own, rest) = line.split_once(" - ")?;
        let mut own = own.split(' ').skip(3);
        let mut rest = rest.split(' ');
        Some(Mount {
            root: own.next()?.to_owned(),
            point: PathBuf::from(own.next()?),
            kind: rest.next()?.to_owned(),
            source: rest.next()?.to_owned(),
        })
    };
    Ok(fs::read_to_string("/proc/self/mountinfo")?.lines().filter_map(parse).collect())
}

/// Pids of all processes but kernel threads, ourselves, our ancestors and `except`.
fn pids(except: &[i32]) -> io::Result<Vec<i32>> {
    let mut hidden: BTreeSet<i32> = except.iter().copied().collect();
    let mut ancestor = std::process::id().cast_signed();
    while ancestor > 1 && hidden.insert(ancestor) {
        ancestor = parent(ancestor).unwrap_or(0);
    }
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let kernel_thread = is_kernel_thread(pid);
        if !hidden.contains(&pid) && !kernel_thread {
            pids.push(pid);
        }
    }
    Ok(pids)
}

/// The fields of `/proc/PID/stat` after the command name, which may hold blanks and parentheses.
fn stat(pid: i32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    Some(rest.split(' ').map(str::to_owned).collect())
}

fn parent(pid: i32) -> Option<i32> {
    stat(pid)?.get(1)?.parse().ok()
}

/// Flag PF_KTHREAD of the kernel.
fn is_kernel_thread(pid: i32) -> bool {
    const PF_KTHREAD: u64 = 0x0020_0000;
    let flags = stat(pid).and_then(|stat| stat.get(6)?.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & PF_KTHREAD != 0)
}

pub(super) fn processes(except: &[i32]) -> io::Result<Vec<String>> {
    let describe = |pid: i32| {
        let stat = stat(pid)?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        // State, and the start time, which tells a pid from its next use.
        let zombie = if stat.first()? == "Z" { " (zombie)" } else { "" };
        Some(format!("{pid} since tick {}: {} {}{zombie}", stat.get(19)?, name.trim_end(), line.trim_end()))
    };
    Ok(pids(except)?.into_iter().filter_map(describe).collect())
}

/// Namespaces that a process is in or a mount pins; each once.
pub(super) fn namespaces(mounts: &[Mount], except: &[i32]) -> io::Result<BTreeSet<String>> {
    let mut found: BTreeSet<String> =
        mounts.iter().filter(|mount| mount.kind == "nsfs").map(|mount| mount.root.clone()).collect();
    for pid in pids(except)? {
        let Ok(entries) = fs::read_dir(format!("/proc/{pid}/ns")) else { continue };
        let links = entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        found.extend(links.map(|link| link.display().to_string()));
    }
    Ok(found)
}

pub(super) fn cgroups(mounts: &[Mount], words: &[String]) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for mount in mounts.iter().filter(|mount| matches!(mount.kind.as_str(), "cgroup" | "cgroup2")) {
        directories(&mount.point, &mut found)?;
    }
    found.retain(|path| words.is_empty() || words.iter().any(|word| path.contains(word)));
    Ok(found)
}

fn directories(directory: &Path, found: &mut Vec<String>) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        // Gone meanwhile, or another program's, nested deeper than any path.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidFilename) => {
            return Ok(());
        }
        entries => entries?,
    };
    // ENODEV: the cgroup was removed while it was read.
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(entry.path().display().to_string());
            directories(&entry.path(), found)?;
        }
    }
    Ok(())
}

pub(super) fn shared_memory() -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/dev/shm")? {
        found.push(entry?.path().display().to_string());
    }
    for kind in ["shm", "sem", "msg"] {
        // The file is missing where the kernel has no System V IPC.
        let Ok(table) = fs::read_to_string(format!("/proc/sysvipc/{kind}")) else { continue };
        let id = |line: &str| line.split_whitespace().take(2).collect::<Vec<_>>().join(" id ");
        found.extend(table.lines().skip(1).map(|line| format!("System V {kind} key {}", id(line))));
    }
    Ok(found)
}

/// Everything beneath the directories, links not followed, other file systems not entered.
pub(super) fn files(directories: &[PathBuf]) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for directory in directories {
        walk(directory, &mut found)?;
    }
    Ok(found)
}

fn walk(directory: &Path, found: &mut Vec<String>) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let Ok(here) = fs::symlink_metadata(directory) else { return Ok(()) };
    let Ok(entries) = fs::read_dir(directory) else { return Ok(()) };
    for entry in entries.flatten() {
        found.push(entry.path().display().to_string());
        let Ok(metadata) = fs::symlink_metadata(entry.path()) else { continue };
        if metadata.is_dir() && metadata.dev() == here.dev() {
            walk(&entry.path(), found)?;
        }
    }
    Ok(())
}
