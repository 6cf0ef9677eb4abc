//! `podhold image prune`.

use podhold_proto::images::PruneRequest;

use super::client::{Client, said};
use crate::{cli::Failure, output};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {}

pub(super) async fn run(mut client: Client, _: &Arguments) -> Result<(), Failure> {
    let pruned = client.prune(PruneRequest {}).await.map_err(|status| said(&status))?.into_inner();
    for image in &pruned.removed {
        let name = image.tags.first().or(image.digests.first()).unwrap_or(&image.id);
        output::line(format_args!("removed {name} ({})", image.id))?;
    }
    for kept in &pruned.kept {
        output::line(format_args!("kept {kept}"))?;
    }
    Ok(())
}
