//! One host, one caller: a GET with redirects, challenges and statuses turned into clear failures.

use std::{fmt::Write as _, time::Duration};

use oci_distribution::{errors::OciEnvelope, manifest as media};
use reqwest::{
    Response, StatusCode, Url,
    header::{
        ACCEPT, AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, LOCATION, RANGE, RETRY_AFTER,
        WWW_AUTHENTICATE,
    },
};

use super::{
    auth::Auth,
    trouble::{causes, unknown_name},
};
use crate::{
    credentials::Credentials,
    error::{ErrorKind, ImageError},
    hosts::{self, Host},
    reference::Reference,
};

pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
pub(super) const USER_AGENT: &str = concat!("podhold/", env!("CARGO_PKG_VERSION"));
/// Redirects followed for one request.
const MAX_REDIRECTS: usize = 5;
/// Largest part of an error's body that is read, in bytes.
const MAX_ERROR: u64 = 64 << 10;

/// What may come back when a manifest is asked for.
pub(super) const MANIFESTS: &[&str] = &[
    media::OCI_IMAGE_INDEX_MEDIA_TYPE,
    media::OCI_IMAGE_MEDIA_TYPE,
    media::IMAGE_MANIFEST_LIST_MEDIA_TYPE,
    media::IMAGE_MANIFEST_MEDIA_TYPE,
    "*/*",
];
pub(super) const ANYTHING: &[&str] = &["*/*"];

/// One question about a repository.
pub(super) struct Ask<'a> {
    /// `manifests/X` or `blobs/X`.
    pub(super) path: String,
    pub(super) accept: &'a [&'a str],
    /// The first byte wanted.
    pub(super) offset: u64,
}

/// A request that failed.
pub(super) struct Failure {
    pub(super) error: ImageError,
    /// Whether it may succeed when repeated, and how long the host wants us to wait.
    pub(super) retry: Option<Option<Duration>>,
    /// Whether no connection came about.
    pub(super) unreachable: bool,
}

/// A host, with connections and the answer to its challenges.
pub(super) struct HostClient {
    pub(super) host: Host,
    transport: reqwest::Client,
    auth: Auth,
}

/// Makes the connections' settings for a host.
pub(super) fn transport(host: &Host) -> Result<reqwest::Client, String> {
    let build = |system_roots: bool| -> Result<reqwest::Client, String> {
        let mut builder = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .connect_timeout(host.dial_timeout.unwrap_or(CONNECT_TIMEOUT))
            .pool_idle_timeout(Duration::from_secs(30))
            // Followed by hand: headers meant for this host must not reach others.
            .redirect(reqwest::redirect::Policy::none())
            // Several parallel streams over one HTTP/2 connection share one window and one core.
            .http1_only()
            .tls_danger_accept_invalid_certs(host.skip_verify);
        for pem in &host.ca {
            let bundle = reqwest::Certificate::from_pem_bundle(pem);
            let bundle = bundle.map_err(|error| format!("a certificate of 'ca' cannot be used: {error}"))?;
            builder = builder.tls_certs_merge(bundle);
        }
        if let Some(pem) = &host.client {
            let identity = reqwest::Identity::from_pem(pem);
            builder =
                builder.identity(identity.map_err(|error| format!("'client' cannot be used: {error}"))?);
        }
        if !system_roots {
            builder = builder.tls_certs_only([]);
        }
        builder.build().map_err(|error| format!("its client cannot be made: {}", causes(error)))
    };
    match build(true) {
        // A machine without certificate authorities can still speak plain http.
        Err(_) if host.scheme == "http" => build(false),
        other => other,
    }
}

impl HostClient {
    pub(super) fn new(host: Host, transport: reqwest::Client, credentials: Option<Credentials>) -> Self {
        let auth = Auth::new(&host, transport.clone(), credentials);
        Self { host, transport, auth }
    }

    /// Asks, answers one challenge, follows redirects. The response has status 200 or 206, or 416 when a part was
    /// asked for.
    pub(super) async fn get(
        &self,
        reference: &Reference,
        ask: &Ask<'_>,
        silence: Duration,
    ) -> Result<Response, Failure> {
        let repository = reference.repository();
        let own = self.url(reference, &ask.path)?.origin();
        let mut authorization = self.auth.granted(repository);
        let mut answered = false;
        loop {
            let sending = self.follow(reference, ask, authorization.as_ref());
            let response = tokio::time::timeout(silence, sending)
                .await
                .unwrap_or_else(|_| Err(self.silent(reference, &ask.path, silence)))?;
            match response.status() {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(response),
                StatusCode::RANGE_NOT_SATISFIABLE if ask.offset > 0 => return Ok(response),
                // A challenge of whom a redirect led to is none of this host's: it is not told who we are.
                StatusCode::UNAUTHORIZED if !answered && response.url().origin() == own => {
                    let headers = response.headers().get_all(WWW_AUTHENTICATE);
                    let challenges: Vec<String> =
                        headers.iter().filter_map(|v| v.to_str().ok()).map(str::to_owned).collect();
                    let answer = self.auth.answer(repository, &challenges, authorization.as_ref());
                    let answer = answer.await.map_err(|no| {
                        let retry = no.passing.then_some(None);
                        self.failure(reference, ErrorKind::Unavailable, no.reason, retry)
                    })?;
                    let Some(answer) = answer else {
                        return Err(self.refused(reference, &ask.path, response).await);
                    };
                    authorization = Some(answer);
                    answered = true;
                }
                _ => return Err(self.refused(reference, &ask.path, response).await),
            }
        }
    }

    /// Sends the request and follows redirects. Beyond this host only `Accept` and `Range` are sent.
    async fn follow(
        &self,
        reference: &Reference,
        ask: &Ask<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, Failure> {
        let unreachable = |error: reqwest::Error| {
            let kind = ErrorKind::Unavailable;
            let unreachable = error.is_connect();
            let hint = if unreachable { "cannot be reached" } else { "broke off" };
            let reason = unknown_name(&error)
                .unwrap_or_else(|| format!("{}: {hint}: {}", ask.path, causes(error.without_url())));
            Failure { unreachable, ..self.failure(reference, kind, reason, Some(None)) }
        };
        let mut url = self.url(reference, &ask.path)?;
        let mut own = self.headers(reference, authorization)?;
        for _ in 0..=MAX_REDIRECTS {
            let mut request =
                self.transport.get(url.clone()).headers(own.clone()).header(ACCEPT, ask.accept.join(", "));
            if ask.offset > 0 {
                request = request.header(RANGE, format!("bytes={}-", ask.offset));
            }
            let response = request.send().await.map_err(unreachable)?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let target = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let next = redirected(&url, target).map_err(|reason| {
                let reason = format!("{}: {reason}", ask.path);
                self.failure(reference, ErrorKind::FailedPrecondition, reason, None)
            })?;
            if next.origin() != url.origin() {
                own = HeaderMap::new();
            }
            url = next;
        }
        let reason = format!("{}: it redirects more than {MAX_REDIRECTS} times", ask.path);
        Err(self.failure(reference, ErrorKind::Unavailable, reason, None))
    }

    fn url(&self, reference: &Reference, path: &str) -> Result<Url, Failure> {
        let Host { scheme, authority, path: prefix, .. } = &self.host;
        let mut text = format!("{scheme}://{authority}{prefix}/{}/{path}", reference.repository());
        if *authority != hosts::authority_of(reference.registry()) {
            // Tells a mirror of several registries which one is meant (containerd's convention).
            let _ = write!(text, "?ns={}", reference.registry());
        }
        Url::parse(&text).map_err(|error| {
            self.failure(
                reference,
                ErrorKind::FailedPrecondition,
                format!("{text:?} is not a URL: {error}"),
                None,
            )
        })
    }

    /// What is for this host alone.
    fn headers(
        &self,
        reference: &Reference,
        authorization: Option<&HeaderValue>,
    ) -> Result<HeaderMap, Failure> {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.host.headers {
            let header = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value));
            let (Ok(name), Ok(value)) = header else {
                let reason =
                    format!("hosts.toml: header {name:?} cannot be sent; it holds forbidden characters");
                return Err(self.failure(reference, ErrorKind::FailedPrecondition, reason, None));
            };
            headers.append(name, value);
        }
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        Ok(headers)
    }

    /// A status that is neither 200 nor 206, with the mend.
    async fn refused(&self, reference: &Reference, path: &str, response: Response) -> Failure {
        let status = response.status();
        let after = response.headers().get(RETRY_AFTER).and_then(|value| rest(value.to_str().ok()?));
        let body = tokio::time::timeout(CONNECT_TIMEOUT, read_bounded(response, MAX_ERROR)).await;
        let said = body.ok().and_then(Result::ok).map(|body| said(&body)).unwrap_or_default();
        let (kind, mend, retry) = match status.as_u16() {
            401 if self.auth.has_credentials() => (
                ErrorKind::Unauthenticated,
                "it does not accept the credentials, or there is no such image; check the pull secret and the name",
                None,
            ),
            401 => (
                ErrorKind::Unauthenticated,
                "it wants credentials, or there is no such image; add a pull secret or check the name",
                None,
            ),
            403 => (
                ErrorKind::PermissionDenied,
                "it does not allow this to the caller; check the rights of the pull secret",
                None,
            ),
            404 => (ErrorKind::NotFound, "it has no such image or content; check name, tag and digest", None),
            429 => (
                ErrorKind::ResourceExhausted,
                "it limits the rate of requests; try again later or log in",
                Some(after),
            ),
            408 | 500..=599 => (ErrorKind::Unavailable, "it is in trouble; try again later", Some(after)),
            _ => (ErrorKind::FailedPrecondition, "it is perhaps no registry; check the host", None),
        };
        let wait =
            after.map(|after| format!(" (it asks for {} s of rest)", after.as_secs())).unwrap_or_default();
        self.failure(reference, kind, format!("{path}: {status}: {mend}{wait}{said}"), retry)
    }

    pub(super) fn body_failure(&self, reference: &Reference, path: &str, error: BodyError) -> Failure {
        let (kind, retry) = match error {
            BodyError::TooLarge(_) => (ErrorKind::ResourceExhausted, None),
            BodyError::Broken(_) => (ErrorKind::Unavailable, Some(None)),
        };
        self.failure(reference, kind, format!("{path}: {error}"), retry)
    }

    pub(super) fn silent(&self, reference: &Reference, path: &str, silence: Duration) -> Failure {
        let reason = format!("{path}: no answer within {} s", silence.as_secs_f32());
        self.failure(reference, ErrorKind::Unavailable, reason, Some(None))
    }

    pub(super) fn failure(
        &self,
        reference: &Reference,
        kind: ErrorKind,
        reason: String,
        retry: Option<Option<Duration>>,
    ) -> Failure {
        Failure { error: self.error(reference, kind, reason), retry, unreachable: false }
    }

    pub(super) fn error(&self, reference: &Reference, kind: ErrorKind, reason: String) -> ImageError {
        ImageError::Registry { reference: reference.to_string(), host: self.address(), reason, kind }
    }

    /// The host as messages name it.
    pub(super) fn address(&self) -> String {
        let Host { scheme, authority, path, .. } = &self.host;
        format!("{scheme}://{authority}{}", path.strip_suffix("/v2").unwrap_or(path))
    }
}

/// Where a redirect leads. What was asked for by https is not taken from plain http, where anybody on the way
/// could read it and put something else in its place.
fn redirected(from: &Url, target: Option<&str>) -> Result<Url, &'static str> {
    let next = target.and_then(|target| from.join(target).ok());
    match next.filter(|url| matches!(url.scheme(), "http" | "https")) {
        None => Err("it redirects to nowhere"),
        Some(next) if from.scheme() == "https" && next.scheme() == "http" => Err(
            "it redirects from https to plain http, which is not followed; make its storage reachable by https",
        ),
        Some(next) => Ok(next),
    }
}

/// How long a host wants to be left alone: seconds, or until a date (RFC 9110, Retry-After).
fn rest(text: &str) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = chrono::DateTime::parse_from_rfc2822(text).ok()?;
    let until = std::time::UNIX_EPOCH + Duration::from_secs(u64::try_from(until.timestamp()).ok()?);
    Some(until.duration_since(std::time::SystemTime::now()).unwrap_or_default())
}

/// What a registry says about an error, for the end of a message.
fn said(body: &[u8]) -> String {
    let Ok(envelope) = serde_json::from_slice::<OciEnvelope>(body) else { return String::new() };
    let text: String = envelope
        .errors
        .iter()
        .map(|e| e.message.as_str())
        .filter(|m| !m.is_empty())
        .collect::<Vec<_>>()
        .join("; ");
    let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
    if text.is_empty() { text } else { format!(" (it says: {text})") }
}

/// Why a body could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error("the answer is larger than {0} bytes, which nothing of this kind is")]
    TooLarge(u64),
    #[error("the answer broke off: {0}")]
    Broken(String),
}

/// Reads a whole body of at most `limit` bytes.
pub(super) async fn read_bounded(mut response: Response, limit: u64) -> Result<Vec<u8>, BodyError> {
    if response.content_length().is_some_and(|length| length > limit) {
        return Err(BodyError::TooLarge(limit));
    }
    let mut body = Vec::new();
    while let Some(chunk) =
        response.chunk().await.map_err(|error| BodyError::Broken(causes(error.without_url())))?
    {
        if body.len() as u64 + chunk.len() as u64 > limit {
            return Err(BodyError::TooLarge(limit));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_for_rest_is_in_seconds_or_a_date() {
        let seconds = |text: &str| rest(text).map(|rest| rest.as_secs());
        assert_eq!(seconds("7"), Some(7));
        assert_eq!(seconds(" 0 "), Some(0));
        assert_eq!(seconds("Wed, 21 Oct 2015 07:28:00 GMT"), Some(0));
        assert!(seconds("Fri, 31 Dec 2100 23:59:59 GMT").is_some_and(|rest| rest > 1_000_000));
        for bad in ["", "soon", "-1", "1.5", "Wed, 99 Oct 2015 07:28:00 GMT"] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }

    #[test]
    fn redirects_never_leave_https_for_http() {
        let from = |scheme: &str| Url::parse(&format!("{scheme}://registry.test/v2/app/blobs/x")).unwrap();
        for (scheme, target, expected) in [
            ("https", Some("https://storage.test/x"), Ok("https://storage.test/x")),
            ("https", Some("/x"), Ok("https://registry.test/x")),
            ("https", Some("//storage.test/x"), Ok("https://storage.test/x")),
            ("http", Some("http://storage.test/x"), Ok("http://storage.test/x")),
            ("http", Some("https://storage.test/x"), Ok("https://storage.test/x")),
            ("https", Some("http://registry.test/x"), Err("plain http")),
            ("https", Some("HTTP://127.0.0.1/x"), Err("plain http")),
            ("https", Some("file:///etc/passwd"), Err("nowhere")),
            ("https", None, Err("nowhere")),
        ] {
            match (redirected(&from(scheme), target), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found.as_str(), expected),
                (Err(found), Err(part)) => assert!(found.contains(part), "{found}"),
                (found, _) => panic!("{scheme} to {target:?}: {found:?}"),
            }
        }
    }
}
