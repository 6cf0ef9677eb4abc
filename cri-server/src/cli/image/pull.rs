//! `podhold image pull`.

use podhold_proto::images::{Image, PullRequest, PullResponse, pull_response::What};
use tonic::Streaming;

use super::{
    client::{Client, said},
    progress::Shown,
};
use crate::{cli::Failure, output};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Such as `busybox`, `quay.io/team/app:1.2` or `app@sha256:...`
    reference: String,
}

pub(super) async fn run(mut client: Client, arguments: &Arguments) -> Result<(), Failure> {
    let reference = arguments.reference.clone();
    let answer = client.pull(PullRequest { reference }).await.map_err(|status| said(&status))?;
    let shown = Shown::begin();
    let pulled = follow(answer.into_inner(), &shown).await;
    shown.end().await?;
    output::line(format_args!("{}", pulled?.id))?;
    Ok(())
}

/// Shows how far the pull is, until its end.
async fn follow(mut messages: Streaming<PullResponse>, shown: &Shown) -> Result<Image, Failure> {
    while let Some(message) = messages.message().await.map_err(|status| said(&status))? {
        match message.what {
            Some(What::Progress(now)) => shown.tell(now),
            Some(What::Image(image)) => return Ok(image),
            None => {}
        }
    }
    Err(Failure("the daemon ended before the pull did; pull again".to_owned()))
}
