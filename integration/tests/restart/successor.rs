//! What a killed daemon had open may outlive it for a moment: a program that it was about to execute has all
//! of it. The next daemon is not kept from starting by that.

use std::{fs, os::fd::OwnedFd, time::Duration};

use podhold_integration::{daemon::Daemon, rig, rig::Rig};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// How long the daemon's files stay open after its death.
const MOMENT: Duration = Duration::from_millis(500);

/// All that the daemon has open, as a child of it has between its fork and its exec.
fn all_files_of(rig: &Rig) -> Vec<OwnedFd> {
    let pid = rig.machine.host_pid(rig.daemon.pid).unwrap();
    let daemon = pidfd_open(Pid::from_raw(pid.cast_signed()).unwrap(), PidfdFlags::empty()).unwrap();
    let numbers = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let numbers = numbers.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    // Some are closed meanwhile.
    numbers.filter_map(|fd| pidfd_getfd(&daemon, fd, PidfdGetfdFlags::empty()).ok()).collect()
}

#[tokio::test]
async fn a_daemon_starts_while_the_files_of_the_killed_one_are_still_open() {
    let mut rig = rig!();
    let config = rig.pod("one");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let files = all_files_of(&rig);
    // The socket it listens on and the directories it has locked are among them.
    let has = |what: &str| {
        let target = |fd: &OwnedFd| {
            use std::os::fd::AsRawFd;
            fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap()
        };
        files.iter().any(|fd| target(fd).to_string_lossy().contains(what))
    };
    let state = rig.places.state().file_name().unwrap().to_string_lossy().into_owned();
    assert!(has("socket:[") && has(&format!("/{state}")), "its files were not had");
    rig.daemon.kill(&rig.machine).await.unwrap();
    let closed = tokio::spawn(async move {
        tokio::time::sleep(MOMENT).await;
        drop(files);
    });
    rig.daemon = Daemon::start(&rig.machine, &rig.places).await.unwrap();
    closed.await.unwrap();
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}
