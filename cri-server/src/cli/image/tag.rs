//! `podhold image tag`.

use podhold_proto::images::TagRequest;

use super::client::{Client, said};
use crate::cli::Failure;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Reference or id of the image
    source: String,
    /// The tag to be added, such as `quay.io/team/app:1.2`; it moves from the image that has it
    tag: String,
}

pub(super) async fn run(mut client: Client, arguments: &Arguments) -> Result<(), Failure> {
    let request = TagRequest { name: arguments.source.clone(), tag: arguments.tag.clone() };
    client.tag(request).await.map_err(|status| said(&status))?;
    Ok(())
}
