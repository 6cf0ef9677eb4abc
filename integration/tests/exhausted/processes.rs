//! No process and no thread can be made: a limit on tasks is reached.

use std::time::Duration;

use podhold_integration::{cgroup, rig, rig::Rig};
use tonic::Code;

use super::{Bystander, runtime_ready, says, sleeper, until};

/// A cgroup of the hierarchy that limits tasks.
struct Tasks {
    directory: String,
}

impl Tasks {
    /// The directory `name`; `None` where tasks are limited in another way than here.
    fn new(name: &str) -> Option<Self> {
        let directory = cgroup::directory("pids", name)?.display().to_string();
        Some(Self { directory })
    }

    async fn sh(&self, rig: &Rig, script: &str) -> String {
        let script = script.replace("@", &self.directory);
        rig.machine.run_well(["sh", "-ec", &script]).await.unwrap()
    }

    /// Where processes of it may go back to.
    fn home(&self) -> &'static str {
        if cgroup::is_unified() { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/pids" }
    }

    /// From now on it has all the tasks it can have.
    async fn close(&self, rig: &Rig) {
        self.sh(rig, "cat @/pids.current > @/pids.max").await;
    }

    async fn open(&self, rig: &Rig) {
        self.sh(rig, "echo max > @/pids.max").await;
    }
}

#[tokio::test]
async fn a_daemon_that_can_make_no_process_says_so_and_goes_on() {
    let rig = rig!();
    // Not beneath a slice, whose cgroups are systemd's.
    let name = format!("podhold-it-{}-tasks", std::process::id());
    let Some(tasks) = Tasks::new(&name) else {
        podhold_integration::needs::skipped("needs the pids controller");
        return;
    };
    let stays = Bystander::start(&rig, "stays").await;
    let (config, container) = (rig.pod("new"), sleeper("new"));
    tasks.sh(&rig, &format!("mkdir @; echo {} > @/cgroup.procs", rig.daemon.pid)).await;
    // Longer than tokio keeps an idle thread: without one kept ready there would be none at the end.
    for _ in 0..13 {
        tasks.close(&rig).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }

    let words = ["Resource temporarily unavailable", "pids.max"];
    let asked = tokio::time::timeout(Duration::from_secs(60), rig.cri().run_pod(&config)).await;
    says(asked.expect("an answer"), Code::ResourceExhausted, &words);
    assert_eq!(rig.cri().list_pods().await.unwrap().len(), 1);
    assert!(runtime_ready(&rig).await.status);
    stays.goes_on(&rig).await;
    // Its shim is not in that cgroup.
    assert_eq!(rig.cri().exec_well(&stays.ticker, &["echo", "well"]).await.unwrap(), "well\n");
    stays.catcher_ends(&rig).await;
    rig.cri().remove(&stays.catcher).await.unwrap();

    tasks.open(&rig).await;
    let pod = rig.cri().run_pod(&config).await.unwrap();
    rig.run(&pod, &config, &container).await;
    for pod in [&pod, &stays.pod] {
        rig.cri().end_pod(pod).await.unwrap();
    }
    tasks.sh(&rig, &format!("echo {} > {}/cgroup.procs", rig.daemon.pid, tasks.home())).await;
    until("its cgroup is empty", || async {
        tasks.sh(&rig, "rmdir @ && echo gone || true").await == "gone\n"
    })
    .await;
    rig.finish().await;
}

#[tokio::test]
async fn a_pod_at_its_limit_of_tasks_is_alone_with_it() {
    let rig = rig!();
    let (full, other) = (Bystander::start(&rig, "full").await, Bystander::start(&rig, "other").await);
    let Some(tasks) = Tasks::new(&rig.pod_cgroup(&full.pod)) else {
        podhold_integration::needs::skipped("needs the pids controller");
        return;
    };
    // The shell needs a process for each of its sleeps: it is not asked to go on.
    tasks.sh(&rig, "echo 1 > @/pids.max").await;
    let words = ["Resource temporarily unavailable", "pids.max"];
    says(rig.cri().exec(&full.catcher, &["/probe", "print", "x"]).await, Code::ResourceExhausted, &words);
    let started = async {
        let id = rig.cri().create(&full.pod, &full.config, &sleeper("new")).await?;
        rig.cri().start(&id).await
    };
    // libcontainer does not tell why.
    assert!(started.await.is_err());
    other.goes_on(&rig).await;
    full.catcher_ends(&rig).await;

    tasks.open(&rig).await;
    let mut again = sleeper("new");
    again.metadata.as_mut().unwrap().attempt = 1;
    rig.run(&full.pod, &full.config, &again).await;
    for pod in [&full.pod, &other.pod] {
        rig.cri().end_pod(pod).await.unwrap();
    }
    rig.finish().await;
}
