//! The cgroups of tests: how they are named under the driver that is tested, and their removal. Touches only those
//! with our prefix.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

/// What names of ours begin with; dashes are levels in the names of slices.
const PREFIXES: [&str; 2] = ["podhold-it-", "podhold_it_"];

/// The driver that daemons of tests are given: `PODHOLD_TEST_DRIVER`, or cgroupfs.
pub static DRIVER: LazyLock<Driver> =
    LazyLock::new(|| match std::env::var("PODHOLD_TEST_DRIVER").as_deref() {
        Err(_) | Ok("" | "cgroupfs") => Driver::Cgroupfs,
        Ok("systemd") => Driver::Systemd,
        Ok(other) => panic!("PODHOLD_TEST_DRIVER={other}: use cgroupfs or systemd"),
    });

/// Who makes the cgroups of pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// The daemon.
    Cgroupfs,
    /// systemd.
    Systemd,
}

impl Driver {
    /// As the configuration names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cgroupfs => "cgroupfs",
            Self::Systemd => "systemd",
        }
    }

    /// The directory, beneath a hierarchy's root, of a test's cgroup that is to have this name.
    pub fn top(self, name: &str) -> String {
        match self {
            Self::Cgroupfs => name.to_owned(),
            Self::Systemd => format!("{}.slice", name.replace(".slice", "").replace('-', "_")),
        }
    }

    /// What the daemon's configuration calls the cgroup of this name.
    pub fn parent(self, name: &str) -> String {
        match self {
            Self::Cgroupfs => format!("/{name}"),
            Self::Systemd => self.top(name),
        }
    }

    /// What a kubelet calls the cgroup `name` beneath `top` (CRI `cgroup_parent`), and its directory beneath a
    /// hierarchy's root.
    pub fn given(self, top: &str, name: &str) -> (String, String) {
        match self {
            Self::Cgroupfs => (format!("/{top}/{name}"), format!("{top}/{name}")),
            Self::Systemd => {
                let slice = format!("{}-{name}.slice", top.trim_end_matches(".slice"));
                (slice.clone(), format!("{top}/{slice}"))
            }
        }
    }

    /// The directory of a pod's own cgroup in that of its test.
    pub fn pod(self, top: &str, pod: &str) -> String {
        match self {
            Self::Cgroupfs => format!("{top}/{pod}"),
            Self::Systemd => format!("{top}/podhold-{pod}.scope/pod"),
        }
    }

    /// The directory of the cgroup that holds the containers of a pod whose kubelet has made `given` for it.
    pub fn within(self, given: &str, pod: &str) -> String {
        match self {
            Self::Cgroupfs => given.to_owned(),
            Self::Systemd => format!("{given}/podhold-{pod}.scope"),
        }
    }
}

/// Mount points of all cgroup hierarchies.
fn hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let point = |line: &str| {
        let mut words = line.split(' ').skip(1);
        let point = words.next()?;
        matches!(words.next()?, "cgroup" | "cgroup2").then(|| PathBuf::from(point))
    };
    mounts.lines().filter_map(point).collect()
}

/// Where the controller's files of the cgroup at `path` are, beneath a hierarchy's root: in its hierarchy of
/// version 1, or in the one tree of version 2. `None` where the machine does not have it.
pub fn directory(controller: &str, path: &str) -> Option<PathBuf> {
    let version_1 = Path::new("/sys/fs/cgroup").join(controller);
    let root = if version_1.join("cgroup.procs").exists() { version_1 } else { "/sys/fs/cgroup".into() };
    root.join("cgroup.procs").exists().then(|| root.join(path))
}

/// Makes the cgroup at `path`, as a kubelet does: under systemd it is a slice.
///
/// # Panics
/// When it cannot be made.
pub fn make(path: &str, controller: &str) {
    let place = directory(controller, path).expect("the machine has the controller");
    if *DRIVER == Driver::Systemd {
        let slice = path.rsplit('/').next().unwrap_or(path);
        let made = Command::new("systemctl").args(["start", slice]).output().expect("systemctl");
        assert!(made.status.success(), "start {slice}: {made:?}");
    }
    fs::create_dir_all(&place).expect("make a cgroup");
    if !is_unified() {
        return;
    }
    let mut above = PathBuf::from("/sys/fs/cgroup");
    for part in Path::new(path) {
        fs::write(above.join("cgroup.subtree_control"), "+cpu +cpuset +memory +pids")
            .expect("enable controllers");
        above.push(part);
    }
}

/// Whether the machine has the one tree of version 2 and nothing else.
pub fn is_unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Removes the cgroup `name` with all beneath it, as far as no process is in it; whether it is gone.
pub fn remove(name: &str) -> bool {
    assert!(PREFIXES.iter().any(|prefix| name.starts_with(prefix)), "{name} is not a cgroup of a test");
    if name.ends_with(".slice") {
        // Ends what is in it; nothing is when a test has ended well.
        let _ended = Command::new("systemctl").args(["stop", name]).output();
    }
    let places: Vec<PathBuf> = hierarchies().iter().map(|hierarchy| hierarchy.join(name)).collect();
    places.iter().for_each(|place| remove_directory(place));
    !places.iter().any(|place| place.exists())
}

/// Removes cgroups of test programs that run no more.
pub fn remove_abandoned() {
    for hierarchy in hierarchies() {
        for entry in fs::read_dir(hierarchy).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let rest = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix));
            let pid = rest.and_then(|rest| rest.split(['-', '_']).next());
            if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                remove(&name);
            }
        }
    }
}

/// A cgroup's files cannot be removed and need not be: only directories are, from below.
fn remove_directory(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_directory(&entry.path());
        }
    }
    // Busy or gone: the next run tries again.
    let _ = fs::remove_dir(directory);
}

#[cfg(test)]
mod tests {
    use super::Driver;

    #[test]
    fn slices_of_tests_are_not_nested_by_their_names() {
        let top = Driver::Systemd.top("podhold-it-1-2");
        assert_eq!(top, "podhold_it_1_2.slice");
        assert_eq!(Driver::Systemd.parent(&format!("{top}-alone")), "podhold_it_1_2_alone.slice");
        let (name, directory) = Driver::Systemd.given(&top, "kubelets");
        assert_eq!(name, "podhold_it_1_2-kubelets.slice");
        assert_eq!(directory, "podhold_it_1_2.slice/podhold_it_1_2-kubelets.slice");
    }
}
