//! Archives: what an import brings is what a pull brings, what is exported is what came, and archives that
//! lie are refused without a trace.
#![allow(clippy::unwrap_used)]

mod support;

use std::{collections::BTreeMap, io::Cursor, path::Path};

use podhold_image::{Digest, ErrorKind, Image, ImageError, Images, ImportOptions, Imported, Reference};
use serde_json::{Value, json};
use support::{INDEX, MANIFEST, Site, Tar, TestImage, TestRegistry, gzip, is_root, noise};
use tar::EntryType;

const NAME: &str = "registry.invalid:5000/team/app:v1";

type Files = BTreeMap<String, Vec<u8>>;

fn two_layers(name: &str) -> TestImage {
    let below = Tar::new().dir("etc", 0o755).file("etc/who", name.as_bytes()).file("noise", &noise(20_000));
    TestImage::new(name, &[below.build(), Tar::new().file("etc/above", b"above").build()])
}

/// An index of this machine's image and of one for another machine.
fn index_of(image: &TestImage) -> Vec<u8> {
    let arch = oci_spec::image::Arch::default().to_string();
    let entry = |arch: &str, digest: &str, size: usize| json!({"mediaType": MANIFEST, "digest": digest, "size": size, "platform": {"os": "linux", "architecture": arch}});
    let absent = Digest::of(b"absent").to_string();
    let entries = [entry("s390x", &absent, 10), entry(&arch, &image.digest(), image.manifest.len())];
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).to_string().into_bytes()
}

fn blob(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

/// The files of a layout in which `name` is the image, or the index above it.
fn layout(image: &TestImage, top: (&str, &[u8]), name: Option<&str>) -> Files {
    let mut files: Files =
        image.blobs.iter().map(|(digest, content)| (blob(digest), content.clone())).collect();
    files.insert(blob(&image.digest()), image.manifest.clone());
    let digest = Digest::of(top.1).to_string();
    files.insert(blob(&digest), top.1.to_vec());
    let mut entry = json!({"mediaType": top.0, "digest": digest, "size": top.1.len()});
    if let Some(name) = name {
        entry["annotations"] = json!({"io.containerd.image.name": name});
    }
    let index = json!({"schemaVersion": 2, "manifests": [entry]});
    files.insert("index.json".to_owned(), index.to_string().into_bytes());
    files.insert("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
    files
}

fn plain(image: &TestImage) -> Files {
    layout(image, (MANIFEST, &image.manifest), Some(NAME))
}

fn tarred(files: &Files) -> Vec<u8> {
    files.iter().fold(Tar::new(), |tar, (name, content)| tar.file(name, content)).build()
}

async fn import(images: &Images, archive: Vec<u8>) -> Result<Imported, ImageError> {
    let options = ImportOptions { origin: "test.tar".to_owned(), ..ImportOptions::default() };
    images.import(Box::new(Cursor::new(archive)), options).await
}

async fn export(images: &Images, name: &str) -> Result<Vec<u8>, ImageError> {
    let (out, mut pieces) = tokio::sync::mpsc::channel(2);
    let (names, images) = ([name.to_owned()], images.clone());
    let work = tokio::spawn(async move { images.export(&names, out, None).await });
    let mut archive = Vec::new();
    while let Some(piece) = pieces.recv().await {
        archive.extend_from_slice(&piece);
    }
    work.await.unwrap().map(|()| archive)
}

/// What must be the same whichever way an image comes.
fn identity(image: &Image) -> (String, Vec<String>, Vec<String>, u64, String) {
    let layers = format!("{:?}", image.layers);
    (image.id.clone(), image.tags.clone(), image.digests.clone(), image.size, layers)
}

fn nothing_is_left(site: &Site, what: &str) {
    for place in ["images", "layers", "blobs", "ingest", "trash"] {
        assert_eq!(site.count(place), 0, "{what}: something is left in {place}");
    }
    assert_eq!(site.images.usage(), podhold_image::Usage::default(), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_brings_what_a_pull_brings() {
    if !is_root() {
        return;
    }
    let (pulled, imported, registry) = (Site::new().await, Site::new().await, TestRegistry::start().await);
    let image = two_layers("same");
    let index = index_of(&image);
    registry.push("team/app", "unused", &image);
    for reference in ["v1".to_owned(), Digest::of(&index).to_string()] {
        registry.put(&format!("/v2/team/app/manifests/{reference}"), INDEX, &index);
    }
    let name = registry.name("team/app:v1");
    let by_pull = pulled.images.pull(&name, None, None).await.unwrap();
    let files = layout(&image, (INDEX, &index), Some(&name.to_string()));
    for archive in [tarred(&files), gzip(&tarred(&files)), zstd::encode_all(&tarred(&files)[..], 1).unwrap()]
    {
        let brought = import(&imported.images, archive).await.unwrap();
        assert_eq!(identity(&brought.images[0]), identity(&by_pull));
        let skipped = brought.skipped.join("\n");
        assert!(skipped.contains("linux/s390x: absent from the archive"), "{skipped}");
        assert_eq!(brought.skipped.len(), 1, "{skipped}");
    }
    for (one, other) in by_pull.layers.iter().zip(&imported.images.list()[0].layers) {
        assert_eq!(one, other);
    }
    // A pull of it then fetches no layer.
    let before = registry.count("/blobs/");
    imported.images.pull(&name, None, None).await.unwrap();
    assert_eq!(registry.count("/blobs/"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_imported_image_is_exported_without_its_registry_and_is_the_same_again() {
    if !is_root() {
        return;
    }
    let (first, second) = (Site::new().await, Site::new().await);
    let image = two_layers("air-gapped");
    let index = index_of(&image);
    let files = layout(&image, (INDEX, &index), Some(NAME));
    let brought = import(&first.images, tarred(&files)).await.unwrap().images.remove(0);
    let archive = export(&first.images, NAME).await.unwrap();
    let again = import(&second.images, archive.clone()).await.unwrap().images.remove(0);
    assert_eq!(identity(&again), identity(&brought));
    assert_eq!(export(&second.images, NAME).await.unwrap(), archive);
    // Another start finds the blobs, and removal takes them along.
    let Site { dir, images } = second;
    drop(images);
    let second = Site { images: reopen(dir.path()).await, dir };
    assert_eq!(export(&second.images, NAME).await.unwrap(), archive);
    second.images.remove(&again.id).await.unwrap();
    nothing_is_left(&second, "removed");
}

async fn reopen(dir: &Path) -> Images {
    let config = podhold_image::Config {
        dir: dir.join("images"),
        hosts_dirs: vec![dir.join("certs.d")],
        ..podhold_image::Config::default()
    };
    Images::open(config).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pulled_image_is_exported_from_its_registry_or_not_at_all() {
    if !is_root() {
        return;
    }
    let (site, other, registry) = (Site::new().await, Site::new().await, TestRegistry::start().await);
    let image = two_layers("pulled");
    registry.push("team/app", "v1", &image);
    let name = registry.name("team/app:v1");
    let pulled = site.images.pull(&name, None, None).await.unwrap();
    assert_eq!(site.count("blobs"), 0);
    let archive = export(&site.images, &name.to_string()).await.unwrap();
    let brought = import(&other.images, archive).await.unwrap().images.remove(0);
    assert_eq!(identity(&brought), identity(&pulled));
    // Damaged on the way, and gone: no archive, and words that help.
    let layer = format!("/v2/team/app/blobs/{}", image.layers[0]);
    let size = image.blobs[&image.layers[0]].len();
    for wrong in [size, size + (8 << 20)] {
        registry.put(&layer, "application/octet-stream", &vec![7; wrong]);
        let error = export(&site.images, &name.to_string()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DataLoss, "{error}");
        assert!(error.to_string().contains(&image.layers[0]), "{error}");
    }
    for name in ["v1".to_owned(), image.digest()] {
        registry.put(&format!("/v2/team/app/manifests/{name}"), MANIFEST, b"{}");
    }
    let error = export(&site.images, &name.to_string()).await.unwrap_err().to_string();
    assert!(error.contains("not kept on this machine") || error.contains("digest"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_docker_save_writes_has_the_same_id() {
    if !is_root() {
        return;
    }
    let (site, second) = (Site::new().await, Site::new().await);
    let layer = Tar::new().file("who", b"docker").build();
    let image = TestImage::new("docker", &[layer.clone(), layer.clone()]);
    let config = format!("{}.json", &image.id()["sha256:".len()..]);
    let manifest = |config: &str, layers: [&str; 2]| {
        json!([{"Config": config, "RepoTags": ["app:v1", "team/app:latest"], "Layers": layers}]).to_string()
    };
    let archive = |config: &str, layers: [&str; 2]| {
        let tar = Tar::new().file("manifest.json", manifest(config, layers).as_bytes());
        let tar = tar.file(config, &image.config).dir("one", 0o755).file("one/layer.tar", &layer);
        tar.entry(EntryType::Symlink, ("two/layer.tar", "../one/layer.tar"), 0o777, b"")
    };
    let brought = import(&site.images, archive(&config, ["one/layer.tar", "two/layer.tar"]).build()).await;
    let brought = brought.unwrap().images.remove(0);
    assert_eq!(brought.id, image.id());
    assert_eq!(brought.tags, ["docker.io/library/app:v1", "docker.io/team/app:latest"]);
    assert!(brought.digests.is_empty(), "no registry is known to have it: {:?}", brought.digests);
    let exported = export(&site.images, "app:v1").await.unwrap();
    let again = import(&second.images, exported).await.unwrap().images.remove(0);
    assert_eq!((&again.id, &again.layers), (&brought.id, &brought.layers));
    // A configuration under another one's name, and links that lead out.
    site.images.remove(&brought.id).await.unwrap();
    let wrong = format!("{}.json", "0".repeat(64));
    let error = import(&site.images, archive(&wrong, ["one/layer.tar"; 2]).build()).await.unwrap_err();
    assert!(error.to_string().contains("has the digest"), "{error}");
    let out = archive(&config, ["one/layer.tar"; 2]);
    let out = out.entry(EntryType::Symlink, ("three", "../etc/passwd"), 0o777, b"").build();
    let error = import(&site.images, out).await.unwrap_err().to_string();
    assert!(error.contains("\"three\"") && error.contains("leads out of the archive"), "{error}");
    nothing_is_left(&site, "docker");
}

/// With a link whose target is longer than a header has room for, as GNU tar writes it.
fn with_endless_link(good: &Files) -> Vec<u8> {
    let target = "x/".repeat(5000);
    let tar = good.iter().fold(Tar::new(), |tar, (name, content)| tar.file(name, content));
    let tar = tar.entry(EntryType::GNULongLink, ("././@LongLink", ""), 0o644, target.as_bytes());
    tar.entry(EntryType::Symlink, ("l", ""), 0o644, b"").build()
}

/// Archives that must be refused: what is done to a good one, and a word of the reason.
#[expect(clippy::too_many_lines, reason = "a table")]
fn hostile(image: &TestImage) -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let good = plain(image);
    let with = |name: &str, content: &[u8]| {
        let mut files = good.clone();
        files.insert(name.to_owned(), content.to_vec());
        tarred(&files)
    };
    let named = |manifest: &[u8]| tarred(&layout(image, (MANIFEST, manifest), Some(NAME)));
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
        change(&mut manifest);
        named(manifest.to_string().as_bytes())
    };
    let entry = |kind, name: &str, link: &str| {
        good.iter()
            .fold(Tar::new(), |tar, (name, content)| tar.file(name, content))
            .entry(kind, (name, link), 0o644, b"")
            .build()
    };
    let not_json = b"this is no JSON".as_slice();
    let config = Digest::of(not_json).to_string();
    let mut bad_config = layout(
        image,
        (MANIFEST, &{
            let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
            manifest["config"]["digest"] = json!(config);
            manifest["config"]["size"] = json!(not_json.len());
            manifest.to_string().into_bytes()
        }),
        Some(NAME),
    );
    bad_config.insert(blob(&config), not_json.to_vec());
    let inner = index_of(image);
    let inner_digest = Digest::of(&inner).to_string();
    let arch = oci_spec::image::Arch::default().to_string();
    let outer = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
        {"mediaType": INDEX, "digest": inner_digest, "size": inner.len(), "platform": {"os": "linux", "architecture": arch}},
    ]});
    let mut nested = layout(image, (INDEX, outer.to_string().as_bytes()), Some(NAME));
    nested.insert(blob(&inner_digest), inner);
    let mut missing = good.clone();
    missing.remove(&blob(&image.layers[1]));
    vec![
        ("a name that climbs", with("../escaped", b"x"), "leads out of the archive"),
        ("an absolute name", with("/etc/escaped", b"x"), "absolute"),
        ("a lying layer", with(&blob(&image.layers[1]), b"another"), "has the digest"),
        ("a lying manifest", with(&blob(&image.digest()), b"{}"), "has the digest"),
        ("an index that is no JSON", with("index.json", b"[[["), "index.json"),
        ("no archive of images", Tar::new().file("README", b"hello").build(), "neither index.json"),
        ("no tar archive", noise(5000), "it is no tar archive; plain tar, gzip and zstd are understood"),
        ("text", b"no archive\n".to_vec(), "it is no tar archive but text; plain"),
        ("JSON", br#"{"a": 1}"#.to_vec(), "it is no tar archive but JSON; plain"),
        ("nothing", Vec::new(), "it is empty; plain"),
        (
            "gzip of text",
            gzip(b"no archive"),
            "it is compressed as gzip, and what is in it is no tar archive but text; ",
        ),
        ("gzip of nothing", gzip(b""), "it is compressed as gzip, and there is nothing in it; plain"),
        (
            "bzip2",
            b"BZh91AY&SY".to_vec(),
            "it is compressed as bzip2; plain tar, gzip and zstd are understood",
        ),
        ("xz", b"\xfd7zXZ\0\0".to_vec(), "it is compressed as xz; plain"),
        ("a large manifest", named(&vec![b' '; 5 << 20]), "at most"),
        ("a device", entry(EntryType::Char, "dev", ""), "Char"),
        ("a link out", entry(EntryType::Symlink, "l", "../../etc"), "leads out of the archive"),
        ("an absolute link", entry(EntryType::Link, "l", "/etc/passwd"), "absolute"),
        ("a link without end", with_endless_link(&good), "target is longer"),
        ("a name twice", entry(EntryType::Regular, "index.json", ""), "twice"),
        ("a size that lies", changed(&|m| m["layers"][0]["size"] = json!(7)), "promises 7"),
        ("a layer too few", changed(&|m| drop(m["layers"].as_array_mut().unwrap().pop())), "diff_ids"),
        (
            "layers the wrong way round",
            changed(&|m| m["layers"].as_array_mut().unwrap().reverse()),
            "diff_ids",
        ),
        (
            "a layer of an unknown kind",
            changed(&|m| m["layers"][0]["mediaType"] = json!("application/x-foreign")),
            "application/x-foreign",
        ),
        ("a configuration that is no JSON", tarred(&bad_config), "image configuration is damaged"),
        ("an index of indexes", tarred(&nested), "index within an index"),
        ("a layer that is not there", tarred(&missing), "is not in the archive"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_lies_is_refused_with_the_reason_and_leaves_nothing() {
    if !is_root() {
        return;
    }
    let site = Site::new().await;
    let image = two_layers("hostile");
    for (what, archive, word) in hostile(&image) {
        let error = match import(&site.images, archive).await {
            Ok(imported) => panic!("{what}: taken: {imported:?}"),
            Err(error) => error.to_string(),
        };
        println!("{what}: {error}");
        assert!(error.contains(word) && error.contains("test.tar"), "{what}: {error}");
        nothing_is_left(&site, what);
    }
    // A layer that attacks is refused as in a pull, though its digests are right.
    let evil = Tar::new().file("../../../podhold-escaped", b"x").build();
    let image = TestImage::new("evil", &[Tar::new().file("fine", b"x").build(), evil]);
    let error = import(&site.images, tarred(&plain(&image))).await.unwrap_err().to_string();
    assert!(error.contains(&image.layers[1]) && error.contains("podhold-escaped"), "{error}");
    nothing_is_left(&site, "evil");
}

/// Images that share a layer may each bring it.
#[tokio::test(flavor = "multi_thread")]
async fn a_blob_may_come_twice() {
    if !is_root() {
        return;
    }
    let site = Site::new().await;
    let large = Tar::new().file("large", &noise(3 << 20)).build();
    let image = TestImage::new("twice", &[large]);
    let files = plain(&image);
    let again = blob(&image.layers[0]);
    let tar = files.iter().fold(Tar::new(), |tar, (name, content)| tar.file(name, content));
    let archive = tar.file(&again, &files[&again]).build();
    assert_eq!(import(&site.images, archive).await.unwrap().images.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_archive_leaves_nothing() {
    if !is_root() {
        return;
    }
    let site = Site::new().await;
    let image = two_layers("truncated");
    let archive = tarred(&plain(&image));
    let needed = archive.len() - 1024;
    for part in 0..60_usize {
        // Places all over the archive that are not the same in each of its blocks.
        let length = (part * needed / 60 + part * 37 % 512).min(needed - 513);
        let error = import(&site.images, archive[..length].to_vec()).await.unwrap_err();
        assert!(error.to_string().contains("test.tar"), "{length}: {error}");
        nothing_is_left(&site, &format!("{length} bytes"));
        let compressed = gzip(&archive);
        let length = part * compressed.len() / 60;
        import(&site.images, compressed[..length].to_vec()).await.unwrap_err();
        nothing_is_left(&site, &format!("{length} bytes of gzip"));
    }
    import(&site.images, archive).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_are_given_and_move() {
    if !is_root() {
        return;
    }
    let site = Site::new().await;
    let (one, two) = (two_layers("one"), two_layers("two"));
    import(&site.images, tarred(&plain(&one))).await.unwrap();
    let tag = |name: &str| Reference::parse(name).unwrap();
    let unnamed = tarred(&layout(&two, (MANIFEST, &two.manifest), None));
    let options =
        |name: Option<&str>| ImportOptions { origin: "test.tar".into(), tag: name.map(tag), progress: None };
    let nameless = site.images.import(Box::new(Cursor::new(unnamed.clone())), options(None)).await.unwrap();
    assert_eq!((nameless.images[0].tags.len(), nameless.images[0].id.clone()), (0, two.id()));
    let named = site.images.import(Box::new(Cursor::new(unnamed)), options(Some("mine:1"))).await.unwrap();
    assert_eq!(named.images[0].tags, ["docker.io/library/mine:1"]);
    assert_eq!(named.images[0].digests, [format!("docker.io/library/mine@{}", two.digest())]);
    site.images.tag("mine:1", &tag("other:2")).await.unwrap();
    site.images.tag(NAME, &tag("mine:1")).await.unwrap();
    assert_eq!(site.images.find("mine:1").unwrap().id, one.id());
    assert_eq!(site.images.find(&two.id()).unwrap().tags, ["docker.io/library/other:2"]);
    assert_eq!(site.images.tag("no/such", &tag("x:1")).await.unwrap_err().kind(), ErrorKind::NotFound);
    let digest = tag(&format!("mine@{}", one.digest()));
    assert_eq!(site.images.tag("mine:1", &digest).await.unwrap_err().kind(), ErrorKind::InvalidArgument);
    // Exported by a tag that moved, it is what the tag names now.
    let other = Site::new().await;
    let archive = export(&site.images, "mine:1").await.unwrap();
    let brought = import(&other.images, archive).await.unwrap().images.remove(0);
    assert_eq!(
        (brought.id.clone(), brought.tags.clone()),
        (one.id(), vec!["docker.io/library/mine:1".to_owned()])
    );
    site.images.remove("other:2").await.unwrap();
    site.images.remove(&one.id()[7..19]).await.unwrap();
    nothing_is_left(&site, "removed");
}

/// Changes the file of a layer, as a disk does.
fn rot(site: &Site, name: &str) {
    let layers = std::fs::read_dir(site.dir.path().join("images/layers")).unwrap();
    let file = layers.map(|layer| layer.unwrap().path().join("fs").join(name)).find(|file| file.is_file());
    let file = file.unwrap();
    let time = std::fs::metadata(&file).unwrap().modified().unwrap();
    std::fs::write(&file, "rot!").unwrap();
    std::fs::File::open(&file).unwrap().set_modified(time).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_layer_of_an_import_is_made_again_without_a_registry() {
    if !is_root() {
        return;
    }
    let (site, image) = (Site::new().await, two_layers("kept"));
    import(&site.images, tarred(&plain(&image))).await.unwrap();
    for (name, wrong) in [("etc/who", 1), ("etc/above", 1)] {
        rot(&site, name);
        let found = site.images.verify(&[], false, None).await.unwrap();
        assert_eq!(found.iter().filter(|layer| !layer.is_right()).count(), wrong, "{found:?}");
        let (tell, told) = tokio::sync::watch::channel(podhold_image::Progress::default());
        let mended = site.images.verify(&[], true, Some(tell)).await.unwrap();
        assert!(mended.iter().all(podhold_image::Verified::is_right), "{mended:?}");
        assert_eq!((told.borrow().layers, told.borrow().layers_done), (2, 2));
        assert!(site.images.verify(&[], false, None).await.unwrap().iter().all(|layer| layer.is_right()));
    }
    // A kept blob is believed no more than a registry's.
    rot(&site, "etc/above");
    let blob = site.dir.path().join("images/blobs").join(image.layers[1].replace(':', "-"));
    std::fs::write(&blob, gzip(&Tar::new().file("etc/above", b"another").build())).unwrap();
    let found = site.images.verify(&[], true, None).await.unwrap();
    let wrong: Vec<_> = found.iter().filter(|layer| !layer.is_right()).collect();
    assert_eq!(wrong.len(), 1, "{found:?}");
    assert!(matches!(wrong[0].repair, Some(Err(_))), "{wrong:?}");
    site.images.remove(NAME).await.unwrap();
    nothing_is_left(&site, "removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_compressed_otherwise_is_refused_with_what_is_understood() {
    let site = Site::new().await;
    for (start, name) in
        [(&b"\xfd7zXZ\0..."[..], "xz"), (b"PK\x03\x04...", "zip"), (b"\x04\x22\x4d\x18..", "lz4")]
    {
        let error = import(&site.images, start.to_vec()).await.unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("gzip and zstd are understood"), "{error}");
    }
}

/// An archive may name the same layers in many images: what is planned is bounded all the same.
#[tokio::test(flavor = "multi_thread")]
async fn an_archive_of_more_layers_than_can_be_is_refused_before_any_is_unpacked() {
    if !is_root() {
        return;
    }
    let site = Site::new().await;
    let layer = Tar::new().file("f", b"x").build();
    let arch = oci_spec::image::Arch::default().to_string();
    let diff_ids = vec![Digest::of(&layer).to_string(); 500];
    let config =
        json!({"os": "linux", "architecture": arch, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let entry = json!({"Config": "c.json", "RepoTags": [], "Layers": vec!["l"; 500]});
    let manifest = Value::Array(vec![entry; 101]).to_string();
    let archive = Tar::new().file("manifest.json", manifest.as_bytes());
    let archive = archive.file("c.json", config.to_string().as_bytes()).file("l", &layer).build();
    let error = import(&site.images, archive).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
    assert!(error.to_string().contains("more than 50000 layers"), "{error}");
    nothing_is_left(&site, "too many layers");
}
