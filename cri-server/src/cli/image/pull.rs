//! `podhold image pull`.

use std::{io::IsTerminal, sync::Arc};

use podhold_image::Progress;
use tokio::sync::watch;

use crate::{cli::Failure, runtime::Runtime};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Such as `busybox`, `quay.io/team/app:1.2` or `app@sha256:...`
    reference: String,
}

pub(super) async fn run(runtime: &Arc<Runtime>, arguments: &Arguments) -> Result<(), Failure> {
    let reference = arguments.reference.as_str();
    let (tell, told) = watch::channel(Progress::default());
    let shown = tokio::spawn(show(reference.to_owned(), told));
    let pulled = runtime.pull_image(reference, None, Some(tell)).await;
    shown.await?;
    println!("{}", pulled?.id);
    Ok(())
}

/// Shows how far a pull is, until its sender is gone.
pub(super) async fn show(reference: String, mut told: watch::Receiver<Progress>) {
    if !std::io::stderr().is_terminal() {
        return;
    }
    while told.changed().await.is_ok() {
        let now = *told.borrow_and_update();
        let (done, all) = (now.bytes_done as f64 / 1e6, now.bytes as f64 / 1e6);
        eprint!(
            "\r\x1b[Kpulling {reference}: {}/{} layers, {done:.1} of {all:.1} MB",
            now.layers_done, now.layers
        );
    }
    eprint!("\r\x1b[K");
}
