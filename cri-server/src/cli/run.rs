//! `podhold run POD.yaml`.

use std::{path::PathBuf, process::ExitCode};

use super::{Failure, Settings};
use crate::{descriptors, error::chain, standalone};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// File with one Pod (core v1), or one Deployment, DaemonSet, StatefulSet, ReplicaSet, Job or CronJob of whose
    /// template one pod is run now, and the ConfigMaps and Secrets it uses; YAML or JSON; `-` is standard input
    #[arg(value_name = "POD.yaml")]
    manifest: PathBuf,
    /// Print the CRI requests as JSON and run nothing; values of secrets are shown where the requests have them.
    /// Needs no root
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    settings: Settings,
}

/// Exit code for a manifest that cannot be run anywhere.
const BAD_MANIFEST: u8 = 2;
/// Exit code for what this host cannot do.
const HOST_CANNOT: u8 = 3;
/// Where pods run that no daemon holds.
const RUN_DIR: &str = "/run/podhold-run";
/// Where their images and records are kept.
const STATE_DIR: &str = "/var/lib/podhold-run";

pub(super) fn main(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let mut settings = arguments.settings.clone();
    settings.log_level.get_or_insert_with(|| "warn".to_owned());
    settings.run_dir.get_or_insert_with(|| RUN_DIR.into());
    settings.state_dir.get_or_insert_with(|| STATE_DIR.into());
    let pod = match standalone::Manifest::read(&arguments.manifest) {
        Ok(pod) => pod,
        Err(error) => return Ok(super::ended(BAD_MANIFEST, &chain(&error))),
    };
    let config = settings.load()?;
    if arguments.dry_run {
        return match standalone::dry_run(&pod, &config) {
            Ok(requests) => Ok(super::printed(&requests)),
            Err(error) => Ok(super::ended(BAD_MANIFEST, &chain(&error))),
        };
    }
    if let Err(error) = standalone::check(&pod, &config) {
        return Ok(super::ended(BAD_MANIFEST, &chain(&error)));
    }
    super::start_logging(&config.log_level)?;
    super::require_root()?;
    descriptors::raise();
    match super::threads::plain()?.block_on(standalone::run(pod, config)) {
        Ok(code) => Ok(ExitCode::from(code)),
        Err(error) => Ok(super::ended(HOST_CANNOT, &chain(&error))),
    }
}
