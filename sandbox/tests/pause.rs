//! What the pause process shows to those who can see it.

#![allow(clippy::unwrap_used)]

mod common;

use std::{fs, os::unix::fs::MetadataExt};

use oci_spec::runtime::{Capability, LinuxCapabilities, LinuxNamespaceType, Spec};
use podhold_sandbox::launch::{NamespaceJoin, NamespaceKind, NamespaceOf};

use common::{Host, namespace, possible};

/// Root with the capabilities that make looking into other processes possible.
fn powerful(spec: &mut Spec) {
    let set: std::collections::HashSet<_> =
        [Capability::SysPtrace, Capability::DacReadSearch, Capability::DacOverride].into();
    let mut capabilities = LinuxCapabilities::default();
    capabilities.set_bounding(Some(set.clone()));
    capabilities.set_permitted(Some(set.clone()));
    capabilities.set_effective(Some(set));
    capabilities.set_inheritable(Some(Default::default()));
    capabilities.set_ambient(Some(Default::default()));
    let mut process = spec.process().clone().unwrap();
    process.set_capabilities(Some(capabilities));
    spec.set_process(Some(process));
}

fn host_pid(spec: &mut Spec) {
    powerful(spec);
    let mut linux = spec.linux().clone().unwrap();
    let namespaces = linux.namespaces().clone().unwrap();
    linux.set_namespaces(Some(
        namespaces.into_iter().filter(|n| n.typ() != LinuxNamespaceType::Pid).collect(),
    ));
    spec.set_linux(Some(linux));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_finds_anything_of_the_hosts_through_pause() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let mut spec = host.spec();
    spec.shared_pid = true;
    let mut pod = host.open_as(spec).await;
    let pause = pod.live.pause_pid();
    let look = |pid: u32| {
        format!(
            "echo root:$(ls -A /proc/{pid}/root/ 2>&1):; echo fd:$(ls -A /proc/{pid}/fd/ 2>&1):; \
             echo cwd:$(ls -A /proc/{pid}/cwd/ 2>&1):; touch /proc/{pid}/root/x && echo written; \
             cat /proc/{pid}/root/etc/shadow && echo read"
        )
    };
    let mut shared = host.container("c1", &["sh", "-c", &look(1)], powerful);
    shared.join.push(NamespaceJoin { kind: NamespaceKind::Pid, of: NamespaceOf::Pod });
    let outside = host.container("c2", &["sh", "-c", &look(pause)], host_pid);
    for start in [shared, outside] {
        let id = start.id.clone();
        pod.run(start).await;
        let log = host.log_text(&id);
        for expected in ["root::", "fd::", "cwd::"] {
            assert!(log.contains(&format!(" F {expected}\n")), "{expected}: {log}");
        }
        assert!(!log.contains("written") && !log.contains(" F read"), "{log}");
    }
    pod.close(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pause_has_its_namespaces_and_nothing_else() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let mut spec = host.spec();
    spec.shared_pid = true;
    spec.sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
    let mut pod = host.open_as(spec).await;
    let (pause, own) = (pod.live.pause_pid(), std::process::id());
    for name in ["mnt", "ipc", "uts", "pid"] {
        assert_ne!(namespace(pause, name), namespace(own, name), "{name}");
    }
    for name in ["net", "user"] {
        assert_eq!(namespace(pause, name), namespace(own, name), "{name}");
    }
    let status = fs::read_to_string(format!("/proc/{pause}/status")).unwrap();
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    let mounts = fs::read_to_string(format!("/proc/{pause}/mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert!(mounts.contains(" ro,"), "{mounts}");
    assert_eq!(fs::read_dir(format!("/proc/{pause}/fd")).unwrap().count(), 0);
    assert!(fs::metadata(format!("/proc/{pause}/exe")).unwrap().size() < 2048);
    let cgroup = fs::read_to_string(format!("/proc/{pause}/cgroup")).unwrap();
    assert!(cgroup.contains(host.cgroup.child("pause").as_str()), "{cgroup}");

    let start = host.shell("c1", "hostname; cat /proc/sys/kernel/shm_rmid_forced");
    let id = start.id.clone();
    pod.run(start).await;
    let log = host.log_text(&id);
    assert!(log.contains(" F pod-host\n") && log.contains(" F 1\n"), "{log}");
    pod.close(&host).await;
}
