//! `podhold config check|default`.

use clap::Subcommand;
use podhold_cgroups::Choice;

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
    let (config, driver) = match &arguments.action {
        Action::Check(settings) => {
            let config = settings.load()?;
            let driver = driver(&config);
            (config, driver)
        }
        Action::Default => (Config::default(), String::new()),
    };
    Ok(output::this(format_args!("{driver}{}", config.to_toml()))?)
}

/// What the choice of a cgroup driver comes to on this machine, as a comment.
fn driver(config: &Config) -> String {
    match Choice::of(config.wanted_driver()) {
        Ok(Choice { driver, reason }) => format!("# The cgroup driver here is {driver}: {reason}.\n"),
        Err(error) => format!("# No cgroup driver can be used here: {error}.\n"),
    }
}
