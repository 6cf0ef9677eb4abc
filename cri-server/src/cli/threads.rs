//! The threads of a daemon and of a command.
//!
//! A daemon's answers must not wait behind the work it has set going: decompression, network plugins, shims
//! and containers' creators share its processors. So the threads that serve (tokio's workers) go before the
//! others; those that may block, and all processes, have the priority the daemon was started with. They have
//! short turns too: when it wakes, a thread whose turn is shorter takes the processor from who has it
//! (EEVDF), while its nice value alone only lets it have more in the long run.

use std::{
    num::NonZero,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use tokio::runtime::{Builder, Runtime};
use tracing::debug;

use super::Failure;
use crate::sys;

/// Nice value of the threads that serve.
const SERVING: i32 = -10;
/// Their turn, in nanoseconds: the shortest the kernel takes. Most answers need no longer.
const TURN: u64 = 100_000;
/// How long the workers may take to begin.
const BEGIN: Duration = Duration::from_secs(5);

/// Most threads that may block at a time. A pull that has stalled holds one for each layer it unpacks; with
/// tokio's 512 some hundred of them would leave none to others.
const BLOCKING: usize = 4096;

/// The threads of a command.
pub(super) fn plain() -> Result<Runtime, Failure> {
    Ok(builder().build()?)
}

fn builder() -> Builder {
    let mut threads = Builder::new_multi_thread();
    threads.enable_all().thread_name("podhold").max_blocking_threads(BLOCKING);
    threads
}

/// The threads of a daemon, of which the calling one is the first.
pub(super) fn serving() -> Result<Runtime, Failure> {
    // Whoever has chosen a priority for the daemon knows better.
    let chosen = rustix::process::getpriority_process(None).is_ok_and(|nice| nice != 0);
    if chosen {
        return plain();
    }
    let workers = std::thread::available_parallelism().map_or(1, NonZero::get);
    let begun = AtomicUsize::new(0);
    let (tell, told) = mpsc::channel();
    // Tokio starts its workers when it is built, and threads that may block when they are needed.
    let begin = move || {
        if begun.fetch_add(1, Ordering::Relaxed) < workers {
            go_first();
            let _ = tell.send(());
        }
    };
    let runtime = builder().worker_threads(workers).on_thread_start(begin).build()?;
    for _ in 0..workers {
        // Nothing is asked of them before: no other thread can be taken for a worker.
        let _ = told.recv_timeout(BEGIN);
    }
    go_first();
    Ok(runtime)
}

/// Lets this thread go before others; not the threads and processes it will start.
fn go_first() {
    if let Err(error) = sys::go_first(SERVING, TURN) {
        debug!(%error, "answers have no priority over work; CAP_SYS_NICE is missing");
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::getpriority_process;

    use super::*;

    #[test]
    fn threads_that_serve_go_first_and_what_they_start_does_not() {
        let own = getpriority_process(None).unwrap();
        if own != 0 || !caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_NICE).unwrap()
        {
            println!("SKIPPED: needs CAP_SYS_NICE, and a nice value of 0 that this process has not ({own})");
            return;
        }
        // In a thread of its own, whose priority nobody else needs.
        let found = std::thread::spawn(|| {
            let runtime = serving().unwrap();
            let nice = || getpriority_process(None).unwrap();
            runtime.block_on(async move {
                let here = nice();
                let worker = tokio::spawn(async move { nice() }).await.unwrap();
                let blocking = tokio::spawn(tokio::task::spawn_blocking(nice)).await.unwrap().unwrap();
                // Field 19, counted behind the name (proc_pid_stat(5)).
                let child = std::process::Command::new("cat").arg("/proc/self/stat").output().unwrap();
                let child = String::from_utf8(child.stdout).unwrap();
                let child = child.rsplit(") ").next().unwrap().split(' ').nth(16).unwrap().to_owned();
                (here, worker, blocking, child)
            })
        });
        assert_eq!(found.join().unwrap(), (SERVING, SERVING, 0, "0".to_owned()));
    }
}
