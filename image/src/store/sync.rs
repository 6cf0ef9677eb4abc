//! One sync of the file system for all who want one at the time.
//!
//! ```text
//! A ├ sync 1 ┤├ sync 2 ┤     B and C come while sync 1 runs: it may have passed over what they wrote,
//! B    └ waits ┴────────┤     so both wait for sync 2 and share it
//! C      └ waits ┴──────┤
//! ```
//! Invariants: who returns with success wrote before a sync began that has succeeded; a sync that failed
//! fails everybody who was writing then, since it cannot be told whose data it lost.

use std::{
    io,
    sync::{Condvar, Mutex, MutexGuard},
};

use rustix::io::Errno;

type Action = Box<dyn Fn() -> Result<(), Errno> + Send + Sync>;

/// Syncs that are shared.
pub(super) struct GroupSync {
    action: Action,
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    /// Syncs that have begun; at most the last of them is running.
    begun: u64,
    done: u64,
    failures: u64,
    last_failure: Option<Errno>,
}

/// Taken before the first write; see [`GroupSync::sync`].
#[derive(Clone, Copy)]
pub(super) struct Writing {
    failures: u64,
}

impl GroupSync {
    pub(super) fn new(action: Action) -> Self {
        Self { action, state: Mutex::default(), ended: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panics under this lock")
    }

    /// Notes that somebody begins to write.
    pub(super) fn writing(&self) -> Writing {
        Writing { failures: self.state().failures }
    }

    /// Returns when everything written before the call is on disk. Fails when a sync since `writing` has
    /// failed, also one of others. Blocks.
    pub(super) fn sync(&self, writing: Writing) -> io::Result<()> {
        let mut state = self.state();
        let wanted = state.begun + 1;
        while state.done < wanted {
            if state.begun > state.done {
                state = self.ended.wait(state).expect("no panics under this lock");
                continue;
            }
            state.begun += 1;
            drop(state);
            let result = (self.action)();
            state = self.state();
            state.done = state.begun;
            if let Err(errno) = result {
                state.failures += 1;
                state.last_failure = Some(errno);
            }
            self.ended.notify_all();
        }
        match state.last_failure {
            Some(errno) if state.failures != writing.failures => Err(errno.into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    };

    use super::*;

    /// A sync whose every round tells that it began, and ends with the result it is given.
    struct Stage {
        sync: Arc<GroupSync>,
        began: mpsc::Receiver<()>,
        end: mpsc::Sender<Result<(), Errno>>,
        rounds: Arc<AtomicU64>,
    }

    fn stage() -> Stage {
        let (begin, began) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let rounds = Arc::new(AtomicU64::new(0));
        let (count, locked) = (Arc::clone(&rounds), Mutex::new((begin, ended)));
        let sync = GroupSync::new(Box::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
            let (begin, ended) = &*locked.lock().unwrap();
            begin.send(()).unwrap();
            ended.recv().unwrap()
        }));
        Stage { sync: Arc::new(sync), began, end, rounds }
    }

    impl Stage {
        fn ask(&self) -> std::thread::JoinHandle<io::Result<()>> {
            let (sync, writing) = (Arc::clone(&self.sync), self.sync.writing());
            std::thread::spawn(move || sync.sync(writing))
        }
    }

    #[test]
    fn who_comes_during_a_sync_shares_the_next_one() {
        let stage = stage();
        let first = stage.ask();
        stage.began.recv().unwrap();
        let others: Vec<_> = (0..7).map(|_| stage.ask()).collect();
        // They cannot be seen to wait; coming later they would make a third round, which has no end here.
        std::thread::park_timeout(std::time::Duration::from_millis(500));
        stage.end.send(Ok(())).unwrap();
        first.join().unwrap().unwrap();
        stage.began.recv().unwrap();
        assert!(others.iter().all(|other| !other.is_finished()), "the first sync does not serve them");
        stage.end.send(Ok(())).unwrap();
        for other in others {
            other.join().unwrap().unwrap();
        }
        assert_eq!(stage.rounds.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_failed_sync_fails_all_who_were_writing_and_nobody_later() {
        let stage = stage();
        let still_writing = stage.sync.writing();
        let first = stage.ask();
        stage.began.recv().unwrap();
        stage.end.send(Err(Errno::IO)).unwrap();
        assert_eq!(first.join().unwrap().unwrap_err().raw_os_error(), Some(Errno::IO.raw_os_error()));
        for _ in 0..2 {
            stage.end.send(Ok(())).unwrap();
        }
        assert!(stage.sync.sync(still_writing).is_err(), "its data may be what was lost");
        stage.sync.sync(stage.sync.writing()).unwrap();
    }
}
