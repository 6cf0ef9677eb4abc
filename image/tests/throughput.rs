//! How fast a large image arrives, from Debian's registry on loopback to synced files on disk. Not part
//! of the ordinary run: `cargo test --release -p podhold-image --test throughput -- --ignored --nocapture`.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Instant;

use support::{Site, Tar, TestImage, debian::DebianRegistry, is_root, noise};

/// A layer of about `megabytes` compressed: files of 1 to 64 KiB in directories of 100, half noise, half
/// repetition.
fn layer(name: &str, megabytes: usize) -> Vec<u8> {
    let noise = noise(1 << 20);
    let mut tar = Tar::new();
    let (mut compressed, mut index) = (0, 0_usize);
    while compressed < megabytes << 20 {
        if index.is_multiple_of(100) {
            tar = tar.dir(&format!("{name}{}/", index / 100), 0o755);
        }
        let half = 512 + (index * 7919) % (32 << 10);
        let start = (index * 104_729) % (noise.len() - half);
        let mut content = noise[start..start + half].to_vec();
        content.resize(2 * half, b'a' + (index % 26) as u8);
        tar = tar.file(&format!("{name}{}/file{index}", index / 100), &content);
        compressed += half;
        index += 1;
    }
    tar.build()
}

/// User and system time of this process.
fn cpu_seconds() -> [f64; 2] {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    [11, 12].map(|field| fields[field].parse::<f64>().unwrap() / 100.0)
}

async fn measure(
    label: &str,
    registry: &DebianRegistry,
    (layers, parallel): (usize, usize),
    megabytes: usize,
) {
    let tars: Vec<_> = (0..layers).map(|n| layer(&format!("l{n}-"), megabytes / layers)).collect();
    let unpacked: usize = tars.iter().map(Vec::len).sum();
    let image = TestImage::new(label, &tars);
    drop(tars);
    registry.push(label, &image).await;
    let size: usize = image.blobs.values().map(Vec::len).sum();
    drop(image);
    let site = Site::with(|config| config.parallel_layers = parallel).await;
    rustix::fs::sync();
    let (start, cpu) = (Instant::now(), cpu_seconds());
    let pulled = site.images.pull(&registry.name(label), None, None).await.unwrap();
    let (took, after) = (start.elapsed().as_secs_f64(), cpu_seconds());
    let again = Instant::now();
    site.images.pull(&registry.name(label), None, None).await.unwrap();
    println!(
        "{label}: {layers} layers, {:.0} MB compressed, {:.0} MB unpacked: {took:.2} s, {:.0} MB/s compressed, \
         CPU {:.2} s user, {:.2} s system, again {:.1} ms, usage {:?}",
        size as f64 / 1e6,
        unpacked as f64 / 1e6,
        size as f64 / 1e6 / took,
        after[0] - cpu[0],
        after[1] - cpu[1],
        again.elapsed().as_secs_f64() * 1e3,
        site.images.usage(),
    );
    site.images.remove(&pulled.id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute and gigabytes of disk"]
async fn throughput() {
    if !is_root() {
        return;
    }
    let Some(registry) = DebianRegistry::start().await else { return };
    measure("single", &registry, (1, 1), 290).await;
    measure("eight-by-1", &registry, (8, 1), 290).await;
    measure("eight-by-2", &registry, (8, 2), 290).await;
    measure("eight-by-3", &registry, (8, 3), 290).await;
    registry.stop().await;
}
