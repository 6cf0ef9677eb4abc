//! What a request's words do on the host: paths, files and settings.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use podhold_integration::{
    configs::{self, security},
    rig,
    rig::PROBE,
};
use podhold_proto::cri::{Int64Value, KeyValue};
use tonic::Code;

use super::{attempt, busybox, specification};

/// Other users of the host can neither enter the runtime's directories nor connect to it.
#[tokio::test]
async fn cve_2024_25621_state_is_closed_to_other_users() {
    let rig = rig!();
    let config = rig.pod("closed");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let id = rig.run(&pod, &config, &busybox("closed")).await;
    rig.cri()
        .exec_well(&id, &["sh", "-c", "mkdir /tmp/s && chmod 4755 /tmp/s && touch /tmp/s/x"])
        .await
        .unwrap();
    // The directory above them is one that everybody may enter, as /run and /var/lib are.
    let above = rig.machine.directory().display().to_string();
    rig.machine.run_well(["chmod", "755", &above]).await.unwrap();
    for place in [rig.places.run(), rig.places.state()] {
        let found = fs::metadata(&place).unwrap();
        assert_eq!((found.mode() & 0o077, found.uid()), (0, 0), "{}", place.display());
        let place = place.display().to_string();
        let other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "ls", &place];
        let done = rig.machine.run(other).await.unwrap();
        assert!(done.code != 0 && done.stderr.contains("Permission denied"), "{place}: {done:?}");
    }
    let socket = fs::metadata(rig.places.socket()).unwrap();
    assert_eq!(socket.mode() & 0o007, 0, "others may connect");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

/// A log is beneath its pod's log directory, whatever the request says.
#[tokio::test]
async fn cve_2025_0750_a_log_path_leads_nowhere_else() {
    let rig = rig!();
    let config = rig.pod("logs");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let victim = rig.machine.directory().join("victim");
    let escapes = format!("{}{}", "../".repeat(12), victim.display());
    for path in ["../escaped", "a/../../escaped", "/etc/podhold-escaped", "a\0b", &escapes] {
        let mut container = busybox("log");
        container.log_path = path.into();
        let refusal = rig.cri().create(&pod, &config, &container).await.expect_err(path);
        assert_eq!(refusal.code(), Code::InvalidArgument, "{path:?}: {refusal}");
        assert!(refusal.message().contains("log_path"), "{path:?}: {refusal}");
    }
    for directory in ["relative", "/var/log/../../etc"] {
        let mut config = rig.pod("directory");
        config.log_directory = directory.into();
        let refusal = rig.cri().run_pod(&config).await.expect_err(directory);
        assert_eq!(refusal.code(), Code::InvalidArgument, "{directory}: {refusal}");
    }
    // Removing a container removes no file of anybody else's.
    fs::write(&victim, "kept").unwrap();
    let mut container = configs::container("linked", PROBE, &["exit", "0"]);
    container.log_path = "linked/0.log".into();
    let id = rig.run(&pod, &config, &container).await;
    rig.cri().remove(&id).await.unwrap();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "kept");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

/// No word of a request gets into the container's user database, nor onto a line of its own anywhere.
#[tokio::test]
async fn cve_2022_4318_a_newline_adds_no_user() {
    const LINE: &str = "/\nevil::0:0::/:/bin/sh";
    let rig = rig!();
    let config = rig.pod("newline");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let plain = rig.run(&pod, &config, &busybox("plain")).await;
    let database = "cat /etc/passwd /etc/group";
    let expected = attempt(&rig, &plain, database).await.1;
    let mut container = busybox("newline");
    container.envs = vec![KeyValue { key: "HOME".into(), value: LINE.into() }];
    security(&mut container).run_as_user = Some(Int64Value { value: 4242 });
    let id = rig.run(&pod, &config, &container).await;
    assert_eq!(attempt(&rig, &id, database).await.1, expected);
    let mut container = busybox("directory");
    container.working_dir = LINE.into();
    security(&mut container).run_as_user = Some(Int64Value { value: 4242 });
    if let Ok(id) = rig.cri().run(&pod, &config, &container).await {
        assert_eq!(attempt(&rig, &id, database).await.1, expected);
    }
    let mut named = rig.pod("named");
    named.hostname = "web\n127.0.0.1 evil".into();
    let refusal = rig.cri().run_pod(&named).await.unwrap_err();
    assert_eq!(refusal.code(), Code::InvalidArgument, "{refusal}");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

/// Annotations are reported back and nothing more: no unit's property, no setting of the runtime.
#[tokio::test]
async fn cve_2024_3154_annotations_set_nothing() {
    const FORGED: [(&str, &str); 5] = [
        ("org.systemd.property.ExecStart", "'/bin/forged'"),
        ("org.systemd.property.TimeoutUSec", "uint64 1"),
        ("io.kubernetes.cri-o.Devices", "/dev/forged:/dev/forged:rwm"),
        ("io.kubernetes.cri-o.userns-mode", "forged"),
        ("run.oci.hooks", "/forged"),
    ];
    let rig = rig!();
    let mut config = rig.pod("annotations");
    config.annotations.extend(FORGED.map(|(key, value)| (key.to_owned(), value.to_owned())));
    let pod = rig.cri().run_pod(&config).await.unwrap();
    assert_eq!(rig.cri().pod_status(&pod).await.unwrap().annotations, config.annotations);
    let mut container = busybox("annotations");
    container.annotations.extend(FORGED.map(|(key, value)| (key.to_owned(), value.to_owned())));
    let id = rig.run(&pod, &config, &container).await;
    assert_eq!(rig.cri().status(&id).await.unwrap().annotations, container.annotations);
    let spec = specification(&rig, &id).await.to_string();
    assert!(!spec.contains("forged") && !spec.contains("TimeoutUSec"), "{spec}");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

/// A sysctl sets itself in the pod, and nothing else anywhere.
#[tokio::test]
async fn cve_2022_0811_a_sysctl_carries_no_other() {
    let rig = rig!();
    let core = || fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let before = core();
    for (name, value) in [
        ("kernel.shm_rmid_forced", "1+kernel.core_pattern=|/forged #"),
        ("kernel.shm_rmid_forced", "1\nkernel.core_pattern=|/forged #"),
        ("kernel.shm_rmid_forced", "1\0"),
        ("kernel.shm_rmid_forced=1+kernel.core_pattern", "|/forged"),
        ("net.ipv4.ip_forward+kernel.core_pattern", "|/forged"),
        ("net/../kernel/core_pattern", "|/forged"),
        ("net.../kernel/core_pattern", "|/forged"),
        ("kernel.core_pattern", "|/forged"),
        ("kernel/core_pattern", "|/forged"),
        ("fs.mqueue", "1"),
        ("net", "1"),
    ] {
        let mut config = rig.pod("sysctl");
        config.linux.as_mut().unwrap().sysctls.insert(name.into(), value.into());
        let refusal = rig.cri().run_pod(&config).await.expect_err(name);
        assert_eq!(refusal.code(), Code::InvalidArgument, "{name} = {value:?}: {refusal}");
        assert!(refusal.message().contains("sysctl"), "{refusal}");
        assert_eq!(core(), before, "{name} = {value:?}");
    }
    assert!(Path::new("/proc/sys/kernel/core_pattern").exists());
    rig.finish().await;
}
