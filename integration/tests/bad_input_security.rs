//! Every field of the security context, of mounts and of devices: missing, empty, absurdly large, of a wrong
//! value, contradictory. Each is refused by its name, and leaves nothing.

#![allow(clippy::unwrap_used, reason = "a test")]

use podhold_integration::{
    configs::{self, Parts, security},
    rig,
    rig::PROBE,
};
use podhold_proto::cri::*;
use tonic::{Code, Status};

use Code::{FailedPrecondition, InvalidArgument, NotFound};

type OfContainer = (&'static str, fn(&mut ContainerConfig), Code, &'static str);
type OfPod = (&'static str, fn(&mut LinuxSandboxSecurityContext), Code, &'static str);

fn refused<T: std::fmt::Debug>(what: &str, answer: Result<T, Status>, code: Code, word: &str) {
    let status = answer.expect_err(what);
    assert_eq!(status.code(), code, "{what}: {status}");
    assert!(status.message().contains(word), "{what}: no {word:?} in {:?}", status.message());
    // A person reads it, and it has to fit into a header.
    assert!(status.message().len() < 5000, "{what}: {} bytes", status.message().len());
}

fn long() -> String {
    "x".repeat(1 << 20)
}

fn caps(config: &mut ContainerConfig) -> &mut Capability {
    security(config).capabilities.get_or_insert_default()
}

fn mount(config: &mut ContainerConfig, change: impl FnOnce(&mut Mount)) {
    let mut mount = configs::mount("/etc/hostname".as_ref(), "/mnt/file");
    change(&mut mount);
    config.mounts.push(mount);
}

fn device(config: &mut ContainerConfig, host: &str, container: &str, permissions: &str) {
    config.devices.push(Device {
        host_path: host.into(),
        container_path: container.into(),
        permissions: permissions.into(),
    });
}

fn profile(kind: i32, reference: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile { profile_type: kind, localhost_ref: reference.into() })
}

const SECURITY: [OfContainer; 31] = [
    (
        "user below 0",
        |c| security(c).run_as_user = Some(Int64Value { value: -1 }),
        InvalidArgument,
        "run_as_user",
    ),
    (
        "user too large",
        |c| security(c).run_as_user = Some(Int64Value { value: 1 << 40 }),
        InvalidArgument,
        "run_as_user",
    ),
    (
        "two users",
        |c| {
            security(c).run_as_user = Some(Int64Value { value: 1 });
            security(c).run_as_username = "root".into();
        },
        InvalidArgument,
        "run_as_username",
    ),
    ("unknown user", |c| security(c).run_as_username = "nosuch".into(), InvalidArgument, "nosuch"),
    ("endless user", |c| security(c).run_as_username = long(), InvalidArgument, "user"),
    ("user with a colon", |c| security(c).run_as_username = "root:root".into(), InvalidArgument, "root:root"),
    ("user of two lines", |c| security(c).run_as_username = "a\nroot".into(), InvalidArgument, "user"),
    (
        "group without user",
        |c| security(c).run_as_group = Some(Int64Value { value: 1 }),
        InvalidArgument,
        "run_as_group",
    ),
    (
        "group below 0",
        |c| {
            security(c).run_as_user = Some(Int64Value { value: 1 });
            security(c).run_as_group = Some(Int64Value { value: i64::MIN });
        },
        InvalidArgument,
        "run_as_group",
    ),
    (
        "odd supplemental group",
        |c| security(c).supplemental_groups = vec![1, 1 << 32],
        InvalidArgument,
        "supplemental_groups",
    ),
    (
        "too many groups",
        |c| security(c).supplemental_groups = (0..70_000).collect(),
        InvalidArgument,
        "supplemental_groups",
    ),
    (
        "odd policy",
        |c| security(c).supplemental_groups_policy = 9,
        InvalidArgument,
        "supplemental_groups_policy",
    ),
    (
        "unknown capability",
        |c| caps(c).add_capabilities = vec!["FLY".into()],
        InvalidArgument,
        "add_capabilities",
    ),
    (
        "endless capability",
        |c| caps(c).drop_capabilities = vec![long()],
        InvalidArgument,
        "drop_capabilities",
    ),
    (
        "empty capability",
        |c| caps(c).add_ambient_capabilities = vec![String::new()],
        InvalidArgument,
        "add_ambient_capabilities",
    ),
    ("privileged", |c| security(c).privileged = true, InvalidArgument, "privileged"),
    ("odd network", |c| c.namespaces().network = 7, InvalidArgument, "namespace_options.network"),
    ("host network", |c| c.namespaces().network = 2, InvalidArgument, "namespace_options.network"),
    ("container network", |c| c.namespaces().network = 1, InvalidArgument, "namespace_options.network"),
    ("target IPC", |c| c.namespaces().ipc = 3, InvalidArgument, "namespace_options.ipc"),
    ("host IPC", |c| c.namespaces().ipc = 2, InvalidArgument, "namespace_options.ipc"),
    ("odd pid", |c| c.namespaces().pid = -1, InvalidArgument, "namespace_options.pid"),
    ("pod pid", |c| c.namespaces().pid = 0, InvalidArgument, "namespace_options.pid"),
    ("no target", |c| c.namespaces().pid = 3, InvalidArgument, "target_id"),
    (
        "unknown target",
        |c| {
            c.namespaces().pid = 3;
            c.namespaces().target_id = "abc".into();
        },
        NotFound,
        "abc",
    ),
    ("odd seccomp type", |c| security(c).seccomp = profile(9, ""), InvalidArgument, "seccomp.profile_type"),
    (
        "seccomp without a name",
        |c| security(c).seccomp = profile(2, ""),
        InvalidArgument,
        "seccomp.localhost_ref",
    ),
    (
        "seccomp with a name",
        |c| security(c).seccomp = profile(0, "/x"),
        InvalidArgument,
        "seccomp.localhost_ref",
    ),
    ("seccomp of a device", |c| security(c).seccomp = profile(2, "/dev/zero"), InvalidArgument, "/dev/zero"),
    ("relative mask", |c| security(c).masked_paths = vec!["proc/x".into()], InvalidArgument, "masked_paths"),
    (
        "climbing path",
        |c| security(c).readonly_paths = vec!["/a/../b".into()],
        InvalidArgument,
        "readonly_paths",
    ),
];

const MOUNTS: [OfContainer; 20] = [
    (
        "all of /dev, shared",
        |c| {
            mount(c, |m| {
                m.container_path = "/dev/".into();
                m.propagation = 2;
            });
        },
        InvalidArgument,
        "mounts[0].propagation",
    ),
    ("no source", |c| mount(c, |m| m.host_path.clear()), InvalidArgument, "mounts[0].host_path"),
    ("relative source", |c| mount(c, |m| m.host_path = "etc".into()), InvalidArgument, "mounts[0].host_path"),
    (
        "endless source",
        |c| mount(c, |m| m.host_path = format!("/{}", long())),
        InvalidArgument,
        "mounts[0].host_path",
    ),
    (
        "source with NUL",
        |c| mount(c, |m| m.host_path = "/a\0b".into()),
        InvalidArgument,
        "mounts[0].host_path",
    ),
    (
        "source beneath a file",
        |c| mount(c, |m| m.host_path = "/etc/hostname/x".into()),
        InvalidArgument,
        "mounts[0].host_path",
    ),
    ("no target", |c| mount(c, |m| m.container_path.clear()), InvalidArgument, "mounts[0].container_path"),
    (
        "the root",
        |c| mount(c, |m| m.container_path = "//.".into()),
        InvalidArgument,
        "mounts[0].container_path",
    ),
    (
        "climbing target",
        |c| mount(c, |m| m.container_path = "/a/..".into()),
        InvalidArgument,
        "mounts[0].container_path",
    ),
    (
        "target in /proc",
        |c| mount(c, |m| m.container_path = "//proc/./x".into()),
        InvalidArgument,
        "mounts[0].container_path",
    ),
    (
        "endless target",
        |c| mount(c, |m| m.container_path = format!("/{}", long())),
        InvalidArgument,
        "mounts[0].container_path",
    ),
    (
        "target with NUL",
        |c| mount(c, |m| m.container_path = "/a\0b".into()),
        InvalidArgument,
        "mounts[0].container_path",
    ),
    ("odd propagation", |c| mount(c, |m| m.propagation = 5), InvalidArgument, "mounts[0].propagation"),
    (
        "recursive and writable",
        |c| {
            mount(c, |m| {
                m.readonly = false;
                m.recursive_read_only = true;
            })
        },
        InvalidArgument,
        "mounts[0].recursive_read_only",
    ),
    (
        "recursive and propagated",
        |c| {
            mount(c, |m| {
                m.recursive_read_only = true;
                m.propagation = 1;
            })
        },
        InvalidArgument,
        "mounts[0].recursive_read_only",
    ),
    (
        "unknown option",
        |c| mount(c, |m| m.mount_options = vec!["dev".into()]),
        InvalidArgument,
        "mounts[0].mount_options",
    ),
    (
        "option with more",
        |c| mount(c, |m| m.mount_options = vec!["noexec,rw".into()]),
        InvalidArgument,
        "mounts[0].mount_options",
    ),
    (
        "endless option",
        |c| mount(c, |m| m.mount_options = vec![long()]),
        InvalidArgument,
        "mounts[0].mount_options",
    ),
    (
        "sub path alone",
        |c| mount(c, |m| m.image_sub_path = "a".into()),
        InvalidArgument,
        "mounts[0].image_sub_path",
    ),
    (
        "endless image",
        |c| {
            mount(c, |m| {
                m.host_path.clear();
                m.image = Some(ImageSpec { image: long(), ..Default::default() });
            })
        },
        NotFound,
        "image",
    ),
];

const DEVICES: [OfContainer; 9] = [
    ("no permissions", |c| device(c, "/dev/null", "/dev/x", ""), InvalidArgument, "devices[0].permissions"),
    (
        "odd permissions",
        |c| device(c, "/dev/null", "/dev/x", "rwx"),
        InvalidArgument,
        "devices[0].permissions",
    ),
    ("no source", |c| device(c, "", "/dev/x", "r"), InvalidArgument, "devices[0].host_path"),
    ("no device", |c| device(c, "/etc/passwd", "/dev/x", "r"), InvalidArgument, "devices[0].host_path"),
    ("the whole host", |c| device(c, "/", "/dev/x", "r"), InvalidArgument, "devices[0].host_path"),
    (
        "endless source",
        |c| device(c, &format!("/{}", long()), "/dev/x", "r"),
        InvalidArgument,
        "devices[0].host_path",
    ),
    ("no target", |c| device(c, "/dev/null", "", "r"), InvalidArgument, "devices[0].container_path"),
    (
        "target in /proc",
        |c| device(c, "/dev/null", "/proc/x", "r"),
        InvalidArgument,
        "devices[0].container_path",
    ),
    (
        "twice",
        |c| {
            device(c, "/dev/null", "/dev/x", "r");
            device(c, "/dev/zero", "/dev//x", "r");
        },
        InvalidArgument,
        "devices[1].container_path",
    ),
];

const PODS: [OfPod; 10] = [
    (
        "group without user",
        |s| s.run_as_group = Some(Int64Value { value: 1 }),
        InvalidArgument,
        "run_as_group",
    ),
    ("odd user", |s| s.run_as_user = Some(Int64Value { value: -7 }), InvalidArgument, "run_as_user"),
    (
        "too many groups",
        |s| s.supplemental_groups = (0..70_000).collect(),
        InvalidArgument,
        "supplemental_groups",
    ),
    ("odd policy", |s| s.supplemental_groups_policy = 9, InvalidArgument, "supplemental_groups_policy"),
    ("odd seccomp", |s| s.seccomp = profile(5, ""), InvalidArgument, "seccomp.profile_type"),
    ("odd AppArmor", |s| s.apparmor = profile(5, ""), InvalidArgument, "apparmor.profile_type"),
    ("container IPC", |s| s.namespace_options.get_or_insert_default().ipc = 1, InvalidArgument, "ipc"),
    (
        "target network",
        |s| s.namespace_options.get_or_insert_default().network = 3,
        InvalidArgument,
        "network",
    ),
    ("target pid", |s| s.namespace_options.get_or_insert_default().pid = 3, InvalidArgument, "pid"),
    (
        "label",
        |s| s.selinux_options = Some(SeLinuxOption { level: "s0".into(), ..Default::default() }),
        FailedPrecondition,
        "selinux_options",
    ),
];

#[tokio::test]
async fn containers_are_refused_by_the_field_that_cannot_be() {
    let rig = rig!();
    let config = rig.pod("pod");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let cases = SECURITY.iter().chain(&MOUNTS).chain(&DEVICES);
    for (what, change, code, word) in cases {
        let mut container = configs::container("impossible", PROBE, &["sleep"]);
        change(&mut container);
        refused(what, rig.cri().create(&pod, &config, &container).await, *code, word);
    }
    // A target must be of the same pod.
    let other_config = rig.pod("other");
    let other = rig.cri().run_pod(&other_config).await.unwrap();
    let target = rig.probe(&other, &other_config, "target", &["sleep"]).await;
    let mut container = configs::container("foreign", PROBE, &["sleep"]);
    container.namespaces().pid = NamespaceMode::Target.into();
    container.namespaces().target_id = target;
    let answer = rig.cri().create(&pod, &config, &container).await;
    refused("a target elsewhere", answer, InvalidArgument, "another pod");
    // It is as well as before.
    let id = rig.probe(&pod, &config, "good", &["sleep"]).await;
    rig.cri().exec_well(&id, &["/probe", "exit", "0"]).await.unwrap();
    rig.cri().end_pod(&other).await.unwrap();
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn pods_are_refused_by_the_field_that_cannot_be() {
    let rig = rig!();
    for (what, change, code, word) in PODS {
        let mut config = rig.pod("impossible");
        change(config.linux.as_mut().unwrap().security_context.as_mut().unwrap());
        refused(what, rig.cri().run_pod(&config).await, code, word);
    }
    rig.finish().await;
}
