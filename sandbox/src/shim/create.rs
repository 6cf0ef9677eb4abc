//! The creator: a short-lived fork of the shim in which libcontainer makes and starts one container.
//!
//! libcontainer changes the process that calls it (working directory, oom score, dumpable), hence the
//! fork; `as_sibling` makes the container's init a child of the shim. Everything is told through
//! [`report`](super::report); the creator removes its own temporary files, the shim does the rest.

use std::{
    fs,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    os::unix::fs::DirBuilderExt,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    rc::Rc,
    time::SystemTime,
};

use libcontainer::{
    container::builder::ContainerBuilder,
    syscall::syscall::SyscallType,
    workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError},
};
use nix::unistd::Pid;
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, Spec};

use super::{
    report::{self, Report},
    seccomp, workload,
};
use crate::{ContainerId, Layout, PodId, sys, wire};

/// What one container is made from.
#[derive(Debug)]
pub(super) struct Job {
    /// The container.
    pub(super) id: ContainerId,
    /// Its bundle.
    pub(super) bundle: PathBuf,
    /// Where libcontainer keeps its state.
    pub(super) state: PathBuf,
    /// Namespaces to join.
    pub(super) join: Vec<(LinuxNamespaceType, OwnedFd)>,
    /// Its standard streams.
    pub(super) streams: Streams,
    /// To the shim.
    pub(super) report: OwnedFd,
}

/// Standard streams of a new container.
#[derive(Debug)]
pub(super) enum Streams {
    /// Standard input, output and error.
    Files([OwnedFd; 3]),
    /// A terminal of its own devpts, told by [`Report::Terminal`].
    Terminal,
}

/// Directory of the creator's temporary files.
pub(super) fn temporary(layout: &Layout, pod: &PodId, id: &ContainerId) -> PathBuf {
    layout.libcontainer(pod).join(format!("{id}.bundle"))
}

/// Forks the creator.
pub(super) fn start(job: &Job, temporary: &Path) -> std::io::Result<Pid> {
    let mut keep: Vec<RawFd> = vec![0, 1, 2, job.report.as_raw_fd()];
    keep.extend(job.join.iter().map(|(_, fd)| fd.as_raw_fd()));
    if let Streams::Files(files) = &job.streams {
        keep.extend(files.iter().map(AsRawFd::as_raw_fd));
    }
    sys::fork(sys::CloneFlags::empty(), || {
        sys::close_fds_except(&keep);
        let _ = nix::sys::signal::SigSet::all().thread_unblock();
        let _ = nix::sys::prctl::set_name(c"podhold-creator");
        let created = create(job, temporary);
        let _ = fs::remove_dir_all(temporary);
        match created {
            Ok(()) => 0,
            Err(words) => {
                report::tell_failure(&job.report, &words);
                1
            }
        }
    })
}

fn create(job: &Job, temporary: &Path) -> Result<(), String> {
    let config = job.bundle.join("config.json");
    let mut spec = Spec::load(&config).map_err(|error| format!("{}: {}", config.display(), chain(&error)))?;
    let linux = spec.linux().as_ref().ok_or("config.json: linux is missing")?;
    let cgroup = linux.cgroups_path().as_ref().and_then(|path| path.to_str());
    let cgroup = cgroup.filter(|path| podhold_cgroups::CgroupPath::parse(path).is_ok());
    let cgroup = cgroup.ok_or("config.json: linux.cgroupsPath must name a cgroup, such as /pods/a")?;
    report::tell(&job.report, &Report::Cgroup(cgroup.to_owned()), &[]);
    adapt(&mut spec, job)?;

    let _ = fs::remove_dir_all(temporary);
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(temporary);
    made.map_err(|error| format!("{}: {error}", temporary.display()))?;
    let config = temporary.join("config.json");
    spec.save(&config).map_err(|error| format!("{}: {}", config.display(), chain(&error)))?;
    run_libcontainer(job, temporary)
}

fn run_libcontainer(job: &Job, temporary: &Path) -> Result<(), String> {
    let report = Rc::new(job.report.try_clone().map_err(|error| error.to_string())?);
    let words = |error: libcontainer::error::LibcontainerError| chain(&error);
    let mut builder = ContainerBuilder::new(job.id.to_string(), SyscallType::default())
        .with_executor(Workload { report })
        .with_root_path(&job.state)
        .map_err(words)?;
    let mut console = None;
    match &job.streams {
        Streams::Files([stdin, stdout, stderr]) => {
            let copy = |fd: &OwnedFd| fd.try_clone().map_err(|error| error.to_string());
            builder = builder.with_stdin(copy(stdin)?).with_stdout(copy(stdout)?).with_stderr(copy(stderr)?);
        }
        Streams::Terminal => {
            let directory = fs::File::open(temporary).map_err(|error| error.to_string())?;
            let short = format!("/proc/self/fd/{}/console.sock", directory.as_raw_fd());
            console =
                Some(UnixListener::bind(short).map_err(|error| format!("the terminal's socket: {error}"))?);
            builder = builder.with_console_socket(Some(temporary.join("console.sock")));
        }
    }
    let mut container =
        builder.as_init(temporary).with_systemd(false).as_sibling(true).build().map_err(words)?;
    let pid = container.pid().ok_or("libcontainer did not name the init process")?;
    report::tell(&job.report, &Report::Process(pid.as_raw()), &[]);
    if let Some(console) = console {
        // init has sent the terminal before build returned: nothing is waited for.
        let (socket, _) = console.accept().map_err(|error| format!("the terminal: {error}"))?;
        let received = wire::receive_packet(&socket).map_err(|error| format!("the terminal: {error}"))?;
        let terminal = received.and_then(|(_, mut files)| files.pop()).ok_or("the terminal did not come")?;
        report::tell(&job.report, &Report::Terminal, &[std::os::fd::AsFd::as_fd(&terminal)]);
    }
    let at = SystemTime::now();
    container.start().map_err(words)?;
    report::tell(&job.report, &Report::Started(at), &[]);
    Ok(())
}

/// Fits the spec to this machine and to what the daemon leaves to the shim.
fn adapt(spec: &mut Spec, job: &Job) -> Result<(), String> {
    let mut root = spec.root().clone().ok_or("config.json: root is missing")?;
    root.set_path(job.bundle.join(root.path()));
    spec.set_root(Some(root));

    let mut linux = spec.linux().clone().ok_or("config.json: linux is missing")?;
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    for (kind, fd) in &job.join {
        namespaces.retain(|namespace| namespace.typ() != *kind);
        namespaces.push(joined(*kind, fd)?);
    }
    linux.set_namespaces(Some(namespaces));
    if let Some(mut profile) = linux.seccomp().clone() {
        seccomp::adapt(&mut profile)?;
        linux.set_seccomp(Some(profile));
    }
    spec.set_linux(Some(linux));

    let mut process = spec.process().clone().ok_or("config.json: process is missing")?;
    let terminal = process.terminal().unwrap_or(false);
    if terminal != matches!(job.streams, Streams::Terminal) {
        return Err("config.json: process.terminal differs from the container's tty".into());
    }
    process.set_oom_score_adj(Some(allowed_oom_score(process.oom_score_adj().unwrap_or(0))));
    // libcontainer takes `false` as a wish to load the seccomp filter late, which then fails.
    process.set_no_new_privileges(process.no_new_privileges().filter(|wanted| *wanted));
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err("config.json: process.args is empty: name a program".into());
    }
    spec.set_process(Some(process));
    Ok(())
}

fn joined(kind: LinuxNamespaceType, fd: &OwnedFd) -> Result<LinuxNamespace, String> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    LinuxNamespaceBuilder::default().typ(kind).path(path).build().map_err(|error| error.to_string())
}

/// The nearest score that this process may set: going below its own needs CAP_SYS_RESOURCE.
pub(super) fn allowed_oom_score(wanted: i32) -> i32 {
    let file = "/proc/self/oom_score_adj";
    if fs::write(file, wanted.to_string()).is_ok() {
        return wanted;
    }
    fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// An error with all its causes, each once.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !words.contains(&text) {
            words = format!("{words}: {text}");
        }
        cause = error.source();
    }
    words
}

/// What libcontainer runs as the container's init once everything is set up.
#[derive(Clone)]
struct Workload {
    report: Rc<OwnedFd>,
}

impl Executor for Workload {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let (args, env) = command(spec);
        let program = args.first().map_or("", String::as_str);
        workload::check(program, &env).map_err(|words| {
            report::tell_failure(&self.report, &words);
            ExecutorValidationError::ArgValidationError(words)
        })
    }

    fn setup_envs(&self, _: std::collections::HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // The map has lost the order; `exec` takes the environment from the spec.
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let (args, env) = command(spec);
        sys::reset_signals();
        let words = workload::execute(&args, &env);
        report::tell_failure(&self.report, &words);
        Err(ExecutorError::Other(words))
    }
}

fn command(spec: &Spec) -> (Vec<String>, Vec<String>) {
    let Some(process) = spec.process() else { return Default::default() };
    let env = process.env().clone().unwrap_or_default();
    let env = workload::environment(&env, process.user().uid());
    (process.args().clone().unwrap_or_default(), env)
}
