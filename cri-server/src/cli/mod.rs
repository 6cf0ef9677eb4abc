//! The command line: what was typed, as calls. One file per subcommand.

mod bars;
mod config;
mod image;
mod look_up;
mod run;
mod serve;
mod threads;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use crate::{
    config::{Config, ConfigError},
    error::chain,
};

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
    /// It has directories of its own, /run/podhold-run and /var/lib/podhold-run, whatever the
    /// configuration says for the daemon; flags change them.
    Run(run::Arguments),
    /// Pull, list, import, export, check and remove images, of the daemon or, without one, of its directories
    Image(image::Arguments),
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

/// Why a subcommand failed, in words for the terminal.
#[derive(Debug)]
struct Failure(String);

impl<E: std::error::Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(chain(&error))
    }
}

/// Text that may quote a stranger, as a terminal may have it.
fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c };
    text.chars().map(shown).collect()
}

/// Runs what the arguments of this process say; the exit code of the process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Serve(arguments) => serve::main(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Run(arguments) => run::main(&arguments),
        Command::Image(arguments) => image::main(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Config(arguments) => config::main(&arguments).map(|()| ExitCode::SUCCESS),
        Command::LookUp(arguments) => {
            look_up::main(&arguments);
            Ok(ExitCode::SUCCESS)
        }
    };
    result.unwrap_or_else(|Failure(reason)| ended(1, &reason))
}

/// Says why this process ends, and with which code.
fn ended(code: u8, reason: &str) -> ExitCode {
    use std::io::Write as _;
    // To a full disk nothing can be said.
    let _unsaid = writeln!(std::io::stderr(), "podhold: {}", printable(reason));
    ExitCode::from(code)
}

/// Prints what was asked for; a reader that goes away is a failure.
fn printed(text: &str) -> ExitCode {
    use std::io::Write as _;
    let mut out = std::io::stdout();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => ended(1, &format!("standard output: {error}")),
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
