//! What the processes of a cgroup wait for in the kernel, in words. Reads only what the kernel tells without
//! waiting for them. Blocks briefly.

use std::fs;

use podhold_cgroups::{CgroupPath, Cgroups};

/// Processes that are named.
const NAMED: usize = 4;

/// The first processes in `cgroup`, and where in the kernel each of them sleeps.
pub(super) fn of(cgroups: &Cgroups, cgroup: &CgroupPath) -> String {
    let pids = cgroups.procs(cgroup).unwrap_or_default();
    let named: Vec<String> = pids.iter().take(NAMED).map(|pid| one(*pid)).collect();
    match (named.is_empty(), pids.len() - named.len()) {
        (true, _) => "no process of it is left but those that nobody has reaped".to_owned(),
        (false, 0) => named.join(", "),
        (false, more) => format!("{} and {more} more", named.join(", ")),
    }
}

fn one(pid: u32) -> String {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let name: String = read("comm").chars().filter(|c| !c.is_control()).collect();
    // 0 when it does not sleep, or when that is kept secret.
    match read("wchan").trim() {
        "" | "0" => format!("process {pid} ({name}) waits in the kernel"),
        place => format!("process {pid} ({name}) waits in {place}"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_process_is_named() {
        let me = std::process::id();
        assert!(super::one(me).starts_with(&format!("process {me} (")), "{}", super::one(me));
    }
}
