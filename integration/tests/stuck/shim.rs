//! A shim that is stopped: it is there, and says nothing.

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use podhold_integration::{rig, rig::Rig};
use podhold_proto::cri::*;

use super::{deadline, others_go_on, processes, shell, until};

/// The shim of a pod, as the host sees it: the parent of the pod's other processes.
fn shim(pod: &str) -> Pid {
    let pids = processes(&["podhold-shim", pod]);
    let parent = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse::<i32>().ok())
    };
    let shim = pids.iter().find(|pid| parent(**pid).is_some_and(|parent| !pids.contains(&parent)));
    Pid::from_raw(*shim.unwrap_or_else(|| panic!("no shim of {pod}")))
}

/// Goes on when dropped: a stopped process would outlive nobody, but keep the machine waiting.
struct Stopped(Pid);

impl Stopped {
    fn new(pod: &str) -> Self {
        let pid = shim(pod);
        kill(pid, Signal::SIGSTOP).unwrap();
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // Killed meanwhile, perhaps.
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// The pod is ready as before, has its address, and says what it waits for.
async fn waits_for_its_shim(rig: &Rig, pod: &str, config: &PodSandboxConfig) {
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod.to_owned(), verbose: true };
    let answer = rig.cri().runtime.clone().pod_sandbox_status(request).await.unwrap().into_inner();
    let status = answer.status.unwrap();
    assert_eq!(status.state(), PodSandboxState::SandboxReady);
    assert!(!status.network.unwrap().ip.is_empty());
    let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).unwrap();
    let wait = info["waits_for"].as_str().unwrap();
    assert!(wait.contains("its shim has not answered for"), "{wait}");
    // What a kubelet asks for again is there; what needs the shim is refused, and nothing is harmed by that.
    assert_eq!(rig.cri().run_pod(config).await.unwrap(), pod);
    rig.cri().create(pod, config, &shell("late", "true")).await.unwrap_err();
}

#[tokio::test]
async fn a_shim_that_dies_before_it_has_answered_is_found_dead() {
    let mut rig = rig!();
    let config = rig.pod("dies");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let one = rig.run(&pod, &config, &shell("one", "sleep 1000")).await;
    let stopped = Stopped::new(&pod);
    rig.crash_and_restart().await;
    waits_for_its_shim(&rig, &pod, &config).await;
    deadline("exec", rig.cri().exec(&one, &["true"]), [pod.as_str(), "has not answered for"]).await;
    podhold_integration::processes::murder(stopped.0.as_raw());
    until("the pod is not ready", async || {
        rig.cri().pod_status(&pod).await.unwrap().state() == PodSandboxState::SandboxNotready
    })
    .await;
    assert_eq!(rig.cri().ended(&one, super::SOON).await.unwrap().exit_code, 255);
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_stopped_shim_is_named_holds_up_nobody_and_ends_with_its_pod() {
    let mut rig = rig!();
    let (config, beside) = (rig.pod("stopped"), rig.pod("lives"));
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let one = rig.run(&pod, &config, &shell("one", "sleep 1000")).await;
    let two = rig.cri().create(&pod, &config, &shell("two", "sleep 1000")).await.unwrap();
    let three = rig.run(&pod, &config, &shell("three", "sleep 1000")).await;
    let lives = rig.cri().run_pod(&beside).await.unwrap();
    let living = rig.run(&lives, &beside, &shell("lives", "sleep 1000")).await;

    let stopped = Stopped::new(&pod);
    let named = [pod.as_str(), "kill -CONT"];
    tokio::join!(
        deadline("exec", rig.cri().exec(&one, &["true"]), named),
        deadline("start", rig.cri().start(&two), named),
        deadline("stop", rig.cri().stop(&one, 1), named),
        others_go_on(&rig, "beside"),
    );
    rig.crash_and_restart().await;
    assert_eq!(rig.cri().exec_well(&living, &["echo", "well"]).await.unwrap(), "well\n");
    assert_eq!(rig.cri().pod_status(&lives).await.unwrap().state(), PodSandboxState::SandboxReady);
    // Told as they were: a kubelet makes a pod anew that is not ready. One whose processes are gone has ended,
    // nobody knows how.
    assert_eq!(rig.cri().status(&one).await.unwrap().state(), ContainerState::ContainerUnknown);
    let told = rig.cri().status(&three).await.unwrap();
    assert_eq!(told.state(), ContainerState::ContainerRunning, "{told:?}");
    assert!(told.message.contains("its shim has not answered for"), "{told:?}");
    waits_for_its_shim(&rig, &pod, &config).await;
    let unknown = ["not known yet", pod.as_str()];
    tokio::join!(
        deadline("stop unknown", rig.cri().stop(&one, 1), unknown),
        deadline("remove unknown", rig.cri().remove(&one), unknown),
        others_go_on(&rig, "after"),
    );

    // It goes on: how the first container ended is known, the second starts.
    drop(stopped);
    until("the second container is known", async || {
        // The start that the dead daemon had asked for may have been heard, or not.
        rig.cri().status(&two).await.unwrap().state() != ContainerState::ContainerUnknown
    })
    .await;
    assert_eq!(rig.cri().status(&three).await.unwrap().message, "");
    assert_eq!(rig.cri().pod_status(&pod).await.unwrap().state(), PodSandboxState::SandboxReady);
    assert_eq!(rig.cri().ended(&one, super::SOON).await.unwrap().exit_code, 137);
    rig.cri().start(&two).await.unwrap();
    assert_eq!(rig.cri().exec_well(&two, &["echo", "well"]).await.unwrap(), "well\n");

    // Stopped again, it does not keep its pod from ending.
    let stopped = Stopped::new(&pod);
    tokio::time::timeout(super::BOUNDED, rig.cri().stop_pod(&pod)).await.expect("stop in time").unwrap();
    assert_eq!(rig.cri().ended(&two, super::SOON).await.unwrap().exit_code, 255);
    tokio::time::timeout(super::BOUNDED, rig.cri().remove_pod(&pod)).await.expect("remove in time").unwrap();
    drop(stopped);
    rig.cri().end_pod(&lives).await.unwrap();
    rig.finish().await;
}
