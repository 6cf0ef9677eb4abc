//! A machine of its own for each test: new mount, network, IPC, UTS and PID namespaces in which the
//! daemon, the registry and all containers live.
//!
//! Tests then neither disturb each other nor the host, what they see is theirs alone, and whatever they
//! leave behind goes away with the machine. The cgroup hierarchies and the file system are the host's.
//!
//! Invariant: nothing in a machine outlives the [`Machine`] value, however the test ends.

pub mod init;
mod protocol;

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use nix::sched::{CloneFlags, setns};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::oneshot,
};

use self::protocol::{Answer, Call, Outcome, Program, Request};
use crate::programs;

/// Why a machine does not do what it is told.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The machine cannot be started or spoken to.
    #[error("machine: {what}")]
    Io {
        /// What was attempted.
        what: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Its init process has ended.
    #[error("machine: its init process is gone")]
    Gone,
    /// It could not do this one thing.
    #[error("machine: {0}")]
    Refused(String),
}

fn failed(what: &str) -> impl FnOnce(io::Error) -> MachineError {
    let what = what.to_owned();
    move |source| MachineError::Io { what, source }
}

/// What a program left that has run to its end.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit code, or 128 + signal.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Outcome>>>>;

/// Reboots so far, for a boot id that no machine had.
static BOOTS: AtomicU32 = AtomicU32::new(1);

/// A running machine. Ends, with everything in it, when dropped.
#[derive(Debug)]
pub struct Machine {
    unshare: Child,
    /// The machine's pid 1 as the host sees it.
    init: u32,
    input: tokio::sync::Mutex<(u64, ChildStdin)>,
    waiting: Waiting,
    directory: tempfile::TempDir,
}

impl Machine {
    /// Starts a machine. Needs root.
    pub async fn start() -> Result<Self, MachineError> {
        let directory =
            tempfile::Builder::new().prefix("podhold-it-").tempdir().map_err(failed("make a directory"))?;
        let (unshare, input, waiting) = boot()?;
        let mut machine =
            Self { unshare, init: 0, input: tokio::sync::Mutex::new((0, input)), waiting, directory };
        // An answer to anything says that init is up.
        machine.run(["true"]).await?;
        machine.init = machine.find_init().map_err(failed("find its first process"))?;
        Ok(machine)
    }

    /// Ends everything in the machine and starts it anew, with the same directory and another boot id.
    pub async fn reboot(&mut self) -> Result<(), MachineError> {
        let (unshare, input, waiting) = boot()?;
        let mut earlier = std::mem::replace(&mut self.unshare, unshare);
        self.waiting = waiting;
        // Without anybody to talk to, the earlier init ends.
        self.input = tokio::sync::Mutex::new((0, input));
        earlier.wait().await.map_err(failed("wait for its end"))?;
        self.run(["true"]).await?;
        self.init = self.find_init().map_err(failed("find its first process"))?;
        let id = self.directory().join("boot_id");
        let number = BOOTS.fetch_add(1, Ordering::Relaxed);
        fs::write(&id, format!("00000000-0000-4000-8000-{number:012x}\n"))
            .map_err(failed("write a boot id"))?;
        let id = id.display().to_string();
        self.run_well(["mount", "--bind", id.as_str(), "/proc/sys/kernel/random/boot_id"]).await.map(drop)
    }

    /// A directory that goes away with the machine; inside and outside have it under the same name.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The machine's root directory with its mounts, as the host sees it.
    pub fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.init))
    }

    /// Where the host sees what the kernel tells of a process, by its pid inside: `/proc/PID` of the machine.
    pub fn process(&self, pid: i32) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root/proc/{pid}", self.init))
    }

    /// Starts a program; answers its pid inside the machine.
    pub async fn spawn(
        &self,
        arguments: &[String],
        environment: BTreeMap<String, String>,
        log: &Path,
    ) -> Result<i32, MachineError> {
        let (stdout, stderr) = (log.to_owned(), log.to_owned());
        self.begin(Program { arguments: arguments.to_vec(), environment, stdout, stderr }).await
    }

    /// Runs a program to its end.
    pub async fn run<S: AsRef<str>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Output, MachineError> {
        let out = tempfile::NamedTempFile::new_in(self.directory()).map_err(failed("make a file"))?;
        let err = tempfile::NamedTempFile::new_in(self.directory()).map_err(failed("make a file"))?;
        let pid = self
            .begin(Program {
                arguments: arguments.into_iter().map(|word| word.as_ref().to_owned()).collect(),
                environment: BTreeMap::new(),
                stdout: out.path().to_owned(),
                stderr: err.path().to_owned(),
            })
            .await?;
        let code = self.wait(pid).await?;
        let text = |path: &Path| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Ok(Output {
            code,
            stdout: text(out.path()).map_err(failed("read what a program said"))?,
            stderr: text(err.path()).map_err(failed("read what a program said"))?,
        })
    }

    /// Runs a program that has to succeed; answers its standard output.
    pub async fn run_well<S: AsRef<str>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<String, MachineError> {
        let arguments: Vec<String> = arguments.into_iter().map(|word| word.as_ref().to_owned()).collect();
        let output = self.run(&arguments).await?;
        if output.code == 0 {
            return Ok(output.stdout);
        }
        let Output { code, stdout, stderr } = output;
        Err(MachineError::Refused(format!("{}: exit code {code}: {stdout}{stderr}", arguments.join(" "))))
    }

    /// Sends a signal to one process, by its pid inside.
    pub async fn signal(&self, pid: i32, signal: nix::sys::signal::Signal) -> Result<(), MachineError> {
        match self.call(Call::Signal { pid, signal: signal as i32 }).await? {
            Outcome::Sent => Ok(()),
            other => Err(refused(other)),
        }
    }

    /// Waits for a program that [`spawn`](Self::spawn) started; answers its exit code, or 128 + signal.
    pub async fn wait(&self, pid: i32) -> Result<i32, MachineError> {
        match self.call(Call::Wait { pid }).await? {
            Outcome::Ended { code } => Ok(code),
            other => Err(refused(other)),
        }
    }

    /// Runs `work` on a thread that is in the machine's network namespace.
    ///
    /// # Panics
    /// When `work` does.
    pub async fn in_network<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, MachineError> {
        let namespace =
            File::open(format!("/proc/{}/ns/net", self.init)).map_err(failed("open its network"))?;
        let (tell, told) = oneshot::channel();
        // A thread of its own, that ends afterwards: it never comes back from the namespace.
        std::thread::spawn(move || {
            let entered = setns(&namespace, CloneFlags::CLONE_NEWNET);
            let _ = tell.send(entered.map(|()| work()));
        });
        let result = told.await.expect("the work has panicked");
        result.map_err(|errno| failed("enter its network")(errno.into()))
    }

    /// Ends the machine and everything in it, and waits until it has.
    pub async fn stop(mut self) -> Result<(), MachineError> {
        // Without anybody to talk to, init ends.
        drop(self.input);
        self.unshare.wait().await.map_err(failed("wait for its end"))?;
        Ok(())
    }

    async fn begin(&self, program: Program) -> Result<i32, MachineError> {
        match self.call(Call::Spawn(program)).await? {
            Outcome::Started { pid } => Ok(pid),
            other => Err(refused(other)),
        }
    }

    async fn call(&self, call: Call) -> Result<Outcome, MachineError> {
        let (tell, told) = oneshot::channel();
        {
            let mut input = self.input.lock().await;
            input.0 += 1;
            let request = Request { number: input.0, call };
            self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(request.number, tell);
            let mut line = serde_json::to_vec(&request).expect("a request is plain data");
            line.push(b'\n');
            input.1.write_all(&line).await.map_err(|_| MachineError::Gone)?;
        }
        told.await.map_err(|_| MachineError::Gone)
    }

    /// The host's pid of a process that has this pid inside.
    pub fn host_pid(&self, inside: i32) -> io::Result<u32> {
        let is_it = |pid: &u32| {
            // Processes end while they are looked at.
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            pids.and_then(|pids| pids.split_whitespace().last()?.parse().ok()) == Some(inside)
        };
        self.pids()?.into_iter().find(is_it).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The host's pids of all processes of the machine, except those in pid namespaces within.
    pub fn pids(&self) -> io::Result<Vec<u32>> {
        let namespace = fs::read_link(format!("/proc/{}/ns/pid", self.init))?;
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            if fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|other| other == namespace) {
                found.push(pid);
            }
        }
        Ok(found)
    }

    /// The only child of unshare.
    fn find_init(&self) -> io::Result<u32> {
        let parent = format!("PPid:\t{}\n", self.unshare.id().unwrap_or_default());
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            let status = PathBuf::from(format!("/proc/{pid}/status"));
            if fs::read_to_string(status).is_ok_and(|status| status.contains(&parent)) {
                return Ok(pid);
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }
}

/// New namespaces with an init process in them.
fn boot() -> Result<(Child, ChildStdin, Waiting), MachineError> {
    let mut unshare = Command::new("unshare")
        .args(["--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(["--propagation", "private", "--"])
        .arg(programs::built("podhold-machine"))
        .arg("init")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed("start unshare"))?;
    let input = unshare.stdin.take().expect("stdin is piped");
    let output = unshare.stdout.take().expect("stdout is piped");
    let waiting = Waiting::default();
    tokio::spawn(listen(output, Arc::clone(&waiting)));
    Ok((unshare, input, waiting))
}

fn refused(outcome: Outcome) -> MachineError {
    match outcome {
        Outcome::Refused { reason } => MachineError::Refused(reason),
        other => MachineError::Refused(format!("unexpected answer {other:?}")),
    }
}

/// Hands each answer to who waits for it. When init is gone, all who wait are told by the closed channel.
async fn listen(output: ChildStdout, waiting: Waiting) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let Ok(answer) = serde_json::from_str::<Answer>(&line) else { break };
        let waiter = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&answer.number);
        if let Some(waiter) = waiter {
            let _ = waiter.send(answer.outcome);
        }
    }
    waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
}
