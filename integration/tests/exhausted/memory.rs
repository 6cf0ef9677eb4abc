//! The daemon has no memory: the kernel kills it, or it ends itself. To pods that is one more crash.

use podhold_integration::{cgroup, daemon::Daemon, processes, rig, rig::Rig};

use super::{Bystander, until};

/// How much more memory the daemon gets, in bytes: less than the output of one of the commands it is asked for.
const MORE: u64 = 6 << 20;

/// A cgroup of the hierarchy that limits memory.
struct Memory {
    directory: String,
}

impl Memory {
    async fn sh(&self, rig: &Rig, script: &str) -> String {
        let script = script.replace('@', &self.directory);
        rig.machine.run_well(["sh", "-ec", &script]).await.unwrap()
    }
}

/// Asks for more and more at once until the daemon is dead, or has answered all: it holds the output of
/// commands until they have ended.
async fn ask_for_much(rig: &Rig, container: &str) {
    let asked = (0..8).map(|_| {
        let (cri, container) = (rig.cri().clone(), container.to_owned());
        async move { cri.exec(&container, &["/bin/sh", "-c", "head -c 15000000 /dev/zero; sleep 1"]).await }
    });
    let _refused_or_not = futures::future::join_all(asked).await;
}

#[tokio::test]
async fn a_daemon_that_is_killed_for_want_of_memory_takes_nobody_with_it() {
    let mut rig = rig!();
    let name = format!("podhold-it-{}-memory", std::process::id());
    let Some(directory) = cgroup::directory("memory", &name) else {
        podhold_integration::needs::skipped("needs the memory controller");
        return;
    };
    let memory = Memory { directory: directory.display().to_string() };
    let outside = Bystander::start(&rig, "outside").await;
    memory.sh(&rig, &format!("mkdir @; echo {} > @/cgroup.procs", rig.daemon.pid)).await;
    // Its shim is charged to the same cgroup, where it is the smaller one.
    let inside = Bystander::start(&rig, "inside").await;
    let shims = [&outside, &inside].map(|pod| processes::holders(&pod.pod));
    let (usage, limit, none) = match cgroup::is_unified() {
        true => ("memory.current", "memory.max", "max"),
        false => ("memory.usage_in_bytes", "memory.limit_in_bytes", "-1"),
    };
    let script = format!("echo $(($(cat @/{usage}) + {MORE})) > @/{limit}");
    memory.sh(&rig, &script).await;
    ask_for_much(&rig, &outside.ticker).await;
    assert_eq!(rig.machine.wait(rig.daemon.pid).await.unwrap(), 137, "the daemon");
    for (pod, before) in [&outside, &inside].into_iter().zip(shims) {
        assert_eq!(processes::holders(&pod.pod), before, "what holds pod {}", pod.pod);
    }
    memory.sh(&rig, &format!("echo {none} > @/{limit}")).await;
    rig.daemon = Daemon::start(&rig.machine, &rig.places).await.unwrap();
    for pod in [&outside, &inside] {
        pod.goes_on(&rig).await;
        assert_eq!(rig.cri().exec_well(&pod.ticker, &["echo", "well"]).await.unwrap(), "well\n");
        pod.catcher_ends(&rig).await;
        rig.cri().end_pod(&pod.pod).await.unwrap();
    }
    until("its cgroup is empty", || async {
        memory.sh(&rig, "rmdir @ && echo gone || true").await == "gone\n"
    })
    .await;
    rig.finish().await;
}

#[tokio::test]
async fn a_daemon_that_can_map_no_memory_loses_no_pod() {
    let mut rig = rig!();
    let stays = Bystander::start(&rig, "stays").await;
    let holders = processes::holders(&stays.pod);
    // What it has, and a little more: neither a thread nor a large buffer has room.
    let script = format!(
        "kib=$(awk '/^VmSize/ {{print $2}}' /proc/{pid}/status); prlimit --pid {pid} --as=$((kib * 1024 + 1000000))",
        pid = rig.daemon.pid
    );
    rig.machine.run_well(["sh", "-ec", &script]).await.unwrap();
    ask_for_much(&rig, &stays.ticker).await;
    // It may have ended of it, or have refused; either way the next one knows the truth.
    let _dead_already = rig.machine.signal(rig.daemon.pid, nix::sys::signal::Signal::SIGKILL).await;
    rig.machine.wait(rig.daemon.pid).await.unwrap();
    assert_eq!(processes::holders(&stays.pod), holders);
    rig.daemon = Daemon::start(&rig.machine, &rig.places).await.unwrap();
    stays.goes_on(&rig).await;
    assert_eq!(rig.cri().exec_well(&stays.ticker, &["echo", "well"]).await.unwrap(), "well\n");
    stays.catcher_ends(&rig).await;
    rig.cri().end_pod(&stays.pod).await.unwrap();
    rig.finish().await;
}
