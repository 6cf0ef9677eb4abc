//! Every verb, its client cancelled at each step: afterwards the object is whole or gone, and the same call
//! again joins or finds what the first one has made.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{path::Path, time::Duration};

use podhold_integration::{cgroup, configs, cri::Cri, rig, rig::PROBE};
use podhold_proto::cri::*;
use tokio::time::timeout;
use tonic::{Code, Status};

/// When the client goes away, after the beginning of its call: from before the daemon has read the request
/// to after its answer.
const STEPS: [Duration; 9] = [
    Duration::from_micros(200),
    Duration::from_millis(1),
    Duration::from_millis(2),
    Duration::from_millis(4),
    Duration::from_millis(8),
    Duration::from_millis(16),
    Duration::from_millis(32),
    Duration::from_millis(64),
    Duration::from_millis(128),
];

/// How long the second call may take.
const SOON: Duration = Duration::from_secs(20);

/// Calls, goes away after `step`, and calls again.
async fn twice<T>(what: &str, step: Duration, call: impl AsyncFn() -> Result<T, Status>) -> T {
    let first = timeout(step, call()).await;
    if let Ok(Err(status)) = first {
        panic!("{what}, {step:?}: {status}");
    }
    let again = timeout(SOON, call()).await.unwrap_or_else(|_| panic!("{what}, {step:?}: no answer"));
    again.unwrap_or_else(|status| panic!("{what} again, {step:?}: {status}"))
}

async fn update(cri: &Cri, id: &str, shares: i64) -> Result<(), Status> {
    let linux = Some(LinuxContainerResources { cpu_shares: shares, ..Default::default() });
    let request = UpdateContainerResourcesRequest { container_id: id.into(), linux, ..Default::default() };
    cri.runtime.clone().update_container_resources(request).await.map(drop)
}

async fn shares(cri: &Cri, id: &str) -> i64 {
    cri.status(id).await.unwrap().resources.unwrap().linux.unwrap().cpu_shares
}

async fn listed(cri: &Cri) -> (usize, usize) {
    let pods = cri.runtime.clone().list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap();
    let containers = cri.runtime.clone().list_containers(ListContainersRequest::default()).await.unwrap();
    (pods.into_inner().items.len(), containers.into_inner().containers.len())
}

#[tokio::test]
async fn every_verb_whose_client_goes_away_at_any_step_leaves_the_object_whole_or_gone() {
    let rig = rig!();
    let cri = rig.cri();
    for (n, step) in STEPS.into_iter().enumerate() {
        let config = rig.pod(&format!("pod-{n}"));
        let pod = twice("run pod", step, async || cri.run_pod(&config).await).await;
        assert_eq!(cri.pod_status(&pod).await.unwrap().state(), PodSandboxState::SandboxReady, "{step:?}");
        assert_eq!(listed(cri).await, (1, 0), "{step:?}");

        let container = configs::container("one", PROBE, &["sleep"]);
        let id = twice("create", step, async || cri.create(&pod, &config, &container).await).await;
        assert_eq!(cri.status(&id).await.unwrap().state(), ContainerState::ContainerCreated, "{step:?}");
        assert_eq!(listed(cri).await, (1, 1), "{step:?}");
        twice("update before the start", step, async || update(cri, &id, 200).await).await;
        twice("start", step, async || cri.start(&id).await).await;
        assert_eq!(cri.status(&id).await.unwrap().state(), ContainerState::ContainerRunning, "{step:?}");
        assert_eq!(shares(cri, &id).await, 200);
        twice("update", step, async || update(cri, &id, 300).await).await;
        assert_eq!(shares(cri, &id).await, 300);
        let done = twice("exec", step, async || cri.exec(&id, &["/probe", "exit", "7"]).await).await;
        assert_eq!(done.exit_code, 7);
        twice("reopen the log", step, async || {
            let request = ReopenContainerLogRequest { container_id: id.clone() };
            cri.runtime.clone().reopen_container_log(request).await.map(drop)
        })
        .await;
        twice("stop", step, async || cri.stop(&id, 0).await).await;
        assert_eq!(cri.status(&id).await.unwrap().state(), ContainerState::ContainerExited, "{step:?}");
        twice("remove", step, async || cri.remove(&id).await).await;
        assert_eq!(cri.status(&id).await.unwrap_err().code(), Code::NotFound, "{step:?}");

        let left = rig.probe(&pod, &config, "left", &["sleep"]).await;
        let other = rig.probe(&pod, &config, "other", &["sleep"]).await;
        twice("remove a running container", step, async || cri.remove(&other).await).await;
        twice("stop pod", step, async || cri.stop_pod(&pod).await).await;
        assert_eq!(cri.pod_status(&pod).await.unwrap().state(), PodSandboxState::SandboxNotready);
        assert_eq!(cri.status(&left).await.unwrap().state(), ContainerState::ContainerExited, "{step:?}");
        twice("remove pod", step, async || cri.remove_pod(&pod).await).await;
        assert_eq!(listed(cri).await, (0, 0), "{step:?}");
    }
    rig.finish().await;
}

#[tokio::test]
async fn the_same_call_many_times_at_once_is_one() {
    let rig = rig!();
    let cri = rig.cri();
    let config = rig.pod("many");
    let container = configs::container("one", PROBE, &["sleep"]);
    let pods = futures::future::join_all((0..8).map(|_| cri.run_pod(&config))).await;
    let pod = pods[0].clone().unwrap();
    assert!(pods.iter().all(|answer| answer.as_ref().is_ok_and(|id| *id == pod)), "{pods:?}");
    let ids = futures::future::join_all((0..8).map(|_| cri.create(&pod, &config, &container))).await;
    let id = ids[0].clone().unwrap();
    assert!(ids.iter().all(|answer| answer.as_ref().is_ok_and(|other| *other == id)), "{ids:?}");
    let started = futures::future::join_all((0..8).map(|_| cri.start(&id))).await;
    assert!(started.iter().all(Result::is_ok), "{started:?}");
    // A long grace, a short one and a removal: the removal ends them all.
    let ends = tokio::join!(cri.stop(&id, 600), cri.stop(&id, 300), cri.remove(&id), cri.remove(&id));
    assert!(ends.0.is_ok() && ends.1.is_ok() && ends.2.is_ok() && ends.3.is_ok(), "{ends:?}");
    let stopped = futures::future::join_all((0..4).map(|_| cri.stop_pod(&pod))).await;
    assert!(stopped.iter().all(Result::is_ok), "{stopped:?}");
    let (stop, remove, again) = tokio::join!(cri.stop_pod(&pod), cri.remove_pod(&pod), cri.remove_pod(&pod));
    assert!(stop.is_ok() && remove.is_ok() && again.is_ok());
    assert_eq!(listed(cri).await, (0, 0));
    rig.finish().await;
}

/// The weight on cgroup version 2 of shares on version 1, as all runtimes compute it by now: 1 is 2 shares, 100
/// is 1024, 10000 is 262144.
fn weight_of(shares: i64) -> i64 {
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "they are small")]
    {
        let log = (shares as f64).log2();
        10f64.powf((log * log + 125.0 * log) / 612.0 - 7.0 / 34.0).ceil() as i64
    }
}

/// Waits until the status says what the kernel has: nothing tells a client that has gone away when its call
/// has come to its end.
async fn agree(cri: &Cri, id: &str, place: &Path, round: u64) {
    let deadline = tokio::time::Instant::now() + SOON;
    let mut ticks = tokio::time::interval(Duration::from_millis(2));
    loop {
        ticks.tick().await;
        let told = shares(cri, id).await;
        let read = |name: &str| std::fs::read_to_string(place.join(name)).ok()?.trim().parse::<i64>().ok();
        // Version 1 has what was asked for, version 2 a weight that grows with it.
        let kernel = read("cpu.shares").or_else(|| read("cpu.weight").map(|weight| -weight)).unwrap();
        let agrees = match kernel {
            shares if shares > 0 => shares == told,
            weight => -weight == weight_of(told),
        };
        if agrees {
            return;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "round {round}: the kernel has {kernel}, the status says {told}"
        );
    }
}

/// What the kernel has and what the status says do not differ for long, whenever the client goes away.
#[tokio::test]
async fn an_update_whose_client_goes_away_is_made_whole_or_not_at_all() {
    let rig = rig!();
    let cri = rig.cri();
    let config = rig.pod("updates");
    let pod = cri.run_pod(&config).await.unwrap();
    let id = rig.probe(&pod, &config, "one", &["sleep"]).await;
    let place = format!("{}/{id}", rig.pod_cgroup(&pod));
    let Some(place) = cgroup::directory("cpu", &place) else {
        return podhold_integration::needs::skipped("needs the cpu controller");
    };
    for n in 0..60 {
        let gone =
            timeout(Duration::from_micros(300 + 60 * n), update(cri, &id, 100 + i64::try_from(n).unwrap()));
        let _ = gone.await;
        agree(cri, &id, &place, n).await;
    }
    cri.end_pod(&pod).await.unwrap();
    rig.finish().await;
}
