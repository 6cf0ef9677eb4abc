//! `podhold image rm`. As with the CRI and crictl, an image goes with all its names. One that is not here keeps none of
//! the others.

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
    let mut unknown = Vec::new();
    for name in &arguments.references {
        match client.remove(RemoveRequest { name: name.clone() }).await {
            Err(status) if status.code() == tonic::Code::NotFound => unknown.push(format!("{name:?}")),
            removed => drop(removed.map_err(|status| said(&status))?),
        }
    }
    match unknown.is_empty() {
        true => Ok(()),
        false => Err(Failure(format!("not here: {}; podhold image ls tells what is", unknown.join(", ")))),
    }
}
