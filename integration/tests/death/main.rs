//! The processes that hold a pod die: shim, pause, logger. What ran in it is ended and reported, nothing is
//! left, and the pod can be removed.

#![allow(clippy::unwrap_used, reason = "a test")]

mod connection;
mod logger;
mod pause;
mod shim;

use std::time::Duration;

use podhold_integration::{
    configs::{self, Parts},
    processes,
    rig::{PROBE, Rig},
};
use podhold_proto::cri::*;

/// Longer than anything here takes.
const SOON: Duration = Duration::from_secs(30);

/// What the containers of a pod share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ordinary,
    /// One PID namespace.
    SharedPid,
    /// Users of their own.
    Users,
}

fn share(config: &mut impl Parts, kind: Kind) {
    let ids = |host_id| vec![IdMapping { host_id, container_id: 0, length: 65_536 }];
    match kind {
        Kind::Ordinary => {}
        Kind::SharedPid => config.namespaces().pid = NamespaceMode::Pod.into(),
        Kind::Users => {
            let (uids, gids) = (ids(200_000), ids(400_000));
            config.namespaces().userns_options =
                Some(UserNamespace { mode: NamespaceMode::Pod.into(), uids, gids });
        }
    }
}

struct Pod {
    config: PodSandboxConfig,
    id: String,
    kind: Kind,
    containers: Vec<String>,
}

impl Pod {
    /// With `count` containers that do not listen to signals.
    async fn start(rig: &Rig, name: &str, kind: Kind, count: usize) -> Self {
        let mut config = rig.pod(name);
        share(&mut config, kind);
        let id = rig.cri().run_pod(&config).await.unwrap();
        let mut pod = Self { config, id, kind, containers: Vec::new() };
        for number in 0..count {
            let container = pod.container(&format!("c{number}"), &["ignore"]);
            pod.containers.push(rig.run(&pod.id, &pod.config, &container).await);
        }
        pod
    }

    fn container(&self, name: &str, words: &[&str]) -> ContainerConfig {
        let mut container = configs::container(name, PROBE, words);
        share(&mut container, self.kind);
        container
    }

    async fn state(&self, rig: &Rig) -> PodSandboxState {
        rig.cri().pod_status(&self.id).await.unwrap().state()
    }

    async fn not_ready(&self, rig: &Rig) {
        let deadline = tokio::time::Instant::now() + SOON;
        while self.state(rig).await != PodSandboxState::SandboxNotready {
            assert!(tokio::time::Instant::now() < deadline, "the pod stays ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// All containers have ended with this code and reason.
    async fn all_ended(&self, rig: &Rig, code: i32, reason: &str) {
        for container in &self.containers {
            let status = rig.cri().ended(container, SOON).await.unwrap();
            assert_eq!((status.exit_code, status.reason.as_str()), (code, reason), "{status:?}");
            assert!(status.started_at > 0 && status.finished_at >= status.started_at, "{status:?}");
        }
    }

    /// No process is left, before anybody has stopped anything.
    async fn nothing_runs(&self, rig: &Rig) {
        let cgroup = rig.pod_cgroup(&self.id);
        processes::until("the end of all processes of the pod", || {
            processes::in_cgroup(&cgroup).is_empty() && processes::forks(&self.id).is_empty()
        })
        .await;
    }

    /// Nothing can be started in it, and it goes as every pod does.
    async fn end(&self, rig: &Rig) {
        let refused = rig.cri().create(&self.id, &self.config, &self.container("late", &["sleep"])).await;
        refused.unwrap_err();
        rig.cri().stop_pod(&self.id).await.unwrap();
        rig.cri().stop_pod(&self.id).await.unwrap();
        rig.cri().remove_pod(&self.id).await.unwrap();
    }
}
