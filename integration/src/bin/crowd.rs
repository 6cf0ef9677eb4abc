//! `podhold-crowd`: how long the daemon takes with hundreds and thousands of images, and how much memory. A
//! benchmark: it judges nothing. Correctness is the test `many_images`'s matter.

use std::time::{Duration, Instant};

use clap::Parser;
use futures::{StreamExt, stream};
use podhold_integration::{crowd, rig, rig::Rig};
use podhold_proto::cri::{ImageFsInfoRequest, ImageSpec, ImageStatusRequest};

/// How often a short call is repeated; the middle one counts.
const REPEATS: usize = 9;

#[derive(Parser)]
#[command(about = "Measures the daemon with hundreds and thousands of images")]
struct Arguments {
    /// How many images, one measurement after another
    #[arg(default_values_t = [100, 500, 1000, 2000])]
    counts: Vec<usize>,
}

#[tokio::main]
async fn main() {
    run(Arguments::parse().counts).await;
}

async fn run(mut counts: Vec<usize>) {
    counts.sort_unstable();
    let mut rig = rig!();
    // Layers in memory: the disk is not what is measured.
    crowd::serve(&rig.machine, *counts.last().unwrap_or(&0)).await.expect("serve images");
    rig.places.allow_plain_http(crowd::REGISTRY).expect("write hosts.toml");
    println!(
        "| images | pull, ms each | start, ms | ListImages, ms | its size, KB | ImageStatus, ms | ImageFsInfo, ms \
         | RemoveImage, ms | memory, MiB |\n|---|---|---|---|---|---|---|---|---|"
    );
    let mut there = 0;
    for count in counts {
        let begun = Instant::now();
        pull(&rig, there..count).await;
        let pull_each = begun.elapsed().as_secs_f64() * 1e3 / (count - there).max(1) as f64;
        there = count;
        rig.daemon.stop(&rig.machine).await.expect("stop the daemon");
        let begun = Instant::now();
        rig.daemon =
            podhold_integration::daemon::Daemon::start(&rig.machine, &rig.places).await.expect("start it");
        let start = begun.elapsed();
        let memory = memory(&rig);
        let size: usize = rig.cri().list_images().await.expect("list").iter().map(prost_length).sum();
        let list = middle(async || drop(rig.cri().list_images().await.expect("list images"))).await;
        let status = middle(async || status(&rig, count / 2).await).await;
        let info = middle(async || {
            rig.cri().images.clone().image_fs_info(ImageFsInfoRequest {}).await.map(drop).expect("usage");
        })
        .await;
        let mut removals = Vec::new();
        for number in 0..REPEATS {
            let begun = Instant::now();
            rig.cri().remove_image(&crowd::reference(number)).await.expect("remove an image");
            removals.push(begun.elapsed());
        }
        removals.sort_unstable();
        pull(&rig, 0..REPEATS).await;
        println!(
            "| {count} | {pull_each:.1} | {:.0} | {:.2} | {} | {:.2} | {:.2} | {:.2} | {memory:.1} |",
            ms(start),
            ms(list),
            size / 1000,
            ms(status),
            ms(info),
            ms(removals[REPEATS / 2]),
        );
    }
    for number in 0..there {
        rig.cri().remove_image(&crowd::reference(number)).await.expect("remove an image");
    }
    rig.finish().await;
}

async fn pull(rig: &Rig, numbers: std::ops::Range<usize>) {
    let pulls = stream::iter(numbers).map(|number| {
        let cri = rig.cri().clone();
        async move { cri.pull(&crowd::reference(number)).await.expect("pull") }
    });
    pulls.buffer_unordered(8).for_each(|_| async {}).await;
}

async fn status(rig: &Rig, number: usize) {
    let image = Some(ImageSpec { image: crowd::reference(number), ..Default::default() });
    let request = ImageStatusRequest { image, verbose: false };
    let answer = rig.cri().images.clone().image_status(request).await.expect("ask for an image");
    assert!(answer.into_inner().image.is_some(), "image {number} is not there");
}

/// The middle of several times.
async fn middle(work: impl AsyncFn()) -> Duration {
    let mut times = Vec::new();
    for _ in 0..REPEATS {
        let begun = Instant::now();
        work().await;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    times[REPEATS / 2]
}

fn prost_length(image: &podhold_proto::cri::Image) -> usize {
    prost::Message::encoded_len(image)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The daemon's own memory (RssAnon), in MiB.
fn memory(rig: &Rig) -> f64 {
    let status =
        std::fs::read_to_string(rig.machine.process(rig.daemon.pid).join("status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}
