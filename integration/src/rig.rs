//! Everything a black-box test stands on: a machine, a registry with our images, a CNI network, the
//! daemon, and the state of the machine before the test, which must be its state afterwards too.

use std::{
    fs, io,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use podhold_proto::cri::{ContainerConfig, PodSandboxConfig, PortMapping};
use tokio::time::{Instant, interval};

use crate::{
    cgroup, configs,
    cri::Cri,
    daemon::{self, Daemon, Places},
    leaks::{Kind, Leak, Snapshot},
    machine::Machine,
    programs, store,
};

/// The registry's address in every machine.
pub const REGISTRY: &str = "127.0.0.1:5000";

/// A shell and tools.
pub const BUSYBOX: &str = "127.0.0.1:5000/busybox:1";

/// `podhold-probe`, and nothing else.
pub const PROBE: &str = "127.0.0.1:5000/probe:1";

/// The bridge that pods are connected to.
pub const BRIDGE: &str = "podhold-it";

/// The bridge of the built-in network, where that is under test.
pub const BUILT_IN: &str = "podhold-own";

/// How long what a test has ended may take to be gone: the kernel removes namespaces, links and
/// cgroups some time after their last user.
const SETTLE: Duration = Duration::from_secs(90);

/// How long the registry may take to start.
const PATIENCE: Duration = Duration::from_secs(180);

static NEXT: AtomicU32 = AtomicU32::new(1);

/// What a black-box test stands on. End it with [`finish`](Self::finish).
#[derive(Debug)]
pub struct Rig {
    // First, so that it is dropped while the log is still there.
    _last_words: LastWords,
    /// The machine.
    pub machine: Machine,
    /// The daemon in it.
    pub daemon: Daemon,
    /// Where the daemon's things are.
    pub places: Places,
    /// The cgroup, beneath every hierarchy's root, that holds everything of this test. No leading `/`.
    pub cgroup: String,
    registry: i32,
    before: Snapshot,
    images: Vec<String>,
}

impl Rig {
    /// Sets everything up, pulls [`BUSYBOX`] and [`PROBE`], and remembers the state of the machine.
    ///
    /// # Panics
    /// When something does not start: there is nothing to test then.
    pub async fn start() -> Self {
        Self::start_on(Network::Cni).await
    }

    /// As [`start`](Self::start), on this network.
    ///
    /// # Panics
    /// When something does not start.
    pub async fn start_on(on: Network) -> Self {
        let cgroup = format!("podhold-it-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let cgroup = cgroup::DRIVER.top(&cgroup);
        cgroup::remove_abandoned();
        // Filled here once, so that the registries in the machines find it ready.
        store::directory().await.expect("build the test images");
        let machine = Machine::start().await.expect("start a machine");
        let places = Places::new(machine.directory());
        places.make().expect("make the daemon's directories");
        places.allow_plain_http(REGISTRY).expect("write hosts.toml");
        let mut configuration = daemon::configuration(&places, &cgroup);
        match on {
            Network::Cni => {
                fs::write(places.cni().join("10-podhold.conflist"), network()).expect("write the network");
            }
            Network::BuiltIn(kind) => {
                configuration += &format!("[network]\nkind = {kind:?}\nbridge = {BUILT_IN:?}\n");
            }
        }
        fs::write(places.config(), configuration).expect("write the configuration");
        let registry = start_registry(&machine).await;
        let daemon = Daemon::start(&machine, &places).await.unwrap_or_else(|error| panic!("{error}"));
        let last_words = LastWords(places.clone());
        let mut rig = Self {
            machine,
            daemon,
            places,
            cgroup,
            registry,
            before: Snapshot::default(),
            images: Vec::new(),
            _last_words: last_words,
        };
        rig.images = vec![rig.pull(BUSYBOX).await, rig.pull(PROBE).await];
        rig.leave_what_stays().await;
        rig.before = rig.snapshot().await;
        rig
    }

    /// The cgroup of a pod, beneath every hierarchy's root, that names none of its own. No leading `/`.
    pub fn pod_cgroup(&self, pod: &str) -> String {
        cgroup::DRIVER.pod(&self.cgroup, pod)
    }

    /// A client of the daemon.
    pub fn cri(&self) -> &Cri {
        &self.daemon.cri
    }

    /// An ordinary pod's configuration.
    pub fn pod(&self, name: &str) -> PodSandboxConfig {
        configs::pod(name, &self.places.pod_logs())
    }

    /// Starts a container that runs `podhold-probe` with these words.
    pub async fn probe(&self, pod: &str, config: &PodSandboxConfig, name: &str, words: &[&str]) -> String {
        self.run(pod, config, &configs::container(name, PROBE, words)).await
    }

    /// Creates and starts a container.
    ///
    /// # Panics
    /// When that fails.
    pub async fn run(&self, pod: &str, config: &PodSandboxConfig, container: &ContainerConfig) -> String {
        self.cri().run(pod, config, container).await.unwrap_or_else(|status| panic!("run: {status}"))
    }

    /// Ends the daemon as a crash does, and starts it again.
    ///
    /// # Panics
    /// When it does not come back.
    pub async fn crash_and_restart(&mut self) {
        self.daemon.kill(&self.machine).await.unwrap_or_else(|error| panic!("{error}"));
        let again = Daemon::start(&self.machine, &self.places).await;
        self.daemon = again.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Ends the daemon as an administrator does, and starts it again.
    ///
    /// # Panics
    /// When it does not end well or does not come back.
    pub async fn restart(&mut self) {
        let code = self.daemon.stop(&self.machine).await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(code, 0, "exit code of the daemon after TERM");
        let again = Daemon::start(&self.machine, &self.places).await;
        self.daemon = again.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Starts the daemon again, which the test has ended.
    ///
    /// # Panics
    /// When it does not come back.
    pub async fn restart_stopped(&mut self) {
        let again = Daemon::start(&self.machine, &self.places).await;
        self.daemon = again.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Ends everything in the machine at once, as a loss of power does, and boots it anew: namespaces, links,
    /// rules and mounts are gone, and the run directory's content too where it is `lost`. Answers how long
    /// the daemon took to come back.
    ///
    /// Cgroups stay, since they are the real host's. Before [`finish`](Self::finish) run
    /// [`leave_what_stays`](Self::leave_what_stays).
    ///
    /// # Panics
    /// When the machine or the daemon does not come back.
    pub async fn reboot(&mut self, run: RunDirectory) -> Duration {
        self.machine.reboot().await.unwrap_or_else(|error| panic!("{error}"));
        if run == RunDirectory::Lost {
            fs::remove_dir_all(self.places.run()).expect("empty the run directory");
        }
        fs::remove_file(self.machine.directory().join("registry.log")).expect("remove the registry's log");
        self.registry = start_registry(&self.machine).await;
        let fresh = self.snapshot().await;
        let kinds = [Kind::Mount, Kind::Namespace, Kind::Process];
        self.before = std::mem::take(&mut self.before).with(&kinds, &fresh);
        let begun = Instant::now();
        let again = Daemon::start(&self.machine, &self.places).await;
        self.daemon = again.unwrap_or_else(|error| panic!("{error}"));
        begun.elapsed()
    }

    /// The daemon's pid as this process sees it.
    ///
    /// # Panics
    /// When it does not run.
    pub fn daemon_on_the_host(&self) -> u32 {
        self.machine.host_pid(self.daemon.pid).expect("find the daemon among the host's processes")
    }

    /// Expects the files beneath `directory` to be gone at the end: they are in the machine's memory.
    pub fn expect_gone(&mut self, directory: &str) {
        self.before = std::mem::take(&mut self.before).without_files(directory);
    }

    /// Compares the machine with what it was before the test, then ends everything.
    ///
    /// # Panics
    /// When anything is left behind or missing.
    pub async fn finish(self) {
        for image in self.cri().list_images().await.expect("list images") {
            if !self.images.contains(&image.id) {
                self.cri().remove_image(&image.id).await.expect("remove an image");
            }
        }
        let leaks = self.leaks().await;
        let list: Vec<String> = leaks.iter().map(ToString::to_string).collect();
        assert!(leaks.is_empty(), "the test has left something:\n{}", list.join("\n"));
        let code = self.daemon.stop(&self.machine).await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(code, 0, "exit code of the daemon after TERM");
        self.machine.stop().await.unwrap_or_else(|error| panic!("{error}"));
        cgroup::remove(&self.cgroup);
    }

    /// Ends everything as it is, without comparing anything.
    pub async fn give_up(self) {
        let Self { machine, cgroup, .. } = self;
        if let Err(error) = machine.stop().await {
            eprintln!("{error}");
        }
        // The kernel lets go of what was killed a moment later.
        let deadline = Instant::now() + SETTLE;
        let mut ticks = interval(Duration::from_millis(100));
        while !cgroup::remove(&cgroup) && Instant::now() < deadline {
            ticks.tick().await;
        }
    }

    /// What there is now and was not before the test, or the other way round; looked at until there is
    /// nothing, or for a while.
    pub async fn leaks(&self) -> Vec<Leak> {
        let deadline = Instant::now() + SETTLE;
        // Nothing tells when the kernel has cleaned up: it has to be looked at again.
        let mut ticks = interval(Duration::from_millis(100));
        loop {
            ticks.tick().await;
            let mut leaks = self.before.compare(&self.snapshot().await);
            // A daemon that ends well takes the empty cgroup of all pods with it; the next pod makes it again.
            leaks.retain(|leak| {
                leak.kind != Kind::Cgroup || leak.after > 0 || !leak.thing.ends_with(&self.cgroup)
            });
            // Slices are whoever's who has named them: the test's, or here systemd's.
            leaks.retain(|leak| leak.kind != Kind::Cgroup || !leak.thing.ends_with(".slice"));
            if leaks.is_empty() || Instant::now() >= deadline {
                return leaks;
            }
        }
    }

    /// Everything of the machine that the daemon could have made.
    ///
    /// # Panics
    /// When the machine cannot be looked at.
    pub async fn snapshot(&self) -> Snapshot {
        let mut words = vec![programs::built("podhold-machine").display().to_string(), "snapshot".into()];
        let mut option = |name: &str, value: String| words.extend([format!("--{name}"), value]);
        option("cgroup", self.cgroup.clone());
        option("except-link", BRIDGE.to_owned());
        option("except-link", BUILT_IN.to_owned());
        option("except-pid", self.daemon.pid.to_string());
        option("except-pid", self.registry.to_string());
        for directory in [self.places.run(), self.places.state(), "/var/lib/cni".into()] {
            option("files", directory.display().to_string());
        }
        let text = self.machine.run_well(words).await.expect("take a snapshot");
        serde_json::from_str(&text).expect("a snapshot is JSON")
    }

    async fn pull(&self, image: &str) -> String {
        self.cri().pull(image).await.unwrap_or_else(|status| panic!("pull {image}: {status}"));
        let spec = podhold_proto::cri::ImageSpec { image: image.to_owned(), ..Default::default() };
        let request = podhold_proto::cri::ImageStatusRequest { image: Some(spec), verbose: false };
        let answer = self.cri().images.clone().image_status(request).await.expect("ask for an image");
        answer.into_inner().image.unwrap_or_else(|| panic!("{image} is not there after its pull")).id
    }

    /// Runs one pod with a host port. CNI plugins make some things once for all pods and never remove
    /// them: the bridge, and the tables and chains for host ports.
    ///
    /// # Panics
    /// When the pod does not run.
    pub async fn leave_what_stays(&self) {
        let mut config = self.pod("first");
        config.port_mappings =
            vec![PortMapping { container_port: 80, host_port: 65000, ..Default::default() }];
        let pod = self.cri().run_pod(&config).await.unwrap_or_else(|status| panic!("first pod: {status}"));
        let container = self.probe(&pod, &config, "first", &["exit", "0"]).await;
        let ended = self.cri().ended(&container, PATIENCE).await;
        ended.unwrap_or_else(|status| panic!("first container: {status}"));
        self.cri().end_pod(&pod).await.unwrap_or_else(|status| panic!("end the first pod: {status}"));
    }
}

/// Which network pods join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Debian's CNI plugins.
    Cni,
    /// Podhold's own, without any CNI configuration; `network.kind` of the configuration.
    BuiltIn(&'static str),
}

/// What becomes of the run directory in a reboot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunDirectory {
    /// It is empty, as a tmpfs is.
    Lost,
    /// It is on a disk.
    Kept,
}

/// Shows the end of the daemon's log when a test fails.
#[derive(Debug)]
struct LastWords(Places);

impl Drop for LastWords {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = daemon::log(&self.0);
            let lines: Vec<&str> = log.lines().collect();
            let last = lines.len().saturating_sub(60);
            eprintln!("the daemon's last words:\n{}", lines[last..].join("\n"));
        }
    }
}

pub(crate) async fn start_registry(machine: &Machine) -> i32 {
    let log = machine.directory().join("registry.log");
    let words = [programs::built("podhold-fixtures").display().to_string()];
    let words: Vec<String> =
        words.into_iter().chain(["serve", "--port", "5000"].map(str::to_owned)).collect();
    let pid =
        machine.spawn(&words, std::collections::BTreeMap::new(), &log).await.expect("start the registry");
    let mut ticks = interval(Duration::from_millis(20));
    let deadline = Instant::now() + PATIENCE;
    while !said(&log, REGISTRY).expect("read the registry's log") {
        ticks.tick().await;
        assert!(Instant::now() < deadline, "the registry does not start: {:?}", fs::read_to_string(&log));
    }
    pid
}

fn said(log: &Path, word: &str) -> io::Result<bool> {
    Ok(fs::read_to_string(log)?.contains(word))
}

/// A bridge with both address families, and host ports.
pub fn network() -> String {
    serde_json::json!({
        "cniVersion": "1.0.0",
        "name": "podhold-it",
        "plugins": [
            {
                "type": "bridge", "bridge": BRIDGE, "isGateway": true, "ipMasq": true, "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "fd00:88::/64"}]],
                    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
    .to_string()
}
