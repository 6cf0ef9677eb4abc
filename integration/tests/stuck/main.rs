//! Things that hang: a mount, a disk, a plugin, a registry, a shim. The affected object says what it waits
//! for, within a bounded time; everybody else goes on as before; when the cause goes, it heals.
//!
//! Limits here are generous: what hangs does so for ever, and what goes on takes a fraction of them even on a
//! machine that is busy.

#![allow(clippy::unwrap_used, reason = "a test")]

mod disk;
mod mount;
mod plugin;
mod process;
mod registry;
mod shim;

use std::{fs, path::Path, time::Duration};

use podhold_integration::{configs, rig::Rig};
use podhold_proto::cri::*;
use tokio::time::{Instant, interval, timeout};
use tonic::{Code, Status};

/// How long one call that reads may take: as long as can be told from one that hangs, whose shortest limit is
/// 10 seconds.
const READ: Duration = Duration::from_secs(9);
/// How long whatever is affected may take to say so.
const BOUNDED: Duration = Duration::from_secs(60);
/// How long healing may take.
const SOON: Duration = Duration::from_secs(60);

/// Every call that reads answers, and a pod lives its whole life, while something else hangs.
async fn others_go_on(rig: &Rig, name: &str) {
    reads_answer(rig).await;
    let life = async {
        let config = rig.pod(name);
        let pod = rig.cri().run_pod(&config).await.unwrap();
        let id = rig.probe(&pod, &config, "other", &["sleep"]).await;
        reads_answer(rig).await;
        rig.cri().stop(&id, 0).await.unwrap();
        rig.cri().remove(&id).await.unwrap();
        rig.cri().end_pod(&pod).await.unwrap();
    };
    timeout(BOUNDED, life).await.unwrap_or_else(|_| panic!("{name}: another pod is held up"));
}

async fn reads_answer(rig: &Rig) {
    macro_rules! answers {
        ($client:ident, $call:ident) => {{
            let mut client = rig.cri().$client.clone();
            let answer = timeout(READ, client.$call(tonic::Request::new(Default::default()))).await;
            let answer =
                answer.unwrap_or_else(|_| panic!("{} has not answered within {READ:?}", stringify!($call)));
            answer.unwrap_or_else(|status| panic!("{}: {status}", stringify!($call)));
        }};
    }
    answers!(runtime, list_pod_sandbox);
    answers!(runtime, list_containers);
    answers!(runtime, list_container_stats);
    answers!(runtime, list_pod_sandbox_stats);
    answers!(runtime, list_pod_sandbox_metrics);
    answers!(runtime, status);
    answers!(images, list_images);
    answers!(images, image_fs_info);
}

/// A call that must fail with DEADLINE_EXCEEDED, within a bounded time, in words that name what it waits for.
async fn deadline<T: std::fmt::Debug, const N: usize>(
    what: &str,
    call: impl Future<Output = Result<T, Status>>,
    named: [&str; N],
) {
    let refusal = timeout(BOUNDED, call).await.unwrap_or_else(|_| panic!("{what}: no answer in {BOUNDED:?}"));
    let refusal = refusal.expect_err(what);
    assert_eq!(refusal.code(), Code::DeadlineExceeded, "{what}: {refusal}");
    for word in named {
        assert!(refusal.message().contains(word), "{what} does not name {word:?}: {}", refusal.message());
    }
}

/// Looks until `fits` says yes.
async fn until(what: &str, mut fits: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + SOON;
    let mut ticks = interval(Duration::from_millis(50));
    while !fits().await {
        ticks.tick().await;
        assert!(Instant::now() < end, "not within {SOON:?}: {what}");
    }
}

/// Pids, as the host has them, of processes whose command line has all these words.
fn processes(words: &[&str]) -> Vec<i32> {
    let line = |pid: i32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let fits = |pid: &i32| {
        let line = String::from_utf8_lossy(&line(*pid)).replace('\0', " ");
        words.iter().all(|word| line.contains(word))
    };
    let names = fs::read_dir("/proc").unwrap().flatten();
    names.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(fits).collect()
}

/// A shell in a container that runs this script.
fn shell(name: &str, script: &str) -> ContainerConfig {
    let mut container = configs::container(name, podhold_integration::rig::BUSYBOX, &["-c", script]);
    container.command = vec!["/bin/sh".into()];
    container
}

/// `container` with a host directory at `/volume`, which it may write to.
fn with_volume(mut container: ContainerConfig, host: &Path) -> ContainerConfig {
    let mut mount = configs::mount(host, "/volume");
    mount.readonly = false;
    container.mounts.push(mount);
    container
}
