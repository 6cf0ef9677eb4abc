//! Starts the pause process: its namespaces, host name and sysctls, then a cage with nothing in it.
//!
//! Invariant: when [`start`] returns, pause has an empty read-only root in a mount namespace of its own,
//! no capabilities, no_new_privs and no open file, so that whoever may look into its `/proc` entry finds
//! nothing of the host's.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use caps::{CapSet, CapsHashSet};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns},
    unistd::{Pid, chdir, fexecve, pivot_root},
};
use podhold_proto::shim::OpenPod;

use super::{
    capability,
    report::{self, Heard, Report},
};
use crate::{sealed, sys};

/// How long the way to pause's exec may take: no step of it waits for anything outside the kernel.
const LIMIT: Duration = Duration::from_secs(10);

/// Starts pause as asked. `directory` exists and serves as a mount point within pause's own mount
/// namespace. The error is in words.
pub(super) fn start(pod: &OpenPod, directory: &Path) -> Result<Pid, String> {
    let sysctls = checked_sysctls(pod)?;
    let netns = match pod.netns.as_str() {
        "" => None,
        path => Some(File::open(path).map_err(|error| format!("network namespace {path}: {error}"))?),
    };
    let mut image = podhold_pause::PAUSE;
    let program = sealed::program("podhold-pause", &mut image)
        .map_err(|error| format!("memory file of pause: {error}"))?;
    let (near, far) = report::pair().map_err(|error| format!("socket pair: {error}"))?;

    let mut flags = CloneFlags::CLONE_NEWNS;
    flags.set(CloneFlags::CLONE_NEWIPC, pod.own_ipc);
    flags.set(CloneFlags::CLONE_NEWUTS, !pod.hostname.is_empty());
    flags.set(CloneFlags::CLONE_NEWPID, pod.shared_pid);
    let pid = sys::fork(flags, || {
        let Err(words) = become_pause(pod, &sysctls, netns.as_ref(), directory, (&program, &far));
        report::tell_failure(&far, &words);
        1
    })
    .map_err(|error| format!("fork pause: {error}"))?;
    drop(far);
    await_exec(&near).inspect_err(|_| {
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        let _ = nix::sys::wait::waitpid(pid, None);
    })?;
    Ok(pid)
}

fn await_exec(near: &OwnedFd) -> Result<(), String> {
    let until = Instant::now() + LIMIT;
    loop {
        match report::hear(near) {
            Heard::End => return Ok(()),
            Heard::Report(Report::Failed(words), _) => return Err(words),
            Heard::Report(..) => {}
            Heard::Nothing => {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(format!("pause did not start within {LIMIT:?}"));
                }
                let left = rustix::event::Timespec::try_from(left).ok();
                let mut fds = [rustix::event::PollFd::new(near, rustix::event::PollFlags::IN)];
                let _ = rustix::event::poll(&mut fds, left.as_ref());
            }
        }
    }
}

fn become_pause(
    pod: &OpenPod,
    sysctls: &[(PathBuf, &str)],
    netns: Option<&File>,
    directory: &Path,
    (program, far): (&OwnedFd, &OwnedFd),
) -> Result<std::convert::Infallible, String> {
    // Cannot be lower than the shim's own without CAP_SYS_RESOURCE: then the shim's stays.
    let _ = std::fs::write("/proc/self/oom_score_adj", pod.pause_oom_score_adj.to_string());
    if let Some(netns) = netns {
        setns(netns, CloneFlags::CLONE_NEWNET).map_err(failed("join the network namespace"))?;
    }
    if !pod.hostname.is_empty() {
        nix::unistd::sethostname(&pod.hostname).map_err(failed("set the host name"))?;
    }
    for (path, value) in sysctls {
        write_sysctl(path, value)?;
    }
    enter_empty_root(directory)?;
    give_up_privileges()?;
    sys::close_fds_except(&[program.as_raw_fd(), far.as_raw_fd()]);
    let name = c"podhold-pause";
    fexecve(program.as_raw_fd(), &[name], &[c""; 0]).map_err(failed("execute pause"))
}

/// A private mount namespace with an empty, read-only tmpfs as its only mount.
fn enter_empty_root(directory: &Path) -> Result<(), String> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(failed("make the mounts private"))?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let options = "size=0k,nr_inodes=2,mode=0555";
    mount(Some("podhold-pause"), directory, Some("tmpfs"), flags, Some(options))
        .map_err(failed("mount the empty root"))?;
    chdir(directory).map_err(failed("enter the empty root"))?;
    // Both arguments the same: the old root comes to lie on top and is unmounted; see pivot_root(2).
    pivot_root(".", ".").map_err(failed("pivot into the empty root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(failed("unmount the old root"))?;
    chdir("/").map_err(failed("enter the empty root"))
}

fn give_up_privileges() -> Result<(), String> {
    let nothing = CapsHashSet::new();
    for set in [CapSet::Ambient, CapSet::Bounding, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted]
    {
        capability::set(set, &nothing).map_err(|error| format!("drop {set:?} capabilities: {error}"))?;
    }
    nix::sys::prctl::set_no_new_privs().map_err(failed("set no_new_privs"))
}

fn failed(operation: &str) -> impl Fn(nix::Error) -> String {
    move |error| format!("{operation}: {}", error.desc())
}

/// Sysctls as paths beneath `/proc/sys`. Only those are taken that belong to a namespace which is the
/// pod's own: others would change the host (CRI-O's CVE-2022-0811 began with a sysctl's value).
fn checked_sysctls(pod: &OpenPod) -> Result<Vec<(PathBuf, &str)>, String> {
    let mut checked = Vec::new();
    for (name, value) in &pod.sysctls {
        if value.len() > 4096 || value.bytes().any(|b| b == 0 || b == b'\n') {
            return Err(format!("sysctl {name}: its value is too long or holds a newline or NUL"));
        }
        checked.push((sysctl_path(name, pod)?, value.as_str()));
    }
    Ok(checked)
}

/// The path beneath `/proc/sys`. Both `.` and `/` separate; as in
/// sysctl.d(5) the separator that comes first decides, and the other one is a literal of the part.
fn sysctl_path(name: &str, pod: &OpenPod) -> Result<PathBuf, String> {
    let refused = |reason: &str| Err(format!("sysctl {name:?}: {reason}"));
    let dotted = name.find(['.', '/']).is_none_or(|at| name.as_bytes()[at] == b'.');
    let swap = |c| match c {
        '.' if dotted => '/',
        '/' if dotted => '.',
        c => c,
    };
    let path: String = name.chars().map(swap).collect();
    let plain = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.:@".contains(&b))
    };
    if name.len() > 255 || !path.split('/').all(plain) {
        return refused("it is not a name like net.ipv4.ip_forward");
    }
    let ipc = path.starts_with("fs/mqueue/")
        || matches!(
            path.as_str(),
            "kernel/msgmax" | "kernel/msgmnb" | "kernel/msgmni" | "kernel/sem" | "kernel/shmall"
        )
        || matches!(path.as_str(), "kernel/shmmax" | "kernel/shmmni" | "kernel/shm_rmid_forced");
    if path.starts_with("net/") {
        if pod.netns.is_empty() {
            return refused("the pod shares the host's network, it would change the host's");
        }
    } else if ipc {
        if !pod.own_ipc {
            return refused("the pod shares the host's IPC namespace, it would change the host's");
        }
    } else if path == "kernel/domainname" {
        if pod.hostname.is_empty() {
            return refused("the pod shares the host's UTS namespace, it would change the host's");
        }
    } else {
        return refused("it does not belong to a namespace of the pod, it would change the host's");
    }
    Ok(path.into())
}

fn write_sysctl(path: &Path, value: &str) -> Result<(), String> {
    use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};
    let name = path.display().to_string().replace('/', ".");
    let failed = |error: io::Error| format!("sysctl {name} = {value:?}: {error}");
    let root = open("/proc/sys", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| failed(error.into()))?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let file = openat2(&root, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), resolve)
        .map_err(|error| failed(error.into()))?;
    File::from(file).write_all(value.as_bytes()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(own: bool) -> OpenPod {
        let text = |text: &str| if own { text.to_owned() } else { String::new() };
        OpenPod { netns: text("/x"), hostname: text("h"), own_ipc: own, ..Default::default() }
    }

    #[test]
    fn sysctls_stay_in_the_namespaces_of_the_pod() {
        for (name, path) in [
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
            ("net/ipv4/conf/eth0.1/forwarding", "net/ipv4/conf/eth0.1/forwarding"),
            ("net.ipv4.conf.eth0/1.forwarding", "net/ipv4/conf/eth0.1/forwarding"),
            ("kernel.shmmax", "kernel/shmmax"),
            ("fs.mqueue.msg_max", "fs/mqueue/msg_max"),
        ] {
            assert_eq!(sysctl_path(name, &pod(true)), Ok(path.into()), "{name}");
            assert!(sysctl_path(name, &pod(false)).is_err(), "{name} would change the host");
        }
        for name in [
            "kernel.core_pattern",
            "kernel/../kernel/core_pattern",
            "net/../kernel/core_pattern",
            "net.ipv4..x",
            "net",
            "",
            "/net/ipv4/x",
            "net.ipv4.x=1+kernel.core_pattern",
            "vm.swappiness",
        ] {
            assert!(sysctl_path(name, &pod(true)).is_err(), "{name}");
        }
    }
}
