//! Runs one plugin for one command.
//!
//! Invariant: a plugin runs in a process group of its own, which is killed when its time is over, when it
//! writes too much, and when the caller is dropped. What it leaves running after it has ended by itself
//! is its own business, but holds up nobody.

use std::{
    ffi::OsString,
    fmt, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use serde_json::{Map, Value};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::{
    CniError,
    conf::{NetworkList, Plugin},
    lock::Held,
    process::{self, Process},
};

const MOST_OUTPUT: u64 = 1 << 20;
const KEPT_STDERR: usize = 4096;
/// How long output may lag behind the end of the plugin, when something else holds the pipe open.
const DRAIN: Duration = Duration::from_millis(200);
/// How long a plugin that was killed is waited for.
const REAP: Duration = Duration::from_secs(1);
const BUSY_TRIES: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// CNI commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Add,
    Check,
    Del,
    Gc,
    Status,
}

impl Command {
    fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Check => "CHECK",
            Self::Del => "DEL",
            Self::Gc => "GC",
            Self::Status => "STATUS",
        }
    }
}

/// One command to one plugin. Displayed, it names command, plugin and configuration.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) command: Command,
    pub(super) plugin: String,
    pub(super) file: PathBuf,
    pub(super) container: String,
    pub(super) netns: PathBuf,
    pub(super) interface: String,
    pub(super) args: String,
}

impl Call {
    /// A command that concerns no pod.
    pub(super) fn of_list(list: &NetworkList, plugin: &Plugin, command: Command) -> Self {
        Self {
            command,
            plugin: plugin.kind.clone(),
            file: list.file.clone(),
            container: String::new(),
            netns: PathBuf::new(),
            interface: String::new(),
            args: String::new(),
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of plugin {} from {}", self.command.as_str(), self.plugin, self.file.display())
    }
}

/// Where plugins are and how long they may take.
#[derive(Debug)]
pub(super) struct Runner {
    dirs: Vec<PathBuf>,
    timeout: Duration,
}

impl Runner {
    pub(super) fn new(dirs: Vec<PathBuf>, timeout: Duration) -> Self {
        Self { dirs, timeout }
    }

    /// The same with less time for a plugin.
    pub(super) fn at_most(&self, time: Duration) -> Self {
        Self { dirs: self.dirs.clone(), timeout: self.timeout.min(time) }
    }

    /// The program of a plugin, whose name is known to be plain.
    pub(super) fn find(&self, file: &Path, plugin: &str) -> Result<PathBuf, CniError> {
        let runnable = |path: &PathBuf| {
            path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        };
        self.dirs.iter().map(|dir| dir.join(plugin)).find(runnable).ok_or_else(|| CniError::PluginMissing {
            file: file.to_owned(),
            plugin: plugin.to_owned(),
            dirs: self.dirs.clone(),
        })
    }

    /// How long a plugin may take.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Runs the plugin and returns what it wrote to standard output. It inherits `lock`.
    pub(super) async fn run(
        &self,
        call: &Call,
        netconf: &Map<String, Value>,
        lock: Option<&Held>,
    ) -> Result<Vec<u8>, CniError> {
        self.run_within(call, netconf, lock, self.timeout).await
    }

    /// [`Self::run`] with a time limit of its own.
    pub(super) async fn run_within(
        &self,
        call: &Call,
        netconf: &Map<String, Value>,
        lock: Option<&Held>,
        limit: Duration,
    ) -> Result<Vec<u8>, CniError> {
        let program = self.find(&call.file, &call.plugin)?;
        let failed = |operation| {
            move |source: io::Error| CniError::Process { call: call.to_string(), operation, source }
        };
        let input =
            serde_json::to_vec(netconf).map_err(io::Error::from).map_err(failed("encode its input"))?;
        let mut plugin = self.spawn(call, &program, lock).await.map_err(failed("start it"))?;
        let mut said = Said::default();
        let ended = timeout(limit, converse(&mut plugin, &input, &mut said)).await;
        if !matches!(ended, Ok(Ok(_))) {
            plugin.kill();
            let _sleeps_in_the_kernel = timeout(REAP, plugin.wait()).await;
        }
        match ended {
            Err(_) => Err(CniError::TimedOut {
                call: call.to_string(),
                timeout: limit,
                stderr: readable(&said.stderr),
            }),
            Ok(Err(error)) if error.kind() == io::ErrorKind::FileTooLarge => {
                Err(CniError::TooMuchOutput { call: call.to_string(), limit: MOST_OUTPUT })
            }
            Ok(Err(error)) => Err(failed("talk to it")(error)),
            Ok(Ok(status)) => judge(call, status, said),
        }
    }

    /// A program that is just being installed is busy for a moment; the kernel has no event for its end.
    async fn spawn(&self, call: &Call, program: &Path, lock: Option<&Held>) -> io::Result<Process> {
        for _ in 0..BUSY_TRIES {
            match start(self.environment(call), program, lock).await {
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {}
                other => return other,
            }
            tokio::time::sleep(BUSY_PAUSE).await;
        }
        start(self.environment(call), program, lock).await
    }

    /// CNI specification, "Parameters".
    fn environment(&self, call: &Call) -> Vec<(OsString, OsString)> {
        process::environment(vec![
            ("CNI_COMMAND".as_ref(), call.command.as_str().into()),
            ("CNI_CONTAINERID".as_ref(), call.container.clone().into()),
            ("CNI_NETNS".as_ref(), call.netns.clone().into()),
            ("CNI_IFNAME".as_ref(), call.interface.clone().into()),
            ("CNI_ARGS".as_ref(), call.args.clone().into()),
            ("CNI_PATH".as_ref(), std::env::join_paths(&self.dirs).unwrap_or_default()),
        ])
    }
}

/// Starts a plugin where it may block: until the program is executed nothing else happens on the thread that
/// starts it, and on a busy machine that takes a while. One whose caller has gone meanwhile is killed.
async fn start(
    environment: Vec<(OsString, OsString)>,
    program: &Path,
    lock: Option<&Held>,
) -> io::Result<Process> {
    // Its own, so that the number means this file although the caller may be gone.
    let (lock, program) = (lock.map(Held::copy).transpose()?, program.to_owned());
    let started = tokio::task::spawn_blocking(move || Process::start(&program, &environment, lock.as_ref()));
    started.await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// What a plugin has written so far.
#[derive(Default)]
struct Said {
    output: Vec<u8>,
    stderr: Vec<u8>,
}

/// Writes the input, reads both outputs, waits for the end.
async fn converse(plugin: &mut Process, input: &[u8], said: &mut Said) -> io::Result<ExitStatus> {
    let (stdin, stdout, stderr) = (plugin.stdin.take(), plugin.stdout.take(), plugin.stderr.take());
    let talk = async {
        let write = async {
            if let Some(mut stdin) = stdin {
                // A plugin that does not read its input may still answer.
                let _closed_early = stdin.write_all(input).await;
            }
            Ok(())
        };
        let errors = async {
            keep_last(stderr, &mut said.stderr).await;
            Ok(())
        };
        tokio::try_join!(write, read_bounded(stdout, &mut said.output), errors)
    };
    tokio::pin!(talk);
    let status = tokio::select! {
        talked = &mut talk => {
            talked?;
            return plugin.wait().await;
        }
        status = plugin.wait() => status?,
    };
    if let Ok(talked) = timeout(DRAIN, talk).await {
        talked?;
    }
    Ok(status)
}

async fn read_bounded(from: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>) -> io::Result<()> {
    let Some(from) = from else { return Ok(()) };
    from.take(MOST_OUTPUT + 1).read_to_end(into).await?;
    if into.len() as u64 > MOST_OUTPUT { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(()) }
}

/// Reads to the end, so that the plugin is never held up, and keeps the last part.
async fn keep_last(from: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>) {
    let Some(mut from) = from else { return };
    let mut buffer = [0u8; 4096];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        into.extend_from_slice(&buffer[..read]);
        let surplus = into.len().saturating_sub(KEPT_STDERR);
        into.drain(..surplus);
    }
}

fn judge(call: &Call, status: ExitStatus, said: Said) -> Result<Vec<u8>, CniError> {
    if status.success() {
        return Ok(said.output);
    }
    let told: Option<Value> = serde_json::from_slice(&said.output).ok();
    let field = |key: &str| told.as_ref().and_then(|told| told.get(key));
    let code = field("code").and_then(Value::as_u64);
    let words: Vec<&str> = ["msg", "details"]
        .iter()
        .filter_map(|key| field(key)?.as_str())
        .filter(|text| !text.is_empty())
        .collect();
    let mut message = if words.is_empty() {
        let (raw, stderr) = (readable(&said.output), readable(&said.stderr));
        let parts: Vec<&str> =
            [raw.as_str(), stderr.as_str()].into_iter().filter(|p| !p.is_empty()).collect();
        format!("{}: {}", status, parts.join("; "))
    } else {
        readable(words.join("; ").as_bytes())
    };
    if let Some(code) = code {
        message = format!("{message} (code {code}{})", mend(code));
    }
    Err(CniError::Failed { call: call.to_string(), code, message })
}

/// What CNI's own error codes mean for the administrator.
fn mend(code: u64) -> &'static str {
    match code {
        1 => {
            ": the plugin does not speak this cniVersion; lower it in the configuration or update the plugin"
        }
        2 => ": a field of the configuration is not supported by the plugin",
        6 | 7 => ": the configuration is not valid for the plugin",
        11 => ": try again later",
        50 => ": the plugin is not ready",
        51 => ": the plugin is not ready, and existing pods may have limited connectivity",
        _ => "",
    }
}

/// Foreign text on one line, shortened, for an error message.
fn readable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let clean: String =
        text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(2000).collect();
    clean
}
