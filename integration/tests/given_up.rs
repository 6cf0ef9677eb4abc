//! Callers that go away: what they began goes on, or ends with them, and never waits for them.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{sys::stat::Mode, unistd::mkfifo};
use podhold_integration::{
    configs::{self, log_file},
    log, rig,
    rig::{BUSYBOX, Rig},
};
use podhold_proto::cri::{ContainerState, ListPodSandboxRequest, PodSandboxState};
use tokio::time::{Instant, interval};

const SOON: Duration = Duration::from_secs(20);

/// Looks until `fits` says yes: nobody tells what a caller has stopped waiting for.
async fn until(what: &str, mut fits: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    let mut ticks = interval(Duration::from_millis(20));
    while !fits().await {
        ticks.tick().await;
        assert!(Instant::now() < deadline, "not within {SOON:?}: {what}");
    }
}

/// A network of one plugin that says when it has been called, waits, and answers.
struct Gate {
    reached: PathBuf,
    gate: PathBuf,
}

impl Gate {
    fn build(rig: &Rig) -> Self {
        let directory = rig.machine.directory();
        let this = Self { reached: directory.join("reached"), gate: directory.join("gate") };
        mkfifo(&this.gate, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        let program = rig.places.plugins().join("gate");
        // The gate alone: it answers with an address of its own.
        let answer = r#"{"cniVersion":"1.0.0","interfaces":[],"ips":[{"address":"10.88.7.7/16"}]}"#;
        let script = format!(
            "#!/bin/sh\ncat >/dev/null\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\n: > {}\nread -r word < {}\n\
             echo '{answer}'\n",
            this.reached.display(),
            this.gate.display()
        );
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let network = r#"{"cniVersion":"1.0.0","name":"gated","plugins":[{"type":"gate"}]}"#;
        let new = rig.places.cni().join("new");
        fs::write(&new, network).unwrap();
        fs::rename(new, rig.places.cni().join("00-gate.conflist")).unwrap();
        this
    }

    async fn reached(&self) {
        until("the plugin is called", async || self.reached.exists()).await;
    }

    async fn open(&self) {
        let gate = self.gate.clone();
        let open = move || write_line(&gate);
        tokio::time::timeout(SOON, tokio::task::spawn_blocking(open)).await.unwrap().unwrap();
    }

    fn remove(rig: &Rig) {
        fs::remove_file(rig.places.cni().join("00-gate.conflist")).unwrap();
    }
}

/// Waits for a reader.
fn write_line(path: &Path) {
    fs::OpenOptions::new().write(true).open(path).unwrap().write_all(b"go\n").unwrap();
}

#[tokio::test]
async fn a_pod_whose_caller_has_gone_becomes_ready_and_is_the_next_callers() {
    let rig = rig!();
    let gate = Gate::build(&rig);
    let config = rig.pod("abandoned");
    let (cri, asked) = (rig.cri().clone(), config.clone());
    let caller = tokio::spawn(async move { cri.run_pod(&asked).await });
    gate.reached().await;
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled(), "it has not been answered yet");
    gate.open().await;
    let pods = async || {
        let request = ListPodSandboxRequest::default();
        rig.cri().runtime.clone().list_pod_sandbox(request).await.unwrap().into_inner().items
    };
    until("the pod is ready", async || {
        pods().await.iter().any(|pod| pod.state() == PodSandboxState::SandboxReady)
    })
    .await;
    let there = pods().await;
    assert_eq!(there.len(), 1);
    assert_eq!(rig.cri().run_pod(&config).await.unwrap(), there[0].id);
    assert_eq!(rig.cri().pod_status(&there[0].id).await.unwrap().network.unwrap().ip, "10.88.7.7");
    rig.cri().end_pod(&there[0].id).await.unwrap();
    Gate::remove(&rig);
    rig.finish().await;
}

#[tokio::test]
async fn a_pod_asked_for_again_while_it_is_made_is_joined() {
    let rig = rig!();
    let gate = Gate::build(&rig);
    let config = rig.pod("joined");
    let (cri, asked) = (rig.cri().clone(), config.clone());
    let caller = tokio::spawn(async move { cri.run_pod(&asked).await });
    gate.reached().await;
    caller.abort();
    let (again, ()) = tokio::join!(rig.cri().run_pod(&config), gate.open());
    let pod = again.unwrap();
    assert_eq!(rig.cri().pod_status(&pod).await.unwrap().state(), PodSandboxState::SandboxReady);
    rig.cri().end_pod(&pod).await.unwrap();
    Gate::remove(&rig);
    rig.finish().await;
}

#[tokio::test]
async fn a_stop_whose_caller_has_gone_goes_on_to_the_kill() {
    let rig = rig!();
    let config = rig.pod("stops");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    // It catches the signal and stays: so the stop is known to be under way.
    let script = "trap 'echo asked' TERM; echo ready; while :; do sleep 0.05; done";
    let mut container = configs::container("stays", BUSYBOX, &["-c", script]);
    container.command = vec!["/bin/sh".into()];
    let id = rig.run(&pod, &config, &container).await;
    log::wait_for(&log_file(&config, "stays"), "ready").await;
    let (cri, stopped) = (rig.cri().clone(), id.clone());
    let caller = tokio::spawn(async move { cri.stop(&stopped, 2).await });
    log::wait_for(&log_file(&config, "stays"), "asked").await;
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled(), "it has not been answered yet");
    assert_eq!(rig.cri().status(&id).await.unwrap().state(), ContainerState::ContainerRunning);
    assert_eq!(rig.cri().ended(&id, SOON).await.unwrap().exit_code, 137);
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_command_whose_caller_has_gone_is_ended() {
    let rig = rig!();
    let config = rig.pod("commands");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mut container = configs::container("shell", BUSYBOX, &["1000"]);
    container.command = vec!["/bin/sleep".into()];
    let id = rig.run(&pod, &config, &container).await;
    let (cri, target) = (rig.cri().clone(), id.clone());
    let caller = tokio::spawn(async move { cri.exec(&target, &["sleep", "777"]).await });
    let runs = async || rig.cri().exec_well(&id, &["ps", "-o", "args"]).await.unwrap().contains("sleep 777");
    until("the command runs", runs).await;
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled(), "it has not been answered yet");
    until("the command has ended", async || !runs().await).await;
    assert_eq!(rig.cri().status(&id).await.unwrap().state(), ContainerState::ContainerRunning);
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}
