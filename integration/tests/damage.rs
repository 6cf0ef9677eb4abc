//! Records that cannot be read any more harm nobody but themselves, and can be mended.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use podhold_integration::{
    configs::{self, log_file},
    daemon::Daemon,
    log, rig,
    rig::{BUSYBOX, Rig},
};
use podhold_proto::cri::{ContainerState, PodSandboxConfig, PodSandboxState};

/// Prints a number for every file it has written to its root file system, while one from before is there.
const WRITER: &str = "echo kept > /kept; n=0; while :; do n=$((n+1)); echo $n > /written && grep -q $n /written && grep -q kept /kept && ls /bin/ls >/dev/null && echo wrote $n; sleep 0.1; done";

struct Writer {
    config: PodSandboxConfig,
    pod: String,
    id: String,
}

impl Writer {
    async fn start(rig: &Rig, name: &str) -> Self {
        let config = rig.pod(name);
        let pod = rig.cri().run_pod(&config).await.unwrap();
        let id = Self::container(rig, &config, &pod, name).await;
        Self { config, pod, id }
    }

    async fn container(rig: &Rig, config: &PodSandboxConfig, pod: &str, name: &str) -> String {
        let mut container = configs::container(name, BUSYBOX, &["-c", WRITER]);
        container.command = vec!["/bin/sh".into()];
        rig.run(pod, config, &container).await
    }

    fn log(&self) -> PathBuf {
        log_file(&self.config, &self.config.hostname)
    }

    /// It writes now, not only before.
    async fn goes_on(&self) {
        let count = log::lines(&self.log(), "stdout").unwrap().len();
        log::wait_for(&self.log(), &format!("wrote {}", count + 5)).await;
    }
}

fn damage(path: &Path) -> Vec<u8> {
    let good = fs::read(path).unwrap();
    // As a write that was cut short leaves it.
    fs::write(path, &good[..good.len() / 2]).unwrap();
    good
}

#[tokio::test]
async fn an_unreadable_record_ends_nobody_and_can_be_put_back() {
    let mut rig = rig!();
    let (one, two, three) = (
        Writer::start(&rig, "one").await,
        Writer::start(&rig, "two").await,
        Writer::start(&rig, "three").await,
    );
    let beside = Writer::container(&rig, &one.config, &one.pod, "beside").await;
    for each in [&one, &two, &three] {
        each.goes_on().await;
    }
    rig.daemon.kill(&rig.machine).await.unwrap();
    let pods = rig.places.state().join("pods");
    let of_container = pods.join(&one.pod).join("containers").join(&one.id).join("container.json");
    let of_pod = pods.join(&two.pod).join("pod.json");
    let good = (damage(&of_container), damage(&of_pod));
    rig.daemon = Daemon::start(&rig.machine, &rig.places).await.unwrap();

    for each in [&one, &two, &three] {
        each.goes_on().await;
    }
    assert_eq!(rig.cri().status(&three.id).await.unwrap().state(), ContainerState::ContainerRunning);
    assert_eq!(rig.cri().status(&beside).await.unwrap().state(), ContainerState::ContainerRunning);
    assert_eq!(rig.cri().pod_status(&one.pod).await.unwrap().state(), PodSandboxState::SandboxReady);
    assert_eq!(rig.cri().exec_well(&three.id, &["echo", "well"]).await.unwrap(), "well\n");
    let said = podhold_integration::daemon::log(&rig.places);
    for id in [&one.id, &two.pod] {
        assert!(said.contains(id.as_str()), "the daemon does not say that {id} is damaged");
    }

    rig.daemon.kill(&rig.machine).await.unwrap();
    fs::write(&of_container, good.0).unwrap();
    fs::write(&of_pod, good.1).unwrap();
    rig.daemon = Daemon::start(&rig.machine, &rig.places).await.unwrap();
    for each in [&one, &two, &three] {
        each.goes_on().await;
        assert_eq!(rig.cri().status(&each.id).await.unwrap().state(), ContainerState::ContainerRunning);
        rig.cri().end_pod(&each.pod).await.unwrap();
    }
    rig.finish().await;
}
