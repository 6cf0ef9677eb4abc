//! AppArmor: containers and what is run in them have Podhold's profile, one of the node's, or none; and they can be
//! stopped. Runs where the kernel has AppArmor, as that of the guest (integration/vm).

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    fs,
    io::Write,
    os::unix::fs::MetadataExt,
    process::{Command, Stdio},
    time::Duration,
};

use podhold_integration::{
    configs::{self, security},
    needs::elsewhere,
    rig,
    rig::{BUSYBOX, Rig},
};
use podhold_proto::cri::{Capability, ContainerConfig, SecurityProfile, security_profile::ProfileType};
use tonic::Code;

const OWN: &str = "podhold-default";
/// A profile of the node, and what it denies.
const OF_THE_NODE: &str = "podhold-it-node";
const RULES: &str = "profile podhold-it-node flags=(attach_disconnected) {
  file, capability, network, signal, umount, mount, ptrace,
  deny /forbidden w,
}
";

/// Whether the test can run here.
fn is_here() -> bool {
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    let here = enabled.is_ok_and(|text| text.starts_with('Y'));
    if !here {
        elsewhere("needs AppArmor in the kernel");
    }
    here
}

/// Gives text to the machine's parser.
fn parser(option: &str, text: &str) {
    let mut parser = Command::new("apparmor_parser")
        .args(["--skip-cache", "--quiet", option])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    parser.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(parser.wait().unwrap().success(), "{option}");
}

/// A container that could do much, were it not for a profile, and ends well when it is told to.
fn container(name: &str, kind: Option<ProfileType>, reference: &str) -> ContainerConfig {
    let script = "trap 'exit 7' TERM; while :; do sleep 1000 & wait; done";
    let mut container = configs::container(name, BUSYBOX, &["-c", script]);
    container.command = vec!["/bin/sh".into()];
    let of = security(&mut container);
    of.apparmor =
        kind.map(|kind| SecurityProfile { profile_type: kind.into(), localhost_ref: reference.into() });
    of.capabilities = Some(Capability { add_capabilities: vec!["SYS_ADMIN".into()], ..Default::default() });
    of.masked_paths.clear();
    of.readonly_paths.clear();
    container
}

async fn sh(rig: &Rig, id: &str, script: &str) -> (i32, String) {
    let output = rig.cri().exec(id, &["/bin/sh", "-c", script]).await.unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.exit_code, String::from_utf8_lossy(&said).trim().to_owned())
}

/// Which profile the first process of a container has, and which a command that is run in it.
async fn profiles(rig: &Rig, id: &str) -> [String; 2] {
    let (_, init) = sh(rig, id, "cat /proc/1/attr/current").await;
    let (_, exec) = sh(rig, id, "cat /proc/self/attr/current").await;
    [init, exec]
}

/// That a script is denied where it should be, and works elsewhere.
async fn expect_denied(rig: &Rig, id: &str, what: &str, script: &str, denied: bool) {
    let (code, said) = sh(rig, id, script).await;
    println!("{what}: {script}: {code} {said}");
    assert_eq!(code != 0, denied, "{what}: {script}: {code} {said}");
    assert!(!denied || said.to_lowercase().contains("denied"), "{what}: {script}: {said}");
}

#[tokio::test]
async fn containers_and_what_is_run_in_them_have_the_profile_they_ask_for() {
    if !is_here() {
        return;
    }
    let rig = rig!();
    parser("--replace", RULES);
    let config = rig.pod("armoured");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    for reference in ["podhold-it-none", "localhost/podhold-it-none"] {
        let missing = container("missing", Some(ProfileType::Localhost), reference);
        let refusal = rig.cri().create(&pod, &config, &missing).await.unwrap_err();
        assert_eq!(refusal.code(), Code::InvalidArgument, "{refusal}");
        assert!(refusal.message().contains("\"podhold-it-none\" is not loaded"), "{refusal}");
    }
    for (name, kind, reference, profile) in [
        ("silent", None, "", OWN),
        ("default", Some(ProfileType::RuntimeDefault), "", OWN),
        ("node", Some(ProfileType::Localhost), OF_THE_NODE, OF_THE_NODE),
        ("none", Some(ProfileType::Unconfined), "", ""),
    ] {
        let id = rig.run(&pod, &config, &container(name, kind, reference)).await;
        let shown = if profile.is_empty() { "unconfined".into() } else { format!("{profile} (enforce)") };
        assert_eq!(profiles(&rig, &id).await, [shown.clone(), shown], "{name}");
        let own = profile == OWN;
        expect_denied(&rig, &id, name, "mkdir -p /m && mount -t tmpfs none /m", own).await;
        expect_denied(&rig, &id, name, "echo pod > /proc/sys/kernel/domainname", own).await;
        let shm = "cat /proc/sys/kernel/shmmni > /n && cat /n > /proc/sys/kernel/shmmni";
        expect_denied(&rig, &id, name, shm, false).await;
        expect_denied(&rig, &id, name, "echo x > /forbidden", profile == OF_THE_NODE).await;
        // Signals within the container, and the first one from outside.
        expect_denied(&rig, &id, name, "sleep 1000 & kill $!", false).await;
        rig.cri().stop(&id, 60).await.unwrap();
        let status = rig.cri().ended(&id, Duration::from_secs(60)).await.unwrap();
        assert_eq!(status.exit_code, 7, "{name}: it was not told to end: {status:?}");
    }
    rig.cri().end_pod(&pod).await.unwrap();
    parser("--remove", RULES);
    rig.finish().await;
}

#[tokio::test]
async fn its_profile_is_loaded_once_and_again_when_somebody_takes_it_out_or_replaces_it() {
    if !is_here() {
        return;
    }
    let mut rig = rig!();
    let record = rig.places.run().join("apparmor.json");
    let config = rig.pod("again");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let id = rig.run(&pod, &config, &container("first", None, "")).await;
    assert_eq!(profiles(&rig, &id).await[0], format!("{OWN} (enforce)"));
    let loaded = fs::metadata(&record).unwrap().ino();

    rig.restart().await;
    let id = rig.run(&pod, &config, &container("second", None, "")).await;
    assert_eq!(profiles(&rig, &id).await[0], format!("{OWN} (enforce)"));
    assert_eq!(fs::metadata(&record).unwrap().ino(), loaded, "a restarted daemon has loaded it again");

    let other = format!("profile {OWN} {{ file, signal, capability, }}");
    parser("--remove", &other);
    let id = rig.run(&pod, &config, &container("third", None, "")).await;
    assert_eq!(profiles(&rig, &id).await[0], format!("{OWN} (enforce)"));

    parser("--replace", &other);
    rig.restart().await;
    let id = rig.run(&pod, &config, &container("fourth", None, "")).await;
    let (code, said) = sh(&rig, &id, "echo pod > /proc/sys/kernel/domainname").await;
    assert_ne!(code, 0, "the other profile is in force: {said}");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}
