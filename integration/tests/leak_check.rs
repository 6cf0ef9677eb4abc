//! The leak check itself: one leak of each kind is seeded, and must be found.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{collections::BTreeMap, path::PathBuf};

use podhold_integration::{
    cgroup as cgroups,
    leaks::{Kind, Snapshot},
    machine::Machine,
    programs, require,
};

struct Check {
    machine: Machine,
    cgroup: String,
}

impl Check {
    async fn snapshot(&self) -> Snapshot {
        let files = self.files().display().to_string();
        let program = programs::built("podhold-machine").display().to_string();
        let arguments = [&program, "snapshot", "--cgroup", &self.cgroup, "--files", &files];
        serde_json::from_str(&self.machine.run_well(arguments).await.unwrap()).unwrap()
    }

    fn files(&self) -> PathBuf {
        self.machine.directory().join("state")
    }
}

#[tokio::test]
async fn one_leak_of_each_kind_is_found_and_nothing_else() {
    require!(root, program "nft", program "ip");
    let machine = Machine::start().await.unwrap();
    let cgroup = format!("podhold-leak-{}", std::process::id());
    let check = Check { machine, cgroup: cgroup.clone() };
    std::fs::create_dir(check.files()).unwrap();
    std::fs::create_dir(check.machine.directory().join("mnt")).unwrap();
    let mount = check.machine.directory().join("mnt").display().to_string();
    let file = check.files().join("left").display().to_string();
    let made = cgroups::directory("pids", &cgroup).expect("the pids controller").display().to_string();

    let seeds: [(Kind, Vec<&str>, Vec<&str>); 8] = [
        (Kind::Mount, vec!["mount", "-t", "tmpfs", "left", &mount], vec!["umount", &mount]),
        (Kind::Cgroup, vec!["mkdir", &made], vec!["rmdir", &made]),
        (
            Kind::Link,
            vec!["ip", "link", "add", "left0", "type", "bridge"],
            vec!["ip", "link", "del", "left0"],
        ),
        (
            Kind::Address,
            vec!["ip", "address", "add", "192.0.2.1/32", "dev", "lo"],
            vec!["ip", "address", "del", "192.0.2.1/32", "dev", "lo"],
        ),
        (
            Kind::NftRule,
            vec!["nft", "add", "table", "ip", "left"],
            vec!["nft", "delete", "table", "ip", "left"],
        ),
        (Kind::SharedMemory, vec!["touch", "/dev/shm/left"], vec!["rm", "/dev/shm/left"]),
        (Kind::SharedMemory, vec!["ipcmk", "--shmem", "4096"], vec!["ipcrm", "--all=shm"]),
        (Kind::File, vec!["touch", &file], vec!["rm", &file]),
    ];
    let before = check.snapshot().await;
    for (kind, seed, mend) in &seeds {
        check.machine.run_well(seed).await.unwrap();
        let leaks = before.compare(&check.snapshot().await);
        check.machine.run_well(mend).await.unwrap();
        assert!(leaks.iter().all(|leak| leak.kind == *kind && leak.before == 0), "{kind:?}: {leaks:?}");
        assert_eq!(leaks.len(), 1, "{kind:?}: {leaks:?}");
    }
    assert_eq!(before.compare(&check.snapshot().await), []);
    a_pinned_namespace_is_found(&check, &before).await;
    a_process_is_found(&check, &before).await;
    assert_eq!(before.compare(&check.snapshot().await), []);
    check.machine.stop().await.unwrap();
}

/// A network namespace that no process is in, kept by a mount alone.
async fn a_pinned_namespace_is_found(check: &Check, before: &Snapshot) {
    let pin = check.files().join("netns").display().to_string();
    check.machine.run_well(["touch", &pin]).await.unwrap();
    check.machine.run_well(["unshare", &format!("--net={pin}"), "true"]).await.unwrap();
    let leaks = before.compare(&check.snapshot().await);
    check.machine.run_well(["umount", &pin]).await.unwrap();
    check.machine.run_well(["rm", &pin]).await.unwrap();
    let mut kinds: Vec<Kind> = leaks.iter().map(|leak| leak.kind).collect();
    kinds.sort();
    assert_eq!(kinds, [Kind::Mount, Kind::Namespace, Kind::File], "{leaks:?}");
}

async fn a_process_is_found(check: &Check, before: &Snapshot) {
    let log = check.machine.directory().join("log");
    let words = ["sleep".to_owned(), "1000".to_owned()];
    let pid = check.machine.spawn(&words, BTreeMap::new(), &log).await.unwrap();
    let leaks = before.compare(&check.snapshot().await);
    check.machine.signal(pid, nix::sys::signal::Signal::SIGKILL).await.unwrap();
    assert_eq!(check.machine.wait(pid).await.unwrap(), 137);
    assert_eq!(leaks.len(), 1, "{leaks:?}");
    assert_eq!(leaks[0].kind, Kind::Process);
    assert!(leaks[0].thing.contains("sleep 1000"), "{leaks:?}");
}
