//! `podhold image ls`.

use crate::{cli::Failure, runtime::Runtime};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {}

#[allow(clippy::unnecessary_wraps, reason = "every action answers like this")]
pub(super) fn run(runtime: &Runtime, _: &Arguments) -> Result<(), Failure> {
    println!("{:<60} {:<20} {:>10}", "IMAGE", "ID", "SIZE");
    for image in runtime.images().list() {
        let id: String = image.id.trim_start_matches("sha256:").chars().take(13).collect();
        let names = if image.tags.is_empty() { &image.digests } else { &image.tags };
        let size = format!("{:.1} MB", image.size as f64 / 1e6);
        for name in names.iter().map(String::as_str).chain(names.is_empty().then_some("<none>")) {
            println!("{name:<60} {id:<20} {size:>10}");
        }
    }
    Ok(())
}
