//! What a container may do: seccomp, capabilities, privileged.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{collections::BTreeMap, fs};

use podhold_integration::{
    configs::{self, Parts, security},
    rig,
    rig::{BUSYBOX, PROBE, Rig},
};
use podhold_proto::cri::{
    Capability, ContainerConfig, NamespaceMode, PodSandboxConfig, SecurityProfile,
    security_profile::ProfileType,
};
use tonic::Code;

fn shell(name: &str) -> ContainerConfig {
    let mut config = configs::container(name, BUSYBOX, &["1000"]);
    config.command = vec!["/bin/sleep".into()];
    config
}

fn profile(kind: ProfileType, path: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile { profile_type: kind.into(), localhost_ref: path.to_owned() })
}

/// Whether a command succeeds, and what it says.
async fn attempt(rig: &Rig, container: &str, command: &str) -> (bool, String) {
    let done = rig.cri().exec(container, &["/bin/sh", "-c", command]).await.unwrap();
    let said = [done.stdout, done.stderr].concat();
    (done.exit_code == 0, String::from_utf8_lossy(&said).into_owned())
}

/// The seccomp mode of the container's first process, then of a command in it.
async fn modes(rig: &Rig, container: &str) -> [String; 2] {
    let mut found = Vec::new();
    for who in ["1", "self"] {
        let text = rig.cri().exec_well(container, &["cat", &format!("/proc/{who}/status")]).await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("Seccomp:\t")).unwrap();
        found.push(line.to_owned());
    }
    found.try_into().unwrap()
}

/// Makes a user namespace: an unprivileged process may, unless a filter says no.
const NEW_USER: &str = "/bin/busybox unshare -U /bin/true";

#[tokio::test]
async fn the_default_seccomp_profile_is_in_force_for_the_container_and_its_commands() {
    let rig = rig!();
    let config = rig.pod("default");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let confined = rig.run(&pod, &config, &shell("confined")).await;
    assert_eq!(modes(&rig, &confined).await, ["2", "2"]);
    let refused = ["mount -t tmpfs none /tmp", NEW_USER, "/bin/busybox unshare -n /bin/true"];
    for command in refused {
        let (well, said) = attempt(&rig, &confined, command).await;
        let refused = said.contains("not permitted") || said.contains("permission denied");
        assert!(!well && refused, "{command}: {said}");
    }
    let mut free = shell("free");
    security(&mut free).seccomp = profile(ProfileType::Unconfined, "");
    let free = rig.run(&pod, &config, &free).await;
    assert_eq!(modes(&rig, &free).await, ["0", "0"]);
    // It is the filter that refuses, not the kernel.
    let (well, said) = attempt(&rig, &free, NEW_USER).await;
    assert!(well, "{said}");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_seccomp_profile_of_the_node_is_in_force() {
    let rig = rig!();
    let path = rig.machine.directory().join("no-mkdir.json");
    let text = serde_json::json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}],
    });
    fs::write(&path, text.to_string()).unwrap();
    let config = rig.pod("node");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mut container = shell("shell");
    security(&mut container).seccomp = profile(ProfileType::Localhost, &path.display().to_string());
    let id = rig.run(&pod, &config, &container).await;
    assert_eq!(modes(&rig, &id).await, ["2", "2"]);
    let (well, said) = attempt(&rig, &id, "mkdir /tmp/new").await;
    // Error 28 is ENOSPC: this profile's own answer and nobody else's.
    assert!(!well && said.contains("No space left"), "{said}");
    let (well, said) = attempt(&rig, &id, "touch /tmp/new").await;
    assert!(well, "{said}");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_seccomp_profile_that_cannot_be_used_is_refused_at_create_by_its_path() {
    let rig = rig!();
    let garbage = rig.machine.directory().join("garbage.json");
    fs::write(&garbage, "{\"defaultAction\": 7").unwrap();
    let config = rig.pod("refused");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    for path in ["/no/such/profile.json", "relative.json", &garbage.display().to_string()] {
        let mut container = shell("shell");
        security(&mut container).seccomp = profile(ProfileType::Localhost, path);
        let refusal = rig.cri().create(&pod, &config, &container).await.expect_err(path);
        assert_eq!(refusal.code(), Code::InvalidArgument, "{refusal}");
        assert!(refusal.message().contains(path), "no {path} in {refusal}");
    }
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

/// The capability sets of the container's first process, by their names in `/proc/PID/status`.
async fn sets(rig: &Rig, container: &str) -> BTreeMap<String, u64> {
    let text = rig.cri().exec_well(container, &["/probe", "show", "capabilities"]).await.unwrap();
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs.map(|(name, mask)| (name.to_owned(), u64::from_str_radix(mask, 16).unwrap())).collect()
}

async fn with(rig: &Rig, at: (&PodSandboxConfig, &str), name: &str, add: &[&str], drop: &[&str]) -> u64 {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let mut container = configs::container(name, PROBE, &["sleep"]);
    security(&mut container).capabilities = Some(Capability {
        add_capabilities: words(add),
        drop_capabilities: words(drop),
        ..Default::default()
    });
    let id = rig.run(at.1, at.0, &container).await;
    let sets = sets(rig, &id).await;
    assert_eq!(
        (sets["capbnd"], sets["capprm"], sets["capinh"]),
        (sets["capeff"], sets["capeff"], 0),
        "{name}"
    );
    sets["capeff"]
}

#[tokio::test]
async fn capabilities_are_added_and_dropped_as_asked() {
    const CHOWN: u64 = 1;
    const NET_BIND_SERVICE: u64 = 1 << 10;
    const NET_ADMIN: u64 = 1 << 12;
    let rig = rig!();
    let config = rig.pod("capabilities");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let at = (&config, pod.as_str());
    let usual = with(&rig, at, "usual", &[], &[]).await;
    assert!(usual & CHOWN != 0 && usual & NET_ADMIN == 0, "{usual:x}");
    let changed = with(&rig, at, "changed", &["NET_ADMIN"], &["CHOWN"]).await;
    assert_eq!(changed, (usual | NET_ADMIN) & !CHOWN, "{changed:x}");
    assert_eq!(with(&rig, at, "prefixed", &["CAP_NET_ADMIN"], &["CAP_CHOWN"]).await, changed);
    assert_eq!(with(&rig, at, "none", &[], &["ALL"]).await, 0);
    assert_eq!(with(&rig, at, "one", &["NET_BIND_SERVICE"], &["ALL"]).await, NET_BIND_SERVICE);
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_privileged_container_may_do_what_the_host_may() {
    let rig = rig!();
    let mut config = rig.pod("privileged");
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mut container = configs::container("probe", PROBE, &["sleep"]);
    security(&mut container).privileged = true;
    let id = rig.run(&pod, &config, &container).await;
    let text = rig.machine.run_well(["grep", "CapBnd", "/proc/self/status"]).await.unwrap();
    let host = u64::from_str_radix(text.split_whitespace().nth(1).unwrap(), 16).unwrap();
    let sets = sets(&rig, &id).await;
    assert_eq!((sets["capbnd"], sets["capeff"]), (host, host), "{sets:x?}");
    let mut container = shell("shell");
    security(&mut container).privileged = true;
    let id = rig.run(&pod, &config, &container).await;
    assert_eq!(modes(&rig, &id).await, ["0", "0"]);
    for command in
        ["mount -t tmpfs none /tmp", NEW_USER, "test -c /dev/kmsg", "echo 1 > /proc/sys/net/ipv4/ip_forward"]
    {
        let (well, said) = attempt(&rig, &id, command).await;
        assert!(well, "{command}: {said}");
    }
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

/// Among all processes of the host, pause has nothing that a container could use.
#[tokio::test]
async fn with_the_hosts_processes_pause_shows_nothing_through_proc() {
    let rig = rig!();
    let mut config = rig.pod("host-pid");
    config.namespaces().pid = NamespaceMode::Node.into();
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mut container = shell("curious");
    container.namespaces().pid = NamespaceMode::Node.into();
    let capabilities = Capability { add_capabilities: vec!["SYS_PTRACE".into()], ..Default::default() };
    security(&mut container).capabilities = Some(capabilities);
    let id = rig.run(&pod, &config, &container).await;
    // The brackets keep grep from finding itself.
    let find =
        "for p in /proc/[0-9]*; do grep -q 'podhold-[p]ause' $p/cmdline 2>/dev/null && echo $p; done; true";
    let found = rig.cri().exec_well(&id, &["/bin/sh", "-c", find]).await.unwrap();
    let processes: Vec<&str> = found.lines().collect();
    assert_eq!(processes.len(), 1, "one pause: {found}");
    for part in ["root", "fd", "cwd"] {
        let look = format!("ls -A {}/{part}/ 2>/dev/null; true", processes[0]);
        let seen = rig.cri().exec_well(&id, &["/bin/sh", "-c", &look]).await.unwrap();
        assert_eq!(seen, "", "{part} of pause shows: {seen}");
    }
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}
