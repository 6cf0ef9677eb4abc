//! Who a container runs as, and what it was given besides: groups, ambient capabilities, settings of the
//! kernel, devices, profiles.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{collections::BTreeMap, fs};

use podhold_integration::{
    configs::{self, Parts, security},
    rig,
    rig::{BUSYBOX, PROBE, REGISTRY, Rig},
};
use podhold_proto::cri::*;
use tonic::Code;

/// Facts of the container's first process (from its log would be later: its exec'd twin has the same).
async fn show(rig: &Rig, container: &str, what: &str) -> BTreeMap<String, String> {
    let text = rig.cri().exec_well(container, &["/probe", "show", what]).await.unwrap();
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The first process's line of `/proc/1/status`.
async fn of_init(rig: &Rig, container: &str, key: &str) -> String {
    let text = rig.cri().exec_well(container, &["/probe", "read", "/proc/1/status"]).await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{key}:\t"))).unwrap();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn shell(name: &str) -> ContainerConfig {
    let mut config = configs::container(name, BUSYBOX, &["1000"]);
    config.command = vec!["/bin/sleep".into()];
    config
}

fn refused<T: std::fmt::Debug>(what: &str, answer: Result<T, tonic::Status>, code: Code, word: &str) {
    let status = answer.expect_err(what);
    assert_eq!(status.code(), code, "{what}: {status}");
    assert!(status.message().contains(word), "{what}: no {word:?} in {:?}", status.message());
}

#[tokio::test]
async fn user_and_groups_are_the_requests_or_else_the_images() {
    type Change = fn(&mut LinuxContainerSecurityContext);
    /// User, group and supplementary groups.
    type Ids = (i64, i64, &'static [i64]);
    let uid = |security: &mut LinuxContainerSecurityContext| {
        security.run_as_user = Some(Int64Value { value: 1000 });
        security.supplemental_groups = vec![7];
    };
    let strict = |security: &mut LinuxContainerSecurityContext| {
        security.run_as_user = Some(Int64Value { value: 1000 });
        security.run_as_group = Some(Int64Value { value: 55 });
        security.supplemental_groups = vec![7];
        security.supplemental_groups_policy = SupplementalGroupsPolicy::Strict.into();
    };
    let name = |security: &mut LinuxContainerSecurityContext| security.run_as_username = "guest".into();
    let nothing: Change = |_| {};
    let cases: [(&str, Change, Ids); 8] = [
        ("1", nothing, (0, 0, &[0])),
        ("user", nothing, (1000, 1000, &[1000, 2000])),
        ("uid", nothing, (1000, 1000, &[1000, 2000])),
        ("names", nothing, (1000, 2000, &[2000])),
        ("ids", nothing, (4321, 1234, &[1234])),
        ("ids", uid, (1000, 1000, &[7, 1000, 2000])),
        ("ids", strict, (1000, 55, &[7, 55])),
        ("1", name, (1000, 1000, &[1000, 2000])),
    ];
    let rig = rig!();
    let config = rig.pod("users");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    for (index, (tag, change, (uid, gid, groups))) in cases.into_iter().enumerate() {
        let image = format!("{REGISTRY}/probe:{tag}");
        rig.cri().pull(&image).await.unwrap();
        let mut container = configs::container(&format!("user{index}"), &image, &["sleep"]);
        change(security(&mut container));
        let id = rig.run(&pod, &config, &container).await;
        let user = rig.cri().status(&id).await.unwrap().user.unwrap().linux.unwrap();
        assert_eq!((user.uid, user.gid, user.supplemental_groups.as_slice()), (uid, gid, groups), "{index}");
        let words = |ids: &[i64]| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let expected = [words(&[uid; 4]), words(&[gid; 4]), words(groups)];
        let init = [
            of_init(&rig, &id, "Uid").await,
            of_init(&rig, &id, "Gid").await,
            of_init(&rig, &id, "Groups").await,
        ];
        assert_eq!(init, expected, "the first process of {index}");
        let of_exec = show(&rig, &id, "user").await;
        let of_exec = ["uid", "gid", "groups"].map(|key| of_exec[key].replace('\t', " "));
        assert_eq!(of_exec, expected, "a command in {index}");
    }
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn an_ordinary_user_has_ambient_capabilities_and_nobody_gains_any() {
    const NET_BIND_SERVICE: &str = "0000000000000400";
    let rig = rig!();
    let config = rig.pod("ambient");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mut container = configs::container("ambient", PROBE, &["sleep"]);
    let context = security(&mut container);
    context.run_as_user = Some(Int64Value { value: 1000 });
    context.no_new_privs = true;
    context.capabilities = Some(Capability {
        drop_capabilities: vec!["ALL".into()],
        add_ambient_capabilities: vec!["NET_BIND_SERVICE".into()],
        ..Default::default()
    });
    let id = rig.run(&pod, &config, &container).await;
    for key in ["CapAmb", "CapEff", "CapPrm", "CapInh", "CapBnd"] {
        assert_eq!(of_init(&rig, &id, key).await, NET_BIND_SERVICE, "{key} of the first process");
        let of_exec = show(&rig, &id, "capabilities").await;
        assert_eq!(of_exec[&key.to_lowercase()], NET_BIND_SERVICE, "{key} of a command");
    }
    assert_eq!(of_init(&rig, &id, "NoNewPrivs").await, "1");
    assert_eq!(show(&rig, &id, "confinement").await["nonewprivs"], "1");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn sysctls_are_the_pods_own_by_either_spelling() {
    let rig = rig!();
    let read = async |name: &str| {
        rig.machine.run_well(["cat", &format!("/proc/sys/{name}")]).await.unwrap().trim().to_owned()
    };
    let names = ["kernel/shm_rmid_forced", "fs/mqueue/msg_max", "net/ipv4/ip_unprivileged_port_start"];
    let mut before = Vec::new();
    for name in names {
        before.push(read(name).await);
    }
    let mut config = rig.pod("sysctls");
    config.linux.as_mut().unwrap().sysctls = [
        ("kernel.shm_rmid_forced", "1"),
        ("fs/mqueue/msg_max", "99"),
        ("net.ipv4.ip_unprivileged_port_start", "77"),
        ("net/ipv4/conf/lo/forwarding", "1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let id = rig.run(&pod, &config, &shell("shell")).await;
    for (name, value) in names.into_iter().zip(["1", "99", "77"]) {
        let text = rig.cri().exec_well(&id, &["cat", &format!("/proc/sys/{name}")]).await.unwrap();
        assert_eq!(text.trim(), value, "{name} in the pod");
    }
    for (name, value) in names.into_iter().zip(before) {
        assert_eq!(read(name).await, value, "{name} of the host");
    }
    rig.cri().end_pod(&pod).await.unwrap();
    for (name, network, ipc) in [
        ("net.ipv4.ip_forward", NamespaceMode::Node, NamespaceMode::Pod),
        ("kernel.shmmax", NamespaceMode::Pod, NamespaceMode::Node),
    ] {
        let mut config = rig.pod("host");
        config.hostname.clear();
        config.namespaces().network = network.into();
        config.namespaces().ipc = ipc.into();
        config.linux.as_mut().unwrap().sysctls.insert(name.into(), "1".into());
        refused(name, rig.cri().run_pod(&config).await, Code::InvalidArgument, "host's namespace");
    }
    let mut config = rig.pod("twice");
    config.linux.as_mut().unwrap().sysctls =
        ["net.ipv4.ip_forward", "net/ipv4/ip_forward"].map(|name| (name.to_owned(), "1".to_owned())).into();
    refused("twice", rig.cri().run_pod(&config).await, Code::InvalidArgument, "set twice");
    rig.finish().await;
}

#[tokio::test]
async fn devices_are_given_one_by_one_by_directory_and_anywhere() {
    let rig = rig!();
    let nodes = rig.machine.directory().join("nodes");
    fs::create_dir_all(nodes.join("deep")).unwrap();
    for (name, minor) in [("a", "8"), ("deep/b", "9")] {
        let path = nodes.join(name).display().to_string();
        rig.machine.run_well(["mknod", &path, "c", "1", minor]).await.unwrap();
    }
    let device = |host: &str, container: &str, permissions: &str| Device {
        host_path: host.to_owned(),
        container_path: container.to_owned(),
        permissions: permissions.to_owned(),
    };
    let directory = nodes.display().to_string();
    let config = rig.pod("devices");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mut container = shell("devices");
    container.devices = vec![
        device("/dev/fuse", "/dev/readable", "r"),
        device(&directory, "/dev/random.d", "rwm"),
        device("/dev/zero", "/custom/zero", "rw"),
    ];
    let id = rig.run(&pod, &config, &container).await;
    for script in [
        "test -c /dev/readable",
        "test $(head -c 7 /dev/random.d/a | wc -c) = 7",
        "test $(head -c 7 /dev/random.d/deep/b | wc -c) = 7",
        "test $(head -c 7 /custom/zero | wc -c) = 7",
        "echo x > /custom/zero",
    ] {
        rig.cri().exec_well(&id, &["/bin/sh", "-c", script]).await.unwrap();
    }
    let mut refusal = rig.cri().exec(&id, &["/bin/sh", "-c", "echo x > /dev/readable"]).await.unwrap();
    assert!(refusal.exit_code != 0, "a device given for reading is written to");
    let text = String::from_utf8_lossy(&std::mem::take(&mut refusal.stderr)).into_owned();
    assert!(text.contains("not permitted"), "{text}");
    // What was not given cannot be used, even where its node can be made.
    let make = "busybox mknod /dev/fuse2 c 10 229 && cat /dev/fuse2";
    let done = rig.cri().exec(&id, &["/bin/sh", "-c", make]).await.unwrap();
    assert!(String::from_utf8_lossy(&done.stderr).contains("not permitted"), "{done:?}");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

/// The fields of older kubelets, and profiles of security modules that this kernel may not have.
#[tokio::test]
#[allow(deprecated, reason = "what is tested")]
async fn profiles_are_in_force_or_refused() {
    let rig = rig!();
    let profile = rig.machine.directory().join("profile.json");
    fs::write(&profile, r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).unwrap();
    let config = rig.pod("profiles");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    for (index, (path, mode)) in [
        ("runtime/default".to_owned(), "2"),
        (format!("localhost/{}", profile.display()), "2"),
        ("unconfined".to_owned(), "0"),
        (String::new(), "0"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut container = configs::container(&format!("seccomp{index}"), PROBE, &["sleep"]);
        security(&mut container).seccomp = None;
        security(&mut container).seccomp_profile_path.clone_from(&path);
        security(&mut container).apparmor_profile =
            ["", "unconfined", "runtime/default", ""][index].to_owned();
        let id = rig.run(&pod, &config, &container).await;
        assert_eq!(of_init(&rig, &id, "Seccomp").await, mode, "{path:?}");
    }
    let foreign = rig.machine.directory().join("foreign.json");
    fs::write(&foreign, r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_S390X"]}"#)
        .unwrap();
    let reference = foreign.display().to_string();
    let mut container = shell("uncompilable");
    security(&mut container).seccomp =
        Some(SecurityProfile { profile_type: 2, localhost_ref: reference.clone() });
    let words = format!("linux.security_context.seccomp.localhost_ref: {reference}: seccomp: ");
    let answer = rig.cri().create(&pod, &config, &container).await;
    refused("a profile that cannot be compiled", answer, Code::InvalidArgument, &words);
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    let code = if enabled.is_ok_and(|text| text.starts_with('Y')) {
        println!("SKIPPED: the refusal where the kernel has no AppArmor: this one has it");
        Code::InvalidArgument
    } else {
        Code::FailedPrecondition
    };
    let mut container = shell("apparmor");
    security(&mut container).apparmor_profile = "localhost/nosuch".into();
    refused("old field", rig.cri().create(&pod, &config, &container).await, code, "apparmor");
    security(&mut container).apparmor =
        Some(SecurityProfile { profile_type: 2, localhost_ref: "localhost/nosuch".into() });
    refused("new field", rig.cri().create(&pod, &config, &container).await, code, "nosuch");
    let label = SeLinuxOption { r#type: "container_t".into(), ..Default::default() };
    let mut container = shell("selinux");
    security(&mut container).selinux_options = Some(label.clone());
    let answer = rig.cri().create(&pod, &config, &container).await;
    refused("label", answer, Code::FailedPrecondition, "container_t");
    let mut labelled = rig.pod("labelled");
    labelled.linux.as_mut().unwrap().security_context.as_mut().unwrap().selinux_options = Some(label);
    refused("pod's label", rig.cri().run_pod(&labelled).await, Code::FailedPrecondition, "selinux_options");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}
