//! Token services: what they are asked, and when again.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use podhold_image::{Credentials, ErrorKind, Reference};
use support::{
    Request, Site, Tar, TestImage, is_root,
    scripted::{Answer, Scripted},
};

fn basic() -> Option<Credentials> {
    Some(Credentials::Basic { username: "u".into(), password: "p".into() })
}

fn challenge(text: String) -> Option<Answer> {
    Some((401, vec![("www-authenticate", text)], b"{}".to_vec()))
}

/// A token service: each token is a new one, `N-ISSUED`. `form` only takes the newer form of questions.
async fn service(form: bool) -> (Scripted, Arc<AtomicUsize>) {
    let issued = Arc::new(AtomicUsize::new(0));
    let number = Arc::clone(&issued);
    let answer = move |request: &Request| {
        if form && request.method == "GET" {
            return Some((405, Vec::new(), Vec::new()));
        }
        let token = format!("{}-issued", number.fetch_add(1, Ordering::SeqCst));
        let body = serde_json::json!({"access_token": token, "expires_in": 60}).to_string();
        Some((200, Vec::new(), body.into_bytes()))
    };
    (Scripted::start(answer).await, issued)
}

/// A registry that takes a token for a path where `valid` says so.
async fn registry(realm: &str, valid: fn(&str, &str) -> bool) -> Scripted {
    let text = format!(
        "Basic realm=\"no\", Bearer realm=\"http://{realm}/token?x=1,2\",service=\"the, service\",\
         scope=\"repository:app:pull repository:base:pull\""
    );
    let policy = move |request: &Request| {
        let token = request.headers.get("authorization").and_then(|value| value.strip_prefix("Bearer "));
        let taken = token.is_some_and(|token| valid(token, &request.path));
        if taken { None } else { challenge(text.clone()) }
    };
    let server = Scripted::start(policy).await;
    let layers: Vec<_> = (0..3).map(|n| Tar::new().file(&format!("f{n}"), &[n]).build()).collect();
    server.push("/v2/app", "1", &TestImage::new("app", &layers));
    server
}

fn name(registry: &Scripted) -> Reference {
    Reference::parse(&format!("{}/app:1", registry.address)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_expires_in_mid_pull_is_renewed() {
    if !is_root() {
        return;
    }
    let (service, issued) = service(false).await;
    let registry =
        registry(&service.address, |token, path| token != "0-issued" || path.contains("/manifests/")).await;
    let site = Site::new().await;
    site.images.pull(&name(&registry), basic(), None).await.unwrap();
    assert_eq!(issued.load(Ordering::SeqCst), 2, "one for the manifest, one for all that follows");
    let first = &service.requests()[0];
    let expected =
        "/token?x=1,2&service=the%2C+service&scope=repository%3Aapp%3Apull&scope=repository%3Abase%3Apull";
    assert_eq!((first.method.as_str(), first.path.as_str()), ("GET", expected));
    assert_eq!(first.headers["authorization"], "Basic dTpw");
    assert!(
        registry
            .requests()
            .iter()
            .all(|r| r.headers.get("authorization").is_none_or(|a| !a.contains("dTpw")))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_go_into_forms_where_the_service_wants_it() {
    if !is_root() {
        return;
    }
    let identity = Some(Credentials::IdentityToken("refresh&me".into()));
    for (credentials, grant) in [
        (basic(), "grant_type=password&username=u&password=p&"),
        (identity, "grant_type=refresh_token&refresh_token=refresh%26me&"),
    ] {
        let (service, _) = service(true).await;
        let registry = registry(&service.address, |_, _| true).await;
        let site = Site::new().await;
        site.images.pull(&name(&registry), credentials, None).await.unwrap();
        let asked = service.requests().into_iter().find(|request| request.method == "POST").unwrap();
        assert!(asked.body.starts_with(grant), "{}", asked.body);
        assert!(
            asked.body.contains("scope=repository%3Aapp%3Apull+repository%3Abase%3Apull"),
            "{}",
            asked.body
        );
        assert_eq!(asked.path, "/token?x=1,2");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_never_taken_ends_in_words() {
    if !is_root() {
        return;
    }
    let (service, issued) = service(false).await;
    let registry = registry(&service.address, |_, _| false).await;
    let site = Site::new().await;
    let error = site.images.pull(&name(&registry), basic(), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
    assert!(error.to_string().contains("does not accept the credentials"), "{error}");
    assert_eq!(issued.load(Ordering::SeqCst), 1, "nobody is asked for ever");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_to_elsewhere_takes_no_credentials_and_no_headers_along() {
    if !is_root() {
        return;
    }
    let storage = Scripted::start(|_| None).await;
    let image = TestImage::new("app", &[Tar::new().file("f", b"x").build()]);
    storage.push("/v2/app", "1", &image);
    let to = storage.address.clone();
    let policy = move |request: &Request| {
        if !request.headers.contains_key("authorization") {
            return challenge("Basic realm=\"x\"".to_owned());
        }
        let blob = request.path.contains("/blobs/");
        blob.then(|| (307, vec![("location", format!("http://{to}{}", request.path))], Vec::new()))
    };
    let registry = Scripted::start(policy).await;
    registry.push("/v2/app", "1", &image);
    let site = Site::new().await;
    let dir = site.dir.path().join("certs.d").join(&registry.address);
    std::fs::create_dir_all(&dir).unwrap();
    let text = format!("server = \"http://{}\"\n[header]\nx-key = \"hush\"", registry.address);
    std::fs::write(dir.join("hosts.toml"), text).unwrap();
    site.images.pull(&name(&registry), basic(), None).await.unwrap();
    assert!(registry.requests().iter().all(|request| request.headers.contains_key("x-key")));
    assert_eq!(storage.count("/blobs/"), 2);
    for request in storage.requests() {
        let kept = |name: &&str| request.headers.contains_key(*name);
        assert_eq!(["authorization", "x-key"].iter().find(|name| kept(name)), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_a_redirect_leads_to_is_not_told_who_we_are() {
    if !is_root() {
        return;
    }
    let (service, issued) = service(false).await;
    for asks in ["Basic realm=\"x\"".to_owned(), format!("Bearer realm=\"http://{}/token\"", service.address)]
    {
        let storage = Scripted::start(move |_: &Request| challenge(asks.clone())).await;
        let to = storage.address.clone();
        let policy = move |request: &Request| {
            let blob = request.path.contains("/blobs/");
            blob.then(|| (307, vec![("location", format!("http://{to}/stored"))], Vec::new()))
        };
        let registry = Scripted::start(policy).await;
        registry.push("/v2/app", "1", &TestImage::new("app", &[Tar::new().file("f", b"x").build()]));
        let site = Site::new().await;
        let error = site.images.pull(&name(&registry), basic(), None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
        let told =
            storage.requests().into_iter().find(|request| request.headers.contains_key("authorization"));
        assert!(storage.count("/stored") > 0 && told.is_none(), "{told:?}");
    }
    assert_eq!(issued.load(Ordering::SeqCst), 0, "the storage's token service has our password");
}
