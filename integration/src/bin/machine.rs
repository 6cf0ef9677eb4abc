//! `podhold-machine`: namespaces to test in, and a check of what was left behind, for scripts.

use std::{
    error::Error,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Command, ExitCode},
};

use clap::{Parser, Subcommand};
use podhold_integration::{
    leaks::{Scope, Snapshot},
    machine::init,
};

#[derive(Parser)]
#[command(about = "Namespaces to test in, and a check of what was left behind")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Be the first process of a machine that `unshare` has made; for the test library
    #[command(hide = true)]
    Init,
    /// Prepare a machine that `unshare` has made, then be its first process with COMMAND as its child
    #[command(hide = true)]
    Child {
        /// The command and its arguments
        #[arg(trailing_var_arg = true, required = true)]
        command: Vec<String>,
    },
    /// Run COMMAND in mount, network, IPC, UTS and PID namespaces of its own; exit as it does
    Run {
        /// The command and its arguments
        #[arg(trailing_var_arg = true, required = true)]
        command: Vec<String>,
    },
    /// Print, as JSON, everything that a runtime could leave behind
    Snapshot(ScopeArguments),
    /// Compare with an earlier snapshot; print what is left behind or missing and exit 1 if anything is
    Compare {
        /// The earlier snapshot
        before: PathBuf,
        #[command(flatten)]
        scope: ScopeArguments,
    },
}

#[derive(clap::Args)]
struct ScopeArguments {
    /// Look only at cgroups whose path contains one of these words; without any, at all
    #[arg(long = "cgroup")]
    cgroups: Vec<String>,
    /// Directory whose files are compared; can be given again
    #[arg(long = "files")]
    files: Vec<PathBuf>,
    /// Process that is expected to come and go; can be given again
    #[arg(long = "except-pid")]
    processes: Vec<i32>,
    /// Network link that is expected to stay, such as a bridge; can be given again
    #[arg(long = "except-link")]
    links: Vec<String>,
}

impl From<ScopeArguments> for Scope {
    fn from(arguments: ScopeArguments) -> Self {
        let ScopeArguments { cgroups, files, processes, links } = arguments;
        Self { cgroups, files, processes, links }
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("podhold-machine: {error}");
            ExitCode::from(125)
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode, Box<dyn Error>> {
    match verb {
        Verb::Init => {
            init::prepare()?;
            init::serve()?;
        }
        Verb::Child { command } => {
            init::prepare()?;
            return Ok(init::supervise(&command)?);
        }
        Verb::Run { command } => return unshare(&command),
        Verb::Snapshot(scope) => println!("{}", serde_json::to_string(&Snapshot::take(&scope.into())?)?),
        Verb::Compare { before, scope } => {
            let before: Snapshot = serde_json::from_slice(&std::fs::read(before)?)?;
            let leaks = before.compare(&Snapshot::take(&scope.into())?);
            leaks.iter().for_each(|leak| println!("{leak}"));
            return Ok(if leaks.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn unshare(command: &[String]) -> Result<ExitCode, Box<dyn Error>> {
    let status = Command::new("unshare")
        .args(["--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(["--propagation", "private", "--"])
        .arg(std::env::current_exe()?)
        .args(["child", "--"])
        .args(command)
        .status()?;
    let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(125);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(125)))
}
