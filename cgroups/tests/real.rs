//! Real cgroups of this machine, in cgroups made for each test and removed after it.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::{Child, Scope};
use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxHugepageLimitBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources,
    LinuxResourcesBuilder,
};
use podhold_cgroups::{CgroupError, Version};

fn memory(limit: i64) -> LinuxResources {
    let memory = LinuxMemoryBuilder::default().limit(limit).swap(limit).build().unwrap();
    LinuxResourcesBuilder::default().memory(memory).build().unwrap()
}

fn cpu(quota: i64, cpus: &str) -> LinuxResources {
    let cpu = LinuxCpuBuilder::default().quota(quota).period(100_000u64).cpus(cpus).build().unwrap();
    LinuxResourcesBuilder::default().cpu(cpu).build().unwrap()
}

#[test]
fn creating_twice_and_removing_twice_succeeds() {
    let Some(scope) = Scope::new("twice") else { return };
    let leaf = scope.path.child("a").child("b");
    scope.cgroups.create(&leaf).unwrap();
    scope.cgroups.create(&leaf).unwrap();
    assert!(scope.cgroups.exists(&leaf));
    assert_eq!(scope.cgroups.procs_files(&leaf).unwrap().len(), common::hierarchies());
    scope.cgroups.remove(&scope.path).unwrap();
    scope.cgroups.remove(&scope.path).unwrap();
    assert!(!scope.cgroups.exists(&scope.path));
    assert!(scope.cgroups.stats(&leaf).unwrap_err().is_missing());
    assert!(scope.cgroups.freeze(&leaf).unwrap_err().is_missing());
    assert!(!scope.cgroups.exists(&leaf), "freezing must not make the cgroup");
    assert!(scope.cgroups.attach(&leaf, std::process::id()).unwrap_err().is_missing());
}

#[test]
fn a_process_joins_every_hierarchy() {
    let Some(scope) = Scope::new("join") else { return };
    let leaf = scope.path.child("leaf");
    scope.cgroups.create(&leaf).unwrap();
    let child = Child::spawn("read _");
    scope.cgroups.attach(&leaf, child.pid()).unwrap();
    let lines = std::fs::read_to_string(format!("/proc/{}/cgroup", child.pid())).unwrap();
    let elsewhere: Vec<_> = lines.lines().filter(|line| !line.ends_with(leaf.as_str())).collect();
    assert!(elsewhere.is_empty(), "not joined: {elsewhere:?}");
    assert_eq!(scope.cgroups.procs(&scope.path).unwrap(), [child.pid()]);
    let stats = scope.cgroups.stats(&leaf).unwrap();
    assert_eq!(stats.pids.processes, Some(1));
    assert_eq!(stats.pids.threads, Some(1));
    assert!(
        stats.memory.usage.is_some() && stats.memory.working_set.is_some() && stats.cpu.usage_ns.is_some()
    );
    assert_eq!(stats.memory.limit, None, "no limit is no number");
    assert_eq!(stats.memory.available, None);
}

#[test]
fn an_out_of_memory_kill_is_counted() {
    let Some(scope) = Scope::new("oom") else { return };
    let leaf = scope.path.child("leaf");
    scope.cgroups.create(&leaf).unwrap();
    scope.cgroups.set(&leaf, &memory(16 << 20)).unwrap();
    assert_eq!(scope.cgroups.oom_kills(&leaf).unwrap(), 0);
    let mut child = Child::spawn("read _; exec tail /dev/zero");
    scope.cgroups.attach(&leaf, child.pid()).unwrap();
    child.go();
    assert_eq!(child.wait_signal(), Some(9));
    assert_eq!(scope.cgroups.oom_kills(&leaf).unwrap(), 1);
    let stats = scope.cgroups.stats(&leaf).unwrap();
    assert_eq!(stats.memory.limit, Some(16 << 20));
    assert!(stats.memory.available.is_some());
    assert!(stats.memory.page_faults.unwrap() > 1000);
    // The number of limit hits stays 0 on v1 of newer kernels; the peak is kept everywhere.
    assert_eq!(scope.cgroups.details(&leaf).unwrap().memory_peak, Some(16 << 20));
}

#[test]
fn a_memory_limit_is_raised_and_lowered_in_place() {
    let Some(scope) = Scope::new("resize") else { return };
    let limit_of = || scope.cgroups.stats(&scope.path).unwrap().memory.limit;
    for limit in [64i64 << 20, 128 << 20, 32 << 20] {
        scope.cgroups.set(&scope.path, &memory(limit)).unwrap();
        assert_eq!(limit_of(), Some(limit as u64));
    }
    // Without a swap limit, above the memory+swap limit in force.
    let alone = LinuxMemoryBuilder::default().limit(256i64 << 20).build().unwrap();
    let alone = LinuxResourcesBuilder::default().memory(alone).build().unwrap();
    scope.cgroups.set(&scope.path, &alone).unwrap();
    assert_eq!(limit_of(), Some(256 << 20));
    scope.cgroups.set(&scope.path, &memory(-1)).unwrap();
    assert_eq!(limit_of(), None);
}

#[test]
fn a_fork_bomb_is_held_and_killed_whole() {
    let Some(scope) = Scope::new("bomb") else { return };
    let leaf = scope.path.child("leaf");
    scope.cgroups.create(&leaf).unwrap();
    let pids = LinuxPidsBuilder::default().limit(20).build().unwrap();
    let pids = LinuxResourcesBuilder::default().pids(pids).build().unwrap();
    scope.cgroups.set(&leaf, &pids).unwrap();
    // The shell that forks ends where it can do so no more; what it has started stays.
    let mut child = Child::spawn("read _; (while :; do sleep 60 & done) 2>/dev/null; exec sleep 60");
    scope.cgroups.attach(&leaf, child.pid()).unwrap();
    child.go();
    common::until(|| scope.cgroups.stats(&leaf).unwrap().pids.threads.unwrap_or(0) >= 10);
    let stats = scope.cgroups.stats(&leaf).unwrap();
    assert!(stats.pids.threads.unwrap() <= 20, "{stats:?}");
    assert_eq!(stats.pids.limit, Some(20));
    scope.cgroups.kill(&scope.path).unwrap();
    assert!(scope.cgroups.procs(&leaf).unwrap().is_empty());
    assert_eq!(child.wait_signal(), Some(9));
}

#[test]
fn throttling_is_seen() {
    let Some(scope) = Scope::new("throttle") else { return };
    scope.cgroups.set(&scope.path, &cpu(10_000, "0")).unwrap();
    let mut child = Child::spawn("read _; while :; do :; done");
    scope.cgroups.attach(&scope.path, child.pid()).unwrap();
    child.go();
    common::until(|| scope.cgroups.stats(&scope.path).unwrap().cpu.throttled_periods.unwrap_or(0) > 2);
    let stats = scope.cgroups.stats(&scope.path).unwrap().cpu;
    assert!(stats.throttled_ns.unwrap() > 0 && stats.usage_ns.unwrap() > 0 && stats.periods.unwrap() > 2);
    scope.cgroups.kill(&scope.path).unwrap();
}

#[test]
fn refusals_name_the_field_and_what_is_available() {
    let Some(scope) = Scope::new("refuse") else { return };
    let error = scope.cgroups.set(&scope.path, &cpu(-1, "0-999")).unwrap_err();
    let text = format!("{error}");
    assert!(matches!(error, CgroupError::Refused { .. }), "{error:?}");
    assert!(text.contains("cpu.cpus") && text.contains("0-999") && text.contains("available: 0"), "{text}");
    if scope.cgroups.version() == Version::V1 {
        let unified = [("memory.high".to_owned(), "1".to_owned())]
            .into_iter()
            .collect::<std::collections::HashMap<_, _>>();
        let unified = LinuxResourcesBuilder::default().unified(unified).build().unwrap();
        assert!(scope.cgroups.set(&scope.path, &unified).unwrap_err().to_string().contains("cgroup v2"));
    }
}

#[test]
fn huge_pages_are_limited_wherever_their_controller_is() {
    let Some(scope) = Scope::new("huge") else { return };
    let huge = LinuxHugepageLimitBuilder::default().page_size("2MB").limit(4i64 << 20).build().unwrap();
    let huge = LinuxResourcesBuilder::default().hugepage_limits(vec![huge]).build().unwrap();
    let leaf = scope.path.child("leaf");
    scope.cgroups.create(&leaf).unwrap();
    match scope.cgroups.set(&leaf, &huge) {
        Ok(()) => {
            let file = format!("/sys/fs/cgroup/unified{leaf}/hugetlb.2MB.max");
            if let Ok(limit) = std::fs::read_to_string(file) {
                assert_eq!(limit.trim(), "4194304");
            }
        }
        Err(CgroupError::NoController { .. }) => println!("SKIPPED: no hugetlb controller"),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_frozen_process_stands_still_and_can_be_killed() {
    let Some(scope) = Scope::new("freeze") else { return };
    let mut child = Child::spawn("read _; while :; do :; done");
    scope.cgroups.attach(&scope.path, child.pid()).unwrap();
    child.go();
    common::until(|| scope.cgroups.stats(&scope.path).unwrap().cpu.usage_ns.unwrap_or(0) > 10_000_000);
    scope.cgroups.freeze(&scope.path).unwrap();
    let usage = || scope.cgroups.stats(&scope.path).unwrap().cpu.usage_ns;
    let frozen = usage();
    common::pause(Duration::from_millis(50));
    assert_eq!(usage(), frozen);
    scope.cgroups.thaw(&scope.path).unwrap();
    common::until(|| usage() > frozen);
    scope.cgroups.freeze(&scope.path).unwrap();
    scope.cgroups.kill(&scope.path).unwrap();
    assert_eq!(child.wait_signal(), Some(9));
}

#[test]
fn removing_waits_for_the_dying_and_reports_the_living() {
    let Some(scope) = Scope::new("remove") else { return };
    let leaf = scope.path.child("x").child("y").child("z");
    scope.cgroups.create(&leaf).unwrap();
    let child = Child::spawn("read _");
    scope.cgroups.attach(&leaf, child.pid()).unwrap();
    let begun = Instant::now();
    let error = scope.cgroups.remove(&scope.path).unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert!(error.to_string().contains(&child.pid().to_string()), "{error}");
    let pid = child.pid();
    let killer = std::thread::spawn(move || {
        common::pause(Duration::from_millis(100));
        common::kill(pid);
    });
    scope.cgroups.remove(&scope.path).unwrap();
    killer.join().unwrap();
    assert!(!scope.cgroups.exists(&scope.path));
}

#[test]
fn a_process_cannot_hide_deep_in_the_tree() {
    let Some(scope) = Scope::new("deep") else { return };
    let leaf = (0..100).fold(scope.path.clone(), |path, _| path.child("d"));
    scope.cgroups.create(&leaf).unwrap();
    let mut child = Child::spawn("read _");
    scope.cgroups.attach(&leaf, child.pid()).unwrap();
    scope.cgroups.kill(&scope.path).unwrap();
    assert_eq!(child.wait_signal(), Some(9));
    scope.cgroups.remove(&scope.path).unwrap();
}

#[test]
fn a_refused_change_leaves_all_limits_as_they_were() {
    let Some(scope) = Scope::new("whole") else { return };
    scope.cgroups.create(&scope.path).unwrap();
    scope.cgroups.set(&scope.path, &cpu(50_000, "0")).unwrap();
    scope.cgroups.set(&scope.path, &memory(64 << 20)).unwrap();
    let files = match scope.cgroups.version() {
        Version::V1 => {
            [("/cpu", "cpu.cfs_quota_us"), ("/cpuset", "cpuset.cpus"), ("/memory", "memory.limit_in_bytes")]
        }
        Version::V2 => [("", "cpu.max"), ("", "cpuset.cpus"), ("", "memory.max")],
    };
    let now = || {
        files.map(|(hierarchy, name)| {
            let dir = format!("/sys/fs/cgroup{hierarchy}{}", scope.path.as_str());
            std::fs::read_to_string(format!("{dir}/{name}")).unwrap()
        })
    };
    let before = now();
    let mut both = memory(32 << 20);
    both.set_cpu(cpu(20_000, "4095").cpu().clone());
    assert!(matches!(scope.cgroups.check(&scope.path, &both), Err(CgroupError::Invalid { .. })));
    assert!(matches!(scope.cgroups.set(&scope.path, &both), Err(CgroupError::Refused { .. })));
    assert_eq!(now(), before);
    both.set_cpu(cpu(20_000, "0").cpu().clone());
    scope.cgroups.check(&scope.path, &both).unwrap();
    scope.cgroups.set(&scope.path, &both).unwrap();
    assert_ne!(now(), before);
}
