//! `podhold image verify`: whether layers on disk are what was unpacked.

use podhold_proto::images::{
    VerifiedLayer, VerifyRequest,
    verified_layer::{Finding, Repair},
};

use super::{
    client::{Client, said},
    progress::Shown,
};
use crate::{cli::Failure, output};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// References or ids [default: all images]
    names: Vec<String>,
    /// Fetch again the layers that are not right, and no others
    #[arg(long)]
    repair: bool,
}

pub(super) async fn run(mut client: Client, arguments: &Arguments) -> Result<(), Failure> {
    let request = VerifyRequest { names: arguments.names.clone(), repair: arguments.repair, progress: true };
    let mut answer = client.verify(request).await.map_err(|status| said(&status))?.into_inner();
    let (mut verified, mut repaired, mut wrong) = (0, 0, 0);
    let mut shown = Some(Shown::begin());
    while let Some(mut layer) = answer.message().await.map_err(|status| said(&status))? {
        if let Some(now) = layer.progress.take() {
            if let Some(shown) = &shown {
                shown.tell(now);
            }
            continue;
        }
        if let Some(shown) = shown.take() {
            shown.end().await?;
        }
        tell(&layer)?;
        verified += 1;
        match (layer.finding(), layer.repair()) {
            (_, Repair::FetchedAgain) => repaired += 1,
            (Finding::Whole, _) => {}
            _ => wrong += 1,
        }
    }
    if let Some(shown) = shown.take() {
        shown.end().await?;
    }
    output::line(format_args!("{verified} layers verified, {repaired} fetched again, {wrong} not right"))?;
    if wrong > 0 {
        let mend = if arguments.repair { "" } else { "; podhold image verify --repair fetches them again" };
        return Err(Failure(format!("{wrong} layers are not as they were unpacked{mend}")));
    }
    Ok(())
}

/// Says what is not right with a layer.
fn tell(layer: &VerifiedLayer) -> Result<(), Failure> {
    let blob = if layer.blob.is_empty() { String::new() } else { format!(" (blob {})", layer.blob) };
    let name = format!("layer {}{blob} of {}", layer.chain, layer.images.join(", "));
    match layer.finding() {
        Finding::Whole => return Ok(()),
        Finding::Unknown => output::line(format_args!("{name}: {}", layer.reason))?,
        Finding::Wrong => {
            output::line(format_args!("{name}: {} differences", layer.count))?;
            for difference in &layer.differences {
                output::line(format_args!("  {}: {}", difference.path, difference.what))?;
            }
            let told = layer.differences.len() as u64;
            if layer.count > told {
                output::line(format_args!("  and {} more", layer.count - told))?;
            }
        }
    }
    match layer.repair() {
        Repair::FetchedAgain => output::line(format_args!("  fetched again"))?,
        Repair::Failed => output::line(format_args!("  not fetched again: {}", layer.failure))?,
        Repair::NotTried => {}
    }
    Ok(())
}
