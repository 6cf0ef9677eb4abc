//! Registries that fail, lie, stall and break off: each gives a clear error or is survived, and nothing
//! half-made remains.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use podhold_image::{Config, Digest, ErrorKind, ImageError};
use serde_json::json;
use support::{Fault, GZIP, MANIFEST, Site, Tar, TestImage, TestRegistry, gzip, is_root, noise};

/// Pulls `app`, expects an error, and checks that nothing of it is left.
async fn refused(site: &Site, registry: &TestRegistry) -> ImageError {
    let error = site.images.pull(&registry.name("app"), None, None).await.unwrap_err();
    assert!(error.to_string().contains(&registry.name("app").to_string()), "names the image: {error}");
    assert!(site.images.list().is_empty());
    // What the unpacker made is deleted before the error is reported or by a thread right after.
    for _ in 0..100 {
        if site.count("ingest") + site.count("trash") == 0 {
            return error;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("half-made layers are left");
}

async fn stage(content: &[u8]) -> (Site, TestRegistry, TestImage) {
    let (site, registry) = (Site::new().await, TestRegistry::start().await);
    let image = TestImage::new("app", &[Tar::new().file("data", content).build()]);
    registry.push("app", "latest", &image);
    (site, registry, image)
}

const TAG: &str = "/v2/app/manifests/latest";

#[tokio::test(flavor = "multi_thread")]
async fn each_status_has_its_kind_and_its_mend() {
    if !is_root() {
        return;
    }
    let table: [(u16, &'static [u8], ErrorKind, &str); 6] = [
        (401, b"{}", ErrorKind::Unauthenticated, "pull secret"),
        (403, b"{}", ErrorKind::PermissionDenied, "rights"),
        (
            404,
            br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"never seen"}]}"#,
            ErrorKind::NotFound,
            "never seen",
        ),
        (429, b"slow down", ErrorKind::ResourceExhausted, "rate"),
        (500, b"<html>oops</html>", ErrorKind::Unavailable, "500"),
        (418, b"", ErrorKind::FailedPrecondition, "perhaps no registry"),
    ];
    for (status, body, kind, part) in table {
        let (site, registry, _) = stage(b"x").await;
        let fault = Fault::Answer(status, body);
        registry.fail(TAG, &vec![fault; 10]);
        let error = refused(&site, &registry).await;
        assert_eq!(error.kind(), kind, "{error}");
        let text = error.to_string();
        assert!(text.contains(part) && text.contains(&format!("http://{}", registry.address)), "{text}");
        let attempts = registry.count(TAG);
        assert_eq!(attempts > 1, matches!(status, 429 | 500), "{status}: {attempts} attempts");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn passing_trouble_is_survived() {
    if !is_root() {
        return;
    }
    let (site, registry, image) = stage(&noise(600_000)).await;
    registry.fail(TAG, &[Fault::Answer(503, b""), Fault::Answer(429, b""), Fault::CutAfter(10)]);
    let blob = format!("/v2/app/blobs/{}", image.layers[0]);
    registry.fail(&blob, &[Fault::Answer(502, b""), Fault::CutAfter(200_000), Fault::CutAfter(100_000)]);
    site.images.pull(&registry.name("app"), None, None).await.unwrap();
    let ranges: Vec<_> = registry
        .requests()
        .iter()
        .filter(|request| request.path == blob)
        .map(|request| request.headers.get("range").cloned().unwrap_or_default())
        .collect();
    assert_eq!(ranges, ["", "", "bytes=200000-", "bytes=300000-"], "what arrived is not fetched again");
}

/// The body of a manifest, how it is refused, and what is said.
type Refused = (Vec<u8>, ErrorKind, &'static str);

/// A manifest without layers, changed.
fn manifest_with(change: &dyn Fn(&mut serde_json::Value)) -> Vec<u8> {
    let digest = Digest::of(b"x").to_string();
    let config =
        json!({"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": 1});
    let mut manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": []});
    change(&mut manifest);
    manifest.to_string().into_bytes()
}

fn no_manifests() -> Vec<Refused> {
    let with = manifest_with;
    vec![
        (b"<html>welcome</html>".to_vec(), ErrorKind::DataLoss, "no manifest"),
        (b"\x00\xff\xfe".to_vec(), ErrorKind::DataLoss, "no manifest"),
        (b"{}".to_vec(), ErrorKind::DataLoss, "damaged"),
        (vec![b' '; 5 << 20], ErrorKind::ResourceExhausted, "larger than 4194304 bytes"),
        (with(&|m| m["schemaVersion"] = json!(1)), ErrorKind::FailedPrecondition, "schema version 1"),
        (with(&|m| m["manifests"] = json!([])), ErrorKind::DataLoss, "image and an index"),
        (
            json!({"schemaVersion": 1, "name": "app", "fsLayers": [], "signatures": []})
                .to_string()
                .into_bytes(),
            ErrorKind::FailedPrecondition,
            "schema version 1",
        ),
        (
            with(&|m| {
                m["artifactType"] = json!("application/vnd.test.model");
                m["config"]["mediaType"] = json!("application/vnd.oci.empty.v1+json");
            }),
            ErrorKind::FailedPrecondition,
            "an artifact application/vnd.test.model",
        ),
        (
            with(&|m| m["mediaType"] = json!("application/vnd.oci.artifact.manifest.v1+json")),
            ErrorKind::FailedPrecondition,
            "no container image: its media type is application/vnd.oci.artifact",
        ),
        (
            format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)).into_bytes(),
            ErrorKind::DataLoss,
            "no manifest",
        ),
        (with(&|m| m["mediaType"] = json!("text/plain")), ErrorKind::FailedPrecondition, "text/plain"),
        (
            with(&|m| m["config"]["mediaType"] = json!("application/helm")),
            ErrorKind::FailedPrecondition,
            "application/helm",
        ),
        (with(&|m| m["config"]["digest"] = json!("sha256:../../x")), ErrorKind::DataLoss, "not a digest"),
    ]
}

fn layers_of_no_use() -> Vec<Refused> {
    let with = manifest_with;
    let digest = Digest::of(b"x").to_string();
    let nondistributable = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    vec![
        (
            with(&|m| m["layers"] = json!([{"mediaType": foreign, "digest": digest, "size": 1}])),
            ErrorKind::FailedPrecondition,
            foreign,
        ),
        (
            with(&|m| m["layers"] = json!([{"mediaType": nondistributable, "digest": digest, "size": 1}])),
            ErrorKind::FailedPrecondition,
            nondistributable,
        ),
        (
            with(&|m| m["layers"] = json!([{"mediaType": "text/x-unknown", "digest": digest, "size": 1}])),
            ErrorKind::FailedPrecondition,
            "text/x-unknown, which is not understood; layers are tar archives, plain or compressed by gzip or zstd",
        ),
        (
            with(&|m| m["layers"] = json!([{"mediaType": GZIP, "digest": digest, "size": -1}])),
            ErrorKind::DataLoss,
            "negative size",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_manifest_is_refused() {
    if !is_root() {
        return;
    }
    for (body, kind, part) in no_manifests().into_iter().chain(layers_of_no_use()) {
        let (site, registry, _) = stage(b"x").await;
        registry.put(TAG, MANIFEST, &body);
        let error = refused(&site, &registry).await;
        assert!(error.to_string().contains(part), "{part}: {error}");
        assert_eq!(error.kind(), kind, "{error}");
    }
}

/// 100 MB are not taken in, whatever the registry says of their length.
#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_without_end_is_refused_early() {
    if !is_root() {
        return;
    }
    let (site, registry, image) = stage(b"x").await;
    registry.put(TAG, MANIFEST, &vec![b' '; 100 << 20]);
    let error = refused(&site, &registry).await;
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
    assert!(error.to_string().contains("larger than 4194304 bytes"), "{error}");
    registry.push("app", "latest", &image);
    site.images.pull(&registry.name("app"), None, None).await.unwrap();
}

/// Each is named, and nothing of it stays.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_configuration_is_refused() {
    if !is_root() {
        return;
    }
    let layer = Tar::new().file("data", b"x").build();
    let honest = TestImage::new("app", std::slice::from_ref(&layer));
    let config = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut config: serde_json::Value = serde_json::from_slice(&honest.config).unwrap();
        change(&mut config);
        config.to_string().into_bytes()
    };
    let table: Vec<(Vec<u8>, i64, ErrorKind, &str)> = vec![
        (b"<html>".to_vec(), 0, ErrorKind::DataLoss, "the image configuration is damaged"),
        (b"\xff\xfe".to_vec(), 0, ErrorKind::DataLoss, "not UTF-8"),
        (honest.config.clone(), 1, ErrorKind::DataLoss, "are promised"),
        (honest.config.clone(), -1, ErrorKind::DataLoss, "are promised"),
        (
            config(&|c| c["rootfs"]["diff_ids"] = json!([])),
            0,
            ErrorKind::DataLoss,
            "1 layers, the image configuration 0",
        ),
        (config(&|c| c["rootfs"]["diff_ids"] = json!(["x"])), 0, ErrorKind::DataLoss, "diff_ids"),
        (
            config(&|c| c["architecture"] = json!("s390x")),
            0,
            ErrorKind::FailedPrecondition,
            "made for linux/s390x",
        ),
        (
            config(&|c| c["variant"] = json!("v42")),
            0,
            ErrorKind::FailedPrecondition,
            "/v42; this machine is linux/",
        ),
        (vec![b' '; 9 << 20], 0, ErrorKind::ResourceExhausted, "larger than 8388608 bytes"),
    ];
    for (config, lie, kind, part) in table {
        let (site, registry) = (Site::new().await, TestRegistry::start().await);
        registry.push("app", "latest", &honest);
        let digest = Digest::of(&config).to_string();
        let mut manifest: serde_json::Value = serde_json::from_slice(&honest.manifest).unwrap();
        manifest["config"]["digest"] = json!(digest);
        manifest["config"]["size"] = json!(config.len() as i64 + lie);
        registry.put(&format!("/v2/app/blobs/{digest}"), "x", &config);
        registry.put(TAG, MANIFEST, manifest.to_string().as_bytes());
        let error = refused(&site, &registry).await;
        assert!(error.to_string().contains(part), "{part}: {error}");
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!((site.count("layers"), site.count("images")), (0, 0), "{part}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_is_not_what_was_promised_is_refused() {
    if !is_root() {
        return;
    }
    let (site, registry, image) = stage(&noise(100_000)).await;
    let blob = format!("/v2/app/blobs/{}", image.layers[0]);
    let right = image.blobs[&image.layers[0]].clone();
    let mut flipped = right.clone();
    let last = flipped.len() - 9;
    flipped[last] ^= 1;
    let other = gzip(&Tar::new().file("data", &noise(50_000)).build());
    let mut longer = right.clone();
    longer.extend_from_slice(b"more");
    for (body, part) in [(flipped, ""), (other, ""), (longer, "longer than"), (b"garbage".to_vec(), "")] {
        registry.put(&blob, "x", &body);
        let error = refused(&site, &registry).await;
        assert!(error.to_string().contains(&image.layers[0]) && error.to_string().contains(part), "{error}");
    }
    registry.put(&blob, "x", &right);
    let by_digest = format!("/v2/app/manifests/{}", image.digest());
    registry.put(&by_digest, MANIFEST, b"{\"schemaVersion\":2}");
    let name = registry.name(&format!("app@{}", image.digest()));
    let error = site.images.pull(&name, None, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataLoss, "{error}");
    let config = format!("/v2/app/blobs/{}", image.id());
    registry.put(&config, "x", b"{}");
    let error = refused(&site, &registry).await;
    assert_eq!(error.kind(), ErrorKind::DataLoss, "{error}");
    registry.push("app", "latest", &image);
    site.images.pull(&registry.name("app"), None, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_lies_about_its_diff_id_does_not_count() {
    if !is_root() {
        return;
    }
    let (site, registry) = (Site::new().await, TestRegistry::start().await);
    let tar = Tar::new().file("data", b"x").build();
    let image = TestImage::of_blobs("liar", &[(GZIP, Digest::of(b"other"), gzip(&tar))]);
    registry.push("app", "latest", &image);
    let error = refused(&site, &registry).await;
    assert_eq!(error.kind(), ErrorKind::DataLoss);
    assert!(error.to_string().contains("diff_ids"), "{error}");
    assert_eq!(site.count("layers"), 0);
    assert_eq!(
        registry.count(&format!("/blobs/{}", image.layers[0])),
        1,
        "nobody has other bytes of this digest"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_there_is_not_is_told_by_its_name_and_not_by_what_the_resolver_did() {
    if !is_root() {
        return;
    }
    let site = Site::new().await;
    // No resolver asks anybody for this domain (RFC 6761).
    let error = site
        .images
        .pull(&podhold_image::Reference::parse("registry.invalid/app:1").unwrap(), None, None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let error = error.to_string();
    let want =
        "cannot find registry.invalid: no such host; check the name, or the resolver in /etc/resolv.conf";
    assert!(error.ends_with(want), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_in_a_form_that_is_not_understood_is_refused_with_those_that_are() {
    if !is_root() {
        return;
    }
    let (site, registry) = (Site::new().await, TestRegistry::start().await);
    let xz = [&b"\xfd7zXZ\0"[..], &noise(1000)].concat();
    let image = TestImage::of_blobs("xz", &[(GZIP, Digest::of(b"other"), xz)]);
    registry.push("app", "latest", &image);
    let error = refused(&site, &registry).await.to_string();
    assert!(error.contains("compressed as xz") && error.contains("gzip and zstd are"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_layer_names_itself_and_the_rest_serves_the_next_pull() {
    if !is_root() {
        return;
    }
    let (site, registry) = (Site::new().await, TestRegistry::start().await);
    let layers: Vec<_> =
        (0..3).map(|n| Tar::new().file(&format!("f{n}"), &noise(1000 + n)).build()).collect();
    let image = TestImage::new("app", &layers);
    registry.push("app", "latest", &image);
    let missing = format!("/v2/app/blobs/{}", image.layers[2]);
    registry.fail(&missing, &[Fault::Answer(404, b"")]);
    let error = refused(&site, &registry).await;
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains(&image.layers[2]), "{error}");
    site.images.pull(&registry.name("app"), None, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_and_trickle_end_after_the_stall_time() {
    if !is_root() {
        return;
    }
    for fault in [Fault::Silence, Fault::Trickle] {
        let registry = TestRegistry::start().await;
        let site = Site::with(|config: &mut Config| config.stall_timeout = Duration::from_millis(300)).await;
        let image = TestImage::new("app", &[Tar::new().file("data", &noise(300_000)).build()]);
        registry.push("app", "latest", &image);
        registry.fail(&format!("/v2/app/blobs/{}", image.layers[0]), &vec![fault; 100]);
        let start = Instant::now();
        let error = refused(&site, &registry).await;
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("stalls"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_pull_stops_and_leaves_nothing_half_made() {
    if !is_root() {
        return;
    }
    let (site, registry, image) = stage(&noise(300_000)).await;
    let blob = format!("/v2/app/blobs/{}", image.layers[0]);
    registry.fail(&blob, &[Fault::Silence]);
    let name = registry.name("app");
    let pull = tokio::time::timeout(Duration::from_millis(500), site.images.pull(&name, None, None)).await;
    assert!(pull.is_err(), "the registry is silent");
    for _ in 0..100 {
        if site.count("ingest") + site.count("trash") == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!((site.count("ingest"), site.count("layers"), site.count("images")), (0, 0, 0));
    site.images.pull(&name, None, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_pull_stops_also_when_all_has_arrived() {
    if !is_root() {
        return;
    }
    let site = Site::with(|config: &mut Config| config.limits.bytes = u64::MAX).await;
    let registry = TestRegistry::start().await;
    registry.push("app", "latest", &TestImage::new("app", &[Tar::new().sparse("endless", 1 << 50).build()]));
    let name = registry.name("app");
    let pull = tokio::time::timeout(Duration::from_millis(500), site.images.pull(&name, None, None)).await;
    assert!(pull.is_err(), "a petabyte is not copied in half a second");
    for _ in 0..500 {
        if site.count("ingest") + site.count("trash") == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the layer is still being unpacked");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_callers_cancelled_pull_does_not_end_anothers() {
    if !is_root() {
        return;
    }
    let (site, registry, image) = stage(&noise(300_000)).await;
    let blob = format!("/v2/app/blobs/{}", image.layers[0]);
    registry.fail(&blob, &[Fault::Silence]);
    let name = registry.name("app");
    let other = {
        let (images, name) = (site.images.clone(), name.clone());
        tokio::spawn(async move { images.pull(&name, None, None).await })
    };
    let first = tokio::time::timeout(Duration::from_millis(500), site.images.pull(&name, None, None)).await;
    assert!(first.is_err());
    let pulled = other.await.unwrap().unwrap();
    assert_eq!(pulled.id, image.id());
    assert_eq!(registry.count(&blob), 2, "one stalled attempt and one more, for both pulls together");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_registry_is_told_with_its_address() {
    let site = Site::new().await;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let name = podhold_image::Reference::parse(&format!("127.0.0.1:{port}/app")).unwrap();
    let error = site.images.pull(&name, None, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("cannot be reached"), "{error}");
}
