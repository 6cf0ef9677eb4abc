//! The command line: what was typed, as calls. One file per subcommand.

mod bars;
mod config;
mod doctor;
mod here;
mod image;
mod look_up;
mod pods;
mod run;
mod serve;
mod threads;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use crate::{
    config::{Config, ConfigError},
    error::chain,
    output::{self, Unwritten},
};

/// What a shell says of a program that wrote to a pipe nobody reads: 128 and SIGPIPE.
const UNREAD: u8 = 141;

/// Kubernetes CRI container runtime.
#[derive(Debug, Parser)]
#[command(name = "podhold", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the CRI on a unix socket, for a kubelet or crictl
    Serve(serve::Arguments),
    /// Run the pod of a Kubernetes manifest here and now, with no daemon and no kubelet
    ///
    /// Init containers, sidecars, probes, hooks, deadlines and restarts are as Kubernetes has them. So a pod
    /// whose manifest has no restartPolicy is restarted for ever (Always is the default of Kubernetes): set it to
    /// Never or OnFailure, or give --restart-policy, for a pod that is to end.
    ///
    /// It has directories of its own, /run/podhold-run and /var/lib/podhold-run, whatever the
    /// configuration says for the daemon; flags change them. While it runs, podhold ps, logs, exec and stop
    /// find its pod. Interrupted once it stops the pod with grace; twice, at once.
    #[command(after_help = run::EXIT_CODES)]
    Run(run::Arguments),
    Ps(pods::List),
    Logs(pods::Logs),
    Exec(pods::Exec),
    Stop(pods::Stop),
    Rm(pods::Remove),
    /// Pull, list, import, export, check and remove images, of the daemon or, without one, of its directories
    Image(image::Arguments),
    /// Look at what of this host works, what is missing to pods, and how to mend it
    ///
    /// The exit code is 0 when pods can run here, and 1 when not.
    Doctor(doctor::Arguments),
    /// Check the configuration, or print the default one
    Config(config::Arguments),
    /// Follow a path that may hang; the daemon's own use
    #[command(hide = true)]
    LookUp(look_up::Arguments),
}

/// The configuration file, and what wins over it.
#[derive(Debug, Clone, Args)]
struct Settings {
    /// Configuration file [default: /etc/podhold/config.toml if it exists]
    #[arg(long, value_name = "FILE", env = "PODHOLD_CONFIG", global = true)]
    config: Option<PathBuf>,
    /// Directory of what a reboot forgets: sockets, namespaces, mounts
    #[arg(long, value_name = "DIR", global = true)]
    run_dir: Option<PathBuf>,
    /// Directory of what a reboot keeps: images, records
    #[arg(long, value_name = "DIR", global = true)]
    state_dir: Option<PathBuf>,
    /// What is logged: error, warn, info, debug, trace, or a filter such as podhold=debug
    #[arg(long, value_name = "LEVEL", global = true)]
    log_level: Option<String>,
}

impl Settings {
    fn load(&self) -> Result<Config, ConfigError> {
        let mut config = Config::load(self.config.as_deref())?;
        let set = |field: &mut PathBuf, flag: &Option<PathBuf>| {
            if let Some(value) = flag {
                field.clone_from(value);
            }
        };
        set(&mut config.run_dir, &self.run_dir);
        set(&mut config.state_dir, &self.state_dir);
        if let Some(level) = &self.log_level {
            config.log_level.clone_from(level);
        }
        config.checked()
    }
}

/// Why a subcommand failed, in words for the terminal; empty when nobody reads what it writes.
#[derive(Debug)]
struct Failure(String);

impl Failure {
    /// Says it; answers the exit code for it, which is `code` unless nobody reads.
    fn tell(&self, code: u8) -> ExitCode {
        if self.0.is_empty() {
            return ExitCode::from(UNREAD);
        }
        output::note(format_args!("{}", self.0));
        ExitCode::from(code)
    }
}

impl From<Unwritten> for Failure {
    fn from(Unwritten(error): Unwritten) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self(String::new()),
            _ => Self(format!("standard output: {error}")),
        }
    }
}

impl<E: std::error::Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(chain(&error))
    }
}

/// How long freed memory is kept for the next who wants some, in milliseconds: a pull frees a hundred megabytes a second.
const MEMORY_KEPT: std::ffi::c_long = 10;

/// Runs what the arguments of this process say; the exit code of the process.
pub fn main() -> ExitCode {
    crate::sys::give_memory_back_after(MEMORY_KEPT);
    let result = Cli::try_parse().map_or_else(not_a_command, |cli| carry_out(cli.command));
    result.unwrap_or_else(|failure| failure.tell(1))
}

/// Help or the version, which were asked for; or what is wrong with the arguments.
fn not_a_command(told: clap::Error) -> Result<ExitCode, Failure> {
    let written = told.print();
    if told.use_stderr() {
        return Ok(ExitCode::from(u8::try_from(told.exit_code()).unwrap_or(2)));
    }
    written.map(|()| ExitCode::SUCCESS).map_err(|error| Unwritten(error).into())
}

fn carry_out(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Serve(arguments) => serve::main(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Run(arguments) => run::main(arguments),
        Command::Ps(arguments) => pods::main(pods::Verb::List(arguments)),
        Command::Logs(arguments) => pods::main(pods::Verb::Logs(arguments)),
        Command::Exec(arguments) => pods::main(pods::Verb::Exec(arguments)),
        Command::Stop(arguments) => pods::main(pods::Verb::Stop(arguments)),
        Command::Rm(arguments) => pods::main(pods::Verb::Remove(arguments)),
        Command::Image(arguments) => image::main(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Doctor(arguments) => doctor::main(&arguments),
        Command::Config(arguments) => config::main(&arguments).map(|()| ExitCode::SUCCESS),
        Command::LookUp(arguments) => {
            look_up::main(&arguments);
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Sends log lines to standard error.
fn start_logging(level: &str) -> Result<(), Failure> {
    let filter = tracing_subscriber::EnvFilter::try_new(level).map_err(|error| {
        Failure(format!("log_level = {level:?}: {error}; use error, warn, info, debug or trace"))
    })?;
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    // A line that cannot be written, to a full disk for one, is lost; by default that is told by a panic.
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(terminal)
        .log_internal_errors(false)
        .init();
    Ok(())
}

/// What needs root says so before it fails half way.
fn require_root() -> Result<(), Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Failure("must be run as root: it makes namespaces, mounts and cgroups; use sudo".to_owned()))
}
