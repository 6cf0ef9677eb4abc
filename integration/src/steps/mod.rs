//! The steps of a running daemon, and its death before one of them.
//!
//! A *step* is a system call that changes the world: a file made, renamed or removed, a mount, a namespace,
//! a child, a signal, a message to a shim. Reads, locks, timers, log output and answers to clients are none.
//! The daemon is stopped at the entry of each system call by `ptrace`; killed there, it has not made it.
//!
//! Nothing of this is in the product. Only the daemon's own threads are traced, never its children: shims
//! and plugins run as they always do. Invariant: a daemon that was traced to its end is dead, and the
//! tracing thread has ended, when [`Tracer::finish`] returns.

mod calls;
mod memory;
mod words;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
};

use nix::{
    errno::Errno,
    sys::{
        ptrace::{self, Options},
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

/// A step, by its name and by how many of that name there were before it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Step {
    /// What is done to what, with words for what is random: `rename run/pods/POD/x`.
    pub name: String,
    /// 0 for the first of its name.
    pub occurrence: usize,
}

/// Follows a daemon to its end.
#[derive(Debug)]
pub struct Tracer {
    daemon: Pid,
    thread: JoinHandle<io::Result<Vec<Step>>>,
    /// No further step is noted.
    enough: Arc<AtomicBool>,
}

impl Tracer {
    /// Follows the daemon with this pid (as this process sees it), whose files lie beneath `root`, and kills
    /// it when it is about to make `fatal`. Returns once every thread of it is followed.
    pub fn start(daemon: u32, root: &str, fatal: Option<Step>) -> io::Result<Self> {
        let daemon = Pid::from_raw(daemon.cast_signed());
        let words = words::Words::new(root);
        let (tell, told) = mpsc::channel();
        let enough = Arc::new(AtomicBool::new(false));
        let enough_too = Arc::clone(&enough);
        // A traced thread answers to the thread that traces it, and to no other.
        let thread = std::thread::spawn(move || {
            let following = Following::new(daemon, words, fatal, enough_too);
            let begun = following.seize();
            let failed = begun.as_ref().err().map(|errno| io::Error::from(*errno));
            let _ = tell.send(begun.map_err(io::Error::from));
            match failed {
                Some(error) => Err(error),
                None => Ok(following.follow()?),
            }
        });
        told.recv().map_err(|_| io::Error::other("the tracing thread has ended"))??;
        Ok(Self { daemon, thread, enough })
    }

    /// Whether the daemon has met its step, or has ended otherwise.
    pub fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// Kills the daemon if it lives, and answers the steps it has made.
    pub fn finish(self) -> io::Result<Vec<Step>> {
        self.end(Signal::SIGKILL)
    }

    /// Tells the daemon to end, and answers the steps it has made until now.
    pub fn finish_kindly(self) -> io::Result<Vec<Step>> {
        self.enough.store(true, Ordering::Relaxed);
        self.end(Signal::SIGTERM)
    }

    fn end(self, signal: Signal) -> io::Result<Vec<Step>> {
        match kill(self.daemon, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => return Err(errno.into()),
        }
        self.thread.join().map_err(|_| io::Error::other("the tracing thread has panicked"))?
    }
}

/// The tracing thread's own state.
struct Following {
    daemon: Pid,
    words: words::Words,
    fatal: Option<Step>,
    steps: Vec<Step>,
    counts: BTreeMap<String, usize>,
    /// Threads that are in a system call.
    inside: HashSet<Pid>,
    enough: Arc<AtomicBool>,
}

impl Following {
    fn new(daemon: Pid, words: words::Words, fatal: Option<Step>, enough: Arc<AtomicBool>) -> Self {
        let (steps, counts, inside) = Default::default();
        Self { daemon, words, fatal, steps, counts, inside, enough }
    }

    /// Takes hold of every thread there is. Threads made by those come by themselves.
    fn seize(&self) -> nix::Result<()> {
        let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE;
        let mut seized = BTreeSet::new();
        loop {
            let threads = threads(self.daemon).map_err(|_| Errno::ESRCH)?;
            let fresh: Vec<i32> = threads.difference(&seized).copied().collect();
            if fresh.is_empty() {
                return Ok(());
            }
            for thread in fresh {
                seized.insert(thread);
                match ptrace::seize(Pid::from_raw(thread), options) {
                    Ok(()) => ptrace::interrupt(Pid::from_raw(thread)).or_else(gone)?,
                    // Ended, or followed already, since it was made by a thread that is.
                    Err(Errno::ESRCH | Errno::EPERM) => {}
                    Err(errno) => return Err(errno),
                }
            }
        }
    }

    fn follow(mut self) -> nix::Result<Vec<Step>> {
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        loop {
            match waitpid(None, Some(flags)) {
                Ok(WaitStatus::PtraceSyscall(thread)) => {
                    if self.inside.remove(&thread) {
                        ptrace::syscall(thread, None).or_else(gone)?;
                    } else {
                        self.inside.insert(thread);
                        self.entry(thread)?;
                    }
                }
                Ok(WaitStatus::PtraceEvent(thread, ..)) => ptrace::syscall(thread, None).or_else(gone)?,
                Ok(WaitStatus::Stopped(thread, signal)) => ptrace::syscall(thread, signal).or_else(gone)?,
                Ok(WaitStatus::Exited(thread, _) | WaitStatus::Signaled(thread, ..)) => {
                    self.inside.remove(&thread);
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::ECHILD) => return Ok(self.steps),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// A thread is about to make a system call.
    fn entry(&mut self, thread: Pid) -> nix::Result<()> {
        let Some(registers) =
            ptrace::getregs(thread).map(Some).or_else(|errno| gone(errno).map(|()| None))?
        else {
            return Ok(());
        };
        let noted = !self.enough.load(Ordering::Relaxed);
        if let Some(name) = calls::name(thread, &registers, &self.words).filter(|_| noted) {
            let count = self.counts.entry(name.clone()).or_insert(0);
            let step = Step { name, occurrence: *count };
            *count += 1;
            if self.fatal.as_ref() == Some(&step) {
                self.fatal = None;
                // It stays in its stop until the signal ends it: the call is never made.
                return kill(self.daemon, Signal::SIGKILL).or_else(gone);
            }
            self.steps.push(step);
        }
        ptrace::syscall(thread, None).or_else(gone)
    }
}

/// A thread may end at any moment: the daemon is killed.
fn gone(errno: Errno) -> nix::Result<()> {
    if errno == Errno::ESRCH { Ok(()) } else { Err(errno) }
}

fn threads(process: Pid) -> io::Result<BTreeSet<i32>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{process}/task"))? {
        found.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    Ok(found)
}
