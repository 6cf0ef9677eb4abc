//! A daemon of today takes over the pods of a shim of protocol version 1, as an upgrade on a node does.

use std::fs;

use podhold_integration::{
    configs::{self, log_file},
    daemon::Daemon,
    log, needs, old_shims, programs, rig,
    rig::BUSYBOX,
    streams::{Client, PIPES, STDIN, STDOUT},
};
use podhold_proto::cri::*;
use tonic::Code;

use crate::SOON;

#[tokio::test]
async fn pods_of_a_shim_of_version_1_live_on_under_a_daemon_of_today() {
    let mut rig = rig!();
    let Some(old) = old_shims::first(rig.machine.directory()).unwrap() else {
        return needs::skipped("the old shim is a program for x86-64");
    };
    let old = old.display().to_string();
    let new = programs::built("podhold-shim").display().to_string();
    let settings = fs::read_to_string(rig.places.config()).unwrap();
    assert!(settings.contains(&new));
    fs::write(rig.places.config(), settings.replace(&new, &old)).unwrap();
    rig.restart().await;

    let config = rig.pod("old");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let catches = rig.probe(&pod, &config, "catches", &["catch", "5"]).await;
    let exits = rig.probe(&pod, &config, "exits", &["pause", "2", "+", "exit", "9"]).await;
    let ticks = rig.probe(&pod, &config, "ticks", &["tick", "100"]).await;
    let mut cat = configs::container("cat", BUSYBOX, &[]);
    cat.command = vec!["/bin/cat".into()];
    cat.stdin = true;
    let cat = rig.run(&pod, &config, &cat).await;
    let before = rig.cri().status(&catches).await.unwrap();

    rig.daemon.kill(&rig.machine).await.unwrap();
    fs::write(rig.places.config(), settings).unwrap();
    rig.daemon = Daemon::start(&rig.machine, &rig.places).await.unwrap();
    assert_eq!(rig.cri().pod_status(&pod).await.unwrap().state(), PodSandboxState::SandboxReady);
    let after = rig.cri().status(&catches).await.unwrap();
    assert_eq!((after.state(), after.started_at), (ContainerState::ContainerRunning, before.started_at));
    assert_eq!(rig.cri().ended(&exits, SOON).await.unwrap().exit_code, 9);
    assert_eq!(rig.cri().exec(&catches, &["/probe", "exit", "3"]).await.unwrap().exit_code, 3);
    let request = ContainerStatsRequest { container_id: ticks.clone() };
    let stats = rig.cri().runtime.clone().container_stats(request).await.unwrap().into_inner().stats;
    assert!(stats.unwrap().memory.unwrap().working_set_bytes.unwrap().value > 0);
    let file = log_file(&config, "ticks");
    let renamed = file.with_extension("rotated");
    fs::rename(&file, &renamed).unwrap();
    let request = ReopenContainerLogRequest { container_id: ticks.clone() };
    rig.cri().runtime.clone().reopen_container_log(request).await.unwrap();
    rig.cri().stop(&ticks, 30).await.unwrap();
    let mut lines = log::lines(&renamed, "stdout").unwrap();
    lines.extend(log::lines(&file, "stdout").unwrap());
    assert_eq!(*lines.last().unwrap(), format!("end {}", lines.len() - 1));

    // What it cannot is said when it is asked for, or when the client comes.
    let request =
        AttachRequest { container_id: cat.clone(), stdin: true, stdout: true, ..Default::default() };
    match rig.cri().runtime.clone().attach(request).await {
        Err(refusal) => {
            assert_eq!(refusal.code(), Code::FailedPrecondition, "{refusal}");
            assert!(refusal.message().contains("older build"), "{refusal}");
        }
        Ok(answer) => {
            let client = Client::command(&rig.machine, &answer.into_inner().url).await;
            let rest = client.rest().await;
            assert!(rest.error.contains("older build"), "{rest:?}");
        }
    }

    // In its pod new containers are started, and ended, by the old one; new pods get a new one.
    let more = rig.probe(&pod, &config, "more", &["exit", "4"]).await;
    assert_eq!(rig.cri().ended(&more, SOON).await.unwrap().exit_code, 4);
    let fresh = rig.pod("fresh");
    let second = rig.cri().run_pod(&fresh).await.unwrap();
    let mut container = configs::container("cat", BUSYBOX, &[]);
    container.command = vec!["/bin/cat".into()];
    container.stdin = true;
    let newer = rig.run(&second, &fresh, &container).await;
    let mut client = Client::command(&rig.machine, &rig.cri().attach_url(&newer, PIPES).await).await;
    assert!(client.send(STDIN, b"hello\n").await);
    client.until(STDOUT, "hello\n").await;
    drop(client);
    rig.cri().stop(&catches, 30).await.unwrap();
    assert_eq!(rig.cri().status(&catches).await.unwrap().exit_code, 5);
    rig.cri().end_pod(&second).await.unwrap();
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}
