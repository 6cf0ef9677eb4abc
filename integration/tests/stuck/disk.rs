//! A log file system that is frozen: every write to it sleeps until it is thawed.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use podhold_integration::{configs::log_file, log, rig, rig::Rig};
use podhold_proto::cri::{ContainerState, ReopenContainerLogRequest};

use super::{deadline, others_go_on, processes, shell, until};

/// An ext4 file system of its own, on a loop device. Thawed when dropped, however the test ends: a frozen one
/// would keep its loop device for ever.
struct Disk {
    path: PathBuf,
    seen_from_host: PathBuf,
}

impl Disk {
    async fn mount(rig: &Rig) -> Self {
        let path = rig.machine.directory().join("disk");
        std::fs::create_dir(&path).unwrap();
        let image = rig.machine.directory().join("disk.img").display().to_string();
        std::fs::File::create(&image).unwrap().set_len(32 << 20).unwrap();
        rig.machine.run_well(["mkfs.ext4", "-q", "-F", &image]).await.unwrap();
        rig.machine.run_well(["mount", "-o", "loop", &image, &path.display().to_string()]).await.unwrap();
        let seen_from_host = rig.machine.root().join(path.strip_prefix("/").unwrap());
        Self { path, seen_from_host }
    }

    fn freeze(&self) {
        assert!(fsfreeze("--freeze", &self.seen_from_host), "fsfreeze --freeze");
    }

    fn thaw(&self) {
        assert!(fsfreeze("--unfreeze", &self.seen_from_host), "fsfreeze --unfreeze");
    }

    async fn unmount(self, rig: &Rig) {
        rig.machine.run_well(["umount", &self.path.display().to_string()]).await.unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if std::thread::panicking() {
            fsfreeze("--unfreeze", &self.seen_from_host);
        }
    }
}

fn fsfreeze(what: &str, path: &Path) -> bool {
    Command::new("fsfreeze").arg(what).arg(path).status().is_ok_and(|status| status.success())
}

/// Whether it sleeps where no signal reaches it.
fn sleeps(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('D'))
}

#[tokio::test]
async fn a_frozen_log_disk_stops_logs_and_nothing_else() {
    podhold_integration::require!(root, program "mkfs.ext4", program "fsfreeze", program "losetup");
    let mut rig = rig!();
    let disk = Disk::mount(&rig).await;
    let pod_on_disk = |name: &str| {
        let mut config = rig.pod(name);
        config.log_directory = disk.path.join(name).display().to_string();
        config
    };
    let (config, other) = (pod_on_disk("frozen"), pod_on_disk("ends"));
    // A line now and then: the pipe does not fill up while the disk is frozen.
    let script = "n=0; while :; do n=$((n+1)); echo line $n; sleep 0.2; done";
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let id = rig.run(&pod, &config, &shell("counts", script)).await;
    let ending = rig.cri().run_pod(&other).await.unwrap();
    let ended = rig.run(&ending, &other, &shell("counts", script)).await;
    let file = log_file(&config, "counts").display().to_string();
    let seen = disk.seen_from_host.join("frozen/counts/0.log");
    until("it writes", async || std::fs::read_to_string(&seen).is_ok_and(|text| text.contains("line 2")))
        .await;
    disk.freeze();
    // With its next line the logger goes to sleep.
    until("the logger waits for the disk", async || {
        processes(&["podhold-shim", &pod]).into_iter().any(sleeps)
    })
    .await;

    let reopen = async {
        let request = ReopenContainerLogRequest { container_id: id.clone() };
        rig.cri().runtime.clone().reopen_container_log(request).await
    };
    let log_of_new = disk.path.join("frozen/new").display().to_string();
    let new = shell("new", "true");
    tokio::join!(
        deadline("reopen", reopen, [&id, &file]),
        deadline("create", rig.cri().create(&pod, &config, &new), [&log_of_new]),
        others_go_on(&rig, "beside"),
    );
    assert_eq!(rig.cri().exec_well(&id, &["echo", "well"]).await.unwrap(), "well\n");
    // An exit is told although its last lines cannot be written.
    rig.cri().stop(&ended, 0).await.unwrap();
    assert_eq!(rig.cri().status(&ended).await.unwrap().exit_code, 137);
    rig.cri().end_pod(&ending).await.unwrap();
    rig.crash_and_restart().await;
    others_go_on(&rig, "after").await;
    assert_eq!(rig.cri().status(&id).await.unwrap().state(), ContainerState::ContainerRunning);

    disk.thaw();
    let request = ReopenContainerLogRequest { container_id: id.clone() };
    until("its log can be opened anew", async || {
        rig.cri().runtime.clone().reopen_container_log(request.clone()).await.is_ok()
    })
    .await;
    rig.cri().stop(&id, 0).await.unwrap();
    // Through the machine: the disk is mounted there.
    let lines = log::lines(&seen, "stdout").unwrap();
    let expected: Vec<String> = (1..=lines.len()).map(|n| format!("line {n}")).collect();
    assert_eq!(lines, expected, "no line is missing or torn");
    rig.cri().end_pod(&pod).await.unwrap();
    until("nobody waits for the disk", async || processes(&["look-up", &log_of_new]).is_empty()).await;
    until("the loggers have ended", async || processes(&["podhold-shim", &ending]).is_empty()).await;
    disk.unmount(&rig).await;
    rig.finish().await;
}
