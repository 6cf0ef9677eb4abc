//! The connection between the daemon and a shim is lost, and the shim lives.

use std::{
    os::{fd::AsRawFd, unix::net::UnixStream},
    path::PathBuf,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use podhold_integration::{processes, rig, rig::Rig};
use podhold_proto::cri::*;
use tokio::{io::AsyncReadExt, time::timeout};
use tonic::Code;

use crate::{Kind, Pod, SOON};

fn run_directory(rig: &Rig, pod: &str) -> PathBuf {
    rig.places.run().join("pods").join(pod)
}

/// Dials the shim, which then lets go of the daemon's connection; returns when the daemon has dialled again,
/// of which the shim lets go of this one.
async fn intrude(rig: &Rig, pod: &str) {
    // Its path is longer than an address can be.
    let directory = std::fs::File::open(run_directory(rig, pod)).unwrap();
    let path = format!("/proc/self/fd/{}/shim.sock", directory.as_raw_fd());
    let intruder = UnixStream::connect(path).unwrap();
    intruder.set_nonblocking(true).unwrap();
    let mut intruder = tokio::net::UnixStream::from_std(intruder).unwrap();
    let mut nothing = [0; 16];
    let read = timeout(SOON, intruder.read(&mut nothing)).await.expect("the daemon dials again");
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
}

#[tokio::test]
async fn a_connection_that_is_lost_is_made_anew_and_nothing_is_missed() {
    let rig = rig!();
    let pod = Pod::start(&rig, "lost", Kind::Ordinary, 1).await;
    let one = &pod.containers[0];
    let late = rig.run(&pod.id, &pod.config, &pod.container("late", &["pause", "2", "+", "exit", "4"])).await;
    for _ in 0..3 {
        intrude(&rig, &pod.id).await;
        assert_eq!(rig.cri().exec(one, &["/probe", "exit", "3"]).await.unwrap().exit_code, 3);
        assert_eq!(pod.state(&rig).await, PodSandboxState::SandboxReady);
        assert_eq!(rig.cri().status(one).await.unwrap().state(), ContainerState::ContainerRunning);
    }
    assert_eq!(rig.cri().ended(&late, SOON).await.unwrap().exit_code, 4);

    // A command ends with its connection, and whoever waits for it is told the truth.
    let cgroup = rig.pod_cgroup(&pod.id);
    let before = processes::in_cgroup(&cgroup).len();
    let (cri, within) = (rig.cri().clone(), one.clone());
    let exec = tokio::spawn(async move { cri.exec(&within, &["/probe", "sleep"]).await });
    processes::until("the command", || processes::in_cgroup(&cgroup).len() > before).await;
    intrude(&rig, &pod.id).await;
    let refusal = timeout(SOON, exec).await.expect("it ends with its connection").unwrap().unwrap_err();
    assert_eq!(refusal.code(), Code::DeadlineExceeded, "{refusal}");
    assert!(refusal.message().contains("its shim lives"), "{refusal}");

    // A start goes on: its log is waited for, as long as the logger is stopped.
    let logger = Pid::from_raw(processes::holders(&pod.id).logger);
    kill(logger, Signal::SIGSTOP).unwrap();
    let id = rig.cri().create(&pod.id, &pod.config, &pod.container("slow", &["sleep"])).await.unwrap();
    let (cri, starting) = (rig.cri().clone(), id.clone());
    let start = tokio::spawn(async move { cri.start(&starting).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    intrude(&rig, &pod.id).await;
    kill(logger, Signal::SIGCONT).unwrap();
    timeout(SOON, start).await.expect("the start comes to its end").unwrap().unwrap();
    assert_eq!(rig.cri().status(&id).await.unwrap().state(), ContainerState::ContainerRunning);
    rig.cri().stop(&id, 0).await.unwrap();
    assert_eq!(rig.cri().ended(&id, SOON).await.unwrap().exit_code, 137);
    rig.cri().end_pod(&pod.id).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_shim_whose_socket_was_deleted_goes_on_and_is_ended_with_its_pod() {
    let mut rig = rig!();
    // The daemon has a connection.
    let pod = Pod::start(&rig, "deleted", Kind::Ordinary, 1).await;
    std::fs::remove_file(run_directory(&rig, &pod.id).join("shim.sock")).unwrap();
    assert_eq!(rig.cri().exec(&pod.containers[0], &["/probe", "exit", "3"]).await.unwrap().exit_code, 3);
    rig.cri().end_pod(&pod.id).await.unwrap();
    pod.nothing_runs(&rig).await;

    // It has none, and nobody can have one any more.
    let socket = Pod::start(&rig, "socket", Kind::Ordinary, 2).await;
    let directory = Pod::start(&rig, "directory", Kind::Ordinary, 2).await;
    rig.daemon.kill(&rig.machine).await.unwrap();
    std::fs::remove_file(run_directory(&rig, &socket.id).join("shim.sock")).unwrap();
    let gone = run_directory(&rig, &directory.id).display().to_string();
    let script = "for m in $(awk '{print $2}' /proc/self/mounts | grep -F \"$0\" | tac); do umount -l $m; done; \
                  rm -r \"$0\"";
    rig.machine.run_well(["sh", "-ec", script, &gone]).await.unwrap();
    rig.daemon = podhold_integration::daemon::Daemon::start(&rig.machine, &rig.places).await.unwrap();
    for pod in [&socket, &directory] {
        pod.not_ready(&rig).await;
        pod.all_ended(&rig, 255, "Unknown").await;
        pod.nothing_runs(&rig).await;
        pod.end(&rig).await;
    }

    // And while it is removed by somebody who finds no socket.
    let pod = Pod::start(&rig, "removed", Kind::Ordinary, 1).await;
    rig.daemon.kill(&rig.machine).await.unwrap();
    std::fs::remove_file(run_directory(&rig, &pod.id).join("shim.sock")).unwrap();
    let state = rig.places.state().join("pods").join(&pod.id);
    std::fs::write(state.join("pod.json"), "damaged").unwrap();
    rig.daemon = podhold_integration::daemon::Daemon::start(&rig.machine, &rig.places).await.unwrap();
    rig.cri().remove_pod(&pod.id).await.unwrap();
    pod.nothing_runs(&rig).await;
    rig.finish().await;
}
