//! `podhold config check|default`.

use clap::Subcommand;

use super::{Failure, Settings};
use crate::{config::Config, output};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Read the configuration and its drop-ins, and print what they come to
    Check(Settings),
    /// Print the configuration that is used when none is given
    Default,
}

pub(super) fn main(arguments: &Arguments) -> Result<(), Failure> {
    let config = match &arguments.action {
        Action::Check(settings) => settings.load()?,
        Action::Default => Config::default(),
    };
    Ok(output::this(format_args!("{}", config.to_toml()))?)
}
