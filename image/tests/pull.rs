//! Pulls from a registry that behaves: what arrives, what it is called, what is shared.
#![allow(clippy::unwrap_used)]

mod support;

use podhold_image::{Config, Credentials, Digest, ErrorKind, Images, LayerStage};
use serde_json::json;
use support::{
    Fault, GZIP, INDEX, MANIFEST, Site, Tar, TestImage, TestRegistry, debian::DebianRegistry, gzip, is_root,
    noise,
};

fn small(name: &str) -> TestImage {
    TestImage::new(name, &[Tar::new().file("who", name.as_bytes()).build()])
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_found_by_tag_digest_id_and_short_id() {
    if !is_root() {
        return;
    }
    let (site, registry) = (Site::new().await, TestRegistry::start().await);
    let image = small("a");
    registry.push("team/app", "v1", &image);
    let pulled = site.images.pull(&registry.name("team/app:v1"), None, None).await.unwrap();
    assert_eq!(pulled.id, image.id());
    assert_eq!(pulled.tags, [format!("{}/team/app:v1", registry.address)]);
    assert_eq!(pulled.digests, [format!("{}/team/app@{}", registry.address, image.digest())]);
    let hex = image.id()["sha256:".len()..].to_owned();
    let names = [&pulled.tags[0], &pulled.digests[0], &pulled.id, &hex, &hex[..12].to_owned()];
    for name in names {
        assert_eq!(site.images.find(name).map(|found| found.id.clone()), Some(image.id()), "{name}");
    }
    let with_both = format!("{}/team/app:v1@{}", registry.address, image.digest());
    assert!(site.images.find(&with_both).is_some());
    for name in ["team/app:v1", "no/such", &hex[..3], "", "../x"] {
        assert!(site.images.find(name).is_none(), "{name}");
    }
    assert!(site.images.usage().bytes > 0 && site.images.usage().inodes >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_moves_and_removal_by_any_name_removes_all() {
    if !is_root() {
        return;
    }
    let (site, registry) = (Site::new().await, TestRegistry::start().await);
    let (one, two) = (small("one"), small("two"));
    registry.push("app", "latest", &one);
    registry.push("app", "other", &one);
    let latest = registry.name("app");
    site.images.pull(&latest, None, None).await.unwrap();
    site.images.pull(&registry.name("app:other"), None, None).await.unwrap();
    assert_eq!(site.images.find(&one.id()).unwrap().tags.len(), 2);
    registry.push("app", "latest", &two);
    site.images.pull(&latest, None, None).await.unwrap();
    assert_eq!(site.images.find(&latest.to_string()).unwrap().id, two.id());
    assert_eq!(site.images.find(&one.id()).unwrap().tags, [format!("{}/app:other", registry.address)]);
    site.images.remove(&format!("{}/app:other", registry.address)).await.unwrap();
    assert!(site.images.find(&one.id()).is_none());
    assert_eq!(site.count("layers"), 1);
    site.images.remove(&format!("{}/app@{}", registry.address, two.digest())).await.unwrap();
    site.images.remove(&two.id()).await.unwrap();
    assert!(site.images.list().is_empty());
    assert_eq!((site.count("layers"), site.count("trash"), site.count("images")), (0, 0, 0));
    assert_eq!(site.images.usage(), podhold_image::Usage::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_platforms_image_is_chosen_from_an_index() {
    if !is_root() {
        return;
    }
    let (site, registry) = (Site::new().await, TestRegistry::start().await);
    let image = small("ours");
    registry.push("multi", "x", &image);
    let arch = oci_spec::image::Arch::default().to_string();
    let size = image.manifest.len();
    let entry = |arch: &str, digest: &str| json!({"mediaType": MANIFEST, "digest": digest, "size": size, "platform": {"os": "linux", "architecture": arch}});
    let put = |tag: &str, entries: &[serde_json::Value]| put_index(&registry, tag, entries).0;
    let digest = put("good", &[entry("s390x", &Digest::of(b"1").to_string()), entry(&arch, &image.digest())]);
    let pulled = site.images.pull(&registry.name("multi:good"), None, None).await.unwrap();
    assert_eq!(pulled.id, image.id());
    assert_eq!(pulled.digests, [format!("{}/multi@{digest}", registry.address)]);
    put("bad", &[entry("s390x", &image.digest())]);
    let error = site.images.pull(&registry.name("multi:bad"), None, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    assert!(error.to_string().contains("linux/s390x"), "{error}");
    let mut lying = entry(&arch, &image.digest());
    lying["size"] = json!(size + 1);
    put("lying", &[lying]);
    let site = Site::new().await;
    let error = site.images.pull(&registry.name("multi:lying"), None, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataLoss);
    let part = format!("{}: it has {size} bytes, and {} are promised", image.digest(), size + 1);
    assert!(error.to_string().contains(&part), "{error}");
}

/// Puts an index under a tag and its digest.
fn put_index(registry: &TestRegistry, tag: &str, entries: &[serde_json::Value]) -> (Digest, usize) {
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).to_string();
    let digest = Digest::of(index.as_bytes());
    for name in [tag, digest.as_str()] {
        registry.put(&format!("/v2/multi/manifests/{name}"), INDEX, index.as_bytes());
    }
    (digest, index.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_within_an_index_is_followed_a_few_times() {
    if !is_root() {
        return;
    }
    let (site, registry) = (Site::new().await, TestRegistry::start().await);
    let image = small("ours");
    registry.push("multi", "x", &image);
    let arch = oci_spec::image::Arch::default().to_string();
    let platform = json!({"os": "linux", "architecture": arch});
    let ours = json!({"mediaType": MANIFEST, "digest": image.digest(), "size": image.manifest.len(), "platform": platform});
    let foreign = json!({"mediaType": MANIFEST, "digest": image.digest(), "size": 1, "platform": {"os": "linux", "architecture": "s390x"}});
    let nest = |tag: &str, entries: &[serde_json::Value]| {
        let (digest, size) = put_index(&registry, tag, entries);
        json!({"mediaType": INDEX, "digest": digest.to_string(), "size": size})
    };
    // The first leads nowhere; the second has it, under an index without a platform.
    let nowhere = nest("a", std::slice::from_ref(&foreign));
    let mut inner = nest("b", &[foreign, ours]);
    nest("two", &[nowhere, inner.clone()]);
    let pulled = site.images.pull(&registry.name("multi:two"), None, None).await.unwrap();
    assert_eq!(pulled.id, image.id());
    for indexes in 2..=5 {
        inner = nest(&format!("depth-{indexes}"), std::slice::from_ref(&inner));
        let name = registry.name(&format!("multi:depth-{indexes}"));
        let pulled = Site::new().await.images.pull(&name, None, None).await;
        match pulled {
            Ok(_) => assert!(indexes <= 4),
            Err(error) => {
                assert_eq!((indexes, error.kind()), (5, ErrorKind::FailedPrecondition), "{error}");
                assert!(error.to_string().contains("more than 4 indexes within each other"), "{error}");
            }
        }
    }
    // Hundreds of indexes that lead nowhere are not all fetched.
    let many: Vec<_> = (0..100).map(|n| nest(&format!("n{n}"), &[json!({"mediaType": MANIFEST, "digest": Digest::of(&[n]).to_string(), "size": 1, "platform": {"os": "plan9", "architecture": "mips"}})])).collect();
    nest("many", &many);
    let error = site.images.pull(&registry.name("multi:many"), None, None).await.unwrap_err();
    assert!(error.to_string().contains("more than 32 manifests"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_compressions_give_the_same_layer() {
    if !is_root() {
        return;
    }
    let (site, registry) = (Site::new().await, TestRegistry::start().await);
    let content = noise(300_000);
    let tar = Tar::new().file("data", &content).build();
    let (front, back) = tar.split_at(tar.len() / 2);
    let members = [gzip(front), gzip(back)].concat();
    let zstd = zstd::encode_all(&tar[..], 3).unwrap();
    let docker = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    let forms = [
        (GZIP, gzip(&tar)),
        (GZIP, members),
        ("application/vnd.oci.image.layer.v1.tar+zstd", zstd),
        ("application/vnd.oci.image.layer.v1.tar", tar.clone()),
        (docker, gzip(&tar)),
    ];
    for (index, (media_type, blob)) in forms.into_iter().enumerate() {
        let image = TestImage::of_blobs(&format!("form {index}"), &[(media_type, Digest::of(&tar), blob)]);
        registry.push("forms", &index.to_string(), &image);
        let pulled = site.images.pull(&registry.name(&format!("forms:{index}")), None, None).await.unwrap();
        let target = site.dir.path().join("mnt");
        std::fs::create_dir(&target).unwrap();
        let snapshots = site.images.snapshots();
        snapshots.mount("form", &pulled, &target, None).unwrap();
        let same = std::fs::read(target.join("data")).unwrap() == content;
        snapshots.unmount(&target).unwrap();
        snapshots.remove("form").unwrap();
        std::fs::remove_dir(&target).unwrap();
        site.images.remove(&pulled.id).await.unwrap();
        assert!(same, "form {index}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hard_link_to_a_file_of_a_layer_below_is_one_with_it() {
    if !is_root() {
        return;
    }
    use std::os::unix::fs::MetadataExt;
    let (site, registry) = (Site::new().await, TestRegistry::start().await);
    let link = |tar: Tar, name, to| tar.entry(tar::EntryType::Link, (name, to), 0o644, b"");
    let base = Tar::new().dir("etc/", 0o711).file("etc/file", b"content").build();
    let upper = link(link(Tar::new(), "second", "etc/file"), "third", "etc/file").build();
    let image = TestImage::new("links", &[base.clone(), upper]);
    registry.push("links", "latest", &image);
    let pulled = site.images.pull(&registry.name("links"), None, None).await.unwrap();
    let target = site.dir.path().join("mnt");
    std::fs::create_dir(&target).unwrap();
    let snapshots = site.images.snapshots();
    snapshots.mount("links", &pulled, &target, None).unwrap();
    let file = |name: &str| std::fs::metadata(target.join(name)).unwrap();
    let inodes = ["etc/file", "second", "third"].map(|name| file(name).ino());
    let third = std::fs::read(target.join("third"));
    let mode = file("etc").mode() & 0o7777;
    snapshots.unmount(&target).unwrap();
    snapshots.remove("links").unwrap();
    assert_eq!((inodes, mode), ([inodes[0]; 3], 0o711));
    assert_eq!(third.unwrap(), b"content");
    registry.push(
        "bad",
        "latest",
        &TestImage::new("bad", &[base, link(Tar::new(), "second", "etc/none").build()]),
    );
    let error = site.images.pull(&registry.name("bad"), None, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataLoss);
    assert!(error.to_string().contains("etc/none"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_at_the_same_time_download_each_layer_once() {
    if !is_root() {
        return;
    }
    let (site, registry) = (Site::new().await, TestRegistry::start().await);
    let layers: Vec<_> =
        (0..6).map(|n| Tar::new().file(&format!("file{n}"), &noise(200_000 + n)).build()).collect();
    let image = TestImage::new("many", &layers);
    registry.push("many", "latest", &image);
    let (sender, progress) = tokio::sync::watch::channel(podhold_image::Progress::default());
    let name = registry.name("many");
    let (a, b, c) = tokio::join!(
        site.images.pull(&name, None, Some(sender)),
        site.images.pull(&name, None, None),
        site.images.pull(&name, None, None),
    );
    assert_eq!(
        (a.unwrap().id.clone(), b.unwrap().id.clone(), c.unwrap().id.clone()),
        (image.id(), image.id(), image.id())
    );
    for digest in &image.layers {
        assert_eq!(registry.count(digest), 1, "{digest}");
    }
    let last = progress.borrow().clone();
    assert_eq!((last.layers, last.layers_done, last.bytes), (6, 6, last.bytes_done));
    let each: Vec<_> = last.each.iter().map(|layer| layer.digest.to_string()).collect();
    assert_eq!(each, image.layers, "the lowest first");
    for layer in &last.each {
        assert_eq!((layer.received, layer.resumed, layer.stage), (layer.size, 0, LayerStage::Done));
    }
    let before = registry.requests().len();
    site.images.pull(&name, None, None).await.unwrap();
    assert_eq!(registry.requests().len(), before + 1, "the second pull asks for the manifest only");
}

#[tokio::test(flavor = "multi_thread")]
async fn images_survive_a_restart_and_damage_harms_one() {
    if !is_root() {
        return;
    }
    let registry = TestRegistry::start().await;
    let dir = tempfile::tempdir().unwrap();
    let config = Config { dir: dir.path().join("images"), ..Config::default() };
    let (good, bad) = (small("good"), small("bad"));
    registry.push("good", "latest", &good);
    registry.push("bad", "latest", &bad);
    let images = Images::open(config.clone()).await.unwrap();
    for name in ["good", "bad"] {
        images.pull(&registry.name(name), None, None).await.unwrap();
    }
    let usage = images.usage();
    assert!(Images::open(config.clone()).await.is_err(), "one process at a time");
    drop(images);
    let record = config.dir.join("images").join(format!("{}.json", &bad.id()["sha256:".len()..]));
    std::fs::write(&record, b"{\"half").unwrap();
    std::fs::create_dir_all(config.dir.join("ingest/99/fs/half")).unwrap();
    let images = Images::open(config.clone()).await.unwrap();
    assert_eq!(images.list().len(), 1);
    assert_eq!(images.find(&registry.name("good").to_string()).unwrap().id, good.id());
    assert_eq!(images.damaged().len(), 1);
    assert_eq!(images.damaged()[0].0, record);
    let records = (usage.bytes - images.usage().bytes, usage.inodes - images.usage().inodes);
    assert_eq!(records, (4096, 1), "its layer is still there");
    assert_eq!(std::fs::read_dir(config.dir.join("ingest")).unwrap().count(), 0);
    images.pull(&registry.name("bad"), None, None).await.unwrap();
    assert_eq!(images.list().len(), 2, "a new pull heals it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moved_does_not_come_back_and_a_damaged_holder_does_not_keep_it() {
    if !is_root() {
        return;
    }
    let registry = TestRegistry::start().await;
    let dir = tempfile::tempdir().unwrap();
    let config = Config { dir: dir.path().join("images"), ..Config::default() };
    let (name, old, new) = (registry.name("app:1"), small("old"), small("new"));
    let record = config.dir.join("images").join(format!("{}.json", &old.id()["sha256:".len()..]));
    let tags = |images: &Images, id: &str| images.find(id).unwrap().tags.clone();
    let images = Images::open(config.clone()).await.unwrap();
    registry.push("app", "1", &old);
    images.pull(&name, None, None).await.unwrap();
    let before = std::fs::read(&record).unwrap();
    std::fs::write(&record, b"{\"half").unwrap();
    registry.push("app", "1", &new);
    images.pull(&name, None, None).await.unwrap();
    assert_eq!(tags(&images, &new.id()), [name.to_string()]);
    assert!(tags(&images, &old.id()).is_empty());
    drop(images);
    // As a power cut leaves it between the two records.
    std::fs::write(&record, before).unwrap();
    let images = Images::open(config.clone()).await.unwrap();
    assert_eq!(images.find(&name.to_string()).unwrap().id, new.id());
    images.remove(&new.id()).await.unwrap();
    drop(images);
    let images = Images::open(config).await.unwrap();
    assert_eq!(
        images.find(&name.to_string()).map(|image| image.id.clone()),
        None,
        "the old image has it again"
    );
    assert!(tags(&images, &old.id()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_belong_to_one_caller() {
    if !is_root() {
        return;
    }
    let (site, registry) = (Site::new().await, TestRegistry::start().await);
    registry.push("private", "latest", &small("private"));
    registry.require_basic("user", "right");
    let name = registry.name("private");
    let basic =
        |password: &str| Some(Credentials::Basic { username: "user".into(), password: password.into() });
    site.images.pull(&name, basic("right"), None).await.unwrap();
    for credentials in [None, basic("wrong")] {
        let error = site.images.pull(&name, credentials, None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
        assert!(
            error.to_string().contains(&registry.address) && error.to_string().contains("pull secret"),
            "{error}"
        );
        assert!(!error.to_string().contains("wrong"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_fetched_for_every_kind_of_credentials() {
    if !is_root() {
        return;
    }
    let registry = TestRegistry::start().await;
    registry.push("app", "latest", &small("app"));
    registry.require_bearer();
    let all = [
        None,
        Some(Credentials::Basic { username: "u".into(), password: "p".into() }),
        Some(Credentials::IdentityToken("refresh-me".into())),
        Some(Credentials::RegistryToken("token-for-ready".into())),
    ];
    for credentials in all {
        let site = Site::new().await;
        site.images.pull(&registry.name("app"), credentials.clone(), None).await.unwrap();
        let used: Vec<_> =
            registry.requests().iter().filter_map(|r| r.headers.get("authorization").cloned()).collect();
        let last = used.last().unwrap();
        let expected = match credentials {
            None => "Bearer token-for-",
            Some(Credentials::Basic { .. }) => "Bearer token-for-Basicdjpw",
            Some(Credentials::IdentityToken(_)) => "Bearer token-for-refresh-me",
            Some(Credentials::RegistryToken(_)) => "Bearer token-for-ready",
        };
        if !expected.contains("Basic") {
            assert_eq!(last, expected);
        } else {
            assert!(last.starts_with("Bearer token-for-Basic"), "{last}");
        }
    }
    assert!(registry.requests().iter().any(|r| r.path.contains("scope=repository%3Aapp%3Apull")));
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_asked_first_and_never_see_credentials() {
    if !is_root() {
        return;
    }
    let (site, mirror, upstream) =
        (Site::new().await, TestRegistry::start().await, TestRegistry::start().await);
    let image = small("mirrored");
    upstream.push("app", "latest", &image);
    let hosts = |server: &str| {
        format!(
            "server = \"http://{server}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n[host.\"http://{}\".header]\nx-mine = \"yes\"\n",
            mirror.address, mirror.address
        )
    };
    let dir = site.dir.path().join("certs.d/registry.example");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("hosts.toml"), hosts(&upstream.address)).unwrap();
    let name = podhold_image::Reference::parse("registry.example/app").unwrap();
    let secret = || Some(Credentials::Basic { username: "u".into(), password: "p".into() });
    upstream.require_basic("u", "p");
    site.images.pull(&name, secret(), None).await.unwrap();
    assert!(mirror.count("/v2/app/manifests/latest?ns=registry.example") >= 1, "{:?}", mirror.requests());
    assert!(mirror.requests().iter().all(|r| !r.headers.contains_key("authorization")));
    assert!(mirror.requests().iter().all(|r| r.headers.get("x-mine").is_some_and(|v| v == "yes")));
    assert!(upstream.requests().iter().all(|r| !r.headers.contains_key("x-mine")));
    site.images.remove(&image.id()).await.unwrap();
    mirror.push("app", "latest", &image);
    let before = upstream.requests().len();
    site.images.pull(&name, None, None).await.unwrap();
    assert_eq!(upstream.requests().len(), before, "the mirror had everything");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_to_another_host_drops_what_is_secret() {
    if !is_root() {
        return;
    }
    let (site, registry, storage) =
        (Site::new().await, TestRegistry::start().await, TestRegistry::start().await);
    let image = small("stored elsewhere");
    registry.push("app", "latest", &image);
    let digest = &image.layers[0];
    storage.put("/bucket/blob", "x", &image.blobs[digest]);
    let there = Fault::Redirect(format!("http://{}/bucket/blob?signature=s", storage.address));
    registry.fail(&format!("/v2/app/blobs/{digest}"), &[there]);
    registry.require_basic("u", "p");
    let secret = Some(Credentials::Basic { username: "u".into(), password: "p".into() });
    site.images.pull(&registry.name("app"), secret, None).await.unwrap();
    let seen = storage.requests();
    assert_eq!(seen.len(), 1);
    assert!(!seen[0].headers.contains_key("authorization"));
}

/// An image pushed to Debian's registry and pulled from there.
#[tokio::test(flavor = "multi_thread")]
async fn debians_registry_serves_us() {
    if !is_root() {
        return;
    }
    let Some(registry) = DebianRegistry::start().await else { return };
    let layers: Vec<_> =
        (0..3).map(|n| Tar::new().file(&format!("f{n}"), &noise(500_000 + n)).build()).collect();
    let image = TestImage::new("debian", &layers);
    registry.push("team/app", &image).await;
    let site = Site::new().await;
    let pulled = site.images.pull(&registry.name("team/app"), None, None).await.unwrap();
    assert_eq!(pulled.id, image.id());
    let error = site.images.pull(&registry.name("team/none"), None, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    registry.stop().await;
}
