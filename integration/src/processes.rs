//! The processes of a pod, by the pids the host knows them under. Tests kill them by these.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::{Instant, interval};

/// How long what was killed may take to be gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// What holds a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holders {
    /// `podhold-shim`.
    pub shim: i32,
    /// Writes the logs.
    pub logger: i32,
    /// Holds the namespaces.
    pub pause: i32,
}

struct Process {
    pid: i32,
    parent: i32,
    name: String,
    line: String,
}

fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("/proc is there");
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(read).collect()
}

/// `None` when it has ended meanwhile.
fn read(pid: i32) -> Option<Process> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some(Process {
        pid,
        parent: field("PPid:")?.parse().ok()?,
        name: field("Name:")?.to_owned(),
        line: String::from_utf8_lossy(&line).into_owned(),
    })
}

/// What holds the pod.
///
/// # Panics
/// When it is not there.
pub fn holders(pod: &str) -> Holders {
    let all = all();
    let ours = |name: &str| {
        let fits = |each: &&Process| each.name == name && each.line.contains(pod);
        all.iter().filter(fits).map(|each| (each.pid, each.parent)).collect::<Vec<_>>()
    };
    let forks = ours("podhold-shim");
    // What it is just making processes with are its children.
    let shim = forks.iter().find(|(_, parent)| forks.iter().all(|(pid, _)| pid != parent));
    let shim = shim.unwrap_or_else(|| panic!("pod {pod} has no shim")).0;
    let logger = ours("podhold-logger").first().unwrap_or_else(|| panic!("pod {pod} has no logger")).0;
    let pause = all.iter().find(|each| each.parent == shim && each.line.starts_with("podhold-pause"));
    Holders { shim, logger, pause: pause.unwrap_or_else(|| panic!("pod {pod} has no pause process")).pid }
}

/// Every process whose command line is that of the pod's shim: the shim, its logger, and what it makes
/// processes with.
pub fn forks(pod: &str) -> Vec<i32> {
    let fits = |each: &Process| each.line.starts_with("podhold-shim\0") && each.line.contains(pod);
    all().into_iter().filter(fits).map(|each| each.pid).collect()
}

/// Kills one process.
///
/// # Panics
/// When there is none.
pub fn murder(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap_or_else(|error| panic!("kill {pid}: {error}"));
}

/// Waits until the process is gone, or dead and not reaped.
///
/// # Panics
/// When it lives on.
pub async fn gone(pid: i32) {
    let dead = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.is_empty() || status.contains("State:\tZ") || status.contains("State:\tX")
    };
    until(&format!("the end of process {pid}"), dead).await;
}

/// Waits until something has come true that nobody tells.
///
/// # Panics
/// When it does not within half a minute.
pub async fn until(what: &str, mut come_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    let mut ticks = interval(Duration::from_millis(20));
    while !come_true() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        ticks.tick().await;
    }
}

/// The processes in the cgroup `name` (no leading `/`) and beneath it, in any hierarchy.
pub fn in_cgroup(name: &str) -> Vec<i32> {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("the mount table");
    let point = |line: &str| {
        let mut words = line.split(' ').skip(1);
        let point = words.next()?;
        matches!(words.next()?, "cgroup" | "cgroup2").then(|| Path::new(point).join(name))
    };
    let mut found: Vec<i32> = mounts.lines().filter_map(point).flat_map(beneath).collect();
    found.sort_unstable();
    found.dedup();
    found
}

fn beneath(directory: PathBuf) -> Vec<i32> {
    let listed: io::Result<String> = fs::read_to_string(directory.join("cgroup.procs"));
    let mut found: Vec<i32> =
        listed.unwrap_or_default().lines().filter_map(|line| line.parse().ok()).collect();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(beneath(entry.path()));
        }
    }
    found
}
