//! `podhold run POD.yaml`.

use std::{path::PathBuf, process::ExitCode};

use super::{Failure, Settings};
use crate::{config::KindName, descriptors, standalone};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// File with one Pod of the Kubernetes core v1 API, YAML or JSON; `-` is standard input
    #[arg(value_name = "POD.yaml")]
    manifest: PathBuf,
    #[command(flatten)]
    settings: Settings,
}

/// Where pods run that no daemon holds.
const RUN_DIR: &str = "/run/podhold-run";
/// Where their images and records are kept.
const STATE_DIR: &str = "/var/lib/podhold-run";

pub(super) fn main(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let mut settings = arguments.settings.clone();
    settings.log_level.get_or_insert_with(|| "warn".to_owned());
    settings.run_dir.get_or_insert_with(|| RUN_DIR.into());
    settings.state_dir.get_or_insert_with(|| STATE_DIR.into());
    let pod = standalone::Manifest::read(&arguments.manifest)?;
    let mut config = settings.load()?;
    if config.network.kind == KindName::Usual {
        config.network.kind = KindName::Auto;
    }
    super::start_logging(&config.log_level)?;
    super::require_root()?;
    descriptors::raise();
    let code = super::threads::plain()?.block_on(standalone::run(pod, config))?;
    Ok(ExitCode::from(code))
}
