//! What is left of pods that are gone: it has a pod's id for its name, and no state directory knows such a pod.
//! A pod's record is the first of it that is made and the last that goes. And what is left of networks whose
//! daemon, or `podhold run`, is gone.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::Path,
};

use podhold_cgroups::{Cgroups, Choice};
use podhold_sandbox::{
    Layout, PodId,
    network::bridge::{self, BridgeError},
};
use rustix::fs::{FlockOperation, flock};

use super::Finding;
use crate::{config::Config, runtime};

const MEND: &str = "podhold doctor --fix, while no daemon has these directories";

/// The names of what is left, by kind.
#[derive(Default)]
struct Lost {
    mounts: BTreeSet<String>,
    directories: BTreeSet<String>,
    namespaces: BTreeSet<String>,
    addresses: BTreeSet<String>,
    cgroups: BTreeSet<String>,
}

pub(super) fn all(config: &Config, beside: Option<&Config>) -> Vec<Finding> {
    let layout = |config: &Config| Layout::new(&config.run_dir, &config.state_dir);
    let mut lost = Lost::default();
    lost.add(config, beside.map(layout).as_slice());
    if let Some(beside) = beside {
        lost.add(beside, &[layout(config)]);
    }
    // What cannot be asked is told of by the check of the built-in network.
    let networks = bridge::left_over(is_held).unwrap_or_default();
    let networks = networks.iter().map(ToString::to_string).collect();
    vec![
        finding("left-over mounts", &lost.mounts, "they keep file systems busy"),
        finding("left-over run directories", &lost.directories, "they take room"),
        finding("left-over network namespaces", &lost.namespaces, "they keep links and memory"),
        finding("left-over addresses", &lost.addresses, "no new pod gets them"),
        finding("left-over cgroups", &lost.cgroups, "what may run in them is nobody's"),
        finding("left-over networks", &networks, "their addresses and host ports are nobody else's"),
    ]
}

/// Removes what is left of built-in networks whose daemon, or `podhold run`, is gone.
pub fn remove_networks() -> Result<(), BridgeError> {
    bridge::left_over(is_held)?.iter().try_for_each(bridge::remove)
}

impl Lost {
    /// Adds what is left in the directories of one configuration.
    fn add(&mut self, config: &Config, others: &[Layout]) {
        let layout = Layout::new(&config.run_dir, &config.state_dir);
        let is_lost = |name: &str| {
            PodId::parse(name).is_ok_and(|pod| layout.pod_state(&pod).symlink_metadata().is_err())
        };
        let lost_in = |dir: &Path| -> BTreeSet<String> {
            let names = fs::read_dir(dir).into_iter().flatten().flatten();
            let names = names.filter_map(|entry| entry.file_name().into_string().ok());
            names.filter(|name| is_lost(name.strip_suffix(".json").unwrap_or(name))).collect()
        };
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        let of_pod = |point: &&str| {
            let beneath = Path::new(point).strip_prefix(layout.pods_run()).ok();
            let name = beneath.and_then(|rest| rest.iter().next()).and_then(|name| name.to_str());
            name.is_some_and(is_lost)
        };
        self.mounts.extend(points.filter(of_pod).map(str::to_owned));
        self.directories.extend(lost_in(&layout.pods_run()));
        self.namespaces.extend(lost_in(&layout.netns_dir()));
        self.addresses.extend(lost_in(&layout.cni_cache()));
        self.addresses.extend(lost_in(&layout.bridge()));
        self.cgroups.extend(cgroups(config, &layout, others));
    }
}

fn cgroups(config: &Config, layout: &Layout, others: &[Layout]) -> BTreeSet<String> {
    // What cannot be read is told of by the check of cgroups.
    let Ok(choice) = Choice::of(config.wanted_driver()) else { return BTreeSet::new() };
    let (Ok(cgroups), Ok(parent)) = (Cgroups::detect(choice.driver), config.cgroup_parent(choice.driver))
    else {
        return BTreeSet::new();
    };
    let lost = runtime::lost_cgroups(&cgroups, &parent, layout, others).unwrap_or_default();
    lost.iter().map(ToString::to_string).collect()
}

/// Whether somebody has this state directory: a daemon, or `podhold run`. One that cannot be looked at may be had.
pub(super) fn is_held(state: &Path) -> bool {
    match File::open(state) {
        Ok(dir) => flock(&dir, FlockOperation::NonBlockingLockShared).is_err(),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

fn finding(check: &'static str, found: &BTreeSet<String>, cost: &str) -> Finding {
    if found.is_empty() {
        return Finding::works(check, "nothing is left over");
    }
    let some: Vec<&str> = found.iter().take(5).map(String::as_str).collect();
    let more = if found.len() > some.len() { ", …" } else { "" };
    let found = format!("{} left over by pods that are gone: {}{more}", found.len(), some.join(", "));
    Finding::degraded(check, found, cost, MEND)
}
