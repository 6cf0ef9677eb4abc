//! What `hosts.toml` says is done: over real TLS, and with mirrors that fail in every way.
#![allow(clippy::unwrap_used)]

mod support;

use std::{path::PathBuf, time::Duration};

use podhold_image::{CredentialSources, Credentials, Digest, ErrorKind, Reference};
use support::{
    Site, Tar, TestImage, gzip, is_root, noise,
    scripted::{Answer, Authority, Scripted},
};

fn image() -> TestImage {
    TestImage::new("app", &[Tar::new().file("who", b"app").build()])
}

/// Puts files beside the `hosts.toml` of a registry.
fn configure(site: &Site, registry: &str, files: &[(&str, &str)]) -> PathBuf {
    let dir = site.dir.path().join("certs.d").join(registry);
    std::fs::create_dir_all(&dir).unwrap();
    for (name, text) in files {
        std::fs::write(dir.join(name), text).unwrap();
    }
    dir
}

fn named(registry: &str) -> Reference {
    Reference::parse(&format!("{registry}/app:1")).unwrap()
}

fn text(status: u16, body: &str) -> Option<Answer> {
    Some((status, Vec::new(), body.as_bytes().to_vec()))
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_keys_headers_and_paths_are_as_the_file_says() {
    if !is_root() {
        return;
    }
    let authority = Authority::new();
    let files = [
        ("ca.pem", authority.ca.as_str()),
        ("client.pem", authority.client.as_str()),
        ("client.key", authority.client_key.as_str()),
    ];
    let client = "client = [[\"client.pem\", \"client.key\"]]";
    let table: [(bool, &str, Option<&str>); 6] = [
        (false, "", Some("ertificate")),
        (false, "ca = \"ca.pem\"", None),
        (false, "skip_verify = true", None),
        (true, "ca = \"ca.pem\"", Some("")),
        (true, &format!("ca = [\"ca.pem\"]\n{client}"), None),
        (true, &format!("skip_verify = true\n{client}"), None),
    ];
    for (clients, settings, expected) in table {
        let server = Scripted::with_tls(authority.server(clients), |_| None).await;
        server.push("/v2/app", "1", &image());
        let site = Site::new().await;
        let address = &server.address;
        let text = format!("server = \"https://{address}\"\n{settings}\n[header]\nx-a = [\"1\", \"2\"]");
        configure(&site, address, &files);
        configure(&site, address, &[("hosts.toml", &text)]);
        let pulled = site.images.pull(&named(address), None, None).await;
        match (pulled, expected) {
            (Ok(_), None) => {
                assert!(server.requests().iter().all(|request| request.headers["x-a"] == "2"));
                assert!(server.requests().iter().all(|request| !request.path.contains("ns=")));
            }
            (Err(error), Some(part)) => {
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
                assert!(error.to_string().contains(part) && server.requests().is_empty(), "{error}");
            }
            (other, _) => panic!("{settings}: {other:?}"),
        }
    }
    let server = Scripted::start(|_| None).await;
    server.push("/odd/place/app", "1", &image());
    let site = Site::new().await;
    let text = format!("[host.\"http://{}/odd/place\"]\noverride_path = true", server.address);
    configure(&site, "reg.test", &[("hosts.toml", &text)]);
    site.images.pull(&named("reg.test"), None, None).await.unwrap();
    assert!(server.requests().iter().all(|request| request.path.ends_with("?ns=reg.test")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_fails_is_followed_by_the_next() {
    if !is_root() {
        return;
    }
    let good = image();
    let digest = good.digest();
    type Failing = Box<dyn Fn(&support::Request) -> Option<Answer> + Send + Sync>;
    let by_digest = format!("app@{digest}");
    let table: [(&str, Failing); 7] = [
        ("knows nothing", Box::new(|_| text(404, "{}"))),
        ("wants credentials", Box::new(|_| text(401, "{}"))),
        ("forbids", Box::new(|_| text(403, "{}"))),
        ("is broken", Box::new(|_| text(500, "oops"))),
        ("limits", Box::new(|_| Some((429, vec![("retry-after", "0".to_owned())], Vec::new())))),
        ("is no registry", Box::new(|_| text(418, ""))),
        ("lies", Box::new(|r| text(200, "{\"schemaVersion\":2}").filter(|_| r.path.contains("/manifests/")))),
    ];
    for (what, policy) in table {
        let (mirror, upstream) = (Scripted::start(policy).await, Scripted::start(|_| None).await);
        upstream.push("/v2/app", "1", &good);
        let site = Site::new().await;
        let text = format!("server = \"http://{}\"\n[host.\"http://{}\"]", upstream.address, mirror.address);
        configure(&site, "reg.test", &[("hosts.toml", &text)]);
        // What a tag means can only be believed; a digest is checked.
        let name = if what == "lies" { format!("reg.test/{by_digest}") } else { "reg.test/app:1".to_owned() };
        let pulled = site.images.pull(&Reference::parse(&name).unwrap(), None, None).await;
        assert_eq!(pulled.unwrap().id, good.id(), "{what}");
        let asked = mirror.count("/manifests/");
        assert!((1..=2).contains(&asked), "the mirror that {what} is asked {asked} times");
    }
}

/// A layer that is kept while it arrives.
const LAYER: usize = 5 << 20;

/// Serves the image, with `wrong` in place of its layer, and knows no ranges.
async fn serving_instead(image: &TestImage, wrong: &[u8]) -> Scripted {
    let server = Scripted::start(|_| None).await;
    server.push("/v2/app", "1", image);
    server.put(&format!("/v2/app/blobs/{}", image.layers[0]), "x", wrong);
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_serves_a_wrong_layer_is_set_aside_for_it() {
    if !is_root() {
        return;
    }
    let good = TestImage::new("app", &[Tar::new().file("data", &noise(LAYER)).build()]);
    let right = &good.blobs[&good.layers[0]];
    let mut flipped = right.clone();
    flipped[LAYER / 2] ^= 1;
    let mut longer = right.clone();
    longer.extend_from_slice(b"more");
    let shorter = &right[..right.len() - 7];
    let mut short_and_wrong = shorter.to_vec();
    short_and_wrong[LAYER / 2] ^= 1;
    let table: [(&str, &[u8]); 6] = [
        ("is flipped", &flipped),
        ("is another's", &gzip(&Tar::new().file("data", b"other").build())),
        ("is no archive", b"garbage"),
        ("is longer", &longer),
        ("is shorter", shorter),
        ("is shorter and flipped", &short_and_wrong),
    ];
    for (what, wrong) in table {
        let (mirror, upstream) = (serving_instead(&good, wrong).await, serving_instead(&good, right).await);
        let site = Site::with(|config| config.resume_worth = Duration::ZERO).await;
        let text = format!("server = \"http://{}\"\n[host.\"http://{}\"]", upstream.address, mirror.address);
        configure(&site, "reg.test", &[("hosts.toml", &text)]);
        let pulled = site.images.pull(&named("reg.test"), None, None).await;
        assert_eq!(pulled.unwrap_or_else(|error| panic!("{what}: {error}")).id, good.id());
        let blob = format!("/blobs/{}", good.layers[0]);
        assert!(mirror.count(&blob) > 0 && upstream.count(&blob) > 0, "{what}");
        assert_eq!(upstream.count("/manifests/"), 0, "{what}: the mirror is still asked for the rest");
        assert_eq!((site.count("partial"), site.count("layers")), (0, 1), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_wrong_everywhere_is_refused_with_each_host_and_its_reason() {
    if !is_root() {
        return;
    }
    let good = TestImage::new("app", &[Tar::new().file("data", &noise(LAYER)).build()]);
    let mut flipped = good.blobs[&good.layers[0]].clone();
    flipped[LAYER / 2] ^= 1;
    let mut longer = good.blobs[&good.layers[0]].clone();
    longer.extend_from_slice(b"more");
    let (first, second) = (serving_instead(&good, &flipped).await, serving_instead(&good, &longer).await);
    let blob = format!("/blobs/{}", good.layers[0]);
    let gone = Scripted::start(move |request| text(403, "{}").filter(|_| request.path.contains(&blob))).await;
    for (last, kind, said) in
        [(&second, ErrorKind::DataLoss, "longer than"), (&gone, ErrorKind::PermissionDenied, "403")]
    {
        let site = Site::with(|config| config.resume_worth = Duration::ZERO).await;
        let text = format!("server = \"http://{}\"\n[host.\"http://{}\"]", last.address, first.address);
        configure(&site, "reg.test", &[("hosts.toml", &text)]);
        let error = site.images.pull(&named("reg.test"), None, None).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        let told = error.to_string();
        for part in [&format!("http://{}: ", first.address), &format!("http://{}: ", last.address), said] {
            assert!(told.contains(part), "{part:?} is missing in {told}");
        }
        assert!(told.contains(&good.layers[0]), "{told}");
        assert_eq!((site.count("partial"), site.count("layers"), site.count("images")), (0, 0, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_whose_manifest_is_not_what_its_answer_says_is_followed_by_the_next() {
    if !is_root() {
        return;
    }
    let good = image();
    let header = Digest::of(b"something else").to_string();
    let body = good.manifest.clone();
    let mirror = Scripted::start(move |request| {
        let lie = (200, vec![("docker-content-digest", header.clone())], body.clone());
        request.path.contains("/manifests/").then_some(lie)
    })
    .await;
    let upstream = Scripted::start(|_| None).await;
    upstream.push("/v2/app", "1", &good);
    let site = Site::new().await;
    let text = format!("server = \"http://{}\"\n[host.\"http://{}\"]", upstream.address, mirror.address);
    configure(&site, "reg.test", &[("hosts.toml", &text)]);
    site.images.pull(&named("reg.test"), None, None).await.unwrap();
    assert_eq!(upstream.count("/manifests/"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_is_down_is_asked_once_and_named() {
    if !is_root() {
        return;
    }
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let upstream = Scripted::start(|_| None).await;
    upstream.push("/v2/app", "1", &image());
    let site = Site::new().await;
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{closed}\"]\ndial_timeout = \"1s\"",
        upstream.address
    );
    configure(&site, "reg.test", &[("hosts.toml", &text)]);
    site.images.pull(&named("reg.test"), None, None).await.unwrap();
    let error =
        site.images.pull(&Reference::parse("reg.test/none:1").unwrap(), None, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "the registry's own answer counts");
    let text = error.to_string();
    assert!(
        text.contains(&format!("asked before, http://{closed}: ")) && text.contains("cannot be reached"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_is_asked_for_what_it_may_be_asked() {
    if !is_root() {
        return;
    }
    let (mirror, upstream) = (Scripted::start(|_| None).await, Scripted::start(|_| None).await);
    mirror.push("/v2/app", "1", &image());
    upstream.push("/v2/app", "1", &image());
    let site = Site::new().await;
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\"]",
        upstream.address, mirror.address
    );
    configure(&site, "reg.test", &[("hosts.toml", &text)]);
    site.images.pull(&named("reg.test"), None, None).await.unwrap();
    assert_eq!((mirror.count("/manifests/"), upstream.count("/blobs/")), (0, 0));
    assert_eq!((upstream.count("/manifests/"), mirror.count("/blobs/")), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_and_registries_get_their_own_credentials_only() {
    if !is_root() {
        return;
    }
    let wants = |request: &support::Request| {
        let challenge = vec![("www-authenticate", "Basic realm=\"x\"".to_owned())];
        let known = request.headers.contains_key("authorization");
        (!known).then(|| (401, challenge, b"{}".to_vec()))
    };
    let (mirror, upstream) = (Scripted::start(wants).await, Scripted::start(wants).await);
    upstream.push("/v2/app", "1", &image());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("auth.json");
    let auths = serde_json::json!({"auths": {
        &mirror.address: {"username": "mirror", "password": "m"},
        "reg.test": {"username": "machine", "password": "r"},
    }});
    std::fs::write(&file, auths.to_string()).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let sent = |server: &Scripted| -> Vec<String> {
        let values = server.requests().into_iter().filter_map(|r| r.headers.get("authorization").cloned());
        values.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
    };
    let site = Site::with(|config| {
        config.credentials = CredentialSources { files: vec![file], helper_dirs: Vec::new() };
    })
    .await;
    let text = format!("server = \"http://{}\"\n[host.\"http://{}\"]", upstream.address, mirror.address);
    configure(&site, "reg.test", &[("hosts.toml", &text)]);
    let caller = Credentials::Basic { username: "caller".into(), password: "c".into() };
    site.images.pull(&named("reg.test"), Some(caller), None).await.unwrap();
    assert_eq!(sent(&mirror), ["Basic bWlycm9yOm0="]);
    assert_eq!(sent(&upstream), ["Basic Y2FsbGVyOmM="]);
    site.images.pull(&named("reg.test"), None, None).await.unwrap();
    assert_eq!(sent(&mirror), ["Basic bWlycm9yOm0="]);
    assert_eq!(sent(&upstream), ["Basic Y2FsbGVyOmM=", "Basic bWFjaGluZTpy"]);
}
