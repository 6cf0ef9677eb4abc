//! The daemon under test: `podhold serve`, as built, in a machine.
//!
//! Its configuration is a file as an administrator would write it. It can be killed and started again
//! on the same directories.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::signal::Signal;

use crate::{
    cgroup,
    cri::Cri,
    machine::{Machine, MachineError},
    programs,
};

/// How long the daemon may take until it answers on its socket.
const PATIENCE: Duration = Duration::from_secs(180);

/// How long it may take to end after TERM.
const FAREWELL: Duration = Duration::from_secs(60);

/// Why there is no daemon to test.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Its files cannot be written.
    #[error("write the daemon's files in {path}")]
    Files {
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// It did not answer, or ended early; its log.
    #[error("the daemon {what}; its log:\n{log}")]
    NotUp {
        /// What it did instead.
        what: String,
        /// Its log so far.
        log: String,
    },
}

/// Where a daemon keeps its things, all beneath one directory.
#[derive(Debug, Clone)]
pub struct Places {
    root: PathBuf,
}

impl Places {
    /// Everything beneath `root`.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The volatile directory (configuration `run_dir`).
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    /// The lasting directory (configuration `state_dir`).
    pub fn state(&self) -> PathBuf {
        self.root.join("state")
    }

    /// The CRI socket.
    pub fn socket(&self) -> PathBuf {
        self.root.join("podhold.sock")
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// CNI network configurations.
    pub fn cni(&self) -> PathBuf {
        self.root.join("cni")
    }

    /// CNI plugins of ours, searched before Debian's.
    pub fn plugins(&self) -> PathBuf {
        self.root.join("plugins")
    }

    /// How to reach each registry.
    pub fn hosts(&self) -> PathBuf {
        self.root.join("certs.d")
    }

    /// What the daemon says.
    pub fn log(&self) -> PathBuf {
        self.root.join("podhold.log")
    }

    /// Log files of containers.
    pub fn pod_logs(&self) -> PathBuf {
        self.root.join("pod-logs")
    }

    /// Makes the directories that an administrator makes.
    pub fn make(&self) -> io::Result<()> {
        [self.cni(), self.plugins(), self.hosts(), self.pod_logs()].iter().try_for_each(fs::create_dir_all)
    }

    /// Says that what `registry` (as it stands in references) has is at `address` (`HOST:PORT`), by plain
    /// HTTP.
    pub fn mirror(&self, registry: &str, address: &str) -> io::Result<()> {
        let directory = self.hosts().join(registry);
        fs::create_dir_all(&directory)?;
        let text = format!(
            "server = \"https://{registry}\"\n[host.\"http://{address}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
        );
        fs::write(directory.join("hosts.toml"), text)
    }

    /// Says that the registry at `address` (`HOST:PORT`) is reached by plain HTTP.
    pub fn allow_plain_http(&self, address: &str) -> io::Result<()> {
        let directory = self.hosts().join(address);
        fs::create_dir_all(&directory)?;
        let text = format!(
            "server = \"http://{address}\"\n[host.\"http://{address}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
        );
        fs::write(directory.join("hosts.toml"), text)
    }
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    /// Its pid inside the machine.
    pub pid: i32,
    /// Where its things are.
    pub places: Places,
    /// A client of its socket.
    pub cri: Cri,
}

/// The configuration of a daemon whose pods go into the cgroup of this name, under the driver that is tested.
pub fn configuration(places: &Places, parent: &str) -> String {
    let plugins: Vec<String> = [places.plugins().display().to_string()]
        .into_iter()
        .chain(crate::needs::CNI_DIRECTORIES.map(str::to_owned))
        .collect();
    format!(
        "run_dir = {run:?}\nstate_dir = {state:?}\nsocket = {socket:?}\nlog_level = \"info,podhold=debug\"\n\
         [cgroups]\ndriver = {driver:?}\nparent = {parent:?}\n\
         [cni]\nconf_dir = {cni:?}\nbin_dirs = {plugins:?}\ntimeout_seconds = 10\n\
         [image]\nhosts_dir = {hosts:?}\n\
         [shim]\nbinary = {shim:?}\n",
        driver = cgroup::DRIVER.name(),
        parent = cgroup::DRIVER.parent(parent),
        run = places.run(),
        state = places.state(),
        socket = places.socket(),
        cni = places.cni(),
        hosts = places.hosts(),
        shim = programs::built("podhold-shim"),
    )
}

impl Daemon {
    /// Starts the daemon with the configuration file that is at its place, and waits until it answers.
    pub async fn start(machine: &Machine, places: &Places) -> Result<Self, DaemonError> {
        Self::start_program(machine, places, &programs::built("podhold")).await
    }

    /// As [`start`](Self::start), with this program.
    pub async fn start_program(
        machine: &Machine,
        places: &Places,
        program: &Path,
    ) -> Result<Self, DaemonError> {
        let pid = Self::spawn(machine, places, program).await?;
        let socket = places.socket();
        let what = tokio::select! {
            answer = Cri::connect_within(&socket, PATIENCE) => match answer {
                Ok(cri) => return Ok(Self { pid, places: places.clone(), cri }),
                Err(error) => {
                    machine.signal(pid, Signal::SIGKILL).await?;
                    machine.wait(pid).await?;
                    format!("does not answer after {PATIENCE:?}: {error}")
                }
            },
            code = machine.wait(pid) => format!("ended with exit code {}", code?),
        };
        Err(DaemonError::NotUp { what, log: log(places) })
    }

    /// Starts the daemon and ends it as a crash does when it has run for `life`, whatever it is at.
    pub async fn start_and_kill(
        machine: &Machine,
        places: &Places,
        life: Duration,
    ) -> Result<(), DaemonError> {
        let pid = Self::spawn(machine, places, &programs::built("podhold")).await?;
        tokio::time::sleep(life).await;
        machine.signal(pid, Signal::SIGKILL).await?;
        machine.wait(pid).await?;
        Ok(())
    }

    async fn spawn(machine: &Machine, places: &Places, program: &Path) -> Result<i32, MachineError> {
        let words = [program.to_owned(), "serve".into(), "--config".into(), places.config()];
        let words = words.map(|word: PathBuf| word.display().to_string());
        machine.spawn(&words, BTreeMap::new(), &places.log()).await
    }

    /// Ends the daemon as an administrator does, by TERM; answers its exit code.
    pub async fn stop(&self, machine: &Machine) -> Result<i32, DaemonError> {
        machine.signal(self.pid, Signal::SIGTERM).await?;
        let ended = tokio::time::timeout(FAREWELL, machine.wait(self.pid)).await;
        ended
            .map_err(|_| self.not_up(format!("does not end within {FAREWELL:?} of TERM")))?
            .map_err(Into::into)
    }

    /// Ends the daemon as a crash does.
    pub async fn kill(&self, machine: &Machine) -> Result<(), DaemonError> {
        machine.signal(self.pid, Signal::SIGKILL).await?;
        machine.wait(self.pid).await?;
        Ok(())
    }

    fn not_up(&self, what: String) -> DaemonError {
        DaemonError::NotUp { what, log: log(&self.places) }
    }
}

/// What the daemon has said so far.
pub fn log(places: &Places) -> String {
    fs::read_to_string(places.log()).unwrap_or_else(|error| format!("({error})"))
}
