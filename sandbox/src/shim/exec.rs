//! A further process in a running container, made without libcontainer (its exec drops the seccomp
//! filter and the user): join cgroups and namespaces, then take on the identity the process asks for.
//!
//! Two steps: the *helper*, a fork of the shim, joins; the process itself is the helper's sibling, so a
//! child of the shim, and born in the container's pid namespace. Nothing is mounted. Until exec the
//! process is not dumpable, and no file but its own streams is open in it.

use std::{
    fs,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
};

use nix::{
    sched::{CloneFlags, setns},
    sys::prctl,
    unistd::{Gid, Pid, Uid, chdir, setgroups, setresgid, setresuid, setsid},
};
use oci_spec::runtime::{
    LinuxCapabilities, LinuxIdMapping, LinuxSeccomp, LinuxSeccompFilterFlag, PosixRlimitType, Process, Spec,
};
use rustix::pty::OpenptFlags;
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    capability,
    cgroup::Hierarchies,
    create::{allowed_oom_score, chain, own_streams},
    report::{self, Report},
    seccomp, userspace, workload,
};
use crate::{bundle, sys};

/// What the helper needs.
pub(super) struct Job<'a> {
    /// The container's init.
    pub(super) init: Pid,
    /// Keeps meaning that init when its number is used again.
    pub(super) pidfd: OwnedFd,
    /// The container's cgroup path.
    pub(super) cgroup: &'a str,
    /// Where cgroups are mounted.
    pub(super) hierarchies: &'a Hierarchies,
    /// The container's bundle.
    pub(super) bundle: PathBuf,
    /// What is to run.
    pub(super) process: &'a Process,
    /// Its streams; none for a terminal.
    pub(super) files: Option<[OwnedFd; 3]>,
    /// To the shim.
    pub(super) report: OwnedFd,
}

/// Forks the helper.
pub(super) fn start(job: &Job<'_>) -> std::io::Result<Pid> {
    // 0 to 2 stay open: a terminal that took one of these numbers would be closed by the dup2 onto it.
    let mut keep: Vec<RawFd> = vec![0, 1, 2, job.report.as_raw_fd(), job.pidfd.as_raw_fd()];
    keep.extend(job.files.iter().flatten().map(AsRawFd::as_raw_fd));
    let helper = |joined: bool| {
        sys::close_fds_except(&keep);
        let told = help(job, joined);
        if let Err(words) = &told {
            report::tell_failure(&job.report, words);
        }
        i32::from(told.is_err())
    };
    let born = job.hierarchies.birthplace(job.cgroup, job.init);
    match born.map(|place| sys::fork_into(place.as_fd(), || helper(true))) {
        Some(Ok(pid)) => Ok(pid),
        // Whatever the reason is, the other way tells it better.
        Some(Err(_)) | None => sys::fork(CloneFlags::empty(), || helper(false)),
    }
}

/// The process after what the container's spec adds where the request is silent.
struct Identity<'a> {
    process: &'a Process,
    capabilities: Option<LinuxCapabilities>,
    no_new_privileges: bool,
    filter: Option<Filter>,
}

/// The container's seccomp profile.
enum Filter {
    /// Compiled with the bundle.
    Program(Vec<u8>, Vec<LinuxSeccompFilterFlag>),
    /// Of a bundle of an earlier build: to be compiled here.
    Profile(LinuxSeccomp),
}

/// What an exec needs of `config.json`. The rest, most of which is a profile's calls, is skipped.
#[derive(Deserialize)]
struct Config {
    // Without either it is damaged: an exec would have other rights, and no filter.
    process: Process,
    linux: ConfigLinux,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigLinux {
    seccomp: Option<ConfigSeccomp>,
    #[serde(default)]
    uid_mappings: Option<Vec<LinuxIdMapping>>,
}

#[derive(Deserialize)]
struct ConfigSeccomp {
    flags: Option<Vec<LinuxSeccompFilterFlag>>,
}

/// `joined`: it is in the container's cgroup already.
fn help(job: &Job<'_>, joined: bool) -> Result<(), String> {
    prctl::set_dumpable(false).map_err(failed("protect the process"))?;
    let config: Config = load(&job.bundle)?;
    let filter = filter(&job.bundle, &config)?;
    let own = &config.process;
    let identity = Identity {
        process: job.process,
        capabilities: job.process.capabilities().clone().or_else(|| own.capabilities().clone()),
        no_new_privileges: job.process.no_new_privileges().unwrap_or(false)
            || own.no_new_privileges().unwrap_or(false),
        filter,
    };
    let score = job.process.oom_score_adj().or_else(|| own.oom_score_adj());
    allowed_oom_score(score.unwrap_or(0));
    if !joined {
        job.hierarchies.join(job.cgroup, job.init)?;
    }
    if let Some(files) = &job.files {
        let map = config.linux.uid_mappings.as_deref();
        own_streams(map.unwrap_or_default(), job.process.user().uid(), files)?;
    }
    let namespaces = foreign_namespaces(job.init)?;
    set_limits(job.process, own)?;
    setns(&job.pidfd, namespaces).map_err(failed("join the container's namespaces"))?;
    if namespaces.contains(CloneFlags::CLONE_NEWUSER) {
        userspace::become_root()?;
    }

    let pid = sys::fork(CloneFlags::CLONE_PARENT, || {
        let Err(words) = become_process(job, &identity);
        report::tell_failure(&job.report, &words);
        1
    })
    .map_err(|error| format!("fork in the container: {error}"))?;
    report::tell(&job.report, &Report::Process(pid.as_raw()), &[]);
    Ok(())
}

fn load<T: DeserializeOwned>(bundle: &Path) -> Result<T, String> {
    bundle::config(bundle).map_err(|error| error.to_string())
}

fn filter(bundle: &Path, config: &Config) -> Result<Option<Filter>, String> {
    let Some(profile) = config.linux.seccomp.as_ref() else {
        return Ok(None);
    };
    if let Some(program) = seccomp::program(bundle)? {
        return Ok(Some(Filter::Program(program, profile.flags.clone().unwrap_or_default())));
    }
    let spec: Spec = load(bundle)?;
    let mut profile = spec.linux().as_ref().and_then(|linux| linux.seccomp().clone());
    profile.as_mut().map(seccomp::adapt).transpose()?;
    Ok(profile.map(Filter::Profile))
}

/// The namespaces of `init` that are not ours already: joining one's own user namespace is an error.
fn foreign_namespaces(init: Pid) -> Result<CloneFlags, String> {
    let kinds = [
        ("user", CloneFlags::CLONE_NEWUSER),
        ("pid", CloneFlags::CLONE_NEWPID),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("net", CloneFlags::CLONE_NEWNET),
        ("cgroup", CloneFlags::CLONE_NEWCGROUP),
        ("mnt", CloneFlags::CLONE_NEWNS),
    ];
    let mut foreign = CloneFlags::empty();
    for (name, flag) in kinds {
        let ours = fs::read_link(format!("/proc/self/ns/{name}"));
        let theirs = fs::read_link(format!("/proc/{init}/ns/{name}"));
        let theirs = theirs.map_err(|error| format!("the container's {name} namespace: {error}"))?;
        foreign.set(flag, ours.ok() != Some(theirs));
    }
    if foreign.is_empty() || !foreign.contains(CloneFlags::CLONE_NEWNS) {
        return Err("the container has no mount namespace of its own".into());
    }
    Ok(foreign)
}

fn become_process(job: &Job<'_>, identity: &Identity<'_>) -> Result<std::convert::Infallible, String> {
    let process = job.process;
    setsid().map_err(failed("start a session"))?;
    let uid = process.user().uid();
    match &job.files {
        Some([stdin, stdout, stderr]) => connect([stdin, stdout, stderr])?,
        None => open_terminal(process, &job.report)?,
    }
    let marked = sys::set_close_on_exec_from(3);
    marked.map_err(|error| format!("mark open files to be closed: {error}"))?;
    let umask = process.user().umask().unwrap_or(0o022);
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(umask));
    let entered = enter(process.cwd());
    take_identity(identity)?;
    if entered.is_err() {
        // A directory only the user may enter, such as a home on a share.
        enter(process.cwd())?;
    }
    verify_directory()?;
    if identity.no_new_privileges {
        load_filter(identity)?;
    }
    let env = workload::environment(&process.env().clone().unwrap_or_default(), uid);
    sys::reset_signals();
    Err(workload::execute(process.args().as_deref().unwrap_or_default(), &env))
}

/// User, groups, capabilities, no_new_privs and, where it takes privilege, the seccomp filter.
fn take_identity(identity: &Identity<'_>) -> Result<(), String> {
    let user = identity.process.user();
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    if identity.no_new_privileges {
        prctl::set_no_new_privs().map_err(failed("set no_new_privs"))?;
    }
    if let Some(profile) = identity.process.apparmor_profile() {
        libcontainer::apparmor::apply_profile(profile)
            .map_err(|error| format!("AppArmor profile {profile}: {}", chain(&error)))?;
    }
    if let Some(capabilities) = &identity.capabilities {
        capability::bound(capabilities)?;
    }
    let groups = user.additional_gids().clone().unwrap_or_default();
    let groups: Vec<Gid> = groups.into_iter().map(Gid::from_raw).collect();
    setgroups(&groups).map_err(failed("set the additional groups"))?;
    prctl::set_keepcaps(true).map_err(failed("keep capabilities"))?;
    setresgid(gid, gid, gid).map_err(failed("set the group"))?;
    setresuid(uid, uid, uid).map_err(failed("set the user"))?;
    prctl::set_keepcaps(false).map_err(failed("keep capabilities"))?;
    if !identity.no_new_privileges && identity.filter.is_some() {
        // Without no_new_privs loading a filter takes CAP_SYS_ADMIN, which is about to go.
        capability::raise()?;
        load_filter(identity)?;
    }
    identity.capabilities.as_ref().map_or(Ok(()), capability::take)
}

fn load_filter(identity: &Identity<'_>) -> Result<(), String> {
    let profile = match &identity.filter {
        None => return Ok(()),
        Some(Filter::Program(program, flags)) => return seccomp::load(program, flags),
        Some(Filter::Profile(profile)) => profile,
    };
    if crate::seccomp::notifies(profile) {
        return Err("exec in a container whose seccomp profile notifies a listener is not supported".into());
    }
    let loaded = libcontainer::seccomp::initialize_seccomp(profile);
    loaded.map(drop).map_err(|error| format!("seccomp: {}", chain(&error)))
}

fn set_limits(process: &Process, own: &Process) -> Result<(), String> {
    let limits = process.rlimits().as_ref().or(own.rlimits().as_ref());
    for limit in limits.into_iter().flatten() {
        let resource = resource(limit.typ());
        nix::sys::resource::setrlimit(resource, limit.soft(), limit.hard())
            .map_err(failed(&format!("set limit {:?}", limit.typ())))?;
    }
    Ok(())
}

fn resource(kind: PosixRlimitType) -> nix::sys::resource::Resource {
    use nix::sys::resource::Resource;
    match kind {
        PosixRlimitType::RlimitCpu => Resource::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => Resource::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => Resource::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => Resource::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => Resource::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => Resource::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => Resource::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => Resource::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => Resource::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => Resource::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => Resource::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => Resource::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => Resource::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => Resource::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => Resource::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => Resource::RLIMIT_RTTIME,
    }
}

fn connect(streams: [&OwnedFd; 3]) -> Result<(), String> {
    for (target, stream) in (0..).zip(streams) {
        nix::unistd::dup2(stream.as_raw_fd(), target).map_err(failed("connect a standard stream"))?;
    }
    Ok(())
}

/// A terminal of the container's devpts as the controlling one; its master side goes to the shim.
fn open_terminal(process: &Process, to: &OwnedFd) -> Result<(), String> {
    let failed = |operation: &'static str| {
        move |error: rustix::io::Errno| format!("terminal: {operation}: {}", std::io::Error::from(error))
    };
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::fs::open(
        "/dev/pts/ptmx",
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .map_err(failed("open /dev/pts/ptmx"))?;
    // The container could have put something else in its place (CVE-2025-52565).
    const DEVPTS_MAGIC: i64 = 0x1cd1;
    let filesystem = rustix::fs::fstatfs(&master).map_err(failed("stat"))?;
    let found = rustix::fs::fstat(&master).map_err(failed("stat"))?;
    if filesystem.f_type != DEVPTS_MAGIC || found.st_rdev != rustix::fs::makedev(5, 2) {
        return Err("terminal: /dev/pts/ptmx of the container is not a terminal multiplexer".into());
    }
    rustix::pty::unlockpt(&master).map_err(failed("unlock"))?;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).map_err(failed("open the other side"))?;
    let owner = rustix::fs::Uid::from_raw(process.user().uid());
    rustix::fs::fchown(&slave, Some(owner), None).map_err(failed("change its owner"))?;
    if let Some(size) = process.console_size() {
        let size = rustix::termios::Winsize {
            ws_row: u16::try_from(size.height()).unwrap_or(u16::MAX),
            ws_col: u16::try_from(size.width()).unwrap_or(u16::MAX),
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&master, size).map_err(failed("set its size"))?;
    }
    rustix::process::ioctl_tiocsctty(&slave).map_err(failed("make it the controlling terminal"))?;
    connect([&slave, &slave, &slave])?;
    report::tell(to, &Report::Terminal, &[master.as_fd()]);
    Ok(())
}

fn enter(directory: &Path) -> Result<(), String> {
    chdir(directory).map_err(failed(&format!("change to working directory {}", directory.display())))
}

/// A working directory outside the container's root has a path that the kernel does not show as
/// absolute (CVE-2024-21626).
fn verify_directory() -> Result<(), String> {
    match nix::unistd::getcwd() {
        Ok(directory) if directory.is_absolute() => Ok(()),
        _ => Err("the working directory is not inside the container".into()),
    }
}

fn failed(operation: &str) -> impl Fn(nix::Error) -> String {
    move |error| format!("{operation}: {}", error.desc())
}
