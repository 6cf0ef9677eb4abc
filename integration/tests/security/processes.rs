//! What a container finds of the runtime's own processes.

use std::{fs, time::Duration};

use podhold_integration::{
    configs::{self, Parts, security},
    images::hostile::DESCRIPTORS,
    log, programs, rig,
    rig::{PROBE, Rig},
};
use podhold_proto::cri::NamespaceMode;
use tonic::Code;

use super::{attempt, busybox, hostile, shell};

/// A container that sees and may write to everything keeps the shim's program open until the shim is gone,
/// and then writes to it. A program on disk would now be the attacker's.
#[tokio::test]
async fn cve_2019_5736_proc_self_exe_cannot_be_overwritten() {
    let rig = rig!();
    let program = fs::read(programs::built("podhold-shim")).unwrap();
    let victim_config = rig.pod("victim");
    let victim = rig.cri().run_pod(&victim_config).await.unwrap();
    // Its own init, before it is the workload, is the runtime's program as well.
    let mut itself = configs::container("itself", PROBE, &[]);
    itself.command = vec!["/proc/self/exe".into(), "--version".into()];
    let _ = rig.cri().run(&victim, &victim_config, &itself).await;

    let mut config = rig.pod("attacker");
    config.namespaces().pid = NamespaceMode::Node.into();
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mut attacker = busybox("attacker");
    attacker.namespaces().pid = NamespaceMode::Node.into();
    security(&mut attacker).privileged = true;
    let attacker = rig.run(&pod, &config, &attacker).await;
    let shim = shim_of(&rig, &victim).await;
    let image = attempt(&rig, &attacker, &format!("ls -l /proc/{shim}/exe")).await.1;
    assert!(image.contains("/memfd:"), "the shim runs from a file: {image}");
    let cri = rig.cri().clone();
    let (id, script) = (attacker.clone(), write_when_gone(&shim, "/tmp/held"));
    let holding = tokio::spawn(async move { cri.exec_within(&id, &["/bin/sh", "-c", &script], 60).await });
    while !attempt(&rig, &attacker, "test -e /tmp/held").await.0 {}
    rig.cri().end_pod(&victim).await.unwrap();
    let held = holding.await.unwrap().unwrap();
    let said = String::from_utf8([held.stdout, held.stderr].concat()).unwrap();
    assert!(said.contains("not permitted") || said.contains("busy"), "{said}");

    // The copy in memory serves the next pods: it cannot be written to either, when nobody runs it any more.
    let held = rig.machine.directory().join("held");
    let script = write_when_gone(&shim_of(&rig, &pod).await, &held.display().to_string());
    let end = async {
        while !held.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        rig.cri().end_pod(&pod).await.unwrap();
    };
    let (said, ()) = tokio::join!(rig.machine.run(["sh", "-c", &script]), end);
    let said = said.unwrap();
    assert!([said.stdout, said.stderr].concat().contains("not permitted"), "the copy can be overwritten");
    assert!(fs::read(programs::built("podhold-shim")).unwrap() == program, "podhold-shim was overwritten");
    rig.finish().await;
}

/// Keeps a program open, says so by a file, and writes to it once its process is gone.
fn write_when_gone(pid: &str, said: &str) -> String {
    format!(
        "exec 3</proc/{pid}/exe; touch {said}; while test -d /proc/{pid}; do sleep 0.1; done; \
         (echo overwritten > /proc/self/fd/3) 2>&1; true"
    )
}

/// A process of a pod's shim, by its number in the machine.
async fn shim_of(rig: &Rig, pod: &str) -> String {
    // The brackets keep grep from finding itself.
    let find = format!(
        "for p in /proc/[0-9]*; do grep -q 'podhold-[s]him' $p/cmdline && grep -q {pod} $p/cmdline && \
         echo ${{p#/proc/}}; done 2>/dev/null | head -n 1"
    );
    let found = rig.machine.run_well(["sh", "-c", &find]).await.unwrap();
    assert!(!found.trim().is_empty(), "the shim of {pod} is not seen");
    found.trim().to_owned()
}

/// Neither the first process nor a command has a descriptor that is not its own, and none can be entered
/// on the way.
#[tokio::test]
async fn cve_2024_21626_no_descriptor_leaks_and_none_is_a_working_directory() {
    let rig = rig!();
    let image = hostile("workdir");
    rig.cri().pull(&image).await.unwrap();
    let config = rig.pod("descriptors");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let shown = rig.probe(&pod, &config, "shown", &["show", "descriptors"]).await;
    rig.cri().ended(&shown, Duration::from_secs(20)).await.unwrap();
    let probe = rig.probe(&pod, &config, "probe", &["sleep"]).await;
    let numbers = |text: &str| -> Vec<String> {
        text.lines().filter_map(|line| line.split_once('=')).map(|(number, _)| number.to_owned()).collect()
    };
    let of_exec = rig.cri().exec_well(&probe, &["/probe", "show", "descriptors"]).await.unwrap();
    assert_eq!(numbers(&of_exec), ["0", "1", "2"], "{of_exec}");
    let of_init = log::lines(&configs::log_file(&config, "shown"), "stdout").unwrap().join("\n");
    assert_eq!(numbers(&of_init), ["0", "1", "2"], "{of_init}");

    // As the image has it, and as the request has it.
    for directory in ["", "/proc/self/fd/9", "/proc/self/fd/../fd/9"] {
        let mut container = shell("refused", &image);
        container.working_dir = directory.into();
        let refusal = rig.cri().create(&pod, &config, &container).await.expect_err(directory);
        assert_eq!(refusal.code(), Code::InvalidArgument, "{refusal}");
    }
    // Links that lead there once /proc is mounted: where a directory was open, its path would be the host's.
    // Refused as long as the protection stands; where it is gone they start, and are looked into.
    for number in DESCRIPTORS {
        let mut container = shell(&format!("link{number}"), &image);
        container.working_dir = format!("/cwd{number}");
        container.tty = number % 2 == 0;
        container.command = vec!["/bin/sh".into(), "-c".into(), "sleep 1000".into()];
        let Ok(id) = rig.cri().run(&pod, &config, &container).await else { continue };
        let reached = attempt(&rig, &id, "ls /proc/1/cwd/../../../../../../var/lib/dpkg 2>&1").await;
        assert!(!reached.0, "descriptor {number} leads to the host: {}", reached.1);
    }
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

/// Whoever shares the host's network could connect to a socket that has no path and no permissions.
#[tokio::test]
async fn cve_2020_15257_no_abstract_socket_is_open() {
    let rig = rig!();
    let mut config = rig.pod("network");
    config.hostname.clear();
    config.namespaces().network = NamespaceMode::Node.into();
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mut container = busybox("curious");
    container.namespaces().network = NamespaceMode::Node.into();
    container.tty = true;
    let id = rig.run(&pod, &config, &container).await;
    let sockets = rig.cri().exec_well(&id, &["cat", "/proc/net/unix"]).await.unwrap();
    assert!(sockets.contains("podhold.sock"), "the host's sockets are not seen: {sockets}");
    let open: Vec<&str> = sockets.lines().filter(|line| line.contains(" @")).collect();
    assert!(open.is_empty(), "abstract sockets: {open:?}");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

/// A command may say as much as it likes: what is kept of it is bounded, and it goes on.
#[tokio::test]
async fn cve_2022_31030_output_of_a_command_is_bounded() {
    let rig = rig!();
    let config = rig.pod("loud");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let id = rig.run(&pod, &config, &busybox("loud")).await;
    let done = rig.cri().exec(&id, &["sh", "-c", "yes | head -c 20000000; exit 3"]).await.unwrap();
    // A little less than 16 MiB, so that the whole answer fits into what clients take.
    assert_eq!((done.stdout.len(), done.exit_code), ((16 << 20) - 1024, 3));
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}
