//! `podhold image …`, on a state directory that no daemon is using. One file per action.

mod list;
mod pull;
mod remove;

use clap::Subcommand;

use super::{Failure, Settings};
use crate::runtime::Runtime;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Pull an image
    Pull(pull::Arguments),
    /// List images
    Ls(list::Arguments),
    /// Remove an image with all its names
    Rm(remove::Arguments),
}

pub(super) fn main(arguments: &Arguments) -> Result<(), Failure> {
    let mut config = arguments.settings.load()?;
    if arguments.settings.log_level.is_none() {
        config.log_level = "warn".to_owned();
    }
    super::start_logging(&config.log_level)?;
    super::require_root()?;
    super::threads::plain()?.block_on(async {
        let runtime = Runtime::open(config).await?;
        match &arguments.action {
            Action::Pull(arguments) => pull::run(&runtime, arguments).await,
            Action::Ls(arguments) => list::run(&runtime, arguments),
            Action::Rm(arguments) => remove::run(&runtime, arguments).await,
        }
    })
}
