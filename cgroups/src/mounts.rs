//! Which cgroup hierarchies this machine has, read from mountinfo once.
//!
//! Invariant: every controller belongs to at most one hierarchy of the result.

use std::path::{Path, PathBuf};

use crate::CgroupError;

/// The generation of cgroups that carries the controllers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy per controller; also when a unified tree without the main controllers is mounted
    /// beside them (hybrid).
    V1,
    /// The unified hierarchy alone.
    V2,
}

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    pub(crate) root: PathBuf,
    /// Controllers; empty for `name=` hierarchies.
    pub(crate) controllers: Vec<String>,
    pub(crate) unified: bool,
}

/// All hierarchies, the unified one first.
pub(crate) fn detect() -> Result<(Version, Vec<Hierarchy>), CgroupError> {
    let file = "/proc/self/mountinfo";
    let text = std::fs::read_to_string(file).map_err(CgroupError::io("read", file))?;
    let mut hierarchies = parse(&text);
    for hierarchy in &mut hierarchies {
        if hierarchy.unified {
            hierarchy.controllers = unified_controllers(&hierarchy.root)?;
        }
    }
    let v1 = hierarchies.iter().any(|h| !h.unified && !h.controllers.is_empty());
    let unified = hierarchies.iter().any(|h| h.unified);
    match (v1, unified) {
        (true, _) => Ok((Version::V1, hierarchies)),
        (false, true) => Ok((Version::V2, hierarchies)),
        (false, false) => Err(CgroupError::NotMounted),
    }
}

/// What `cgroup.controllers` at the root of a unified hierarchy lists.
pub(crate) fn unified_controllers(root: &Path) -> Result<Vec<String>, CgroupError> {
    let file = root.join("cgroup.controllers");
    let text = std::fs::read_to_string(&file).map_err(CgroupError::io("read", file))?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

fn parse(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for (mount_point, fs_type, options) in mountinfo.lines().filter_map(fields) {
        let unified = match fs_type {
            "cgroup" => false,
            "cgroup2" => true,
            _ => continue,
        };
        let controllers: Vec<String> =
            if unified { Vec::new() } else { v1_controllers(options).map(str::to_owned).collect() };
        let seen = found.iter().any(|h| {
            if unified || controllers.is_empty() {
                h.root == mount_point || (unified && h.unified)
            } else {
                h.controllers.iter().any(|c| controllers.contains(c))
            }
        });
        if !seen {
            found.push(Hierarchy { root: mount_point, controllers, unified });
        }
    }
    found.sort_by_key(|h| !h.unified);
    found
}

/// Mount point, file system type and super options of one line; see proc_pid_mountinfo(5).
fn fields(line: &str) -> Option<(PathBuf, &str, &str)> {
    let (left, right) = line.split_once(" - ")?;
    let mount_point = unescape(left.split(' ').nth(4)?);
    let mut right = right.split(' ');
    let fs_type = right.next()?;
    let options = right.nth(1)?;
    Some((mount_point, fs_type, options))
}

/// The controllers among a v1 hierarchy's super options.
fn v1_controllers(options: &str) -> impl Iterator<Item = &str> {
    const KNOWN: [&str; 14] = [
        "blkio",
        "cpu",
        "cpuacct",
        "cpuset",
        "devices",
        "freezer",
        "hugetlb",
        "memory",
        "misc",
        "net_cls",
        "net_prio",
        "perf_event",
        "pids",
        "rdma",
    ];
    options.split(',').filter(|option| KNOWN.contains(option))
}

/// Undoes the octal escapes of space, tab, newline and backslash.
fn unescape(text: &str) -> PathBuf {
    let plain = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain));
    PathBuf::from(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_machine_lists_every_hierarchy_once() {
        let text = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:1 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
99 31 0:32 / /mnt/again rw,relatime - cgroup cgroup rw,memory
";
        let found = parse(text);
        let roots: Vec<_> = found.iter().map(|h| h.root.to_str().unwrap()).collect();
        assert_eq!(
            roots,
            [
                "/sys/fs/cgroup/unified",
                "/sys/fs/cgroup/cpu,cpuacct",
                "/sys/fs/cgroup/memory",
                "/sys/fs/cgroup/systemd"
            ]
        );
        assert_eq!(found[1].controllers, ["cpu", "cpuacct"]);
        assert!(found[3].controllers.is_empty());
    }

    #[test]
    fn escaped_and_broken_lines_do_no_harm() {
        let found = parse("1 2 0:1 / /a\\040b rw - cgroup2 none rw\nnonsense\n1 2 - \n");
        assert_eq!(found[0].root, PathBuf::from("/a b"));
        assert_eq!(found.len(), 1);
    }
}
