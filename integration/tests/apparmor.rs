//! AppArmor profiles: the daemon's own, one of the node's, none.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
};

use podhold_integration::{
    configs::{self, security},
    needs::elsewhere,
    rig,
    rig::{BUSYBOX, Rig},
};
use podhold_proto::cri::{Capability, ContainerConfig, SecurityProfile, security_profile::ProfileType};
use tonic::Code;

const OF_THE_NODE: &str = "profile podhold-it-node flags=(attach_disconnected) {\n  file, capability, network, \
                           signal, umount, mount, ptrace,\n  deny /forbidden w,\n}\n";

fn is_here() -> bool {
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    let here = enabled.is_ok_and(|text| text.starts_with('Y'));
    if !here {
        elsewhere("it needs AppArmor in the kernel");
    }
    here
}

fn load(profile: &str) {
    let mut parser = Command::new("apparmor_parser")
        .args(["--replace", "--skip-cache"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    parser.stdin.take().unwrap().write_all(profile.as_bytes()).unwrap();
    assert!(parser.wait().unwrap().success());
}

fn container(name: &str, kind: Option<ProfileType>, reference: &str) -> ContainerConfig {
    let mut container =
        configs::container(name, BUSYBOX, &["-c", "cat /proc/self/attr/current; sleep 100000"]);
    container.command = vec!["/bin/sh".into()];
    let of = security(&mut container);
    of.apparmor =
        kind.map(|kind| SecurityProfile { profile_type: kind.into(), localhost_ref: reference.into() });
    of.capabilities = Some(Capability { add_capabilities: vec!["SYS_ADMIN".into()], ..Default::default() });
    container
}

async fn sh(rig: &Rig, id: &str, script: &str) -> (i32, String) {
    let output = rig.cri().exec(id, &["sh", "-c", script]).await.unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.exit_code, String::from_utf8_lossy(&said).trim().to_owned())
}

#[tokio::test]
async fn containers_and_what_is_run_in_them_have_the_profile_that_was_asked_for() {
    if !is_here() {
        return;
    }
    let rig = rig!();
    load(OF_THE_NODE);
    let config = rig.pod("armoured");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let missing = container("missing", Some(ProfileType::Localhost), "podhold-it-none");
    let refusal = rig.cri().create(&pod, &config, &missing).await.unwrap_err();
    assert_eq!(refusal.code(), Code::InvalidArgument, "{refusal}");
    assert!(refusal.message().contains("podhold-it-none"), "{refusal}");

    for (name, kind, reference, profile) in [
        ("silent", None, "", "podhold-default (enforce)"),
        ("default", Some(ProfileType::RuntimeDefault), "", "podhold-default (enforce)"),
        ("node", Some(ProfileType::Localhost), "podhold-it-node", "podhold-it-node (enforce)"),
        ("none", Some(ProfileType::Unconfined), "", "unconfined"),
    ] {
        let id = rig.run(&pod, &config, &container(name, kind, reference)).await;
        assert_eq!(sh(&rig, &id, "cat /proc/1/attr/current").await, (0, profile.into()), "{name}: its init");
        assert_eq!(
            sh(&rig, &id, "cat /proc/self/attr/current").await,
            (0, profile.into()),
            "{name}: an exec"
        );
        // The capability would let it, were it not for the profile.
        let (code, said) = sh(&rig, &id, "mkdir -p /m && mount -t tmpfs none /m").await;
        let refused = code != 0 && said.to_lowercase().contains("denied");
        assert_eq!(refused, profile.starts_with("podhold-default"), "{name}: mount: {code} {said}");
        let (code, said) = sh(&rig, &id, "echo x > /forbidden").await;
        assert_eq!(code != 0, profile.starts_with("podhold-it-node"), "{name}: write: {code} {said}");
        // Ordinary work goes on, signals among a container's processes too.
        let (code, said) = sh(&rig, &id, "sleep 1000 & kill $! && echo y > /tmp/y && cat /tmp/y").await;
        assert_eq!((code, said.as_str()), (0, "y"), "{name}");
        rig.cri().stop(&id, 1).await.unwrap();
    }
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}
