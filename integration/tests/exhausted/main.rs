//! Things that are full, used up or read-only: the call concerned says which and where and undoes what it
//! made; everything else answers and runs on; when the cause goes, the same call succeeds.

#![allow(clippy::unwrap_used, reason = "a test")]

mod descriptors;
mod disk_full;
mod logs;
mod memory;
mod place;
mod processes;
mod read_only;
mod run_dir;

use std::{path::PathBuf, time::Duration};

use podhold_integration::{
    configs::{self, log_file},
    log,
    rig::{BUSYBOX, PROBE, Rig},
};
use podhold_proto::cri::{
    ContainerState, PodSandboxConfig, PodSandboxState, RuntimeCondition, StatusRequest,
};
use tokio::time::{Instant, interval};
use tonic::{Code, Status};

/// How long what heals by itself may take.
const HEALING: Duration = Duration::from_secs(60);

/// A pod with a container that says something all the time, and one that ends with 7 when told to.
struct Bystander {
    config: PodSandboxConfig,
    pod: String,
    ticker: String,
    catcher: String,
}

impl Bystander {
    async fn start(rig: &Rig, name: &str) -> Self {
        let config = rig.pod(name);
        let pod = rig.cri().run_pod(&config).await.unwrap();
        let ticks = "n=0; while :; do n=$((n+1)); echo tick $n; sleep 0.1; done";
        let ticker = rig.run(&pod, &config, &shell("ticker", ticks)).await;
        let catcher = rig.probe(&pod, &config, "catcher", &["catch", "7"]).await;
        log::wait_for(&log_file(&config, "catcher"), "ready").await;
        Self { config, pod, ticker, catcher }
    }

    fn log(&self) -> PathBuf {
        log_file(&self.config, "ticker")
    }

    /// It is listed as ready and running, and its log goes on, now.
    async fn goes_on(&self, rig: &Rig) {
        let pods = rig.cri().list_pods().await.unwrap();
        let pod = pods.iter().find(|pod| pod.id == self.pod).unwrap();
        assert_eq!(pod.state(), PodSandboxState::SandboxReady);
        let status = rig.cri().status(&self.ticker).await.unwrap();
        assert_eq!(status.state(), ContainerState::ContainerRunning, "{status:?}");
        let count = log::lines(&self.log(), "stdout").unwrap().len();
        log::wait_for(&self.log(), &format!("tick {}", count + 3)).await;
    }

    /// Its second container can be stopped, and how it ended is known.
    async fn catcher_ends(&self, rig: &Rig) {
        rig.cri().stop(&self.catcher, 30).await.unwrap();
        self.catcher_has_ended(rig).await;
    }

    async fn catcher_has_ended(&self, rig: &Rig) {
        let status = rig.cri().ended(&self.catcher, HEALING).await.unwrap();
        assert_eq!((status.exit_code, status.reason.as_str()), (7, "Error"), "{status:?}");
    }
}

fn shell(name: &str, script: &str) -> podhold_proto::cri::ContainerConfig {
    let mut container = configs::container(name, BUSYBOX, &["-c", script]);
    container.command = vec!["/bin/sh".into()];
    container
}

/// A container that does nothing.
fn sleeper(name: &str) -> podhold_proto::cri::ContainerConfig {
    configs::container(name, PROBE, &["sleep"])
}

/// The error says what is used up, and where.
fn says<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, words: &[&str]) {
    let status = result.unwrap_err();
    assert_eq!(status.code(), code, "{status:?}");
    for word in words {
        assert!(status.message().contains(word), "{word:?} is not in {:?}", status.message());
    }
}

async fn runtime_ready(rig: &Rig) -> RuntimeCondition {
    let answer = rig.cri().runtime.clone().status(StatusRequest::default()).await.unwrap().into_inner();
    let conditions = answer.status.unwrap().conditions;
    conditions.into_iter().find(|condition| condition.r#type == "RuntimeReady").unwrap()
}

/// Waits for what no event tells.
async fn until<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    let deadline = Instant::now() + HEALING;
    let mut ticks = interval(Duration::from_millis(100));
    loop {
        ticks.tick().await;
        if holds().await {
            return;
        }
        assert!(Instant::now() < deadline, "it never is so: {what}");
    }
}
