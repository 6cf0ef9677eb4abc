//! Who we are to a host: answers its challenges with the caller's credentials.
//!
//! Every kind of credentials goes through one exchange: oci-client's own cannot exchange identity tokens,
//! knows nothing of the headers, client certificates and paths of `hosts.toml`, does not bound what it reads,
//! and sends credentials to a token service on plain http although the registry is on https.
//!
//! Invariant: to a host on https, nothing is sent but by https.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest as _, Sha256};

use super::{
    challenge::{Bearer, Challenge, read_token},
    client::read_bounded,
    trouble::{causes, unknown_name},
};
use crate::{credentials::Credentials, hosts::Host};

/// Longest wait for a token.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(15);
/// Largest answer of a token service, in bytes.
const MAX_TOKEN: u64 = 1 << 20;
/// Repositories whose tokens are remembered.
const MAX_GRANTS: usize = 1000;

/// Tells credentials apart without keeping them in a key.
pub(super) type Fingerprint = [u8; 32];

pub(super) fn fingerprint(credentials: Option<&Credentials>) -> Fingerprint {
    let parts: [&str; 3] = match credentials {
        None => ["none", "", ""],
        Some(Credentials::Basic { username, password }) => ["basic", username, password],
        Some(Credentials::IdentityToken(token)) => ["identity", token, ""],
        Some(Credentials::RegistryToken(token)) => ["registry", token, ""],
    };
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// One caller at one host.
pub(super) struct Auth {
    host: Host,
    transport: reqwest::Client,
    credentials: Option<Credentials>,
    /// By repository: one that waits for the token service keeps no other waiting.
    granted: Mutex<HashMap<String, Arc<Grant>>>,
}

/// What a host lets us do in one repository.
#[derive(Default)]
struct Grant {
    state: Mutex<State>,
    /// Held by whoever asks the token service; the others wait for what it answers.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    /// The `Authorization` value in use.
    value: Option<HeaderValue>,
    /// How often the token service gave no answer, and what was the matter the last time.
    failures: u64,
    failure: Option<NoAnswer>,
}

impl Grant {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no panics under this lock")
    }
}

impl Auth {
    pub(super) fn new(host: &Host, transport: reqwest::Client, credentials: Option<Credentials>) -> Self {
        Self { host: host.clone(), transport, credentials, granted: Mutex::default() }
    }

    /// Whether the caller brought credentials.
    pub(super) fn has_credentials(&self) -> bool {
        self.credentials.is_some()
    }

    /// The `Authorization` value that worked last.
    pub(super) fn granted(&self, repository: &str) -> Option<HeaderValue> {
        self.grant(repository).state().value.clone()
    }

    fn grant(&self, repository: &str) -> Arc<Grant> {
        let mut granted = self.granted.lock().expect("no panics under this lock");
        if let Some(grant) = granted.get(repository) {
            return Arc::clone(grant);
        }
        if granted.len() >= MAX_GRANTS {
            granted.clear();
        }
        Arc::clone(granted.entry(repository.to_owned()).or_default())
    }

    /// Answers a 401. `refused` is the value that was sent and not accepted. `None`: there is no answer
    /// to this challenge with these credentials. Callers that ask at the same time for the same repository get
    /// the answer, or the failure, of the first of them.
    pub(super) async fn answer(
        &self,
        repository: &str,
        challenges: &[String],
        refused: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, NoAnswer> {
        let grant = self.grant(repository);
        let failures = grant.state().failures;
        let _turn = grant.asking.lock().await;
        {
            let state = grant.state();
            if let Some(newer) = state.value.as_ref().filter(|value| Some(*value) != refused) {
                return Ok(Some(newer.clone()));
            }
            if let Some(failure) = state.failure.as_ref().filter(|_| state.failures != failures) {
                return Err(failure.clone());
            }
        }
        let exchange = self.exchange(repository, challenges);
        let exchanged = tokio::time::timeout(TOKEN_TIMEOUT, exchange).await.unwrap_or_else(|_| {
            let reason = format!("its token service did not answer within {} s", TOKEN_TIMEOUT.as_secs());
            Err(NoAnswer { reason, passing: true })
        });
        let mut state = grant.state();
        match exchanged {
            Ok(value) => {
                state.value = value.filter(|value| Some(value) != refused);
                Ok(state.value.clone())
            }
            Err(failure) => {
                (state.failures, state.failure) = (state.failures + 1, Some(failure.clone()));
                Err(failure)
            }
        }
    }

    async fn exchange(
        &self,
        repository: &str,
        challenges: &[String],
    ) -> Result<Option<HeaderValue>, NoAnswer> {
        if let Some(Credentials::RegistryToken(token)) = &self.credentials {
            return bearer(token).map(Some);
        }
        match (Challenge::choose(challenges), &self.credentials) {
            (Some(Challenge::Bearer(challenge)), _) => self.token(repository, &challenge).await,
            (Some(Challenge::Basic), Some(Credentials::Basic { username, password })) => {
                sensitive(Credentials::basic(username, password)).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The token exchange (distribution, docs/spec/auth/token.md and oauth.md).
    async fn token(&self, repository: &str, challenge: &Bearer) -> Result<Option<HeaderValue>, NoAnswer> {
        let url = reqwest::Url::parse(&challenge.realm)
            .map_err(|_| NoAnswer::for_good("the realm of its challenge is no URL"))?;
        if self.host.scheme == "https" && url.scheme() != "https" {
            let reason = "its token service is not reached by https, so nothing is sent there";
            return Err(NoAnswer::for_good(reason));
        }
        let scope = challenge.scope.clone().unwrap_or_else(|| format!("repository:{repository}:pull"));
        let response = match &self.credentials {
            Some(Credentials::IdentityToken(token)) => {
                let proof = [("grant_type", "refresh_token"), ("refresh_token", token)];
                self.send(self.form(url, challenge, &scope, &proof)).await?
            }
            Some(Credentials::Basic { username, password }) => {
                let basic = sensitive(Credentials::basic(username, password))?;
                let get = self.query(url.clone(), challenge, &scope).header(AUTHORIZATION, basic);
                let response = self.send(get).await?;
                // Services that know the newer form only.
                if matches!(response.status().as_u16(), 404 | 405) {
                    let proof = [("grant_type", "password"), ("username", username), ("password", password)];
                    self.send(self.form(url, challenge, &scope, &proof)).await?
                } else {
                    response
                }
            }
            _ => self.send(self.query(url, challenge, &scope)).await?,
        };
        match response.status().as_u16() {
            200 => {}
            400 | 401 | 403 => return Ok(None),
            status => {
                let passing = matches!(status, 408 | 429 | 500..);
                return Err(NoAnswer { reason: format!("its token service answers {status}"), passing });
            }
        }
        let body = read_bounded(response, MAX_TOKEN)
            .await
            .map_err(|error| NoAnswer { reason: format!("its token service: {error}"), passing: true })?;
        bearer(&read_token(&body).ok_or_else(|| NoAnswer::for_good("its token service gave no token"))?)
            .map(Some)
    }

    /// Asks by the address: each scope by itself.
    fn query(&self, mut url: reqwest::Url, challenge: &Bearer, scope: &str) -> reqwest::RequestBuilder {
        {
            let mut pairs = url.query_pairs_mut();
            pairs.extend_pairs(challenge.service.iter().map(|service| ("service", service)));
            pairs.extend_pairs(scope.split_ascii_whitespace().map(|scope| ("scope", scope)));
        }
        let headers = self.own_headers(&url);
        self.transport.get(url).headers(headers)
    }

    /// Asks by a form, in which secrets are not part of an address.
    fn form(
        &self,
        url: reqwest::Url,
        challenge: &Bearer,
        scope: &str,
        proof: &[(&str, &str)],
    ) -> reqwest::RequestBuilder {
        let mut form = url.clone();
        {
            let mut pairs = form.query_pairs_mut();
            pairs.clear().extend_pairs(proof);
            pairs.append_pair("client_id", "podhold").append_pair("scope", scope);
            pairs.extend_pairs(challenge.service.iter().map(|service| ("service", service)));
        }
        let body = form.query().unwrap_or_default().to_owned();
        let headers = self.own_headers(&url);
        let post = self.transport.post(url).headers(headers);
        post.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(body)
    }

    /// The headers of `hosts.toml` go to the host they are written for, also when it gives tokens.
    fn own_headers(&self, url: &reqwest::Url) -> HeaderMap {
        let host = reqwest::Url::parse(&format!("{}://{}", self.host.scheme, self.host.authority));
        let mut headers = HeaderMap::new();
        if host.is_ok_and(|host| host.origin() == url.origin()) {
            for (name, value) in &self.host.headers {
                let pair = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value));
                if let (Ok(name), Ok(value)) = pair {
                    headers.append(name, value);
                }
            }
            // The caller's own goes before it.
            headers.remove(AUTHORIZATION);
        }
        headers
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, NoAnswer> {
        request.send().await.map_err(|error| {
            let cause = unknown_name(&error).unwrap_or_else(|| causes(error.without_url()));
            NoAnswer { reason: format!("its token service cannot be asked: {cause}"), passing: true }
        })
    }
}

/// Why a challenge could not be answered.
#[derive(Debug, Clone)]
pub(super) struct NoAnswer {
    pub(super) reason: String,
    /// Whether it may go well when it is tried again.
    pub(super) passing: bool,
}

impl NoAnswer {
    fn for_good(reason: &str) -> Self {
        Self { reason: reason.to_owned(), passing: false }
    }
}

fn bearer(token: &str) -> Result<HeaderValue, NoAnswer> {
    sensitive(format!("Bearer {token}"))
}

fn sensitive(text: String) -> Result<HeaderValue, NoAnswer> {
    let mut value = HeaderValue::from_str(&text)
        .map_err(|_| NoAnswer::for_good("the token holds characters that cannot be sent"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn auth(scheme: &str, credentials: Option<Credentials>) -> Auth {
        let host = Host { scheme: scheme.to_owned(), ..crate::hosts::upstream("registry.test") };
        let _ = rustls::crypto::ring::default_provider().install_default();
        let transport = super::super::client::transport(&Host { scheme: "http".to_owned(), ..host.clone() });
        Auth::new(&host, transport.unwrap(), credentials)
    }

    /// A token service that gives `answer` once; tells whether it was asked.
    fn token_service(answer: Vec<u8>) -> (String, std::sync::mpsc::Receiver<()>) {
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let realm = format!("Bearer realm=\"http://{}/token\"", listener.local_addr().unwrap());
        let (asked, was_asked) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = asked.send(());
            let _ = stream.read(&mut [0; 4096]);
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", answer.len());
            let _ = stream.write_all(&[head.as_bytes(), &answer].concat());
        });
        (realm, was_asked)
    }

    #[tokio::test]
    async fn a_registry_on_https_cannot_send_us_to_a_token_service_on_http() {
        for credentials in [None, Some(Credentials::Basic { username: "u".into(), password: "p".into() })] {
            let (realm, was_asked) = token_service(br#"{"token":"t"}"#.to_vec());
            let refused = auth("https", credentials).answer("app", &[realm], None).await.unwrap_err();
            assert!(refused.reason.contains("not reached by https") && !refused.passing, "{refused:?}");
            assert!(was_asked.try_recv().is_err(), "the token service was asked");
        }
    }

    /// A token service that never answers for the repository `slow`, fails for `fails`, and counts how often it is asked.
    async fn odd_service() -> (String, Arc<AtomicUsize>) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let realm = format!("Bearer realm=\"http://{}/token\"", listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let mut request = [0; 4096];
                let got = stream.read(&mut request).await.unwrap();
                let request = String::from_utf8_lossy(&request[..got]).into_owned();
                if request.contains("slow") {
                    held.push(stream);
                    continue;
                }
                let status = if request.contains("fails") { 500 } else { 200 };
                let head = format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: 13\r\n\r\n");
                stream.write_all(format!("{head}{{\"token\":\"t\"}}").as_bytes()).await.unwrap();
            }
        });
        (realm, asked)
    }

    #[tokio::test]
    async fn who_waits_for_a_token_keeps_nobody_else_waiting_and_shares_what_comes() {
        let (realm, asked) = odd_service().await;
        let (auth, challenges) = (auth("http", None), [realm]);
        let asked = || asked.load(Ordering::SeqCst);
        assert!(auth.answer("known", &challenges, None).await.unwrap().is_some());
        let slow = || auth.answer("slow", &challenges, None);
        let others = async {
            while asked() < 2 {
                tokio::task::yield_now().await;
            }
            assert!(auth.granted("known").is_some());
            assert!(auth.answer("other", &challenges, None).await.unwrap().is_some());
            assert_eq!(asked(), 3, "of the two that want the same one asks");
        };
        tokio::select! {
            biased;
            both = async { tokio::join!(slow(), slow()) } => panic!("the others wait for it: {both:?}"),
            () = others => {}
        }
        let (first, second) =
            tokio::join!(auth.answer("fails", &challenges, None), auth.answer("fails", &challenges, None));
        assert_eq!(asked(), 4, "one has asked for both");
        assert!(
            [first, second].iter().all(|failed| failed.as_ref().is_err_and(|it| it.reason.contains("500")))
        );
    }

    #[tokio::test]
    async fn tokens_are_read_within_bounds() {
        let (realm, _asked) = token_service(br#"{"token":"t"}"#.to_vec());
        let token = auth("http", None).answer("app", &[realm], None).await.unwrap().unwrap();
        assert_eq!(token, "Bearer t");
        let (realm, _asked) = token_service(vec![b' '; 2 << 20]);
        let refused = auth("http", None).answer("app", &[realm], None).await.unwrap_err();
        assert!(refused.reason.contains("larger than"), "{refused:?}");
    }
}
