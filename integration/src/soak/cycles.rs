//! Many lives of pods, one after the other and several at once: at the end the daemon and the machine are
//! as they were after the first some hundred.

use std::{
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use podhold_proto::cri::{ContainerState, NamespaceMode, PodSandboxState};
use tokio::time::timeout;

use super::usage::{Table, Things, Usage};
use crate::{
    configs::{self, Parts},
    cri::Cri,
    rig::{PROBE, Rig},
};

/// How long one life may take.
const LIFE: Duration = Duration::from_secs(120);

/// How many lives, and how.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Pods in all.
    pub cycles: u64,
    /// Of these, how many come before the first look at the daemon.
    pub warm_up: u64,
    /// How many at once.
    pub at_once: u64,
    /// One pod in so many is connected to the bridge; the others are in the machine's network.
    pub bridge_every: u64,
    /// How often the daemon and the machine are looked at after the warm-up.
    pub looks: u64,
    /// How much memory, in KiB, the daemon may use more at the end than after the warm-up.
    pub tolerance: u64,
}

/// Runs the plan, and answers what was used when.
///
/// # Panics
/// When a verb fails, or when something is not given back.
pub async fn run(rig: &Rig, plan: Plan) -> Table {
    let mut table = Table::default();
    let rest = Usage::at_rest(rig).await;
    table.add("before the first pod", rest, Things::of(rig).await);
    let begun = Instant::now();
    lives(rig, 0, plan.warm_up, plan).await;
    let warm = Usage { memory: Usage::at_rest(rig).await.memory, ..rest };
    let things = Things::of(rig).await;
    table.add(&format!("{} pods", plan.warm_up), Usage::now(rig), things);
    let mut done = plan.warm_up;
    for look in 1..=plan.looks {
        let until = plan.warm_up + (plan.cycles - plan.warm_up) * look / plan.looks;
        lives(rig, done, until, plan).await;
        done = until;
        let when = format!("{done} pods ({} s)", begun.elapsed().as_secs());
        let usage = Usage::at_rest(rig).await;
        let now = settled(rig, things).await;
        table.add(&when, usage, now);
        assert_eq!(now, things, "after {done} pods there is not as much in the machine as before");
        let most = warm.memory + plan.tolerance;
        assert!(usage.memory <= most, "after {done} pods the daemon uses {usage}; after the warm-up {warm}");
    }
    // Its idle threads go after ten seconds.
    let usage = warm.returns(rig, plan.tolerance).await;
    table.add("at rest", usage, settled(rig, things).await);
    table
}

/// What there is in the machine once it is as much as before, or has not become so within some seconds.
async fn settled(rig: &Rig, before: Things) -> Things {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut ticks = tokio::time::interval(Duration::from_millis(200));
    loop {
        ticks.tick().await;
        let now = Things::of(rig).await;
        if now == before || Instant::now() > deadline {
            return now;
        }
    }
}

/// The lives with these numbers, several at once.
async fn lives(rig: &Rig, from: u64, to: u64, plan: Plan) {
    let next = AtomicU64::new(from);
    let one = || async {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= to {
                return;
            }
            let bridge = number.is_multiple_of(plan.bridge_every);
            let done = timeout(LIFE, life(rig.cri(), &rig.places.pod_logs(), number, bridge)).await;
            done.unwrap_or_else(|_| panic!("pod {number} has not come to its end within {LIFE:?}"))
                .unwrap_or_else(|status| panic!("pod {number}: {status}"));
        }
    };
    futures::future::join_all((0..plan.at_once).map(|_| one())).await;
}

/// One pod with one container, from its beginning to nothing. What ends it differs from one to the next.
async fn life(cri: &Cri, logs: &Path, number: u64, bridge: bool) -> Result<(), tonic::Status> {
    let mut config = configs::pod(&format!("life-{number}"), logs);
    let mut container = configs::container("one", PROBE, &["sleep"]);
    if !bridge {
        config.hostname = String::new();
        config.namespaces().network = NamespaceMode::Node.into();
        container.namespaces().network = NamespaceMode::Node.into();
    }
    let pod = cri.run_pod(&config).await?;
    let id = cri.create(&pod, &config, &container).await?;
    cri.start(&id).await?;
    if number.is_multiple_of(5) {
        assert_eq!(cri.exec(&id, &["/probe", "exit", "3"]).await?.exit_code, 3, "pod {number}");
    }
    if !number.is_multiple_of(3) {
        cri.stop(&id, 0).await?;
        let status = cri.status(&id).await?;
        assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 137));
    }
    if number.is_multiple_of(2) {
        cri.remove(&id).await?;
    }
    if !number.is_multiple_of(7) {
        cri.stop_pod(&pod).await?;
        let status = cri.pod_status(&pod).await?;
        assert_eq!(status.state(), PodSandboxState::SandboxNotready, "pod {number}");
    }
    cri.remove_pod(&pod).await?;
    // The kubelet removes logs.
    match std::fs::remove_dir_all(&config.log_directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            panic!("remove {}: {error}", config.log_directory)
        }
        _ => Ok(()),
    }
}
