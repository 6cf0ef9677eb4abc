//! Networks, processes and equipment of pods with users of their own.

use std::{fs, time::Duration};

use podhold_integration::{
    configs::{self, Parts, security},
    programs, rig,
    rig::{BUSYBOX, PROBE},
};
use podhold_proto::cri::{Capability, Device, NamespaceMode};

use super::{UIDS, container, ids_outside, pid, pod, sh, shell};

#[tokio::test]
async fn the_pods_network_and_its_settings_are_its_own() {
    let rig = rig!();
    let mut config = pod(&rig, "network");
    let sysctls = [("net.ipv4.ip_unprivileged_port_start", "0"), ("kernel.shm_rmid_forced", "1")];
    let sysctls = sysctls.map(|(name, value)| (name.to_owned(), value.to_owned()));
    config.linux.as_mut().unwrap().sysctls = sysctls.into();
    let id = rig.cri().run_pod(&config).await.unwrap();
    let address = rig.cri().pod_status(&id).await.unwrap().network.unwrap().ip;
    let server = container("server", PROBE, &["serve", "80", "hello"]);
    rig.run(&id, &config, &server).await;
    let one = rig.run(&id, &config, &shell("one")).await;
    let read = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced";
    assert_eq!(sh(&rig, &one, read).await, "0\n1");
    assert_eq!(sh(&rig, &one, "stat -c %u:%g /sys; ls /sys/class/net | sort").await, "65534:65534\neth0\nlo");
    let probe = programs::built("podhold-probe").display().to_string();
    let from_host = rig.machine.run_well([probe.as_str(), "connect", &address, "80"]).await.unwrap();
    assert_eq!(from_host, "hello\n");
    assert_eq!(sh(&rig, &one, "nc 127.0.0.1 80 </dev/null").await, "hello");
    // Root there rules this network, and no other.
    let mut admin = shell("admin");
    security(&mut admin).capabilities =
        Some(Capability { add_capabilities: vec!["NET_ADMIN".into()], ..Default::default() });
    let admin = rig.run(&id, &config, &admin).await;
    assert_eq!(sh(&rig, &admin, "ip addr add 10.99.0.1/32 dev lo && echo done").await, "done");
    rig.cri().end_pod(&id).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn the_hosts_network_goes_with_users_of_the_pods_own() {
    let rig = rig!();
    let mut config = pod(&rig, "hostnet");
    config.hostname.clear();
    config.namespaces().network = NamespaceMode::Node.into();
    let id = rig.cri().run_pod(&config).await.unwrap();
    let mut one = shell("one");
    one.namespaces().network = NamespaceMode::Node.into();
    let one = rig.run(&id, &config, &one).await;
    assert_eq!(ids_outside(&rig, pid(&rig, &one).await).await.0, UIDS.to_string());
    let host = rig.machine.run_well(["readlink", "/proc/self/ns/net"]).await.unwrap();
    assert_eq!(sh(&rig, &one, "ls -l /proc/self/ns/net | sed 's/.*-> //'").await, host.trim());
    // The host's sysfs, and nothing in it can be written.
    let links = rig.machine.run_well(["ls", "/sys/class/net"]).await.unwrap();
    assert_eq!(sh(&rig, &one, "ls -1 /sys/class/net").await, links.trim_end());
    let writable = "cut -d' ' -f5,6 /proc/self/mountinfo | grep '^/sys' | grep -v ' ro,' | cut -d' ' -f1";
    // A tmpfs of the container's own, in which the cgroups are mounted.
    assert_eq!(sh(&rig, &one, writable).await, "/sys/fs/cgroup");
    assert_eq!(sh(&rig, &one, "ip link add x type dummy 2>/dev/null || echo no").await, "no");
    assert_eq!(sh(&rig, &one, "ls /sys/fs/cgroup | wc -l | grep -vc '^0'").await, "1");
    rig.cri().end_pod(&id).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn processes_can_be_shared_within_the_pods_users() {
    let rig = rig!();
    let mut config = pod(&rig, "processes");
    config.namespaces().pid = NamespaceMode::Pod.into();
    let id = rig.cri().run_pod(&config).await.unwrap();
    let mut all = Vec::new();
    for name in ["one", "two"] {
        let mut shared = shell(name);
        shared.namespaces().pid = NamespaceMode::Pod.into();
        all.push(rig.run(&id, &config, &shared).await);
    }
    let sleeping = "cat /proc/[0-9]*/comm | grep -c sleep";
    assert_eq!(sh(&rig, &all[0], sleeping).await, "2");
    let pause = "tr '\\0' ' ' </proc/1/cmdline; stat -c %u:%g /proc/1; ls -A /proc/1/root/ | wc -l";
    assert_eq!(sh(&rig, &all[0], pause).await, "podhold-pause 0:0\n0");
    let mut debugger = shell("debugger");
    debugger.namespaces().pid = NamespaceMode::Target.into();
    debugger.namespaces().target_id.clone_from(&all[0]);
    let debugger = rig.run(&id, &config, &debugger).await;
    assert_eq!(sh(&rig, &debugger, sleeping).await, "3");
    rig.cri().stop(&all[1], 1).await.unwrap();
    rig.cri().end_pod(&id).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_terminal_devices_and_a_read_only_root_work_for_other_users_too() {
    let rig = rig!();
    let mut config = pod(&rig, "equipment");
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
    let id = rig.cri().run_pod(&config).await.unwrap();
    let script = "tty; stat -c %u /dev/console; echo at >/dev/tty; echo end";
    let mut terminal = container("terminal", BUSYBOX, &["-c", script]);
    terminal.command = vec!["/bin/sh".into()];
    terminal.tty = true;
    let terminal = rig.run(&id, &config, &terminal).await;
    rig.cri().ended(&terminal, Duration::from_secs(20)).await.unwrap();
    let log = fs::read_to_string(configs::log_file(&config, "terminal")).unwrap();
    let said: Vec<&str> =
        log.lines().filter_map(|line| line.split(" F ").nth(1)).map(str::trim_end).collect();
    assert_eq!(said[1..], ["0", "at", "end"], "{log}");

    let mut one = shell("one");
    one.devices = vec![Device {
        container_path: "/dev/other/nothing".into(),
        host_path: "/dev/null".into(),
        permissions: "rw".into(),
    }];
    security(&mut one).readonly_rootfs = true;
    security(&mut one).masked_paths.push("/etc/passwd".into());
    let one = rig.run(&id, &config, &one).await;
    assert_eq!(sh(&rig, &one, "echo x >/dev/other/nothing && cat /dev/other/nothing && echo ok").await, "ok");
    assert_eq!(sh(&rig, &one, "touch /x 2>/dev/null || echo no; cat /etc/passwd | wc -c").await, "no\n0");

    // Privileged in its own pod: all capabilities there, none on the host.
    let mut root = shell("root");
    security(&mut root).privileged = true;
    let root = rig.run(&id, &config, &root).await;
    assert_eq!(ids_outside(&rig, pid(&rig, &root).await).await.0, UIDS.to_string());
    assert_eq!(
        sh(&rig, &root, "mkdir /m && mount -t tmpfs x /m && touch /m/y && stat -c %u /m/y").await,
        "0"
    );
    assert_eq!(sh(&rig, &root, "echo 3 2>/dev/null >/proc/sys/vm/drop_caches || echo no").await, "no");
    rig.cri().end_pod(&id).await.unwrap();
    rig.finish().await;
}
