//! What the shim itself does with a container's cgroups: list, kill, join, count OOM kills, remove.
//!
//! Making them and setting limits is libcontainer's and the daemon's work. Works on cgroup v1, v2 and
//! both at once: a container's path names the same directory beneath every mounted hierarchy.
//!
//! Not built on `podhold_cgroups`: its kill and remove wait for the kernel, which a process with one
//! thread that serves a whole pod must not, and its list looks at one hierarchy, while a process that
//! has moved itself out of one is to be found in the others.

use std::{
    collections::BTreeSet,
    ffi::{CStr, CString},
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::unistd::Pid;
use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, unlinkat},
    io::Errno,
};

use super::pidfd;
use crate::sys::SignalNumber;

/// How many processes are held by a pidfd at once.
const AT_ONCE: usize = 128;

/// Where a thread puts itself into a cgroup of v1 by writing 0. For every other move, of another process or of all
/// threads of one, the kernel waits for a grace period: 10 ms when there was no move just before.
const TASKS: &str = "tasks";

/// The mounted hierarchies.
#[derive(Debug, Clone)]
pub(super) struct Hierarchies(Vec<Hierarchy>);

#[derive(Debug, Clone)]
struct Hierarchy {
    mount: PathBuf,
    v2: bool,
    memory: bool,
}

impl Hierarchies {
    /// Reads the mount table.
    pub(super) fn read() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/self/mountinfo")?))
    }

    fn parse(mountinfo: &str) -> Self {
        let parse = |line: &str| {
            let (place, what) = line.split_once(" - ")?;
            let (root, mount) = (place.split(' ').nth(3)?, place.split(' ').nth(4)?);
            let mut what = what.split(' ');
            let (kind, options) = (what.next()?, what.nth(1)?);
            let v2 = match kind {
                "cgroup" => false,
                "cgroup2" => true,
                _ => return None,
            };
            let memory = v2 || options.split(',').any(|option| option == "memory");
            (root == "/").then(|| Hierarchy { mount: mount.into(), v2, memory })
        };
        Self(mountinfo.lines().filter_map(parse).collect())
    }

    /// The directories of cgroup `path` that exist.
    fn directories<'a>(&'a self, path: &'a str) -> impl Iterator<Item = (&'a Hierarchy, PathBuf)> {
        let relative = path.trim_start_matches('/');
        let found = self.0.iter().map(move |hierarchy| (hierarchy, hierarchy.mount.join(relative)));
        found.filter(move |(_, directory)| !relative.is_empty() && directory.is_dir())
    }

    /// Sends a signal to every process of the cgroup and beneath it, once. True when there was one.
    pub(super) fn signal(&self, path: &str, signal: SignalNumber) -> bool {
        if signal == SignalNumber::KILL {
            // Where the kernel can: also those that are being forked.
            for (_, directory) in self.directories(path).filter(|(hierarchy, _)| hierarchy.v2) {
                let _ = fs::write(directory.join("cgroup.kill"), "1");
            }
        }
        self.signal_those(path, signal, |_| true)
    }

    /// As [`Self::signal`], to the `chosen` processes alone.
    pub(super) fn signal_those(
        &self,
        path: &str,
        signal: SignalNumber,
        chosen: impl Fn(Pid) -> bool,
    ) -> bool {
        let (mut found, mut reached) = (false, BTreeSet::new());
        for (_, directory) in self.directories(path) {
            walk(&directory, |step| {
                let Step::Enter(cgroup) = step else { return };
                let listed = processes(cgroup);
                found |= !listed.is_empty();
                let fresh: Vec<Pid> = listed.into_iter().filter(|pid| !reached.contains(pid)).collect();
                for group in fresh.chunks(AT_ONCE) {
                    reached.extend(signal_members(cgroup, group, signal, &chosen));
                }
            });
        }
        found
    }

    /// How many processes of the cgroup the kernel has killed for want of memory.
    pub(super) fn oom_kills(&self, path: &str) -> u64 {
        let counts = self.directories(path).filter(|(hierarchy, _)| hierarchy.memory);
        let count = |(hierarchy, directory): (&Hierarchy, PathBuf)| {
            let file = if hierarchy.v2 { "memory.events" } else { "memory.oom_control" };
            let text = fs::read_to_string(directory.join(file)).ok()?;
            text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
        };
        counts.filter_map(count).max().unwrap_or(0)
    }

    /// Whether memory is limited in a hierarchy of v1.
    fn carries_memory_beside(&self) -> bool {
        self.0.iter().any(|hierarchy| !hierarchy.v2 && hierarchy.memory)
    }

    /// Puts this process, which has one thread, into the cgroup, in every hierarchy that has it. Where the
    /// container has made an inner node of it, which can hold no process (v2), that is the cgroup beneath it of
    /// `init`.
    pub(super) fn join(&self, path: &str, init: Pid) -> Result<(), String> {
        let mut joined = false;
        // Beside v1's a unified hierarchy may be mounted in which no container is, and it takes as long to enter.
        let beside = self.carries_memory_beside();
        let cgroups = fs::read_to_string(format!("/proc/{init}/cgroup")).unwrap_or_default();
        let unified = !beside || is_within(path, &cgroups);
        for (hierarchy, directory) in self.directories(path).filter(|(hierarchy, _)| unified || !hierarchy.v2)
        {
            let file = if hierarchy.v2 { "cgroup.procs" } else { TASKS };
            let enter = |directory: &Path| fs::write(directory.join(file), "0");
            let mut entered = enter(&directory);
            if hierarchy.v2
                && entered.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
                && let Some(below) = init_below(path, init)
            {
                entered = enter(&directory.join(below));
            }
            entered.map_err(|error| format!("join the cgroup {}: {error}", directory.display()))?;
            joined = true;
        }
        if joined { Ok(()) } else { Err(format!("cgroup {path} does not exist")) }
    }

    /// The directory of the cgroup in which a process can begin its life, so that it need not [`join`](Self::join):
    /// where there is one hierarchy, of version 2. That beneath it of `init` where the container has made an inner
    /// node of it.
    pub(super) fn birthplace(&self, path: &str, init: Pid) -> Option<OwnedFd> {
        let [Hierarchy { v2: true, .. }] = self.0.as_slice() else { return None };
        let (_, mut directory) = self.directories(path).next()?;
        let control = fs::read_to_string(directory.join("cgroup.subtree_control")).ok()?;
        if !control.trim().is_empty() {
            directory.push(init_below(path, init)?);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&directory, flags, Mode::empty()).ok()
    }

    /// Removes the cgroup and what is beneath it. False while a process or the kernel still holds it.
    pub(super) fn remove(&self, path: &str) -> bool {
        let directories: Vec<_> = self.directories(path).collect();
        // Not `all`: each is tried, whatever becomes of the one before.
        directories.iter().fold(true, |gone, (_, directory)| remove_tree(directory) && gone)
    }
}

/// Signals those of `listed` that are chosen and still in the cgroup, and names them.
///
/// A number may be a stranger's by now. The process a pidfd was opened for is a member when it lives on
/// and its number is listed after that; when it does not live on, nobody gets the signal.
fn signal_members(
    cgroup: BorrowedFd<'_>,
    listed: &[Pid],
    signal: SignalNumber,
    chosen: &impl Fn(Pid) -> bool,
) -> Vec<Pid> {
    let open = |pid: &Pid| Some((*pid, pidfd(*pid).ok()?));
    let held: Vec<(Pid, OwnedFd)> = listed.iter().filter_map(open).filter(|(pid, _)| chosen(*pid)).collect();
    if held.is_empty() {
        return Vec::new();
    }
    let members: BTreeSet<Pid> = processes(cgroup).into_iter().collect();
    let members = held.into_iter().filter(|(pid, _)| members.contains(pid));
    members.filter(|(_, pidfd)| signal.send(pidfd).is_ok()).map(|(pid, _)| pid).collect()
}

/// Where beneath the cgroup `path` of v2 the process is, relative to it.
fn init_below(path: &str, init: Pid) -> Option<PathBuf> {
    below(path, &fs::read_to_string(format!("/proc/{init}/cgroup")).ok()?)
}

/// See cgroups(7), `/proc/pid/cgroup`.
fn below(path: &str, cgroups: &str) -> Option<PathBuf> {
    let own = cgroups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let below = own.strip_prefix(path.trim_end_matches('/'))?.strip_prefix('/')?;
    let plain = |part: &str| !matches!(part, "" | "." | "..");
    below.split('/').all(plain).then(|| below.into())
}

/// Whether a process is in the cgroup `path` of the unified hierarchy or beneath it.
fn is_within(path: &str, cgroups: &str) -> bool {
    let own = cgroups.lines().find_map(|line| line.strip_prefix("0::"));
    own.is_some_and(|own| own.trim_end_matches('/') == path.trim_end_matches('/'))
        || below(path, cgroups).is_some()
}

/// The processes that `cgroup.procs` of this directory names.
fn processes(directory: impl AsFd) -> Vec<Pid> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let list = openat(directory, c"cgroup.procs", flags, Mode::empty()).map(fs::File::from);
    let text = list.and_then(|file| io::read_to_string(file).map_err(|_| Errno::IO)).unwrap_or_default();
    // 0 is a process that this pid namespace does not see; kill(2) would take it for our own group.
    text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).map(Pid::from_raw).collect()
}

/// A step of [`walk`].
enum Step<'a> {
    /// A directory is entered.
    Enter(BorrowedFd<'a>),
    /// All beneath this entry of the directory has been seen.
    Leave(BorrowedFd<'a>, &'a CStr),
}

/// Visits a directory and all beneath it, however deep: neither a path nor the number of open files
/// grows with the depth, which the container chooses. What vanishes meanwhile is left out.
fn walk(top: &Path, mut visit: impl FnMut(Step<'_>)) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(mut here) = rustix::fs::open(top, flags, Mode::empty()) else { return };
    visit(Step::Enter(here.as_fd()));
    let mut unseen = vec![children(&here)];
    let mut names: Vec<CString> = Vec::new();
    while let Some(level) = unseen.last_mut() {
        if let Some(name) = level.pop() {
            let Ok(child) = openat(&here, &name, flags, Mode::empty()) else { continue };
            visit(Step::Enter(child.as_fd()));
            unseen.push(children(&child));
            names.push(name);
            here = child;
        } else {
            unseen.pop();
            let Some(name) = names.pop() else { return };
            let Ok(parent) = openat(&here, c"..", flags, Mode::empty()) else { return };
            here = parent;
            visit(Step::Leave(here.as_fd(), &name));
        }
    }
}

fn children(directory: impl AsFd) -> Vec<CString> {
    let entries = Dir::read_from(directory).into_iter().flatten().flatten();
    let plain = entries.filter(|entry| entry.file_type() == FileType::Directory);
    plain
        .map(|entry| entry.file_name().to_owned())
        .filter(|name| ![c".", c".."].contains(&name.as_c_str()))
        .collect()
}

/// Removes the directory and all beneath it. False while something holds it.
fn remove_tree(directory: &Path) -> bool {
    let remove = || match fs::remove_dir(directory) {
        Err(error) => error.kind() == io::ErrorKind::NotFound,
        Ok(()) => true,
    };
    if remove() {
        return true;
    }
    walk(directory, |step| {
        if let Step::Leave(parent, name) = step {
            let _ = unlinkat(parent, name, AtFlags::REMOVEDIR);
        }
    });
    remove()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_both_versions_are_found() {
        let table = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                     35 31 0:32 / /sys/fs/cgroup/memory rw shared:1 - cgroup cgroup rw,memory\n\
                     36 31 0:33 /sub /mnt rw - cgroup cgroup rw,devices\n\
                     41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n\
                     42 31 0:39 / /tmp rw - tmpfs tmpfs rw\n";
        let found: Vec<_> = Hierarchies::parse(table).0.into_iter().map(|h| (h.v2, h.memory)).collect();
        assert_eq!(found, [(false, false), (false, true), (true, true)]);
    }

    #[test]
    fn the_root_cgroup_is_never_meant() {
        let hierarchies = Hierarchies::read().unwrap();
        for path in ["", "/", "//"] {
            assert_eq!(hierarchies.directories(path).count(), 0, "{path:?}");
        }
    }

    #[test]
    fn the_cgroup_of_an_init_counts_only_beneath_its_containers() {
        let of = |cgroup: &str| below("/pods/a", &format!("1:pids:/pods/a/x\n0::{cgroup}\n"));
        assert_eq!(of("/pods/a/init.scope"), Some("init.scope".into()));
        assert_eq!(of("/pods/a/b/c"), Some("b/c".into()));
        for other in ["/pods/a", "/pods/ab", "/pods/a/../b", "/pods/a//b", "/", "/../pods/a/b"] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn an_exec_enters_the_unified_tree_unless_the_container_is_in_others_only() {
        let within = |cgroups: &str| is_within("/pods/a", cgroups);
        assert!(within("0::/pods/a\n") && within("4:memory:/x\n0::/pods/a/init.scope\n"));
        assert!(!within("4:memory:/pods/a\n0::/\n") && !within("0::/pods/ab\n") && !within(""));
        // Hybrid, as systemd's; and pure v2 beside which somebody has mounted a hierarchy without controllers.
        let v1 = "36 31 0:33 / /c/memory rw - cgroup cgroup rw,memory\n";
        let named = "36 31 0:33 / /c/systemd rw - cgroup cgroup rw,xattr,name=systemd\n";
        for (table, beside) in [(v1, true), (named, false)] {
            let table = format!("{table}41 31 0:38 / /c/unified rw - cgroup2 cgroup2 rw\n");
            assert_eq!(Hierarchies::parse(&table).carries_memory_beside(), beside, "{table}");
        }
    }

    #[test]
    fn no_depth_hides_a_process_from_its_signal_nor_a_directory_from_its_removal() {
        let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let mount = Path::new(if v2 { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/pids" });
        if !rustix::process::geteuid().is_root() || !mount.join("cgroup.procs").exists() {
            println!("SKIPPED: needs root and cgroups, of version 1 at {}", mount.display());
            return;
        }
        let name = format!("podhold-shimtest-deep-{}", std::process::id());
        let hierarchies = Hierarchies(vec![Hierarchy { mount: mount.into(), v2, memory: false }]);
        let directory = mount.join(&name);
        fs::create_dir(&directory).unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut deepest = rustix::fs::open(&directory, flags, Mode::empty()).unwrap();
        // Deeper than a path can name.
        let part = "x".repeat(200);
        for _ in 0..30 {
            rustix::fs::mkdirat(&deepest, &part, Mode::RWXU).unwrap();
            deepest = openat(&deepest, &part, flags, Mode::empty()).unwrap();
        }
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let procs = openat(&deepest, "cgroup.procs", OFlags::WRONLY, Mode::empty()).unwrap();
        rustix::io::write(&procs, child.id().to_string().as_bytes()).unwrap();
        drop((procs, deepest));

        let removed = hierarchies.remove(&name);
        let strangers = hierarchies.signal_those(&name, SignalNumber::KILL, |_| false);
        let lives = child.try_wait().unwrap().is_none();
        let killed = hierarchies.signal(&name, SignalNumber::KILL);
        let status = if killed { child.wait().ok() } else { None };
        let _ = child.kill();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !hierarchies.remove(&name) && std::time::Instant::now() < until {
            std::thread::yield_now();
        }
        assert!(!removed && strangers && lives && killed, "{removed} {strangers} {lives} {killed}");
        assert!(status.is_some_and(|status| !status.success()));
        assert!(!directory.exists());
        assert!(!hierarchies.signal(&name, SignalNumber::KILL), "nobody is left");
    }
}
