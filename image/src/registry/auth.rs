//! Who we are to a host: answers its challenges with the caller's credentials.
//!
//! Every kind of credentials goes through one exchange: oci-client's own cannot exchange identity tokens,
//! knows nothing of the headers, client certificates and paths of `hosts.toml`, does not bound what it reads,
//! and sends credentials to a token service on plain http although the registry is on https.
//!
//! Invariant: to a host on https, nothing is sent but by https.

use std::{collections::HashMap, fmt, time::Duration};

use http_auth::ChallengeParser;
use reqwest::header::HeaderValue;
use sha2::{Digest as _, Sha256};

use super::client::read_bounded;
use crate::hosts::Host;

/// Longest wait for a token.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(15);
/// Largest answer of a token service, in bytes.
const MAX_TOKEN: u64 = 1 << 20;

/// What a caller proves itself with to a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A user's name and password (or personal token).
    Basic {
        /// The name.
        username: String,
        /// The password.
        password: String,
    },
    /// A long-lived token that the registry's token service exchanges for a short-lived one.
    IdentityToken(String),
    /// A token to be sent to the registry as it is.
    RegistryToken(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic(redacted)",
            Self::IdentityToken(_) => "IdentityToken(redacted)",
            Self::RegistryToken(_) => "RegistryToken(redacted)",
        })
    }
}

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
    /// The `Authorization` value in use, by repository.
    granted: tokio::sync::Mutex<HashMap<String, HeaderValue>>,
}

impl Auth {
    pub(super) fn new(host: &Host, transport: reqwest::Client, credentials: Option<Credentials>) -> Self {
        Self { host: host.clone(), transport, credentials, granted: tokio::sync::Mutex::default() }
    }

    /// Whether the caller brought credentials.
    pub(super) fn has_credentials(&self) -> bool {
        self.credentials.is_some()
    }

    /// The `Authorization` value that worked last.
    pub(super) async fn granted(&self, repository: &str) -> Option<HeaderValue> {
        self.granted.lock().await.get(repository).cloned()
    }

    /// Answers a 401. `refused` is the value that was sent and not accepted. `None`: there is no answer
    /// to this challenge with these credentials.
    pub(super) async fn answer(
        &self,
        repository: &str,
        challenges: &[String],
        refused: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, String> {
        let mut granted = self.granted.lock().await;
        if let Some(newer) = granted.get(repository).filter(|value| Some(*value) != refused) {
            return Ok(Some(newer.clone()));
        }
        let exchange = self.exchange(repository, challenges);
        let value = tokio::time::timeout(TOKEN_TIMEOUT, exchange).await.map_err(|_| {
            format!("its token service did not answer within {} s", TOKEN_TIMEOUT.as_secs())
        })??;
        match value.filter(|value| Some(value) != refused) {
            Some(value) => {
                granted.insert(repository.to_owned(), value.clone());
                Ok(Some(value))
            }
            None => {
                granted.remove(repository);
                Ok(None)
            }
        }
    }

    async fn exchange(&self, repository: &str, challenges: &[String]) -> Result<Option<HeaderValue>, String> {
        if let Some(Credentials::RegistryToken(token)) = &self.credentials {
            return bearer(token).map(Some);
        }
        let Some(challenge) = Bearer::find(challenges) else {
            let basic = challenges.iter().any(|c| c.trim_start().to_ascii_lowercase().starts_with("basic"));
            return match &self.credentials {
                Some(Credentials::Basic { username, password }) if basic => {
                    self.basic(username, password).map(Some)
                }
                _ => Ok(None),
            };
        };
        self.token(repository, &challenge).await
    }

    /// A basic `Authorization` value. reqwest knows how to write it; a request never sent carries it out.
    fn basic(&self, username: &str, password: &str) -> Result<HeaderValue, String> {
        let request = self.transport.get("http://localhost/").basic_auth(username, Some(password)).build();
        let request = request.map_err(|_| "the credentials cannot be sent".to_owned())?;
        request
            .headers()
            .get("authorization")
            .cloned()
            .ok_or_else(|| "the credentials cannot be sent".to_owned())
    }

    /// The token exchange (distribution, docs/spec/auth/token.md and oauth.md).
    async fn token(&self, repository: &str, challenge: &Bearer) -> Result<Option<HeaderValue>, String> {
        let mut url =
            reqwest::Url::parse(&challenge.realm).map_err(|_| "the realm of its challenge is no URL")?;
        if self.host.scheme == "https" && url.scheme() != "https" {
            return Err("its token service is not reached by https, so nothing is sent there".to_owned());
        }
        let scope = challenge.scope.clone().unwrap_or_else(|| format!("repository:{repository}:pull"));
        let mut pairs = vec![("scope", scope)];
        pairs.extend(challenge.service.clone().map(|service| ("service", service)));
        let request = match &self.credentials {
            Some(Credentials::IdentityToken(token)) => {
                pairs.push(("grant_type", "refresh_token".to_owned()));
                pairs.push(("refresh_token", token.clone()));
                pairs.push(("client_id", "podhold".to_owned()));
                let mut form = url.clone();
                form.query_pairs_mut().clear().extend_pairs(&pairs);
                let body = form.query().unwrap_or_default().to_owned();
                self.transport
                    .post(url)
                    .header("content-type", "application/x-www-form-urlencoded")
                    .body(body)
            }
            Some(Credentials::Basic { username, password }) => {
                url.query_pairs_mut().extend_pairs(&pairs);
                self.transport.get(url).basic_auth(username, Some(password))
            }
            _ => {
                url.query_pairs_mut().extend_pairs(&pairs);
                self.transport.get(url)
            }
        };
        let asked = |error: reqwest::Error| {
            format!("its token service cannot be asked: {}", super::client::causes(error.without_url()))
        };
        let response = request.send().await.map_err(asked)?;
        match response.status().as_u16() {
            200 => {}
            400 | 401 | 403 => return Ok(None),
            status => return Err(format!("its token service answers {status}")),
        }
        let body =
            read_bounded(response, MAX_TOKEN).await.map_err(|error| format!("its token service: {error}"))?;
        let token: Token =
            serde_json::from_slice(&body).map_err(|_| "its token service gave no token".to_owned())?;
        let token = token.access_token.or(token.token).ok_or("its token service gave no token")?;
        bearer(&token).map(Some)
    }
}

#[derive(serde::Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// A bearer challenge (RFC 6750 and distribution, docs/spec/auth/token.md).
struct Bearer {
    realm: String,
    service: Option<String>,
    scope: Option<String>,
}

impl Bearer {
    fn find(challenges: &[String]) -> Option<Self> {
        let parsed = challenges.iter().flat_map(|text| ChallengeParser::new(text).map_while(Result::ok));
        for challenge in parsed.filter(|c| c.scheme.eq_ignore_ascii_case("bearer")) {
            let param = |name: &str| {
                let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped())
            };
            if let Some(realm) = param("realm") {
                return Some(Self { realm, service: param("service"), scope: param("scope") });
            }
        }
        None
    }
}

fn bearer(token: &str) -> Result<HeaderValue, String> {
    sensitive(format!("Bearer {token}"))
}

fn sensitive(text: String) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_str(&text)
        .map_err(|_| "the token holds characters that cannot be sent".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_never_show_in_debug_output() {
        let all = [
            Credentials::Basic { username: "user-x".into(), password: "pass-x".into() },
            Credentials::IdentityToken("pass-x".into()),
            Credentials::RegistryToken("pass-x".into()),
        ];
        assert!(!format!("{all:?}").contains("-x"));
    }

    #[test]
    fn the_bearer_challenge_is_found_among_others() {
        let texts = [
            "Basic realm=\"x\"".to_owned(),
            "Bearer realm=\"https://t/\",service=\"s\",scope=\"a:b:c\"".to_owned(),
        ];
        let found = Bearer::find(&texts).unwrap();
        assert_eq!(
            (found.realm.as_str(), found.service.as_deref(), found.scope.as_deref()),
            ("https://t/", Some("s"), Some("a:b:c"))
        );
        assert!(Bearer::find(&texts[..1]).is_none());
    }

    fn auth(scheme: &str, credentials: Option<Credentials>) -> Auth {
        let host = Host {
            scheme: scheme.to_owned(),
            authority: "registry.test".to_owned(),
            path: "/v2".to_owned(),
            resolve: true,
            pull: true,
            upstream: true,
            ca: Vec::new(),
            client: None,
            skip_verify: false,
            headers: Vec::new(),
        };
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
            assert!(refused.contains("not reached by https"), "{refused}");
            assert!(was_asked.try_recv().is_err(), "the token service was asked");
        }
    }

    #[tokio::test]
    async fn tokens_are_read_within_bounds() {
        let (realm, _asked) = token_service(br#"{"token":"t"}"#.to_vec());
        let token = auth("http", None).answer("app", &[realm], None).await.unwrap().unwrap();
        assert_eq!(token, "Bearer t");
        let (realm, _asked) = token_service(vec![b' '; 2 << 20]);
        let refused = auth("http", None).answer("app", &[realm], None).await.unwrap_err();
        assert!(refused.contains("larger than"), "{refused}");
    }
}
