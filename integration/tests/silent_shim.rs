//! A shim that is there and does not answer holds up its own pod and nothing else.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use podhold_integration::{machine::Machine, rig};
use podhold_proto::cri::ContainerState;

/// Less than what a single silent shim is given by those who wait for it (30 s).
const OTHERS: Duration = Duration::from_secs(20);
const HEALED: Duration = Duration::from_secs(120);

/// The pid, inside the machine, of a pod's shim.
async fn shim(machine: &Machine, pod: &str) -> i32 {
    let find = "for p in /proc/[0-9]*; do [ \"$(cat $p/comm)\" = podhold-shim ] && \
                tr '\\0' ' ' <$p/cmdline | grep -q \"$0\" && echo ${p#/proc/}; done; true";
    let found = machine.run_well(["sh", "-c", find, pod]).await.unwrap();
    found.trim().parse().unwrap_or_else(|_| panic!("one shim of pod {pod}, not {found:?}"))
}

#[tokio::test]
async fn a_shim_that_does_not_answer_holds_up_no_other_pod() {
    let mut rig = rig!();
    let configs = [rig.pod("silent"), rig.pod("speaks")];
    let mut pods = Vec::new();
    let mut containers = Vec::new();
    for config in &configs {
        let pod = rig.cri().run_pod(config).await.unwrap();
        containers.push(rig.probe(&pod, config, "runs", &["catch", "0"]).await);
        pods.push(pod);
    }
    let silent = shim(&rig.machine, &pods[0]).await;
    rig.daemon.kill(&rig.machine).await.unwrap();
    rig.machine.signal(silent, Signal::SIGSTOP).await.unwrap();
    let begin = Instant::now();
    rig.daemon = podhold_integration::daemon::Daemon::start(&rig.machine, &rig.places).await.unwrap();
    let other = rig.cri().status(&containers[1]).await.unwrap();
    let took = begin.elapsed();
    assert_eq!(other.state(), ContainerState::ContainerRunning);
    assert_eq!(rig.cri().list_pods().await.unwrap().len(), 2, "the silent pod is known too");
    rig.cri().end_pod(&pods[1]).await.unwrap();
    println!("the other pod was back after {took:?}");
    assert!(took < OTHERS, "held up for {took:?}");

    rig.machine.signal(silent, Signal::SIGCONT).await.unwrap();
    let until = Instant::now() + HEALED;
    while rig.cri().status(&containers[0]).await.unwrap().state() != ContainerState::ContainerRunning {
        assert!(Instant::now() < until, "its container is not known again {HEALED:?} after it went on");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    rig.cri().end_pod(&pods[0]).await.unwrap();
    rig.finish().await;
}
