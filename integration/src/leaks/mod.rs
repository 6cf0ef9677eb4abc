//! The leak check: everything a container runtime could leave behind, before and after.
//!
//! A snapshot is of the namespaces in which it is taken, and of every cgroup hierarchy mounted there. It
//! reads and never changes. Two snapshots are compared as multisets, so that a second mount on the same
//! place counts.

mod kernel;
mod network;
mod units;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

/// What is looked at, beyond what is always looked at.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// Only cgroups whose path contains one of these words. Other programs make cgroups too.
    pub cgroups: Vec<String>,
    /// Directories whose files are compared, by name.
    pub files: Vec<PathBuf>,
    /// Processes that are expected to come and go, such as the daemon across a restart.
    pub processes: Vec<i32>,
    /// Links that are expected to stay: the CNI plugin `bridge` never removes its bridge.
    pub links: Vec<String>,
}

/// What kind of thing was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A mount.
    Mount,
    /// A namespace that a process or a mount keeps alive.
    Namespace,
    /// A cgroup directory, in any hierarchy.
    Cgroup,
    /// A unit of systemd's for a pod, running, failed or on its way.
    Unit,
    /// A process, dead or alive.
    Process,
    /// A network link.
    Link,
    /// An address of a link.
    Address,
    /// A table, chain, set or rule of nftables, or what iptables made of it.
    NftRule,
    /// A POSIX or System V shared memory segment, semaphore or message queue.
    SharedMemory,
    /// A file, directory, socket or link.
    File,
}

/// Everything that a runtime could leave, at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot(BTreeMap<Kind, BTreeMap<String, usize>>);

/// One difference between two snapshots.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Leak {
    /// What kind of thing it is.
    pub kind: Kind,
    /// Which one.
    pub thing: String,
    /// How many of it there were.
    pub before: usize,
    /// How many of it there are.
    pub after: usize,
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, thing, before, after } = self;
        match (before, after) {
            (0, _) => write!(f, "left behind: {kind:?}: {thing}"),
            (_, 0) => write!(f, "missing: {kind:?}: {thing}"),
            _ => write!(f, "{before} have become {after}: {kind:?}: {thing}"),
        }
    }
}

impl Snapshot {
    /// Looks at everything now.
    pub fn take(scope: &Scope) -> io::Result<Self> {
        let mounts = kernel::mounts()?;
        // The network first: it starts programs, which must be gone when processes are looked at.
        let (links, addresses) = network::links(&scope.links)?;
        let rules = network::rules()?;
        let units = units::of_pods(&scope.cgroups)?;
        let processes = kernel::processes(&scope.processes)?;
        Ok(Self(BTreeMap::from([
            (Kind::Mount, count(mounts.iter().map(kernel::Mount::describe))),
            (Kind::Namespace, count(kernel::namespaces(&mounts, &scope.processes)?)),
            (Kind::Cgroup, count(kernel::cgroups(&mounts, &scope.cgroups)?)),
            (Kind::Unit, count(units)),
            (Kind::Process, count(processes)),
            (Kind::Link, count(links)),
            (Kind::Address, count(addresses)),
            (Kind::NftRule, count(rules)),
            (Kind::SharedMemory, count(kernel::shared_memory()?)),
            (Kind::File, count(kernel::files(&scope.files)?)),
        ])))
    }

    /// How many things of this kind there are.
    pub fn count(&self, kind: Kind) -> usize {
        self.0.get(&kind).map_or(0, |things| things.values().sum())
    }

    /// The same, with these kinds of things as `other` has them.
    #[must_use]
    pub fn with(mut self, kinds: &[Kind], other: &Self) -> Self {
        for kind in kinds {
            self.0.insert(*kind, other.0.get(kind).cloned().unwrap_or_default());
        }
        self
    }

    /// The same without the files beneath `directory`.
    #[must_use]
    pub fn without_files(mut self, directory: &str) -> Self {
        self.0.entry(Kind::File).or_default().retain(|path, _| !path.starts_with(directory));
        self
    }

    /// Every difference between `self` and the later `after`.
    pub fn compare(&self, after: &Self) -> Vec<Leak> {
        let nothing = BTreeMap::new();
        let kinds: BTreeSet<&Kind> = self.0.keys().chain(after.0.keys()).collect();
        let mut leaks = Vec::new();
        for kind in kinds {
            let (old, new) = (self.0.get(kind).unwrap_or(&nothing), after.0.get(kind).unwrap_or(&nothing));
            let things: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for thing in things {
                let of = |all: &BTreeMap<String, usize>| all.get(thing).copied().unwrap_or(0);
                let (before, after) = (of(old), of(new));
                if before != after {
                    leaks.push(Leak { kind: *kind, thing: thing.clone(), before, after });
                }
            }
        }
        leaks
    }
}

fn count(things: impl IntoIterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counted = BTreeMap::new();
    for thing in things {
        *counted.entry(thing).or_insert(0) += 1;
    }
    counted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_thing_of_the_same_name_is_a_leak() {
        let of = |things: &[&str]| {
            Snapshot(BTreeMap::from([(Kind::Mount, count(things.iter().map(|t| (*t).to_owned())))]))
        };
        assert_eq!(of(&["a"]).compare(&of(&["a"])), []);
        let twice = of(&["a"]).compare(&of(&["a", "a"]));
        assert_eq!(twice.len(), 1);
        assert_eq!(twice[0].to_string(), "1 have become 2: Mount: a");
        assert_eq!(of(&[]).compare(&of(&["a"]))[0].to_string(), "left behind: Mount: a");
        assert_eq!(of(&["a"]).compare(&of(&[]))[0].to_string(), "missing: Mount: a");
    }
}
