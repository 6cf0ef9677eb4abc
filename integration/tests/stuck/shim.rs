//! A shim that is stopped: it is there, and says nothing.

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use podhold_integration::rig;
use podhold_proto::cri::{ContainerState, PodSandboxState};

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

#[tokio::test]
async fn a_stopped_shim_is_named_holds_up_nobody_and_ends_with_its_pod() {
    let mut rig = rig!();
    let (config, beside) = (rig.pod("stopped"), rig.pod("lives"));
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let one = rig.run(&pod, &config, &shell("one", "sleep 1000")).await;
    let two = rig.cri().create(&pod, &config, &shell("two", "sleep 1000")).await.unwrap();
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
    assert_eq!(rig.cri().status(&one).await.unwrap().state(), ContainerState::ContainerUnknown);
    let unknown = ["not known yet", pod.as_str()];
    tokio::join!(
        deadline("stop unknown", rig.cri().stop(&one, 1), unknown),
        deadline("remove unknown", rig.cri().remove(&one), unknown),
        others_go_on(&rig, "after"),
    );

    // It goes on: how the first container ended is known, the second starts.
    drop(stopped);
    until("the pod is ready again", async || {
        rig.cri().pod_status(&pod).await.unwrap().state() == PodSandboxState::SandboxReady
    })
    .await;
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
