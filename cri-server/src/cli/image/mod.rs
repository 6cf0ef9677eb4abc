//! `podhold image …`. One file per action.
//!
//! Every action asks `podhold.v1.Images`: of the daemon where one answers, else of this process itself, which
//! then opens the state directory. So both ways do and say the same.

mod client;
mod export;
mod import;
mod list;
mod progress;
mod prune;
mod pull;
mod remove;
mod tag;
mod verify;

use std::path::PathBuf;

use clap::Subcommand;

use super::{Failure, Settings};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    settings: Settings,
    /// Socket of the daemon to ask [default: the configured one, if a daemon answers there and no
    /// --state-dir or --run-dir is given; else the state directory is opened itself]
    #[arg(long, value_name = "PATH", global = true)]
    endpoint: Option<PathBuf>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Pull an image
    Pull(pull::Arguments),
    /// List images
    Ls(list::ListArguments),
    /// Show all that is known of images
    Inspect(list::InspectArguments),
    /// Give an image one more tag
    Tag(tag::Arguments),
    /// Remove images, each with all its names
    Rm(remove::Arguments),
    /// Import the images of an archive: an OCI layout or what `docker save` writes
    Import(import::Arguments),
    /// Write images as an archive, an OCI layout that `docker load` takes too
    Export(export::Arguments),
    /// Remove the images that no container uses and that are not pinned
    Prune(prune::Arguments),
    /// Compare the layers of images with what was unpacked
    Verify(verify::Arguments),
}

pub(super) fn main(arguments: &Arguments) -> Result<(), Failure> {
    let mut config = arguments.settings.load()?;
    if arguments.settings.log_level.is_none() {
        config.log_level = "warn".to_owned();
    }
    super::start_logging(&config.log_level)?;
    super::require_root()?;
    let named = arguments.settings.state_dir.is_some() || arguments.settings.run_dir.is_some();
    let place = match &arguments.endpoint {
        Some(endpoint) => client::Place::Daemon(endpoint.clone()),
        None if named => client::Place::Here(config),
        None => client::Place::Either(config),
    };
    super::threads::plain()?.block_on(async {
        let client = client::connect(place).await?;
        match &arguments.action {
            Action::Pull(arguments) => pull::run(client, arguments).await,
            Action::Ls(arguments) => list::list(client, arguments).await,
            Action::Inspect(arguments) => list::inspect(client, arguments).await,
            Action::Tag(arguments) => tag::run(client, arguments).await,
            Action::Rm(arguments) => remove::run(client, arguments).await,
            Action::Import(arguments) => import::run(client, arguments).await,
            Action::Export(arguments) => export::run(client, arguments).await,
            Action::Prune(arguments) => prune::run(client, arguments).await,
            Action::Verify(arguments) => verify::run(client, arguments).await,
        }
    })
}
