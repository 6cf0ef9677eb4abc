//! What a daemon uses, and what it must give back when it has nothing more to do.

use std::{fmt, fs, io, path::Path, time::Duration};

use tokio::time::{Instant, interval};

use crate::{leaks::Kind, rig::Rig};

/// How long it may take until a daemon that is idle has given everything back: threads for blocking calls
/// wait ten seconds for another one.
const SETTLE: Duration = Duration::from_secs(60);

/// What the daemon uses at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Memory of its own (RssAnon), in KiB.
    pub memory: u64,
    /// Open files.
    pub files: usize,
    /// Threads.
    pub threads: usize,
}

impl fmt::Display for Usage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { memory, files, threads } = self;
        write!(formatter, "{memory} KiB, {files} files, {threads} threads")
    }
}

impl Usage {
    /// What the daemon uses now.
    ///
    /// # Panics
    /// When it is gone.
    pub fn now(rig: &Rig) -> Self {
        Self::read(&rig.machine.process(rig.daemon.pid)).expect("look at the daemon")
    }

    fn read(process: &Path) -> io::Result<Self> {
        let status = fs::read_to_string(process.join("status"))?;
        let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let memory = anonymous.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok());
        let count = |directory: &str| Ok::<_, io::Error>(fs::read_dir(process.join(directory))?.count());
        Ok(Self {
            memory: memory.ok_or_else(|| io::Error::other("no RssAnon"))?,
            files: count("fd")?,
            threads: count("task")?,
        })
    }

    /// The daemon's open files, as the kernel names them.
    fn open_files(rig: &Rig) -> Vec<String> {
        let entries = fs::read_dir(rig.machine.process(rig.daemon.pid).join("fd")).into_iter().flatten();
        let links = entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        links.map(|link| link.display().to_string()).collect()
    }

    /// What an idle daemon uses once it has not given anything back for twelve seconds: what it stays at.
    ///
    /// # Panics
    /// When the daemon is gone.
    pub async fn at_rest(rig: &Rig) -> Self {
        const STILL: Duration = Duration::from_secs(12);
        let deadline = Instant::now() + SETTLE;
        let mut ticks = interval(Duration::from_millis(200));
        let (mut least, mut since) = (Self::now(rig), Instant::now());
        while since.elapsed() < STILL && Instant::now() < deadline {
            ticks.tick().await;
            let now = Self::now(rig);
            if now.files < least.files || now.threads < least.threads {
                (least, since) = (now, Instant::now());
            }
        }
        Self { memory: Self::now(rig).memory, ..least }
    }

    /// Waits until the daemon has no more files and threads than at this time and at most `kibibytes` of
    /// memory more; answers what it uses then.
    ///
    /// # Panics
    /// When that does not come to be.
    pub async fn returns(self, rig: &Rig, kibibytes: u64) -> Self {
        let deadline = Instant::now() + SETTLE;
        // Nothing tells when a file or a thread is given back.
        let mut ticks = interval(Duration::from_millis(200));
        loop {
            ticks.tick().await;
            let now = Self::now(rig);
            let back = now.files <= self.files
                && now.threads <= self.threads
                && now.memory <= self.memory + kibibytes;
            if back {
                return now;
            }
            let late = Instant::now() >= deadline;
            let open = if late { Self::open_files(rig) } else { Vec::new() };
            assert!(!late, "the daemon used {self}, and now uses {now}: not given back; open: {open:?}");
        }
    }
}

/// How many things there are in the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Things {
    /// Cgroups of this test, in all hierarchies.
    pub cgroups: usize,
    /// Mounts.
    pub mounts: usize,
    /// Namespaces of all kinds.
    pub namespaces: usize,
    /// Files in the daemon's directories and those of the network plugins.
    pub files: usize,
    /// Processes.
    pub processes: usize,
}

impl Things {
    /// Counts them.
    pub async fn of(rig: &Rig) -> Self {
        let all = rig.snapshot().await;
        Self {
            cgroups: all.count(Kind::Cgroup),
            mounts: all.count(Kind::Mount),
            namespaces: all.count(Kind::Namespace),
            files: all.count(Kind::File),
            processes: all.count(Kind::Process),
        }
    }
}

/// A table of what was used when, in Markdown.
#[derive(Debug, Clone, Default)]
pub struct Table(Vec<String>);

impl Table {
    /// Adds a row, and prints it.
    pub fn add(&mut self, when: &str, usage: Usage, things: Things) {
        let Usage { memory, files, threads } = usage;
        let Things { cgroups, mounts, namespaces, files: left, processes } = things;
        let row = format!(
            "| {when} | {memory} | {files} | {threads} | {cgroups} | {mounts} | {namespaces} | {left} | {processes} |"
        );
        println!("{row}");
        self.0.push(row);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            formatter,
            "| when | memory, KiB | files open | threads | cgroups | mounts | namespaces | files | processes |"
        )?;
        writeln!(formatter, "|---|---|---|---|---|---|---|---|---|")?;
        self.0.iter().try_for_each(|row| writeln!(formatter, "{row}"))
    }
}
