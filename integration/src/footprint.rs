//! What the daemon and a pod's processes of ours use: files, threads and memory.

use std::{fmt, time::Duration};

use tokio::time::{Instant, interval};

use crate::rig::Rig;

/// How long it may take until everything is given back: threads for blocking calls wait ten seconds for
/// another one.
const SETTLE: Duration = Duration::from_secs(25);

/// One process of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: i32,
    files: usize,
    threads: usize,
    /// Resident, in KiB.
    memory: usize,
}

/// The daemon, then the shim and the logger of each pod that was named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footprint(Vec<Process>);

impl fmt::Display for Footprint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|Process { pid, files, threads, memory }| {
            writeln!(formatter, "process {pid}: {files} files, {threads} threads, {memory} KiB")
        })
    }
}

impl Footprint {
    /// Looks at the daemon and at the processes of these pods.
    ///
    /// # Panics
    /// When the daemon, or the shim or logger of a pod is not there.
    pub async fn of(rig: &Rig, pods: &[&str]) -> Self {
        let daemon = rig.daemon.pid;
        // The brackets keep grep from finding itself.
        let find = format!(
            "pids={daemon}; for pod in {}; do for p in /proc/[0-9]*; do \
             tr '\\0' ' ' < $p/cmdline | grep 'podhold-[s]him' | grep -q $pod && pids=\"$pids ${{p#/proc/}}\"; done; done; \
             for p in $pids; do echo $p $(ls /proc/$p/fd | wc -l) $(ls /proc/$p/task | wc -l) \
             $(sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/$p/status); done",
            pods.join(" ")
        );
        // Only what is gone while it is looked at makes it fail in parts.
        let text = rig.machine.run(["sh", "-c", &find]).await.expect("look at processes").stdout;
        let process = |line: &str| {
            let numbers: Option<Vec<usize>> = line.split(' ').map(|word| word.parse().ok()).collect();
            let [pid, files, threads, memory] = numbers?.try_into().ok()?;
            Some(Process { pid: i32::try_from(pid).ok()?, files, threads, memory })
        };
        let all: Vec<Process> = text.lines().filter_map(process).collect();
        assert!(all.len() > 2 * pods.len(), "a process is missing: {text}");
        Self(all)
    }

    /// Waits until nothing uses more files or threads than at the time of this footprint, nor more memory
    /// than `kibibytes` over it.
    ///
    /// # Panics
    /// When that does not come to be within 25 s.
    pub async fn returns(&self, rig: &Rig, pods: &[&str], kibibytes: usize) {
        let deadline = Instant::now() + SETTLE;
        // Nothing tells when a file or a thread is given back.
        let mut ticks = interval(Duration::from_millis(200));
        loop {
            ticks.tick().await;
            let now = Self::of(rig, pods).await;
            if now.within(self, kibibytes) {
                println!("before:\n{self}after:\n{now}");
                return;
            }
            assert!(Instant::now() < deadline, "not given back; before:\n{self}after:\n{now}");
        }
    }

    fn within(&self, before: &Self, kibibytes: usize) -> bool {
        self.0.iter().all(|now| {
            before.0.iter().find(|process| process.pid == now.pid).is_some_and(|before| {
                now.files <= before.files
                    && now.threads <= before.threads
                    && now.memory <= before.memory + kibibytes
            })
        })
    }
}
