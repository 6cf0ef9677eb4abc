//! The verbs: what can be asked of pods, containers and images on this host.
//!
//! The gRPC service and `podhold run` both call these and nothing below them. Each changing verb runs in
//! a task of its own (see [`flight`]) and follows claim, act, commit (see [`crate::state`]).

mod archives;
mod check;
mod confinement;
mod container;
mod create;
mod damaged;
mod devices;
mod exec;
mod files;
mod flight;
mod image;
mod layers;
mod metrics;
mod network_status;
mod pod;
mod pod_network;
mod pod_resources;
mod preload;
mod prepare;
mod propagation;
mod reach;
mod recover;
mod room;
pub mod session;
mod stats;
mod stop;
mod teardown;
mod tree;
mod upkeep;
mod users;
mod volumes;
mod waits;
mod watch;

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use oci_spec::runtime::Capability;
use podhold_cgroups::{CgroupPath, Cgroups, Choice, Driver};
use podhold_image::Images;
use podhold_sandbox::{
    ContainerId, Layout, PodId,
    client::{ShimConfig, ShimLauncher},
    launch::Launcher,
    network::{Networks, bridge::BridgeConfig, cni::CniConfig},
};

pub use self::{
    archives::Pruned,
    exec::ExecOutput,
    image::credentials,
    metrics::{ContainerReading, Disk, PodReading, Reading},
    reach::{Purpose, look_up},
    room::Room,
    stats::{ContainerUsage, PodUsage},
};
pub(crate) use self::{files::host_resolv_conf, recover::lost_cgroups};
use self::{flight::Flights, recover::Boot};
use crate::{
    config::Config,
    error::{Error, Result},
    lsm::apparmor::{self, OwnProfile},
    state::{Container, Pod, Store},
};

/// How long a shim may take to open its pod.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// The name of the built-in runtime handler; the empty name means it too.
pub const HANDLER: &str = "podhold";

/// All that runs on this host, and everything needed to change it.
#[derive(Debug)]
pub struct Runtime {
    config: Config,
    layout: Layout,
    store: Store,
    cgroups: Cgroups,
    cgroup_parent: CgroupPath,
    images: Images,
    networks: Arc<Networks>,
    launcher: Arc<dyn Launcher>,
    own_profile: OwnProfile,
    /// What this daemon itself may hand on to containers.
    bounding: HashSet<Capability>,
    /// Whether this host can give pods users of their own; found out when it is first asked.
    user_namespaces: tokio::sync::Mutex<Option<(bool, Instant)>>,
    under_way: UnderWay,
    /// The boot of the host that this daemon lives in.
    boot: Boot,
    /// Whether paths of the host answer.
    reach: reach::Reach,
    network_status: network_status::NetworkStatus,
    usage: stats::Memory,
    /// Held by who writes or removes the status files of containers; by threads that may block only.
    status_files: std::sync::Mutex<()>,
    /// Held by who looks again at what was damaged: one at a time.
    looking: tokio::sync::Mutex<()>,
    /// Held by who takes up or removes what was damaged. A removal may take long: only removals wait for it.
    healing: tokio::sync::Mutex<()>,
    /// What the state directory's disk has not taken yet.
    undone: upkeep::Undone,
    /// What was last found of that disk.
    last_room: std::sync::Mutex<Room>,
    room_looks: Arc<tokio::sync::Semaphore>,
    /// Held as long as the daemon lives, so that no second one works on the same state.
    _locks: [std::fs::File; 2],
}

/// Verbs under way, by object.
#[derive(Debug, Default)]
struct UnderWay {
    run: Flights<PodId, ()>,
    stop_pod: Flights<PodId, ()>,
    remove_pod: Flights<PodId, ()>,
    create: Flights<ContainerId, ()>,
    start: Flights<ContainerId, ()>,
    stop: Flights<ContainerId, ()>,
    remove: Flights<ContainerId, ()>,
}

impl Runtime {
    /// Opens the state directories, finds what an earlier daemon left running, and undoes what it left
    /// half made.
    pub async fn open(config: Config) -> Result<Arc<Self>> {
        let layout = Layout::new(&config.run_dir, &config.state_dir);
        let locks = {
            let layout = layout.clone();
            blocking("state directories", move || make_directories(&layout)).await?
        };
        let state = layout.state().to_owned();
        let reach = blocking("state directory", move || Ok(reach::Reach::new(&state))).await?;
        let wanted = config.wanted_driver();
        let cgroups = blocking("cgroups", move || {
            let Choice { driver, reason } = Choice::of(wanted)?;
            tracing::info!(%driver, reason, "cgroup driver chosen");
            Cgroups::detect(driver).map_err(Error::from)
        })
        .await?;
        let images = Images::open(image_config(&config))
            .await
            .map_err(|error| Error::image("opening the image store", &error))?;
        let networks = Arc::new(networks(&config)?);
        let boot = {
            let layout = layout.clone();
            blocking("boot id", move || Boot::of_this_host(&layout)).await?
        };
        let launcher = launcher(&config, &layout, &cgroups)?;
        let own_profile = OwnProfile::new(layout.run());
        let runtime = Arc::new(Self {
            cgroup_parent: config.cgroup_parent(cgroups.driver()).map_err(Error::doing("configuration"))?,
            config,
            layout,
            store: Store::default(),
            cgroups,
            images,
            networks,
            launcher,
            own_profile,
            bounding: bounding_set()?,
            user_namespaces: tokio::sync::Mutex::default(),
            under_way: UnderWay::default(),
            boot,
            reach,
            network_status: network_status::NetworkStatus::default(),
            usage: stats::Memory::default(),
            status_files: std::sync::Mutex::default(),
            looking: tokio::sync::Mutex::default(),
            healing: tokio::sync::Mutex::default(),
            undone: upkeep::Undone::default(),
            last_room: std::sync::Mutex::new(Room::Enough),
            room_looks: Arc::new(tokio::sync::Semaphore::new(1)),
            _locks: locks,
        });
        // Said at once, since what follows may fail of it.
        let _said = runtime.room().await;
        runtime.recover().await?;
        runtime.look_after();
        Ok(runtime)
    }

    /// Loads Podhold's AppArmor profile where there is AppArmor, in a task of its own: the first container that
    /// needs it waits for it.
    pub fn load_profile(self: &Arc<Self>) {
        if apparmor::is_enabled() {
            let runtime = Arc::clone(self);
            tokio::spawn(async move { runtime.own_profile.ensure().await });
        }
    }

    /// From now on the built-in network goes with its last pod: for a process that ends with that one.
    pub fn close_with_last(&self) {
        self.networks.close_with_last();
    }

    /// Lets go of what was made for pods in general. Pods that run are left alone, and slices are systemd's.
    pub async fn close(&self) {
        let (cgroups, parent) = (self.cgroups.clone(), self.cgroup_parent.clone());
        let prune = move || match cgroups.driver() {
            Driver::Cgroupfs => cgroups.prune(&parent).map_err(Error::from),
            Driver::Systemd => Ok(()),
        };
        let pruned = blocking("cgroup", prune).await;
        if let Err(error) = pruned {
            tracing::warn!(%error, "parent of the pods' cgroups not removed");
        }
        if let Err(error) = self.networks.close().await {
            tracing::warn!(%error, "built-in network not removed");
        }
    }

    /// The configuration it was opened with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Who makes the pods' cgroups.
    pub fn cgroup_driver(&self) -> Driver {
        self.cgroups.driver()
    }

    /// What is known of pods and containers.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The image store.
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// Where a pod's network namespace is pinned; `None` when it uses the host's.
    pub fn netns(&self, pod: &Pod) -> Option<PathBuf> {
        (!pod.record.host_network()).then(|| self.layout.netns(&pod.record.id))
    }

    /// The OCI specification of a container, for a person to read; `None` when it cannot be read.
    pub fn container_spec(&self, container: &Container) -> Option<serde_json::Value> {
        let bundle = self.layout.bundle(&container.record.pod, &container.record.id);
        podhold_sandbox::bundle::config(&bundle).ok()
    }
}

/// The networks that this configuration has; nothing is made yet.
pub(crate) fn networks(config: &Config) -> Result<Networks> {
    let layout = Layout::new(&config.run_dir, &config.state_dir);
    let cni = CniConfig {
        conf_dir: config.cni.conf_dir.clone(),
        bin_dirs: config.cni.bin_dirs.clone(),
        cache_dir: layout.cni_cache(),
        timeout: config.cni_timeout(),
        netns_dir: Some(layout.netns_dir()),
    };
    let bridge = BridgeConfig {
        dir: layout.bridge(),
        owner: layout.state().to_owned(),
        name: config.network.bridge.clone(),
        v4: config.network.v4().map_err(Error::doing("configuration"))?,
        v6: config.network.v6().map_err(Error::doing("configuration"))?,
        mtu: config.network.mtu,
    };
    Ok(Networks::new(config.network.kind(), cni, bridge))
}

/// Runs blocking work on a thread that may block.
async fn blocking<T: Send + 'static>(
    operation: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::failed(operation, &error)),
    }
}

/// Makes the directories only root can enter, and takes the locks of the two roots.
fn make_directories(layout: &Layout) -> Result<[std::fs::File; 2]> {
    use std::os::unix::fs::MetadataExt;
    for dir in [layout.run(), layout.state(), &layout.pods_run(), &layout.pods_state(), &layout.cni_cache()] {
        prepare::private_dir(dir)?;
        let metadata =
            std::fs::symlink_metadata(dir).map_err(Error::doing(format!("looking at {}", dir.display())))?;
        let link = metadata.is_symlink();
        // The two roots may be links that an administrator has made.
        let metadata = match link && (dir == layout.run() || dir == layout.state()) {
            true => std::fs::metadata(dir).map_err(Error::doing(format!("looking at {}", dir.display())))?,
            false => metadata,
        };
        let dir = dir.display();
        if !metadata.is_dir() {
            return Err(Error::Precondition(format!("{dir} is not a directory; remove it")));
        }
        if metadata.mode() & 0o077 != 0 || metadata.uid() != 0 {
            return Err(Error::Precondition(format!(
                "{dir} can be entered by others than root; give Podhold a directory of its own, or run \
                 chown root {dir} && chmod 700 {dir}"
            )));
        }
    }
    Ok([lock(layout.state())?, lock(layout.run())?])
}

/// How long a lock is waited for: a program that a killed daemon was just about to execute has all that the daemon had
/// open, and with it the locks, until it is executed.
const EXECUTED: Duration = Duration::from_secs(2);

/// Locks a directory itself, in which nothing can be in the way of a lock. Blocks.
#[expect(clippy::disallowed_methods, reason = "a lock can be waited for, but not for a while")]
fn lock(dir: &Path) -> Result<std::fs::File> {
    let file = std::fs::File::open(dir).map_err(Error::doing(format!("opening {}", dir.display())))?;
    let deadline = Instant::now() + EXECUTED;
    let mut locked = rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive);
    while locked == Err(rustix::io::Errno::WOULDBLOCK) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
        locked = rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive);
    }
    match locked {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::Precondition(format!(
            "{} is locked: another podhold uses this directory; stop it or set another state_dir and run_dir",
            dir.display()
        ))),
        Err(error) => Err(Error::failed(format!("locking {}", dir.display()), &error)),
    }
}

fn image_config(config: &Config) -> podhold_image::Config {
    podhold_image::Config {
        dir: config.state_dir.join("images"),
        hosts_dirs: config.image.hosts_dirs.clone(),
        credentials: podhold_image::CredentialSources {
            files: config.image.credential_files.clone(),
            helper_dirs: config.image.credential_helper_dirs.clone(),
        },
        parallel_layers: config.image.parallel_layers,
        pinned: config.image.pinned.clone(),
        stall_timeout: config.stall_timeout(),
        keep_imported: config.image.keep_imported_blobs,
        ..podhold_image::Config::default()
    }
}

fn launcher(config: &Config, layout: &Layout, cgroups: &Cgroups) -> Result<Arc<dyn Launcher>> {
    let binary = if config.shim.binary.as_os_str().is_empty() {
        podhold_sandbox::client::find_shim_binary().map_err(Error::doing("finding podhold-shim"))?
    } else {
        config.shim.binary.clone()
    };
    let cgroups = cgroups.clone();
    Ok(Arc::new(ShimLauncher::new(ShimConfig {
        layout: layout.clone(),
        shim_binary: binary,
        attach: Arc::new(move |path, pid| cgroups.settle(path, pid).map_err(std::io::Error::other)),
        shim_cgroup: None,
        open_timeout: OPEN_TIMEOUT,
    })))
}

/// The capabilities this process may hand on: all that its bounding set holds.
fn bounding_set() -> Result<HashSet<Capability>> {
    let set = caps::read(None, caps::CapSet::Bounding).map_err(Error::doing("reading the bounding set"))?;
    let names = set.iter().map(ToString::to_string);
    Ok(names.filter_map(|name| name.strip_prefix("CAP_")?.parse().ok()).collect())
}
