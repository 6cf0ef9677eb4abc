//! The handle on all hierarchies: what there is, making cgroups, joining them.
//!
//! Invariant: every path is a mount point joined with a [`CgroupPath`], which cannot leave it; cgroup
//! file systems hold no symbolic links.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use oci_spec::runtime::LinuxResources;

use crate::{
    CgroupError, CgroupPath, Driver, Stats, Version, find, kill, limits,
    mounts::{self, Hierarchy},
    remove, scope, stats,
    systemd::Systemd,
};

/// The machine's cgroups. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cgroups {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    version: Version,
    driver: Driver,
    systemd: Option<Systemd>,
    hierarchies: Vec<Hierarchy>,
    controllers: Vec<String>,
}

/// Controllers that pods need; others are enabled where that is possible.
const ESSENTIAL: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];
const WANTED: [&str; 6] = ["cpu", "cpuset", "io", "memory", "pids", "hugetlb"];

impl Cgroups {
    /// Finds the machine's hierarchies in `/proc/self/mountinfo`. Whether the driver can work here is for
    /// [`Choice`](crate::Choice) to say.
    pub fn detect(driver: Driver) -> Result<Self, CgroupError> {
        let (version, hierarchies) = mounts::detect()?;
        Ok(Self::from_hierarchies(version, driver, hierarchies))
    }

    /// A unified hierarchy at `root`, wherever that is: for tests, and for a delegated subtree.
    pub fn unified_at(root: &Path, driver: Driver) -> Result<Self, CgroupError> {
        let controllers = mounts::unified_controllers(root)?;
        let hierarchy = Hierarchy { root: root.to_owned(), controllers, unified: true };
        Ok(Self::from_hierarchies(Version::V2, driver, vec![hierarchy]))
    }

    fn from_hierarchies(version: Version, driver: Driver, hierarchies: Vec<Hierarchy>) -> Self {
        let mut controllers: Vec<String> = hierarchies.iter().flat_map(|h| h.controllers.clone()).collect();
        if version == Version::V2 {
            // Part of the v2 core, without a name of their own in cgroup.controllers.
            controllers.extend(["devices".to_owned(), "freezer".to_owned()]);
        }
        controllers.sort();
        controllers.dedup();
        let systemd = (driver == Driver::Systemd).then(Systemd::default);
        Self { inner: Arc::new(Inner { version, driver, systemd, hierarchies, controllers }) }
    }

    /// Whom scopes are asked from; `None` under cgroupfs.
    pub(crate) fn systemd(&self) -> Option<&Systemd> {
        self.inner.systemd.as_ref()
    }

    /// The generation that carries the controllers; hybrid is [`Version::V1`].
    pub fn version(&self) -> Version {
        self.inner.version
    }

    /// The driver this handle was made for.
    pub fn driver(&self) -> Driver {
        self.inner.driver
    }

    /// The controllers available here, sorted, in whichever hierarchy.
    pub fn controllers(&self) -> &[String] {
        &self.inner.controllers
    }

    /// Whether `controller` is available.
    pub fn has(&self, controller: &str) -> bool {
        self.inner.controllers.iter().any(|c| c == controller)
    }

    /// Whether swap is accounted in this (existing) cgroup, so that [`Self::set`] can limit it.
    pub fn accounts_swap(&self, path: &CgroupPath) -> bool {
        let name = match self.version() {
            Version::V1 => "memory.memsw.limit_in_bytes",
            Version::V2 => "memory.swap.max",
        };
        self.dir_of("memory", path).is_some_and(|dir| dir.join(name).exists())
    }

    /// Makes the cgroup and its ancestors in every hierarchy. Succeeds when it exists.
    ///
    /// On v1 the cpuset of new cgroups is their parent's; on v2 the controllers are enabled for it. Nothing is
    /// made in a scope that has ended: that is [`CgroupError::Missing`].
    pub fn create(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        if let Some(scope) = path.scope() {
            return scope::create_within(self, &scope, path);
        }
        for hierarchy in &self.inner.hierarchies {
            create_in(hierarchy, path, self.inner.version)?;
        }
        Ok(())
    }

    /// Puts the first process of a pod into its cgroup `leaf`, and makes that: beneath a scope that systemd makes
    /// for the process, or as it is.
    pub fn settle(&self, leaf: &CgroupPath, pid: u32) -> Result<(), CgroupError> {
        scope::settle(self, leaf, pid)
    }

    /// Whether systemd stops this scope, for somebody else than us. What cannot be found out is a no.
    pub fn is_stopped_by_systemd(&self, scope: &CgroupPath) -> bool {
        self.systemd().is_some_and(|systemd| systemd.stops(scope.name()).unwrap_or(false))
    }

    /// Ends whatever runs in a scope, and gives it back to systemd. A missing one is a success.
    pub fn end_scope(&self, scope: &CgroupPath) -> Result<(), CgroupError> {
        scope::end(self, scope)
    }

    /// Whether the cgroup exists (in the hierarchy that statistics come from).
    pub fn exists(&self, path: &CgroupPath) -> bool {
        self.main_dir(path).is_dir()
    }

    /// The cgroup whose own name is `name`, wherever it is. Walks the whole tree: for what has lost its
    /// record.
    pub fn find(&self, name: &str) -> Option<CgroupPath> {
        find::find(self, name)
    }

    /// Whether these limits can be set in a cgroup beneath `parent`, which may not exist yet: whether they
    /// make sense, and whether this machine has the controllers, processors, memory nodes and page sizes.
    pub fn check(&self, parent: &CgroupPath, resources: &LinuxResources) -> Result<(), CgroupError> {
        limits::check(self, parent, resources)
    }

    /// Whether huge pages are limited in a hierarchy of version 1, where libcontainer looks for them.
    pub fn hugepages_on_version_1(&self) -> bool {
        self.root_of("hugetlb").is_some() && self.root_of("hugetlb") != self.unified_root()
    }

    /// Applies limits, to a new cgroup or in place. Fields that are absent stay as they are.
    ///
    /// All or none: when the kernel refuses a value, those that were applied are put back.
    pub fn set(&self, path: &CgroupPath, resources: &LinuxResources) -> Result<(), CgroupError> {
        self.require(path)?;
        limits::set(self, path, resources)
    }

    /// Moves a process into the cgroup in every hierarchy, `name=` and unified ones included.
    ///
    /// The first attach after a pause of some milliseconds costs about 10 ms of kernel time, those that
    /// follow at once 0.2 ms each, which is why they are done back to back.
    pub fn attach(&self, path: &CgroupPath, pid: u32) -> Result<(), CgroupError> {
        let pid = pid.to_string();
        for dir in self.dirs(path) {
            write(&dir.join("cgroup.procs"), &pid).map_err(|error| self.missing(path, error))?;
        }
        Ok(())
    }

    /// The processes in the cgroup and beneath it.
    pub fn procs(&self, path: &CgroupPath) -> Result<Vec<u32>, CgroupError> {
        self.require(path)?;
        kill::procs_beneath(&self.main_dir(path))
    }

    /// What the cgroup uses now: about ten small files, no directory walk.
    pub fn stats(&self, path: &CgroupPath) -> Result<Stats, CgroupError> {
        self.require(path)?;
        stats::read(self, path, stats::Extent::All)
    }

    /// The part of [`Self::stats`] that is asked for often: CPU time, memory, swap and pressure, without
    /// tasks, throttling and kernel memory on v1. Half the files.
    pub fn usage(&self, path: &CgroupPath) -> Result<Stats, CgroupError> {
        let usage = stats::read(self, path, stats::Extent::Usage)?;
        if usage.cpu.usage_ns.is_none() && usage.memory.usage.is_none() {
            self.require(path)?;
        }
        Ok(usage)
    }

    /// Further numbers, for metrics.
    pub fn details(&self, path: &CgroupPath) -> Result<stats::Details, CgroupError> {
        self.require(path)?;
        stats::details(self, path)
    }

    /// How often the kernel killed a process of the cgroup for want of memory. On v1 kills in cgroups
    /// beneath are not counted.
    pub fn oom_kills(&self, path: &CgroupPath) -> Result<u64, CgroupError> {
        self.require(path)?;
        stats::oom_kills(self, path)
    }

    /// Kills every process in the cgroup and beneath, and waits until none is left (two seconds at
    /// most, then [`CgroupError::Busy`]). For containers only: pause dies with them otherwise.
    ///
    /// A missing cgroup is a success.
    pub fn kill(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        kill::kill(self, path)
    }

    /// Suspends every process in the cgroup and beneath.
    pub fn freeze(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        // libcgroups would make the directory.
        self.require(path)?;
        limits::freeze(self, path, libcgroups::common::FreezerState::Frozen)
    }

    /// Resumes what [`Self::freeze`] suspended.
    pub fn thaw(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        self.require(path)?;
        limits::freeze(self, path, libcgroups::common::FreezerState::Thawed)
    }

    /// Removes the cgroup and all beneath it from every hierarchy. A missing cgroup is a success.
    ///
    /// Kills nothing: processes that live on for two seconds make it fail with [`CgroupError::Busy`].
    pub fn remove(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        remove::remove(self, path)
    }

    /// Removes the cgroup from every hierarchy in which nothing is beneath it and no process is in it.
    /// A missing cgroup, and one that is in use, is a success.
    pub fn prune(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        remove::prune(self, path)
    }

    /// `cgroup.procs` of every hierarchy, open for writing: whoever holds them can join (by writing
    /// `0`) without resolving a path.
    pub fn procs_files(&self, path: &CgroupPath) -> Result<Vec<OwnedFd>, CgroupError> {
        let open = |dir: PathBuf| {
            let file = dir.join("cgroup.procs");
            let opened = fs::OpenOptions::new().write(true).open(&file);
            opened.map(OwnedFd::from).map_err(CgroupError::io("open for writing", file))
        };
        self.dirs(path).map(open).collect::<Result<_, _>>().map_err(|error| self.missing(path, error))
    }

    /// The cgroup's directory in each hierarchy of version 1, with the name under which the hierarchy is
    /// mounted (`cpu`, `memory`, `systemd`, ...). Empty on version 2, where a mount shows the one tree.
    pub fn version_1_directories(&self, path: &CgroupPath) -> Vec<(String, PathBuf)> {
        let named = |hierarchy: &Hierarchy| {
            let name = hierarchy.root.file_name()?.to_str()?.to_owned();
            Some((name, hierarchy.root.join(path.relative())))
        };
        match self.version() {
            Version::V1 => self.inner.hierarchies.iter().filter_map(named).collect(),
            Version::V2 => Vec::new(),
        }
    }

    /// The directory of the cgroup in each hierarchy.
    pub(crate) fn dirs(&self, path: &CgroupPath) -> impl Iterator<Item = PathBuf> {
        self.inner.hierarchies.iter().map(|h| h.root.join(path.relative()))
    }

    /// The mount point of the hierarchy that has `controller`.
    pub(crate) fn root_of(&self, controller: &str) -> Option<&Path> {
        let owner = self.inner.hierarchies.iter().find(|h| h.controllers.iter().any(|c| c == controller));
        owner.map(|h| h.root.as_path())
    }

    /// The mount point of the unified hierarchy, with or without controllers.
    pub(crate) fn unified_root(&self) -> Option<&Path> {
        self.inner.hierarchies.iter().find(|h| h.unified).map(|h| h.root.as_path())
    }

    /// The directory of the cgroup in the hierarchy of `controller`.
    pub(crate) fn dir_of(&self, controller: &str, path: &CgroupPath) -> Option<PathBuf> {
        self.root_of(controller).map(|root| root.join(path.relative()))
    }

    /// The directory that processes are counted and frozen in: on v1 the freezer's, since libcontainer
    /// joins neither `name=systemd` nor the unified tree.
    pub(crate) fn main_dir(&self, path: &CgroupPath) -> PathBuf {
        self.main_root().join(path.relative())
    }

    /// The root of the hierarchy in which the cgroup is looked for.
    pub(crate) fn main_root(&self) -> &Path {
        let root = match self.version() {
            Version::V2 => self.unified_root(),
            Version::V1 => ["freezer", "devices", "pids", "memory"].iter().find_map(|c| self.root_of(c)),
        };
        root.unwrap_or_else(|| &self.inner.hierarchies[0].root)
    }

    fn require(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        if self.exists(path) { Ok(()) } else { Err(CgroupError::Missing(path.clone())) }
    }

    pub(crate) fn missing(&self, path: &CgroupPath, error: CgroupError) -> CgroupError {
        match &error {
            CgroupError::Io { source, .. } if gone(source) && !self.exists(path) => {
                CgroupError::Missing(path.clone())
            }
            _ => error,
        }
    }
}

/// Whether the kernel says that a cgroup is not there.
pub(crate) fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ENODEV)
}

/// Writes one value to a kernel file that must exist.
pub(crate) fn write(file: &Path, value: &str) -> Result<(), CgroupError> {
    let written = fs::OpenOptions::new()
        .write(true)
        .open(file)
        .and_then(|mut opened| io::Write::write_all(&mut opened, value.as_bytes()));
    written.map_err(CgroupError::io("write to", file))
}

fn create_in(hierarchy: &Hierarchy, path: &CgroupPath, version: Version) -> Result<(), CgroupError> {
    let cpuset = !hierarchy.unified && hierarchy.controllers.iter().any(|c| c == "cpuset");
    let mut dir = hierarchy.root.clone();
    for part in path.relative().split('/') {
        if hierarchy.unified && version == Version::V2 {
            enable_controllers(&dir)?;
        }
        let parent = dir.clone();
        dir.push(part);
        match fs::create_dir(&dir) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(CgroupError::io("create cgroup", &dir)(error)),
        }
        if cpuset {
            inherit(&parent, &dir, "cpuset.cpus")?;
            inherit(&parent, &dir, "cpuset.mems")?;
        }
    }
    Ok(())
}

/// Fills an empty cpuset from the parent's: the kernel lets no process into an empty one.
fn inherit(parent: &Path, dir: &Path, name: &str) -> Result<(), CgroupError> {
    let read = |file: PathBuf| fs::read_to_string(&file).map_err(CgroupError::io("read", file));
    if read(dir.join(name))?.trim().is_empty() {
        write(&dir.join(name), read(parent.join(name))?.trim())?;
    }
    Ok(())
}

/// Lets the children of `dir` have every controller that `dir` has.
pub(crate) fn enable_controllers(dir: &Path) -> Result<(), CgroupError> {
    enable(dir, &WANTED)
}

/// As [`enable_controllers`] with those that systemd does not know, in a directory of its own.
pub(crate) fn enable_foreign(dir: &Path) -> Result<(), CgroupError> {
    enable(dir, &["hugetlb"])
}

fn enable(dir: &Path, wanted: &[&'static str]) -> Result<(), CgroupError> {
    let read = |name: &str| {
        let file = dir.join(name);
        fs::read_to_string(&file).map_err(CgroupError::io("read", file))
    };
    let available = read("cgroup.controllers")?;
    let enabled = read("cgroup.subtree_control")?;
    let has = |list: &str, name: &str| list.split_whitespace().any(|c| c == name);
    let missing: Vec<&str> =
        wanted.iter().copied().filter(|name| has(&available, name) && !has(&enabled, name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let control = dir.join("cgroup.subtree_control");
    let all = missing.iter().map(|name| format!("+{name}")).collect::<Vec<_>>().join(" ");
    if write(&control, &all).is_ok() {
        return Ok(());
    }
    // One that cannot be enabled makes the kernel refuse the whole line.
    for name in missing {
        match write(&control, &format!("+{name}")) {
            Err(CgroupError::Io { source, .. }) if ESSENTIAL.contains(&name) => {
                return Err(CgroupError::Delegation {
                    dir: dir.to_owned(),
                    controllers: vec![name.to_owned()],
                    source,
                });
            }
            Err(error) => tracing::debug!(controller = name, %error, "cgroup controller stays off"),
            Ok(()) => {}
        }
    }
    Ok(())
}
