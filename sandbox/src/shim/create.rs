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
use oci_spec::runtime::{
    LinuxCapabilities, LinuxIdMapping, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType,
    LinuxSeccompFilterFlag, Spec,
};

use super::{
    capability,
    device_directory::{self, DeviceDirectory},
    overmount, propagation,
    report::{self, Report},
    seccomp, stage, workload,
};
use crate::{ContainerId, Layout, PodId, bundle, sys, wire};

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

/// Where the creator mounts sources of binds in its own mount namespace. Never inside [`temporary`], which
/// is removed with all that is in it.
pub(super) fn staging(temporary: &Path) -> PathBuf {
    temporary.with_extension("mounts")
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
    let mut spec: Spec = bundle::config(&job.bundle).map_err(|error| error.to_string())?;
    let linux = spec.linux().as_ref().ok_or("config.json: linux is missing")?;
    let cgroup = linux.cgroups_path().as_ref().and_then(|path| path.to_str());
    let cgroup = cgroup.filter(|path| podhold_cgroups::CgroupPath::parse(path).is_ok());
    let cgroup = cgroup.ok_or("config.json: linux.cgroupsPath must name a cgroup, such as /pods/a")?;
    let cgroup = cgroup.to_owned();
    report::tell(&job.report, &Report::Cgroup(cgroup.clone()), &[]);
    let confinement = adapt(&mut spec, job)?;
    let devices = device_directory::take(&mut spec)?.map(|directory| (directory, cgroup));
    if let Streams::Files(files) = &job.streams {
        let map = spec.linux().as_ref().and_then(|linux| linux.uid_mappings().as_deref());
        let user = spec.process().as_ref().map_or(0, |process| process.user().uid());
        own_streams(map.unwrap_or_default(), user, files)?;
    }
    if let Some((_, user)) = job.join.iter().find(|(kind, _)| *kind == LinuxNamespaceType::User) {
        if devices.is_some() {
            return Err("/dev of a pod with users of its own cannot be replaced".into());
        }
        stage::enter(&mut spec, user, &[&job.bundle, &job.state])?;
        return save_and_run(job, &spec, temporary, Extra { confinement, devices });
    }
    let staged = propagation::stage(&mut spec, &staging(temporary))?;
    let ran = save_and_run(job, &spec, temporary, Extra { confinement, devices });
    if let Some(staged) = staged {
        staged.finish();
    }
    ran
}

/// What is left to us beside libcontainer.
struct Extra {
    confinement: Option<Confinement>,
    /// With the container's cgroup.
    devices: Option<(DeviceDirectory, String)>,
}

fn save_and_run(job: &Job, spec: &Spec, temporary: &Path, extra: Extra) -> Result<(), String> {
    let _ = fs::remove_dir_all(temporary);
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(temporary);
    made.map_err(|error| format!("{}: {error}", temporary.display()))?;
    let config = temporary.join("config.json");
    spec.save(&config).map_err(|error| format!("{}: {}", config.display(), chain(&error)))?;
    run_libcontainer(job, temporary, extra)
}

fn run_libcontainer(job: &Job, temporary: &Path, extra: Extra) -> Result<(), String> {
    let report = Rc::new(job.report.try_clone().map_err(|error| error.to_string())?);
    let words = |error: libcontainer::error::LibcontainerError| chain(&error);
    let mut builder = ContainerBuilder::new(job.id.to_string(), SyscallType::default())
        .with_executor(Workload { report, confinement: extra.confinement.map(Rc::new) })
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
    if let Some((devices, cgroup)) = &extra.devices {
        devices.place(pid.as_raw(), cgroup)?;
    }
    let at = SystemTime::now();
    container.start().map_err(words)?;
    report::tell(&job.report, &Report::Started(at), &[]);
    Ok(())
}

/// What libcontainer is not asked to do, since it would compile the seccomp profile anew: without
/// no_new_privs a filter is loaded before the capabilities go, so these are left to us too.
struct Confinement {
    program: Vec<u8>,
    flags: Vec<LinuxSeccompFilterFlag>,
    capabilities: Option<LinuxCapabilities>,
    no_new_privileges: bool,
}

impl Confinement {
    /// The last steps before the workload, in the same order as those of an exec.
    fn enter(&self) -> Result<(), String> {
        self.capabilities.as_ref().map_or(Ok(()), capability::bound)?;
        if !self.no_new_privileges {
            capability::raise()?;
            seccomp::load(&self.program, &self.flags)?;
        }
        self.capabilities.as_ref().map_or(Ok(()), capability::take)?;
        if self.no_new_privileges {
            seccomp::load(&self.program, &self.flags)?;
        }
        Ok(())
    }
}

/// Fits the spec to this machine and to what the daemon leaves to the shim; gives what it takes out.
fn adapt(spec: &mut Spec, job: &Job) -> Result<Option<Confinement>, String> {
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
    let mut profile = linux.seccomp().clone();
    let program = if profile.is_some() { seccomp::program(&job.bundle)? } else { None };
    let ready = profile.take_if(|_| program.is_some()).zip(program);
    profile.as_mut().map(seccomp::adapt).transpose()?;
    linux.set_seccomp(profile);
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
    let confinement = ready.map(|(profile, program)| Confinement {
        program,
        flags: profile.flags().clone().unwrap_or_default(),
        capabilities: process.capabilities().clone(),
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
    });
    if confinement.is_some() {
        process.set_capabilities(None);
    }
    spec.set_process(Some(process));
    Ok(confinement)
}

/// Gives the pipes among them to the user, so that the workload can open them anew as `/dev/stdout`.
pub(super) fn own_streams(map: &[LinuxIdMapping], uid: u32, files: &[OwnedFd; 3]) -> Result<(), String> {
    let owner = if map.is_empty() { Some(uid) } else { stage::on_host(map, uid) };
    let owner = owner.ok_or_else(|| format!("user {uid} is not mapped in the pod's user namespace"))?;
    for file in files {
        let pipe = rustix::fs::fstat(file).map_err(|error| format!("look at a standard stream: {error}"))?;
        if rustix::fs::FileType::from_raw_mode(pipe.st_mode) == rustix::fs::FileType::Fifo {
            rustix::fs::fchown(file, Some(rustix::fs::Uid::from_raw(owner)), None)
                .map_err(|error| format!("give a standard stream to its user: {error}"))?;
        }
    }
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
    confinement: Option<Rc<Confinement>>,
}

impl Executor for Workload {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let (args, env) = command(spec);
        let program = args.first().map_or("", String::as_str);
        overmount::check(spec).and_then(|()| workload::check(program, &env)).map_err(|words| {
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
        let confined = self.confinement.as_ref().map_or(Ok(()), |confinement| confinement.enter());
        let words = confined.map_or_else(|words| words, |()| workload::execute(&args, &env));
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
