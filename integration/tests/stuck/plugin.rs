//! CNI plugins that never return, and take no TERM.

use std::{fs, os::unix::fs::PermissionsExt};

use podhold_integration::{rig, rig::Rig};
use podhold_proto::cri::{PodSandboxState, RuntimeCondition, StatusRequest};
use tokio::time::Instant;

use super::{READ, deadline, others_go_on, until};

/// Has a plugin of ours be the whole network. It hangs at the commands whose name is a file in the directory
/// that is answered.
fn install(rig: &Rig) -> std::path::PathBuf {
    let hangs = rig.machine.directory().join("hangs");
    fs::create_dir(&hangs).unwrap();
    // Nobody ever writes to it.
    nix::unistd::mkfifo(&hangs.join("gate"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let answer = r#"{"cniVersion":"1.1.0","interfaces":[],"ips":[{"address":"10.88.9.9/16"}]}"#;
    let script = format!(
        "#!/bin/sh\ntrap '' TERM INT HUP\ncat >/dev/null\n\
         if [ -e {hangs}/$CNI_COMMAND ]; then read -r word < {hangs}/gate; fi\n\
         if [ $CNI_COMMAND = ADD ]; then echo '{answer}'; fi\n",
        hangs = hangs.display()
    );
    let program = rig.places.plugins().join("stubborn");
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let network = r#"{"cniVersion":"1.1.0","name":"stubborn","plugins":[{"type":"stubborn"}]}"#;
    let new = rig.places.cni().join("new");
    fs::write(&new, network).unwrap();
    fs::rename(new, rig.places.cni().join("00-stubborn.conflist")).unwrap();
    hangs
}

async fn network_ready(rig: &Rig) -> RuntimeCondition {
    let answer = rig.cri().runtime.clone().status(StatusRequest::default()).await.unwrap().into_inner();
    answer.status.unwrap().conditions.into_iter().find(|c| c.r#type == "NetworkReady").unwrap()
}

#[tokio::test]
async fn a_plugin_that_never_returns_is_named_and_ended() {
    let mut rig = rig!();
    let hangs = install(&rig);
    assert!(network_ready(&rig).await.status);
    let config = rig.pod("stubborn");
    let pod = rig.cri().run_pod(&config).await.unwrap();

    fs::write(hangs.join("STATUS"), "").unwrap();
    for _ in 0..20 {
        let asked = Instant::now();
        let condition = network_ready(&rig).await;
        assert!(
            !condition.status && condition.message.contains("STATUS of plugin stubborn"),
            "{condition:?}"
        );
        assert!(asked.elapsed() < READ, "Status took {:?}", asked.elapsed());
    }
    fs::write(hangs.join("DEL"), "").unwrap();
    fs::write(hangs.join("ADD"), "").unwrap();
    let new = rig.pod("new");
    tokio::join!(
        deadline("stop", rig.cri().stop_pod(&pod), ["DEL of plugin stubborn"]),
        deadline("run", rig.cri().run_pod(&new), ["ADD of plugin stubborn"]),
        super::reads_answer(&rig),
    );
    assert_eq!(rig.cri().pod_status(&pod).await.unwrap().state(), PodSandboxState::SandboxNotready);
    // A daemon that dies meanwhile finds it as it was.
    let (cri, stopped) = (rig.cri().clone(), pod.clone());
    let stopping = tokio::spawn(async move { cri.stop_pod(&stopped).await });
    let program = rig.places.plugins().join("stubborn").display().to_string();
    until("the plugin is called", async || !super::processes(&[&program]).is_empty()).await;
    rig.crash_and_restart().await;
    assert!(stopping.await.unwrap().is_err());
    super::reads_answer(&rig).await;

    for command in ["STATUS", "ADD", "DEL"] {
        fs::remove_file(hangs.join(command)).unwrap();
    }
    until("the network is ready again", async || network_ready(&rig).await.status).await;
    // The one whose making was cut short is undone, or seen when that has failed.
    until("all pods have ended", async || {
        for one in rig.cri().list_pods().await.unwrap() {
            let _tried_again = rig.cri().end_pod(&one.id).await;
        }
        fs::read_dir(rig.places.state().join("pods")).unwrap().count() == 0
    })
    .await;
    others_go_on(&rig, "healed").await;
    fs::remove_file(rig.places.cni().join("00-stubborn.conflist")).unwrap();
    // What the crash has left of the plugin: a daemon that dies at once cannot end its children.
    for pid in super::processes(&[&program]) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
    rig.finish().await;
}
