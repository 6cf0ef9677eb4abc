//! Starts the pause process: its namespaces, host name and sysctls, then a cage with nothing in it.
//!
//! Invariant: when [`start`] returns, pause has an empty read-only root in a mount namespace of its own,
//! no capabilities, no_new_privs and no open file, so that whoever may look into its `/proc` entry finds
//! nothing of the host's.

use std::{
    convert::Infallible,
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use caps::{CapSet, CapsHashSet};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns},
    sys::signal::Signal,
    unistd::{Pid, chdir, fchdir, fexecve, pivot_root},
};
use podhold_proto::shim::OpenPod;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};

use super::{
    capability,
    report::{self, Heard, Report},
    userspace,
};
use crate::{sealed, sys};

/// How long the way to pause's exec may take: no step of it waits for anything outside the kernel.
const LIMIT: Duration = Duration::from_secs(10);

/// What pause is made from.
struct Job<'a> {
    pod: &'a OpenPod,
    sysctls: Vec<(PathBuf, &'a str)>,
    netns: Option<File>,
    /// The user namespace it belongs to.
    user: Option<&'a OwnedFd>,
    /// A mount point within pause's own mount namespace.
    directory: &'a Path,
    program: OwnedFd,
    /// To the shim.
    report: OwnedFd,
}

/// Starts pause as asked, in the user namespace `user` when there is one. `directory` exists and serves
/// as a mount point within pause's own mount namespace. The error is in words.
pub(super) fn start(pod: &OpenPod, user: Option<&OwnedFd>, directory: &Path) -> Result<Pid, String> {
    if pod.in_user_namespace != user.is_some() {
        return Err("the pod's user namespace has not been made, or is not wanted any more".into());
    }
    let netns = match pod.netns.as_str() {
        "" => None,
        path => Some(File::open(path).map_err(|error| format!("network namespace {path}: {error}"))?),
    };
    let mut image = podhold_pause::PAUSE;
    let program = sealed::program("podhold-pause", &mut image)
        .map_err(|error| format!("memory file of pause: {error}"))?;
    let (near, far) = report::pair().map_err(|error| format!("socket pair: {error}"))?;
    let job = Job { pod, sysctls: checked_sysctls(pod)?, netns, user, directory, program, report: far };
    let forked = match user {
        None => fork(&job, CloneFlags::empty()).map(Some),
        Some(user) => fork_within(&job, user).map(|()| None),
    };
    let pid = forked.map_err(|error| format!("fork pause: {error}"))?;
    drop(job);
    await_exec(&near, pid)
}

fn fork(job: &Job<'_>, more: CloneFlags) -> io::Result<Pid> {
    let mut flags = CloneFlags::CLONE_NEWNS | more;
    flags.set(CloneFlags::CLONE_NEWIPC, job.pod.own_ipc);
    flags.set(CloneFlags::CLONE_NEWUTS, !job.pod.hostname.is_empty());
    flags.set(CloneFlags::CLONE_NEWPID, job.pod.shared_pid);
    sys::fork(flags, || {
        let Err(words) = become_pause(job);
        report::tell_failure(&job.report, &words);
        1
    })
}

/// By way of a helper, since namespaces belong to the user namespace that their maker is in; pause is the
/// helper's sibling, so a child of the shim.
fn fork_within(job: &Job<'_>, user: &OwnedFd) -> io::Result<()> {
    let helper = sys::fork(CloneFlags::empty(), || {
        // While the host's permissions are there.
        set_oom_score(job.pod);
        let forked = setns(user, CloneFlags::CLONE_NEWUSER)
            .map_err(io::Error::from)
            .and_then(|()| fork(job, CloneFlags::CLONE_PARENT));
        match forked {
            Ok(pid) => report::tell(&job.report, &Report::Process(pid.as_raw()), &[]),
            Err(error) => {
                report::tell_failure(&job.report, &format!("fork pause in its user namespace: {error}"));
            }
        }
        0
    })?;
    nix::sys::wait::waitpid(helper, None).map(drop).map_err(io::Error::from)
}

/// Waits until pause runs; `pid` is known already unless a helper tells it.
fn await_exec(near: &OwnedFd, mut pid: Option<Pid>) -> Result<Pid, String> {
    let until = Instant::now() + LIMIT;
    let failure = loop {
        match report::hear(near) {
            Heard::End => match pid {
                Some(pid) => return Ok(pid),
                None => break "the process that starts pause has died".to_owned(),
            },
            Heard::Report(Report::Failed(words), _) => break words,
            Heard::Report(Report::Process(told), _) => pid = Some(Pid::from_raw(told)),
            Heard::Report(..) => {}
            Heard::Nothing => {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break format!("pause did not start within {LIMIT:?}");
                }
                let left = rustix::event::Timespec::try_from(left).ok();
                let mut fds = [rustix::event::PollFd::new(near, rustix::event::PollFlags::IN)];
                let _ = rustix::event::poll(&mut fds, left.as_ref());
            }
        }
    };
    // One that fails before the helper has told its number ends by itself and is reaped like any child.
    if let Some(pid) = pid {
        let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
        let _ = nix::sys::wait::waitpid(pid, None);
    }
    Err(failure)
}

fn set_oom_score(pod: &OpenPod) {
    // Cannot be lower than the shim's own without CAP_SYS_RESOURCE: then the shim's stays.
    let _ = std::fs::write("/proc/self/oom_score_adj", pod.pause_oom_score_adj.to_string());
}

fn become_pause(job: &Job<'_>) -> Result<Infallible, String> {
    // In pause's own mount namespace, and while it may walk there.
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let directory = rustix::fs::open(job.directory, flags, rustix::fs::Mode::empty())
        .map_err(|error| format!("{}: {}", job.directory.display(), io::Error::from(error)))?;
    match job.user {
        None => set_oom_score(job.pod),
        Some(_) => userspace::become_root()?,
    }
    if let Some(netns) = &job.netns {
        setns(netns, CloneFlags::CLONE_NEWNET).map_err(failed("join the network namespace"))?;
    }
    if !job.pod.hostname.is_empty() {
        nix::unistd::sethostname(&job.pod.hostname).map_err(failed("set the host name"))?;
    }
    for (path, value) in &job.sysctls {
        write_sysctl(path, value)?;
    }
    enter_empty_root(&directory)?;
    give_up_privileges()?;
    // After the last change of identity, which would undo it. Nobody reaps in a pod whose shim has died, and
    // nobody could tell of its end.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(failed("end with the shim"))?;
    let program = job.program.as_raw_fd();
    sys::close_fds_except(&[program, job.report.as_raw_fd()]);
    if report::forsaken(&job.report) {
        return Err("the shim has died".into());
    }
    let name = c"podhold-pause";
    fexecve(program, &[name], &[c""; 0]).map_err(failed("execute pause"))
}

/// A private mount namespace with an empty, read-only tmpfs as its only mount. All by descriptors: root of
/// a user namespace may not walk the host's directories.
fn enter_empty_root(directory: &OwnedFd) -> Result<(), String> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(failed("make the mounts private"))?;
    let root = empty_tmpfs().map_err(|error| format!("make the empty root: {error}"))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(root.as_fd(), "", directory.as_fd(), "", flags)
        .map_err(|error| format!("mount the empty root: {}", io::Error::from(error)))?;
    fchdir(root.as_raw_fd()).map_err(failed("enter the empty root"))?;
    // Both arguments the same: the old root comes to lie on top and is unmounted; see pivot_root(2).
    pivot_root(".", ".").map_err(failed("pivot into the empty root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(failed("unmount the old root"))?;
    chdir("/").map_err(failed("enter the empty root"))
}

fn empty_tmpfs() -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [("source", "podhold-pause"), ("size", "0k"), ("nr_inodes", "2"), ("mode", "0555")] {
        rustix::mount::fsconfig_set_string(context.as_fd(), key, value)?;
    }
    rustix::mount::fsconfig_set_flag(context.as_fd(), "ro")?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
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
