//! A mount that hangs beneath what a request names: a volume, a log directory.

use futures::future::join_all;
use podhold_integration::{fuse::HangingMount, rig};

use super::{deadline, others_go_on, processes, reads_answer, shell, until, with_volume};

/// How many ask for the same hung path at once.
const CROWD: usize = 60;

#[tokio::test]
async fn a_volume_that_hangs_costs_one_process_and_its_own_containers() {
    let mut rig = rig!();
    let mount = HangingMount::start(&rig.machine, &rig.machine.directory().join("volume")).await.unwrap();
    let config = rig.pod("hung");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let made = rig.cri().create(&pod, &config, &with_volume(shell("made", "sleep 1000"), &mount.path)).await;
    let made = made.unwrap();
    mount.hang(&rig.machine).await.unwrap();
    let path = mount.path.display().to_string();

    let crowd = async {
        let ask = |number: usize| {
            let (cri, pod, config) = (rig.cri().clone(), pod.clone(), config.clone());
            let container = with_volume(shell(&format!("new-{number}"), "true"), &mount.path);
            async move { cri.create(&pod, &config, &container).await }
        };
        let asked = (0..CROWD).map(|number| deadline("create", ask(number), [&path]));
        join_all(asked).await;
    };
    let start = deadline("start", rig.cri().start(&made), [&path]);
    tokio::join!(crowd, start, async {
        others_go_on(&rig, "beside").await;
        let waiting = processes(&["look-up", &path]);
        assert!(waiting.len() <= 1, "{} processes wait for one path", waiting.len());
    });
    // Asked again it says so at once, and a new daemon is not kept from starting.
    deadline(
        "create again",
        rig.cri().create(&pod, &config, &with_volume(shell("again", "true"), &mount.path)),
        [&path],
    )
    .await;
    rig.crash_and_restart().await;
    others_go_on(&rig, "after").await;

    mount.answer(&rig.machine).await.unwrap();
    until("the container whose volume answers again starts", async || rig.cri().start(&made).await.is_ok())
        .await;
    assert_eq!(rig.cri().exec_well(&made, &["cat", "/volume/file"]).await.unwrap(), "content\n");
    until("nobody waits for the path", async || processes(&["look-up", &path]).is_empty()).await;
    rig.cri().end_pod(&pod).await.unwrap();
    mount.end(&rig.machine).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_log_directory_that_hangs_costs_its_own_pod() {
    let rig = rig!();
    let mount = HangingMount::start(&rig.machine, &rig.machine.directory().join("volume")).await.unwrap();
    let mut config = rig.pod("hung");
    config.log_directory = mount.path.join("logs").display().to_string();
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let id = rig.run(&pod, &config, &shell("talks", "while :; do echo line; sleep 0.1; done")).await;
    mount.hang(&rig.machine).await.unwrap();
    let new = shell("new", "true");
    let create = deadline("create", rig.cri().create(&pod, &config, &new), [config.log_directory.as_str()]);
    tokio::join!(create, others_go_on(&rig, "beside"));
    // The pod itself works on, and ends: only its logger waits.
    assert_eq!(rig.cri().exec_well(&id, &["echo", "well"]).await.unwrap(), "well\n");
    rig.cri().stop(&id, 0).await.unwrap();
    rig.cri().remove(&id).await.unwrap();
    rig.cri().end_pod(&pod).await.unwrap();
    reads_answer(&rig).await;
    mount.answer(&rig.machine).await.unwrap();
    until("the logger is gone", async || processes(&["podhold-shim", &pod]).is_empty()).await;
    mount.end(&rig.machine).await.unwrap();
    rig.finish().await;
}
