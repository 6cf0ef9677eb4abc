//! `podhold image verify`: whether layers on disk are what was unpacked.

use podhold_image::{Finding, Verified};

use super::Failure;
use crate::{error::chain, runtime::Runtime};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// References or ids [default: all images]
    names: Vec<String>,
    /// Fetch again the layers that are not right, and no others
    #[arg(long)]
    repair: bool,
}

pub(super) async fn run(runtime: &Runtime, arguments: &Arguments) -> Result<(), Failure> {
    let verified = runtime.images().verify(&arguments.names, arguments.repair).await?;
    verified.iter().for_each(tell);
    let wrong = verified.iter().filter(|layer| !layer.is_right()).count();
    let repaired = verified.iter().filter(|layer| matches!(layer.repair, Some(Ok(())))).count();
    println!("{} layers verified, {repaired} fetched again, {wrong} not right", verified.len());
    if wrong > 0 {
        let mend = if arguments.repair { "" } else { "; podhold image verify --repair fetches them again" };
        return Err(Failure(format!("{wrong} layers are not as they were unpacked{mend}")));
    }
    Ok(())
}

/// Says what is not right with a layer.
fn tell(layer: &Verified) {
    let blob = layer.blob.as_ref().map_or_else(String::new, |blob| format!(" (blob {blob})"));
    let name = format!("layer {}{blob} of {}", layer.chain, layer.images.join(", "));
    match &layer.finding {
        Finding::Whole => return,
        Finding::Unknown(reason) => println!("{name}: {reason}"),
        Finding::Wrong { differences, count } => {
            println!("{name}: {count} differences");
            for difference in differences {
                println!("  {}: {}", difference.path, difference.what);
            }
            if *count > differences.len() as u64 {
                println!("  and {} more", count - differences.len() as u64);
            }
        }
    }
    match &layer.repair {
        Some(Ok(())) => println!("  fetched again"),
        Some(Err(error)) => println!("  not fetched again: {}", chain(error)),
        None => {}
    }
}
