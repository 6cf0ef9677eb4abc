//! Whether something lies over a part of `/proc` that nobody asked to be there.
//!
//! A mount whose target leads into `/proc` by a link, in the image or in a volume, would take the place of
//! kernel files: what is written to them for confinement would go nowhere, and what is read from them would
//! be a lie (CVE-2019-16884, CVE-2025-52881). libcontainer looks at the target's text only. Links can
//! change until the mount is made, so this looks afterwards, from inside the container, before anything of
//! the workload has run.

use std::{
    fs::{self, File},
    io::Read,
    path::Path,
};

use oci_spec::runtime::Spec;

/// Magic number of procfs (statfs(2)).
const PROC: i64 = 0x9fa0;

/// Refuses a mount over a part of `/proc` that is none of the masked and read-only paths of the spec.
pub(super) fn check(spec: &Spec) -> Result<(), String> {
    let table = own_mounts().map_err(|error| format!("/proc/self/mountinfo: {error}"))?;
    let linux = spec.linux().clone().unwrap_or_default();
    let asked = [linux.masked_paths(), linux.readonly_paths()];
    let asked: Vec<&String> = asked.into_iter().flatten().flatten().collect();
    let odd = beneath_proc(&table).find(|point| {
        // Looked up only for what is not there by its own name: a masked path may be a link of the kernel's.
        let named = |path: &&String| path.as_str() == *point;
        let leads = |path: &&String| fs::canonicalize(path).is_ok_and(|path| path == Path::new(point));
        !asked.iter().any(named) && !asked.iter().any(leads)
    });
    match odd {
        None => Ok(()),
        Some(point) => Err(format!(
            "a mount leads to {point} by a link, and /proc is the kernel's own; name a target outside it"
        )),
    }
}

fn own_mounts() -> std::io::Result<String> {
    let mut file = File::open("/proc/self/mountinfo")?;
    if rustix::fs::fstatfs(&file)?.f_type != PROC {
        return Err(std::io::Error::other("is not the kernel's; something is mounted over it"));
    }
    let mut table = String::new();
    file.read_to_string(&mut table)?;
    Ok(table)
}

/// The mount points beneath `/proc` (proc_pid_mountinfo(5)).
fn beneath_proc(table: &str) -> impl Iterator<Item = &str> {
    table.lines().filter_map(|line| line.split(' ').nth(4)).filter(|point| point.starts_with("/proc/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_beneath_proc_counts() {
        let table = "1 0 0:1 / / rw - overlay o rw\n2 1 0:2 / /proc rw - proc proc rw\n\
                     3 2 0:2 /sys /proc/sys ro - proc proc rw\n4 1 0:3 / /process rw - tmpfs t rw\n";
        assert_eq!(beneath_proc(table).collect::<Vec<_>>(), ["/proc/sys"]);
        assert!(own_mounts().unwrap().contains(" /proc "));
    }
}
