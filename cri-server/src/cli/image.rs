//! `podhold image pull|ls|rm`, on a state directory that no daemon is using.

use std::sync::Arc;

use clap::Subcommand;
use podhold_image::Progress;
use tokio::sync::watch;

use super::{Failure, Settings, bars};
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
    Pull {
        /// Such as `busybox`, `quay.io/team/app:1.2` or `app@sha256:...`
        reference: String,
    },
    /// List images
    Ls,
    /// Remove an image with all its names
    Rm {
        /// Its reference or id
        reference: String,
    },
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
            Action::Pull { reference } => {
                let image = pull(&runtime, reference).await?;
                println!("{}", image.id);
            }
            Action::Ls => list(&runtime),
            Action::Rm { reference } => {
                if runtime.images().find(reference).is_none() {
                    return Err(Failure(format!("image {reference:?} is not known")));
                }
                runtime.remove_image(reference).await?;
            }
        }
        Ok(())
    })
}

/// Pulls an image and shows how far it is.
pub(super) async fn pull(
    runtime: &Arc<Runtime>,
    reference: &str,
) -> Result<Arc<podhold_image::Image>, Failure> {
    let (tell, told) = watch::channel(Progress::default());
    let shown = tokio::spawn(bars::show(told));
    let pulled = runtime.pull_image(reference, None, Some(tell)).await;
    shown.await?;
    Ok(pulled?)
}

fn list(runtime: &Runtime) {
    println!("{:<60} {:<20} {:>10}", "IMAGE", "ID", "SIZE");
    for image in runtime.images().list() {
        let id: String = image.id.trim_start_matches("sha256:").chars().take(13).collect();
        let names = if image.tags.is_empty() { &image.digests } else { &image.tags };
        let size = format!("{:.1} MB", image.size as f64 / 1e6);
        for name in names.iter().map(String::as_str).chain(names.is_empty().then_some("<none>")) {
            println!("{name:<60} {id:<20} {size:>10}");
        }
    }
}
