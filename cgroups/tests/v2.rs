//! The unified hierarchy: for real where one is mounted (it may lack controllers), and on directories that
//! look like one.

#![allow(clippy::unwrap_used)]

mod common;

use std::{fs, path::Path};

use common::Child;
use oci_spec::runtime::{
    LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxMemoryBuilder, LinuxResources,
    LinuxResourcesBuilder,
};
use podhold_cgroups::{CgroupPath, Cgroups, Driver, Version};

/// Files that look like a cgroup at `<root>/pod`.
fn fixture(files: &[(&str, &str)]) -> (tempfile::TempDir, Cgroups, CgroupPath) {
    let root = tempfile::tempdir().unwrap();
    for dir in ["", "pod"] {
        let dir = root.path().join(dir);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("cgroup.controllers"), "cpuset cpu io memory hugetlb pids rdma\n").unwrap();
        fs::write(dir.join("cgroup.subtree_control"), "").unwrap();
        fs::write(dir.join("cgroup.procs"), "").unwrap();
    }
    for (name, content) in files {
        fs::write(root.path().join("pod").join(name), content).unwrap();
    }
    let cgroups = Cgroups::unified_at(root.path(), Driver::Cgroupfs).unwrap();
    (root, cgroups, CgroupPath::parse("/pod").unwrap())
}

fn memory(limit: i64, swap: i64) -> LinuxResources {
    let memory = LinuxMemoryBuilder::default().limit(limit).swap(swap).build().unwrap();
    LinuxResourcesBuilder::default().memory(memory).build().unwrap()
}

fn read(root: &Path, name: &str) -> String {
    fs::read_to_string(root.join("pod").join(name)).unwrap()
}

#[test]
fn no_swap_is_written_as_zero() {
    let (root, cgroups, pod) = fixture(&[("memory.max", "max"), ("memory.swap.max", "max")]);
    cgroups.set(&pod, &memory(64 << 20, 64 << 20)).unwrap();
    assert_eq!(read(root.path(), "memory.max"), "67108864");
    assert_eq!(&read(root.path(), "memory.swap.max")[..1], "0");
}

#[test]
fn a_swap_limit_is_dropped_where_swap_is_not_accounted() {
    let (root, cgroups, pod) = fixture(&[("memory.max", "max")]);
    cgroups.set(&pod, &memory(64 << 20, 96 << 20)).unwrap();
    assert_eq!(read(root.path(), "memory.max"), "67108864");
    assert!(!root.path().join("pod/memory.swap.max").exists());
}

#[test]
fn a_unified_key_has_to_be_a_file_that_the_kernel_has() {
    let (root, cgroups, pod) = fixture(&[("memory.high", "max")]);
    let unified = |key: &str| {
        let map = std::collections::HashMap::from([(key.to_owned(), "1048576".to_owned())]);
        LinuxResourcesBuilder::default().unified(map).build().unwrap()
    };
    let error = cgroups.set(&pod, &unified("memory.hihg")).unwrap_err().to_string();
    assert!(error.contains("memory.hihg") && error.contains("no such file"), "{error}");
    assert!(!root.path().join("pod/memory.hihg").exists());
    let error = cgroups.check(&pod, &unified("dmem.max")).unwrap_err().to_string();
    assert!(error.contains("dmem"), "{error}");
    cgroups.check(&pod, &unified("memory.high")).unwrap();
    cgroups.set(&pod, &unified("memory.high")).unwrap();
    assert_eq!(&read(root.path(), "memory.high")[..7], "1048576");
}

#[test]
fn nothing_is_made_in_a_scope_that_has_ended() {
    let (root, cgroups, _) = fixture(&[]);
    let within = CgroupPath::parse("/a.slice/podhold-x.scope/pod/one").unwrap();
    let error = cgroups.create(&within).unwrap_err();
    assert!(error.is_missing(), "{error}");
    assert!(!root.path().join("a.slice").exists());
}

#[test]
fn creating_enables_controllers_for_the_children() {
    let (root, cgroups, _) = fixture(&[]);
    cgroups.create(&CgroupPath::parse("/pod").unwrap()).unwrap();
    let enabled = fs::read_to_string(root.path().join("cgroup.subtree_control")).unwrap();
    for controller in ["+cpu", "+cpuset", "+io", "+memory", "+pids", "+hugetlb"] {
        assert!(enabled.split(' ').any(|word| word == controller), "{controller}: {enabled}");
    }
}

#[test]
fn statistics_bear_missing_files() {
    let (_root, cgroups, pod) = fixture(&[
        (
            "cpu.stat",
            "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 4\nnr_throttled 1\nthrottled_usec 7\n",
        ),
        ("memory.current", "1000\n"),
        ("memory.max", "5000\n"),
        ("memory.stat", "anon 600\nfile 400\ninactive_file 300\npgfault 9\npgmajfault 2\n"),
        ("memory.events", "low 0\nhigh 0\nmax 6\noom 3\noom_kill 2\n"),
        ("pids.current", "3\n"),
        ("pids.max", "max\n"),
        ("cgroup.procs", "10\n11\n"),
        (
            "io.pressure",
            "some avg10=1.50 avg60=0.00 avg300=0.00 total=42\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
        ),
        ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n8:16\n"),
    ]);
    let stats = cgroups.stats(&pod).unwrap();
    assert_eq!(stats.cpu.usage_ns, Some(5000));
    assert_eq!(
        (stats.cpu.periods, stats.cpu.throttled_periods, stats.cpu.throttled_ns),
        (Some(4), Some(1), Some(7000))
    );
    assert_eq!((stats.memory.working_set, stats.memory.available), (Some(700), Some(4300)));
    assert_eq!((stats.memory.rss, stats.memory.major_page_faults), (Some(600), Some(2)));
    assert_eq!((stats.swap.usage, stats.memory.pressure), (None, None));
    assert_eq!((stats.pids.threads, stats.pids.limit, stats.pids.processes), (Some(3), None, Some(2)));
    let pressure = stats.io_pressure.unwrap();
    assert_eq!((pressure.some.avg10, pressure.some.total_us, pressure.full.total_us), (1.5, 42, 7));
    assert_eq!(cgroups.oom_kills(&pod).unwrap(), 2);
    let details = cgroups.details(&pod).unwrap();
    assert_eq!((details.memory_limit_hits, details.memory_peak), (Some(6), None));
    assert_eq!((details.devices[0].write_bytes, details.devices[0].reads), (2, 3));
}

/// A cgroup in the machine's unified hierarchy, with or without controllers.
struct Real {
    cgroups: Cgroups,
    path: CgroupPath,
}

impl Real {
    fn new(name: &str) -> Option<Self> {
        let roots = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(Path::new);
        let root = roots.into_iter().find(|root| root.join("cgroup.controllers").exists());
        let Some(root) = root else {
            println!("SKIPPED: no unified hierarchy is mounted");
            return None;
        };
        let cgroups = Cgroups::unified_at(root, Driver::Cgroupfs).unwrap();
        let path = CgroupPath::parse(&format!("/podhold-test-v2-{}-{name}", std::process::id())).unwrap();
        if let Err(error) = cgroups.create(&path.child("leaf")) {
            println!("SKIPPED: {error}");
            return None;
        }
        Some(Self { cgroups, path })
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let ended = self.cgroups.kill(&self.path).and_then(|()| self.cgroups.remove(&self.path));
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}

#[test]
fn processes_are_frozen_and_killed_whole() {
    let Some(real) = Real::new("kill") else { return };
    let leaf = real.path.child("leaf");
    assert_eq!(real.cgroups.version(), Version::V2);
    let mut child = Child::spawn("read _; for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 60 & done; wait");
    real.cgroups.attach(&leaf, child.pid()).unwrap();
    child.go();
    common::until(|| real.cgroups.procs(&real.path).unwrap().len() == 13);
    real.cgroups.freeze(&real.path).unwrap();
    real.cgroups.kill(&real.path).unwrap();
    assert!(real.cgroups.procs(&real.path).unwrap().is_empty());
    assert_eq!(child.wait_signal(), Some(9));
}

fn device(allow: bool, numbers: Option<(i64, i64)>, access: &str) -> LinuxDeviceCgroup {
    let rule = LinuxDeviceCgroupBuilder::default().allow(allow).access(access);
    let rule = match numbers {
        Some((major, minor)) => rule.typ(LinuxDeviceType::C).major(major).minor(minor),
        None => rule.typ(LinuxDeviceType::A),
    };
    rule.build().unwrap()
}

#[test]
fn device_rules_hold_and_are_replaced() {
    let Some(real) = Real::new("devices") else { return };
    let leaf = real.path.child("leaf");
    let set = |rules: Vec<LinuxDeviceCgroup>| {
        let resources = LinuxResourcesBuilder::default().devices(rules).build().unwrap();
        real.cgroups.set(&leaf, &resources).unwrap();
    };
    // /dev/kmsg is 1:11 and not among the defaults; /dev/null is.
    let opens = |how: &str| {
        let mut child = Child::spawn(&format!("read _; exec sh -c ': {how} && kill -USR1 $$'"));
        real.cgroups.attach(&leaf, child.pid()).unwrap();
        child.go();
        child.wait_signal() == Some(10)
    };
    assert!(opens("</dev/kmsg") && opens("</dev/null"));
    set(vec![device(false, None, "rwm")]);
    assert!(!opens("</dev/kmsg") && opens("</dev/null") && opens("<>/dev/null"));
    set(vec![device(false, None, "rwm"), device(true, Some((1, 11)), "r")]);
    assert!(opens("</dev/kmsg") && !opens(">/dev/kmsg") && !opens("<>/dev/kmsg"));
    set(vec![device(false, None, "rwm"), device(true, Some((1, 11)), "r"), device(true, Some((1, 11)), "w")]);
    assert!(opens("<>/dev/kmsg"), "two rules may allow what one open asks for");
    set(vec![device(true, None, "rwm"), device(false, Some((1, 11)), "w")]);
    assert!(opens("</dev/kmsg") && !opens("<>/dev/kmsg"));
    set(vec![device(true, None, "rwm")]);
    assert!(opens("<>/dev/kmsg"));
}
