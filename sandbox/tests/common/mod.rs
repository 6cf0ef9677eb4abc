//! A pod on this machine, for tests: temporary directories, a root filesystem made of busybox, cgroups
//! beneath `/podhold-shimtest-…`.

#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};
use podhold_cgroups::CgroupPath;
use podhold_sandbox::{
    ContainerId, Layout, PodId, bundle,
    client::{ShimConfig, ShimLauncher},
    launch::{
        ExecEnd, ExecIo, ExecSpec, Exit, Launcher, LivePod, NamespaceJoin, NamespaceKind, NamespaceOf,
        OpenPod, PodEvent, PodSpec, StartSpec, Started,
    },
};
use tempfile::TempDir;
use tokio::sync::mpsc::UnboundedReceiver;

/// Longer than anything here takes.
pub const LIMIT: Duration = Duration::from_secs(30);
const APPLETS: &str = "sh sleep echo cat id kill ls readlink true false seq grep head hostname yes mkdir \
                       touch stat dd wc sync setsid tr ps env pwd printf tty stty usleep rm nohup find sort";

/// Whether the machine lets these tests run.
pub fn possible() -> bool {
    let root = rustix::process::geteuid().is_root();
    let busybox = Path::new("/bin/busybox").exists();
    if !root || !busybox {
        println!("SKIPPED: needs root and /bin/busybox (package busybox-static)");
    }
    root && busybox
}

/// A host for one pod.
pub struct Host {
    pub directory: TempDir,
    pub layout: Layout,
    pub pod: PodId,
    pub cgroup: CgroupPath,
    pub launcher: ShimLauncher,
}

pub fn launcher(layout: &Layout) -> ShimLauncher {
    ShimLauncher::new(ShimConfig {
        layout: layout.clone(),
        // Another build of the shim, to be measured.
        shim_binary: std::env::var_os("PODHOLD_SHIM")
            .unwrap_or_else(|| env!("CARGO_BIN_EXE_podhold-shim").into())
            .into(),
        attach: Arc::new(attach),
        shim_cgroup: None,
        open_timeout: LIMIT,
    })
}

/// The mount points of all cgroup hierarchies that hold resources.
fn hierarchies() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let cgroup = |line: &&str| line.contains(" - cgroup");
    table.lines().filter(cgroup).map(|line| line.split(' ').nth(4).unwrap().into()).collect()
}

fn attach(cgroup: &CgroupPath, pid: u32) -> std::io::Result<()> {
    for mount in hierarchies().iter().filter(|mount| mount.ends_with("pids") || mount.ends_with("cgroup")) {
        let directory = mount.join(cgroup.relative());
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("cgroup.procs"), pid.to_string())?;
    }
    Ok(())
}

impl Host {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = tempfile::tempdir().unwrap();
        // Long enough that socket paths do not fit into a socket address.
        let long = "a-directory-with-a-long-name-".repeat(4);
        let layout = Layout::new(directory.path().join(long).join("run"), directory.path().join("state"));
        let cgroup = format!("/podhold-shimtest-{}-{number}", std::process::id());
        Self {
            launcher: launcher(&layout),
            pod: PodId::parse(&format!("pod{number}")).unwrap(),
            cgroup: CgroupPath::parse(&cgroup).unwrap(),
            layout,
            directory,
        }
    }

    pub fn spec(&self) -> PodSpec {
        PodSpec {
            id: self.pod.clone(),
            netns: None,
            in_user_namespace: false,
            hostname: Some("pod-host".into()),
            own_ipc: true,
            shared_pid: false,
            sysctls: Default::default(),
            pause_cgroup: self.cgroup.child("pause"),
            pause_oom_score_adj: -998,
        }
    }

    pub async fn open(&self) -> Pod {
        self.open_as(self.spec()).await
    }

    pub async fn open_as(&self, spec: PodSpec) -> Pod {
        let OpenPod { pod, events } = self.launcher.open_pod(spec).await.unwrap();
        Pod { live: pod, events }
    }

    pub fn log(&self, id: &ContainerId) -> PathBuf {
        self.directory.path().join(format!("{id}.log"))
    }

    pub fn log_text(&self, id: &ContainerId) -> String {
        fs::read_to_string(self.log(id)).unwrap()
    }

    /// The logger process of the open pod.
    pub fn logger(&self) -> u32 {
        let path = self.directory.path().to_string_lossy().into_owned();
        let ours = |process: &u32| {
            let read = |name: &str| fs::read(format!("/proc/{process}/{name}")).unwrap_or_default();
            String::from_utf8_lossy(&read("cmdline")).contains(&path) && read("comm") == b"podhold-logger\n"
        };
        processes().into_iter().find(ours).unwrap()
    }

    /// A bundle that runs `sh -c script`, and how to start it.
    pub fn shell(&self, id: &str, script: &str) -> StartSpec {
        self.container(id, &["sh", "-c", script], |_| {})
    }

    pub fn container(&self, id: &str, args: &[&str], change: impl FnOnce(&mut Spec)) -> StartSpec {
        let id = ContainerId::parse(id).unwrap();
        let mut spec = Spec::default();
        let mut process = Process::default();
        process.set_terminal(Some(false));
        process.set_args(Some(args.iter().map(ToString::to_string).collect()));
        process.set_env(Some(vec!["PATH=/bin".into(), "B=1".into(), "A=2".into()]));
        process.set_no_new_privileges(Some(true));
        spec.set_process(Some(process));
        let mut root = spec.root().clone().unwrap();
        root.set_path("rootfs".into()).set_readonly(Some(false));
        spec.set_root(Some(root));
        spec.set_hostname(None);
        let mounts = spec.mounts().clone().unwrap();
        spec.set_mounts(Some(mounts.into_iter().filter(|m| m.typ().as_deref() != Some("cgroup")).collect()));
        let mut linux = spec.linux().clone().unwrap();
        linux.set_cgroups_path(Some(self.cgroup.child(id.as_str()).as_str().into()));
        let namespaces = linux.namespaces().clone().unwrap();
        let kept = namespaces.into_iter().filter(|n| n.typ() != LinuxNamespaceType::Network);
        linux.set_namespaces(Some(kept.collect()));
        spec.set_linux(Some(linux));
        change(&mut spec);
        bundle::create(&self.layout, &self.pod, &id, &spec).unwrap();
        make_rootfs(&self.layout.rootfs(&self.pod, &id));
        let join = [NamespaceKind::Ipc, NamespaceKind::Uts, NamespaceKind::Net]
            .map(|kind| NamespaceJoin { kind, of: NamespaceOf::Pod });
        StartSpec {
            log_path: Some(self.log(&id)),
            id,
            join: join.into(),
            tty: false,
            stdin: false,
            stdin_once: false,
        }
    }

    /// Everything of the pod that is left on this machine, in words.
    pub fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for process in processes() {
            let read = |name: &str| fs::read(format!("/proc/{process}/{name}")).unwrap_or_default();
            let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            let cgroup = String::from_utf8_lossy(&read("cgroup")).into_owned();
            let ours = command.contains(&*self.directory.path().to_string_lossy());
            if ours || cgroup.contains(self.cgroup.as_str()) {
                left.push(format!("process {process}: {command}"));
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let ours = |line: &&str| line.contains(&*self.directory.path().to_string_lossy());
        left.extend(mounts.lines().filter(ours).map(|line| format!("mount {line}")));
        for mount in hierarchies() {
            let entries = fs::read_dir(mount.join(self.cgroup.relative())).into_iter().flatten().flatten();
            let containers = entries.filter(|entry| entry.path().is_dir() && entry.file_name() != "pause");
            left.extend(containers.map(|entry| format!("cgroup {}", entry.path().display())));
        }
        if self.layout.shim_socket(&self.pod).exists() {
            left.push("the socket".into());
        }
        left
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // A test that failed has left its shim.
        for process in processes() {
            let command = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&command).contains(&*self.directory.path().to_string_lossy()) {
                let pid = rustix::process::Pid::from_raw(process.cast_signed()).unwrap();
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        for mount in hierarchies() {
            let directory = mount.join(self.cgroup.relative());
            let pids =
                |directory: &Path| fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            let children: Vec<PathBuf> =
                fs::read_dir(&directory).into_iter().flatten().flatten().map(|e| e.path()).collect();
            for child in children.iter().filter(|child| child.is_dir()).chain([&directory]) {
                let until = Instant::now() + Duration::from_secs(5);
                while child.exists() && fs::remove_dir(child).is_err() && Instant::now() < until {
                    for pid in pids(child).lines().filter_map(|pid| pid.parse().ok()) {
                        let pid = rustix::process::Pid::from_raw(pid).unwrap();
                        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                    }
                    std::thread::yield_now();
                }
            }
        }
    }
}

pub fn processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn make_rootfs(root: &Path) {
    for directory in ["bin", "etc", "proc", "dev", "sys", "tmp"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")
        .unwrap();
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(root, readable).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in APPLETS.split_whitespace() {
        fs::hard_link(root.join("bin/busybox"), root.join("bin").join(applet)).unwrap();
    }
}

/// An open pod and its events.
pub struct Pod {
    pub live: Arc<dyn LivePod>,
    pub events: UnboundedReceiver<PodEvent>,
}

impl Pod {
    pub async fn event(&mut self) -> PodEvent {
        tokio::time::timeout(LIMIT, self.events.recv()).await.expect("an event in time").unwrap()
    }

    pub async fn exit(&mut self, of: &ContainerId) -> Exit {
        match self.event().await {
            PodEvent::ContainerExited(id, exit) if id == *of => exit,
            other => panic!("not the exit of {of}: {other:?}"),
        }
    }

    pub async fn run(&mut self, start: StartSpec) -> Exit {
        let id = start.id.clone();
        self.live.start(start).await.unwrap();
        self.exit(&id).await
    }

    /// Runs a process in the container: its end and what it has written.
    pub async fn exec(
        &self,
        container: &ContainerId,
        process: Process,
        timeout: Option<Duration>,
    ) -> (ExecEnd, String) {
        let (output, stdout) = std::io::pipe().unwrap();
        let stderr = stdout.try_clone().unwrap();
        let io = ExecIo::Files { stdin: None, stdout: Some(stdout.into()), stderr: Some(stderr.into()) };
        let spec = ExecSpec { container: container.clone(), process, io, timeout };
        let mut session = self.live.exec(spec).await.unwrap();
        let read = tokio::task::spawn_blocking(move || std::io::read_to_string(output).unwrap());
        let end = tokio::time::timeout(LIMIT, session.wait()).await.expect("it ends in time").unwrap();
        (end, read.await.unwrap())
    }

    pub async fn close(self, host: &Host) {
        tokio::time::timeout(LIMIT, self.live.close()).await.expect("closed in time").unwrap();
        // The kernel may still be tearing down what has been reaped (a detached mount namespace).
        until("nothing is left", || {
            host.left().is_empty() || {
                eprintln!("{:?}", host.left());
                false
            }
        });
    }
}

/// A process for exec that runs `sh -c script` as root.
pub fn shell(script: &str) -> Process {
    let mut process = Process::default();
    process.set_terminal(Some(false));
    process.set_args(Some(["sh", "-c", script].map(String::from).into()));
    process.set_env(Some(vec!["PATH=/bin".into()]));
    process
}

pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < limit, "never came true: {what}");
        std::thread::yield_now();
    }
}

pub async fn until_async(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let limit = Instant::now() + LIMIT;
    while !holds().await {
        assert!(Instant::now() < limit, "never came true: {what}");
    }
}

pub fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

pub fn namespace(pid: u32, name: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap()
}

pub fn started(started: Started) -> u32 {
    started.pid
}
