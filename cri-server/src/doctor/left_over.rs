//! What is left of pods that are gone: it has a pod's id for its name, and the state directory knows no such
//! pod. A pod's record is the first of it that is made and the last that goes.

use std::{collections::BTreeSet, fs, path::Path};

use podhold_cgroups::Cgroups;
use podhold_sandbox::{Layout, PodId};

use super::Finding;
use crate::{config::Config, runtime};

const MEND: &str = "podhold doctor --fix, while no daemon has these directories";

pub(super) fn all(config: &Config) -> Vec<Finding> {
    let layout = Layout::new(&config.run_dir, &config.state_dir);
    let is_lost =
        |name: &str| PodId::parse(name).is_ok_and(|pod| layout.pod_state(&pod).symlink_metadata().is_err());
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
    let mounts = points.filter(of_pod).map(str::to_owned).collect();
    let mut addresses = lost_in(&layout.cni_cache());
    addresses.extend(lost_in(&layout.bridge()));
    vec![
        finding("left-over mounts", &mounts, "they keep file systems busy"),
        finding("left-over run directories", &lost_in(&layout.pods_run()), "they take room"),
        finding("left-over network namespaces", &lost_in(&layout.netns_dir()), "they keep links and memory"),
        finding("left-over addresses", &addresses, "no new pod gets them"),
        finding("left-over cgroups", &cgroups(config, &layout), "what may run in them is nobody's"),
    ]
}

fn cgroups(config: &Config, layout: &Layout) -> BTreeSet<String> {
    let (Ok(cgroups), Ok(parent)) = (Cgroups::detect(config.cgroup_driver()), config.cgroup_parent()) else {
        return BTreeSet::new();
    };
    // What cannot be read is told of by the check of cgroups.
    let lost = runtime::lost_cgroups(&cgroups, &parent, layout).unwrap_or_default();
    lost.iter().map(ToString::to_string).collect()
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
