//! Pulls that end early are gone on with, also by a later process; hosts that cannot do ranges, or that change what
//! they serve, are survived.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
    time::{Duration, Instant, SystemTime},
};

use podhold_image::{Config, ErrorKind, Images, Progress};
use support::{Fault, Tar, TestImage, TestRegistry, is_root, noise};
use tokio::sync::watch;

/// How long a test waits for what must come.
const SOON: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;
/// Size of the layer: a little more than the least that is kept.
const SIZE: usize = 5 * MIB;
static IMAGE: OnceLock<TestImage> = OnceLock::new();

/// A registry with an image of one large layer, and a place to pull it to.
struct Stage {
    registry: TestRegistry,
    image: TestImage,
    config: Config,
    _dir: tempfile::TempDir,
}

impl Stage {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            dir: dir.path().join("images"),
            hosts_dirs: vec![dir.path().join("certs.d")],
            stall_timeout: Duration::from_secs(600),
            resume_worth: Duration::ZERO,
            ..Config::default()
        };
        let registry = TestRegistry::start().await;
        let make = || TestImage::new("app", &[Tar::new().file("data", &noise(SIZE)).build()]);
        let image = IMAGE.get_or_init(make).clone();
        registry.push("app", "latest", &image);
        Self { registry, image, config, _dir: dir }
    }

    /// Opens the store, once the one before has let it go, and its threads have put their work away.
    async fn open(&self) -> Images {
        let deadline = Instant::now() + SOON;
        while std::fs::read_dir(self.config.dir.join("ingest"))
            .is_ok_and(|mut half_made| half_made.next().is_some())
        {
            assert!(Instant::now() < deadline, "a thread goes on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        loop {
            match Images::open(self.config.clone()).await {
                Ok(images) => return images,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn blob(&self) -> String {
        format!("/v2/app/blobs/{}", self.image.layers[0])
    }

    fn content(&self) -> &[u8] {
        &self.image.blobs[&self.image.layers[0]]
    }

    fn partial(&self) -> PathBuf {
        self.config.dir.join("partial").join(self.image.layers[0].replace(':', "-"))
    }

    async fn pull(&self, images: &Images) {
        let pulled = images.pull(&self.registry.name("app"), None, None).await.unwrap();
        assert_eq!(pulled.id, self.image.id());
        assert!(!self.partial().exists(), "nothing is kept of a layer that is whole");
        let layers = images.usage();
        assert!((SIZE..SIZE + MIB).contains(&(layers.bytes as usize)), "{layers:?}");
    }

    /// Pulls until `bytes` of the layer have come and no more do, and goes away.
    async fn pull_until(&self, images: &Images, bytes: usize) {
        self.registry.fail(&self.blob(), &[Fault::StallAfter(bytes)]);
        let (tell, mut told) = watch::channel(Progress::default());
        let name = self.registry.name("app");
        let came = told.wait_for(|progress| progress.bytes_done == bytes as u64);
        tokio::select! {
            pulled = images.pull(&name, None, Some(tell)) => panic!("the registry is silent: {pulled:?}"),
            came = tokio::time::timeout(SOON, came) => drop(came.unwrap().unwrap()),
        }
    }

    /// The ranges in which the layer was asked for.
    fn ranges(&self) -> Vec<String> {
        let blob = self.blob();
        let asked = self.registry.requests().into_iter().filter(|request| request.path == blob);
        asked.map(|request| request.headers.get("range").cloned().unwrap_or_default()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_pull_is_gone_on_with() {
    if !is_root() {
        return;
    }
    let stage = Stage::new().await;
    let images = stage.open().await;
    stage.pull_until(&images, 4 * MIB).await;
    stage.pull(&images).await;
    let [first, second] = &stage.ranges()[..] else { panic!("{:?}", stage.ranges()) };
    let from: usize = second.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap();
    // What was between network and file when the caller left may be lost.
    assert!(first.is_empty() && from > MIB && from <= 4 * MIB, "{second}");
    let activity = images.activity();
    assert_eq!((activity.cancelled, activity.pulled, activity.layers), (1, 1, 1));
    assert_eq!(activity.resumed_bytes, from as u64);
    assert_eq!((activity.refetched, activity.pulls), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_process_goes_on() {
    if !is_root() {
        return;
    }
    let stage = Stage::new().await;
    let images = stage.open().await;
    stage.pull_until(&images, 4 * MIB).await;
    drop(images);
    let images = stage.open().await;
    let kept = std::fs::metadata(stage.partial()).unwrap().len();
    assert_eq!(images.usage().bytes, kept, "what is kept is counted");
    stage.pull(&images).await;
    assert_eq!(stage.ranges(), [String::new(), format!("bytes={kept}-")]);
    assert_eq!(images.activity().fetched_bytes, stage.content().len() as u64 - kept);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_kept_whole_is_not_asked_for() {
    if !is_root() {
        return;
    }
    let stage = Stage::new().await;
    drop(stage.open().await);
    write_private(&stage.partial(), stage.content());
    let images = stage.open().await;
    stage.pull(&images).await;
    assert!(stage.ranges().is_empty(), "{:?}", stage.ranges());
}

/// Writes a file as the store does: for its owner only.
fn write_private(path: &Path, content: &[u8]) {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path).unwrap();
    file.write_all(content).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poisoned_beginning_is_healed() {
    if !is_root() {
        return;
    }
    let stage = Stage::new().await;
    drop(stage.open().await);
    let zeros = vec![0; 3 * MIB];
    let mut flipped = stage.content()[..3 * MIB].to_vec();
    flipped[2 * MIB] ^= 1;
    let mut other = stage.content().to_vec();
    other[MIB] ^= 1;
    for (n, wrong) in [&zeros, &flipped, &other].into_iter().enumerate() {
        write_private(&stage.partial(), wrong);
        let images = stage.open().await;
        stage.pull(&images).await;
        assert_eq!(images.activity().refetched, 1, "{n}");
        assert_eq!(stage.ranges().last().unwrap(), "", "{n}: fetched whole");
        images.remove(&stage.image.id()).await.unwrap();
        assert_eq!(images.usage(), podhold_image::Usage::default(), "{n}");
    }
    // What cannot be ours is not even tried.
    let mut longer = stage.content().to_vec();
    longer.push(0);
    write_private(&stage.partial(), &longer);
    let images = stage.open().await;
    stage.pull(&images).await;
    assert_eq!(images.activity().refetched, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_stays_within_age_and_limit() {
    if !is_root() {
        return;
    }
    let mut stage = Stage::new().await;
    drop(stage.open().await);
    let file = |name: &str, days: u64| {
        let path = stage.config.dir.join("partial").join(name);
        write_private(&path, &vec![1; MIB]);
        let then = SystemTime::now() - Duration::from_secs(days * 86_400 + 60);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(then).unwrap();
        path
    };
    // Smaller than the limit, but not together with what a pull needs.
    let (old, middle, new) = (file("sha256-old", 2), file("sha256-middle", 0), file("sha256-new", 0));
    std::fs::File::options().write(true).open(&new).unwrap().set_modified(SystemTime::now()).unwrap();
    stage.config.resume_bytes = 4 * MIB as u64;
    let images = stage.open().await;
    assert!(!old.exists() && middle.exists() && new.exists());
    assert_eq!(images.usage(), podhold_image::Usage { bytes: 2 * MIB as u64, inodes: 2 });
    stage.pull_until(&images, 9 * MIB / 2).await;
    // Another thread deletes them when it keeps the first bytes of what has arrived.
    let deadline = tokio::time::Instant::now() + SOON;
    while middle.exists() || new.exists() {
        assert!(tokio::time::Instant::now() < deadline, "a pull under way is worth more");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let kept = std::fs::metadata(stage.partial()).unwrap().len();
    assert!(kept <= 4 * MIB as u64, "{kept}");
    stage.pull(&images).await;
    drop(images);
    stage.config.resume_bytes = 0;
    write_private(&stage.partial(), b"begun");
    let images = stage.open().await;
    assert!(!stage.partial().exists(), "a limit of nothing keeps nothing");
    drop(images);
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_cannot_do_ranges_are_asked_for_the_whole() {
    if !is_root() {
        return;
    }
    let rest = format!("bytes={MIB}-");
    let cases: [(Fault, &[&str]); 5] = [
        (Fault::Whole, &["", &rest]),
        (Fault::Answer(416, b""), &["", &rest, ""]),
        (Fault::WrongRange("bytes 7-8/9"), &["", &rest, ""]),
        (Fault::WrongRange("bytes 0-1/*"), &["", &rest]),
        (Fault::WrongRange("nonsense"), &["", &rest, ""]),
    ];
    for (fault, ranges) in cases {
        let stage = Stage::new().await;
        let images = stage.open().await;
        stage.registry.fail(&stage.blob(), &[Fault::CutAfter(MIB), fault.clone()]);
        if matches!(fault, Fault::WrongRange("bytes 0-1/*")) {
            // A lie that cannot be told from the truth: what was pieced together is wrong, and is fetched anew.
            stage.pull(&images).await;
            assert_eq!(images.activity().refetched, 1);
            continue;
        }
        stage.pull(&images).await;
        assert_eq!(stage.ranges(), ranges, "{fault:?}");
        assert_eq!(images.activity().refetched, 0, "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_changes_between_two_answers_is_fetched_anew() {
    if !is_root() {
        return;
    }
    let stage = Stage::new().await;
    let images = stage.open().await;
    // What is wrong from its first byte ends the unpacking before the connection breaks.
    let mut other = stage.content()[..2 * MIB].to_vec();
    other[2 * MIB - 1] ^= 0x55;
    stage.registry.fail(&stage.blob(), &[Fault::OtherCutAfter(other, 2 * MIB)]);
    stage.pull(&images).await;
    assert_eq!(images.activity().refetched, 1);
    assert_eq!(stage.ranges(), ["".to_owned(), format!("bytes={}-", 2 * MIB), String::new()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wish_for_rest_is_granted_within_bounds() {
    if !is_root() {
        return;
    }
    let stage = Stage::new().await;
    let images = stage.open().await;
    let manifest = "/v2/app/manifests/latest";
    let date = chrono::DateTime::<chrono::Utc>::from(SystemTime::now() + Duration::from_secs(4));
    let date = date.format("%a, %d %b %Y %H:%M:%S GMT").to_string();
    stage.registry.fail(manifest, &[Fault::Rest(429, "3600".to_owned())]);
    let error = images.pull(&stage.registry.name("app"), None, None).await.unwrap_err();
    assert_eq!((error.kind(), stage.registry.count(manifest)), (ErrorKind::ResourceExhausted, 1));
    assert!(error.to_string().contains("3600 s of rest"), "{error}");
    stage.registry.fail(manifest, &[Fault::Rest(429, "2".to_owned())]);
    stage.registry.fail(&stage.blob(), &[Fault::Rest(503, date)]);
    let begun = Instant::now();
    stage.pull(&images).await;
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    let activity = images.activity();
    assert_eq!((activity.retries, activity.failed[&ErrorKind::ResourceExhausted]), (2, 1));
}
