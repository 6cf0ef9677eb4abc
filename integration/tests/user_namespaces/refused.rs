//! What is refused, and what is left afterwards: nothing.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use podhold_integration::{
    configs::{self, Parts},
    rig,
    rig::PROBE,
};
use podhold_proto::cri::{
    ContainerConfig, IdMapping, Mount, MountPropagation, NamespaceMode, PodSandboxStatsRequest,
    RuntimeHandler, StatusRequest, UserNamespace,
};
use tokio::time::{interval, timeout};
use tonic::Code;

use super::{UIDS, ids, mapped, pod, shell, users, volume};

#[tokio::test]
async fn a_bad_mapping_is_refused_by_its_field() {
    let rig = rig!();
    let field = "linux.security_context.namespace_options";
    let mapping = |container_id, host_id, length| IdMapping { host_id, container_id, length };
    type Change = Box<dyn Fn(&mut UserNamespace)>;
    let mode = |mode: i32| -> Change { Box::new(move |users| users.mode = mode) };
    let table: [(&str, Change); 11] = [
        ("userns_options.mode", mode(NamespaceMode::Container.into())),
        ("userns_options.mode", mode(NamespaceMode::Target.into())),
        ("userns_options.mode", mode(NamespaceMode::Node.into())),
        ("userns_options.mode", mode(77)),
        ("userns_options.uids", Box::new(|users| users.uids.clear())),
        ("userns_options.gids", Box::new(|users| users.gids.clear())),
        ("userns_options.uids", Box::new(move |users| users.uids.push(mapping(65_536, 1_000_000, 10)))),
        (
            "userns_options.uids[0].container_id",
            Box::new(move |users| users.uids = vec![mapping(1, 1000, 10)]),
        ),
        ("userns_options.gids[0].length", Box::new(move |users| users.gids = vec![mapping(0, 1000, 0)])),
        ("userns_options.uids[0].length", Box::new(move |users| users.uids = vec![mapping(0, u32::MAX, 2)])),
        ("userns_options.gids[0].length", Box::new(move |users| users.gids = vec![mapping(0, 1, u32::MAX)])),
    ];
    for (name, change) in table {
        let mut config = pod(&rig, "bad");
        change(config.namespaces().userns_options.as_mut().unwrap());
        let refused = rig.cri().run_pod(&config).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().starts_with(&format!("{field}.{name}: ")), "{name}: {refused}");
    }
    for name in ["pid", "ipc"] {
        let mut config = pod(&rig, "bad");
        let options = config.namespaces();
        *(if name == "pid" { &mut options.pid } else { &mut options.ipc }) = NamespaceMode::Node.into();
        let refused = rig.cri().run_pod(&config).await.unwrap_err();
        assert!(refused.message().starts_with(&format!("{field}.{name}: ")), "{refused}");
    }
    rig.finish().await;
}

#[tokio::test]
async fn a_container_that_contradicts_its_pods_users_is_refused() {
    let rig = rig!();
    let (plain, own) = (rig.pod("plain"), pod(&rig, "own"));
    let plain_id = rig.cri().run_pod(&plain).await.unwrap();
    let own_id = rig.cri().run_pod(&own).await.unwrap();
    let host = volume(&rig, "host");
    let with = |mount: Mount| ContainerConfig { mounts: vec![mount], ..shell("mounts") };
    let without_users = |mount: Mount| {
        let mut config = with(mount);
        config.namespaces().userns_options = None;
        config
    };
    let other = UserNamespace { uids: ids(UIDS + 1), ..users() };
    let mut strange = shell("strange");
    strange.namespaces().userns_options = Some(other);
    let proc = Mount { readonly: true, ..mapped(Path::new("/proc/sys"), "/host") };
    let both = MountPropagation::PropagationBidirectional.into();
    let invalid = Code::InvalidArgument;
    for (words, code, id, pod, container) in [
        ("userns_options: differs", invalid, &own_id, &own, configs::container("a", PROBE, &[])),
        ("userns_options: differs", invalid, &plain_id, &plain, shell("a")),
        ("userns_options: differs", invalid, &own_id, &own, strange),
        (
            "mounts[0].uidMappings: the pod has no",
            invalid,
            &plain_id,
            &plain,
            without_users(mapped(&host, "/v")),
        ),
        (
            "mounts[0].gidMappings: differs",
            invalid,
            &own_id,
            &own,
            with(Mount { gid_mappings: vec![], ..mapped(&host, "/v") }),
        ),
        (
            "mounts[0].uidMappings: differs",
            invalid,
            &own_id,
            &own,
            with(Mount { uid_mappings: ids(1), ..mapped(&host, "/v") }),
        ),
        (
            "mounts[0].propagation: ",
            invalid,
            &own_id,
            &own,
            with(Mount { propagation: both, ..mapped(&host, "/v") }),
        ),
        (
            "mounts[0].host_path: /proc/sys cannot be shown",
            Code::FailedPrecondition,
            &own_id,
            &own,
            with(proc),
        ),
    ] {
        let refused = rig.cri().run(id, pod, &container).await.unwrap_err();
        assert!(refused.code() == code && refused.message().contains(words), "{words}: {refused}");
    }
    rig.cri().end_pod(&plain_id).await.unwrap();
    rig.cri().end_pod(&own_id).await.unwrap();
    rig.finish().await;
}

/// What the kubelet looks at before it sends such a pod.
#[tokio::test]
async fn status_says_that_user_namespaces_can_be_had() {
    let rig = rig!();
    let status =
        rig.cri().runtime.clone().status(StatusRequest { verbose: false }).await.unwrap().into_inner();
    let can = |handler: &RuntimeHandler| handler.features.as_ref().unwrap().user_namespaces;
    assert!(!status.runtime_handlers.is_empty() && status.runtime_handlers.iter().all(can), "{status:?}");
    rig.finish().await;
}

#[tokio::test]
async fn a_pod_that_cannot_be_made_leaves_nothing() {
    let rig = rig!();
    let mut config = pod(&rig, "failing");
    let sysctls = [("net.ipv4.no_such_setting".to_owned(), "1".to_owned())];
    config.linux.as_mut().unwrap().sysctls = sysctls.into();
    for _ in 0..3 {
        let refused = rig.cri().run_pod(&config).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
    // A container that cannot be started, in one that can.
    let config = pod(&rig, "fine");
    let id = rig.cri().run_pod(&config).await.unwrap();
    let mut missing = shell("missing");
    missing.command = vec!["/bin/nosuch".into()];
    let missing = rig.cri().create(&id, &config, &missing).await.unwrap();
    rig.cri().start(&missing).await.unwrap_err();
    rig.cri().remove(&missing).await.unwrap();
    let request = PodSandboxStatsRequest { pod_sandbox_id: id.clone() };
    let stats =
        rig.cri().runtime.clone().pod_sandbox_stats(request).await.unwrap().into_inner().stats.unwrap();
    assert_eq!(stats.linux.unwrap().network.unwrap().default_interface.unwrap().name, "eth0");
    rig.cri().end_pod(&id).await.unwrap();
    rig.finish().await;
}

/// The namespaces were made, the pod was not.
#[tokio::test]
async fn a_daemon_that_dies_half_way_leaves_nothing_once_it_is_back() {
    let mut rig = rig!();
    let reached = rig.machine.directory().join("reached");
    let program = rig.places.plugins().join("slow");
    let script = format!(
        "#!/bin/sh\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\ntouch {}\nsleep 1\nexit 1\n",
        reached.display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let network = rig.places.cni().join("00-slow.conflist");
    fs::write(&network, r#"{"cniVersion":"1.0.0","name":"slow","plugins":[{"type":"slow"}]}"#).unwrap();
    let (cri, config) = (rig.cri().clone(), pod(&rig, "half"));
    let asked = tokio::spawn(async move { cri.run_pod(&config).await });
    // Nothing tells when another program has made a file.
    let mut ticks = interval(Duration::from_millis(20));
    let begun = async {
        while !reached.exists() {
            ticks.tick().await;
        }
    };
    timeout(Duration::from_secs(20), begun).await.expect("the plugin is called");
    fs::remove_file(network).unwrap();
    rig.crash_and_restart().await;
    asked.await.unwrap().unwrap_err();
    let config = pod(&rig, "next");
    let id = rig.cri().run_pod(&config).await.unwrap();
    rig.run(&id, &config, &shell("one")).await;
    rig.cri().end_pod(&id).await.unwrap();
    rig.finish().await;
}
