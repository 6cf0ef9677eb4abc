//! The limit on open files of the daemon, of a shim or of a logger is reached.

use std::time::Duration;

use podhold_integration::{configs::log_file, cri::Cri, log, rig, rig::Rig};
use tonic::Code;

use super::{Bystander, says, sleeper, until};

async fn sh(rig: &Rig, script: &str) -> String {
    rig.machine.run_well(["sh", "-ec", script]).await.unwrap().trim().to_owned()
}

/// What a process has open, once it has done what it was at: some files are open for a moment only.
async fn open_files(rig: &Rig, pid: &str) -> String {
    let script = format!(
        "before=; while now=$(ls /proc/{pid}/fd) && [ \"$now\" != \"$before\" ]; do before=$now; sleep 1; done; \
         echo \"$now\""
    );
    sh(rig, &script).await
}

/// Lets a process open no more than `more` files beyond those that are open: numbers that are free below its
/// limit.
async fn limit(rig: &Rig, pid: &str, more: usize) {
    let open = open_files(rig, pid).await;
    let open: Vec<u32> = open.lines().map(|number| number.parse().unwrap()).collect();
    let limit = (0..).filter(|number| !open.contains(number)).nth(more).unwrap();
    sh(rig, &format!("prlimit --pid {pid} --nofile={limit}:")).await;
}

/// Lets a process open as many files as it may.
async fn release(rig: &Rig, pid: &str) {
    let hard = format!("prlimit --pid {pid} --nofile --output HARD --noheadings");
    sh(rig, &format!("prlimit --pid {pid} --nofile=$({hard}):")).await;
}

/// Processor time of a process until now.
async fn processor_time(rig: &Rig, pid: i32) -> Duration {
    let ticks = sh(rig, &format!("awk '{{print $14 + $15}}' /proc/{pid}/stat")).await;
    Duration::from_millis(ticks.parse::<u64>().unwrap() * 10)
}

/// The pid, in the machine, of the only process with this name.
async fn process(rig: &Rig, name: &str) -> String {
    // Others may end while it looks, and what makes containers has the name for a moment.
    let look = async || sh(rig, &format!("grep -slx {name} /proc/[0-9]*/comm || true")).await;
    until(&format!("one {name}"), || async { look().await.lines().count() == 1 }).await;
    look().await.split('/').nth(2).unwrap().to_owned()
}

#[tokio::test]
async fn a_daemon_without_descriptors_waits_for_some_and_serves_who_is_there() {
    let rig = rig!();
    let stays = Bystander::start(&rig, "stays").await;
    let (config, daemon) = (rig.pod("new"), rig.daemon.pid.to_string());
    limit(&rig, &daemon, 4).await;
    let socket = rig.places.socket();
    let mut crowd = Vec::new();
    for _ in 0..40 {
        crowd.push(tokio::net::UnixStream::connect(&socket).await.unwrap());
    }
    let before = processor_time(&rig, rig.daemon.pid).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let spent = processor_time(&rig, rig.daemon.pid).await.saturating_sub(before);
    assert!(spent < Duration::from_millis(700), "it spins: {spent:?} of two seconds");
    stays.goes_on(&rig).await;
    let words = ["Too many open files", "LimitNOFILE"];
    says(rig.cri().run_pod(&config).await, Code::ResourceExhausted, &words);
    stays.goes_on(&rig).await;

    drop(crowd);
    // Clients can come again, without a word from an administrator.
    let cri = Cri::connect_within(&socket, super::HEALING).await.unwrap();
    assert_eq!(cri.list_pods().await.unwrap().len(), 1);
    release(&rig, &daemon).await;
    let pod = rig.cri().run_pod(&config).await.unwrap();
    stays.catcher_ends(&rig).await;
    for pod in [&pod, &stays.pod] {
        rig.cri().end_pod(pod).await.unwrap();
    }
    rig.finish().await;
}

#[tokio::test]
async fn a_shim_without_descriptors_refuses_and_keeps_its_pod() {
    let mut rig = rig!();
    let stays = Bystander::start(&rig, "stays").await;
    let shim = process(&rig, "podhold-shim").await;
    let created = rig.cri().create(&stays.pod, &stays.config, &sleeper("new")).await.unwrap();
    let words = ["Too many open files", "LimitNOFILE"];
    let command = ["echo", "well"];
    // Not even the files of a request have room: that request alone fails.
    limit(&rig, &shim, 0).await;
    says(rig.cri().exec(&stays.ticker, &command).await, Code::ResourceExhausted, &words);
    stays.goes_on(&rig).await;
    // What room there is, is kept for what must always be possible.
    limit(&rig, &shim, 12).await;
    says(rig.cri().exec(&stays.ticker, &command).await, Code::ResourceExhausted, &words);
    says(rig.cri().start(&created).await, Code::ResourceExhausted, &words);
    stays.goes_on(&rig).await;
    // A daemon that comes back is let in.
    rig.crash_and_restart().await;
    stays.goes_on(&rig).await;
    says(rig.cri().exec(&stays.ticker, &command).await, Code::ResourceExhausted, &words);
    stays.catcher_ends(&rig).await;

    release(&rig, &shim).await;
    assert_eq!(rig.cri().exec_well(&stays.ticker, &command).await.unwrap(), "well\n");
    rig.cri().end_pod(&stays.pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_logger_without_descriptors_takes_no_container_whose_output_it_would_lose() {
    let rig = rig!();
    let stays = Bystander::start(&rig, "stays").await;
    let logger = process(&rig, "podhold-logger").await;
    let words = ["Too many open files"];
    // For the log's file and for one of its streams there is room in the end, for the other there is not.
    for more in 0..3 {
        let name = format!("new-{more}");
        let created = rig.cri().create(&stays.pod, &stays.config, &sleeper(&name)).await.unwrap();
        limit(&rig, &logger, more).await;
        says(rig.cri().start(&created).await, Code::ResourceExhausted, &words);
        release(&rig, &logger).await;
    }
    stays.goes_on(&rig).await;
    let printer = rig.probe(&stays.pod, &stays.config, "new", &["print", "heard"]).await;
    rig.cri().ended(&printer, super::HEALING).await.unwrap();
    log::wait_for(&log_file(&stays.config, "new"), "heard").await;
    rig.cri().end_pod(&stays.pod).await.unwrap();
    rig.finish().await;
}
