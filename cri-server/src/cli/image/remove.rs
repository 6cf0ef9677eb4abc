//! `podhold image rm`.

use crate::{cli::Failure, runtime::Runtime};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Its reference or id
    reference: String,
}

pub(super) async fn run(runtime: &Runtime, arguments: &Arguments) -> Result<(), Failure> {
    let reference = arguments.reference.as_str();
    if runtime.images().find(reference).is_none() {
        return Err(Failure(format!("image {reference:?} is not known")));
    }
    Ok(runtime.remove_image(reference).await?)
}
