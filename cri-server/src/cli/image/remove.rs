//! `podhold image rm`. As with the CRI and crictl, an image goes with all its names.

use podhold_proto::images::RemoveRequest;

use super::client::{Client, said};
use crate::cli::Failure;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Their references or ids
    #[arg(required = true)]
    references: Vec<String>,
}

pub(super) async fn run(mut client: Client, arguments: &Arguments) -> Result<(), Failure> {
    for name in &arguments.references {
        let removed = client.remove(RemoveRequest { name: name.clone() }).await;
        removed.map_err(|status| match status.code() {
            tonic::Code::NotFound => Failure(format!("image {name:?} is not known")),
            _ => said(&status),
        })?;
    }
    Ok(())
}
