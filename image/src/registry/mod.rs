//! Talking to registries: which hosts are asked, as whom, and what comes back, bounded.
//!
//! `oci-client` (in the workspace under the name `oci-distribution`) defines the types of manifests, indexes
//! and errors. Tokens, manifests, configurations and blobs are fetched with `reqwest` directly, because
//! oci-client reads bodies without a bound, knows neither mirrors with paths, headers or client certificates
//! nor `Retry-After`, and hashes blobs a second time.
//!
//! Invariants: credentials given for one pull are used by that (registry, credentials) pair only, go to
//! the registry itself and never to its mirrors, and are dropped when a redirect leaves the host; what began
//! on https never goes on by plain http. Every
//! body is bounded; every wait is bounded.
//!
//! Does not interpret manifests and writes no files.

mod auth;
pub(crate) mod challenge;
mod client;
mod download;
mod trouble;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use client::{Ask, Failure, HostClient};
pub(crate) use download::{Came, Source, Wish};

pub(crate) use crate::credentials::Credentials;

use crate::{
    credentials::{Finder, Found},
    digest::Digest,
    error::{ErrorKind, ImageError},
    hosts::{self, Host},
    pull::{Counters, add},
    reference::Reference,
};

/// Largest manifest or index, in bytes (the bound registries themselves use).
pub(crate) const MAX_MANIFEST: u64 = 4 << 20;
/// Largest image configuration, in bytes.
pub(crate) const MAX_CONFIG: u64 = 8 << 20;
/// Attempts at one request before the next host is tried.
const ATTEMPTS: u32 = 5;
/// Longest time that a host may ask us to wait; who wants more is not asked again by this pull.
const LONGEST_REST: Duration = Duration::from_secs(60);
/// The same where a further host can be asked.
const ATTEMPTS_WITH_OTHERS: u32 = 2;
/// Clients kept for later pulls.
const KEPT: usize = 64;

/// All registries, and the connections and tokens that later pulls can use again.
pub(crate) struct Registry {
    hosts_dirs: Vec<PathBuf>,
    credentials: Finder,
    /// How long a connection may be silent, and the window in which a download must move.
    stall: Duration,
    counters: Arc<Counters>,
    transports: Mutex<HashMap<Host, reqwest::Client>>,
    clients: Mutex<HashMap<(Host, auth::Fingerprint), Arc<HostClient>>>,
}

impl Registry {
    pub(crate) fn new(
        hosts_dirs: Vec<PathBuf>,
        credentials: Finder,
        stall: Duration,
        counters: Arc<Counters>,
    ) -> Self {
        // Fails when the process has chosen a provider already, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (transports, clients) = (Mutex::default(), Mutex::default());
        Self { hosts_dirs, credentials, stall, counters, transports, clients }
    }

    /// Prepares to fetch one image with one caller's credentials. Reads the registry's `hosts.toml`, and this
    /// machine's credentials where the caller has none to give: for mirrors, too, which never see the caller's.
    pub(crate) async fn session(
        &self,
        reference: &Reference,
        credentials: Option<Credentials>,
    ) -> Result<Session, ImageError> {
        let (dirs, registry) = (self.hosts_dirs.clone(), reference.registry().to_owned());
        let hosts = tokio::task::spawn_blocking(move || hosts::hosts_for(&dirs, &registry))
            .await
            .map_err(|_| ImageError::Cancelled(reference.to_string()))??;
        let (mut clients, mut troubles) = (Vec::new(), Vec::new());
        for host in hosts {
            let found = match (&credentials, host.upstream) {
                (Some(given), true) => Found { credentials: Some(given.clone()), ..Found::default() },
                (None, true) => self.credentials.find(reference.registry(), reference.repository()).await,
                (_, false) => self.credentials.find(&host.authority, reference.repository()).await,
            };
            troubles.extend(found.troubles);
            clients.push(self.client(host, found.credentials, reference)?);
        }
        troubles.dedup();
        let clients = clients.into_iter().map(|client| (client, AtomicBool::new(false))).collect();
        let (reference, counters) = (reference.clone(), Arc::clone(&self.counters));
        Ok(Session { reference, clients, troubles, stall: self.stall, counters })
    }

    /// The client for a host and credentials; the one made earlier when there is one.
    fn client(
        &self,
        host: Host,
        credentials: Option<Credentials>,
        reference: &Reference,
    ) -> Result<Arc<HostClient>, ImageError> {
        let key = (host.clone(), auth::fingerprint(credentials.as_ref()));
        if let Some(client) = self.clients.lock().expect("no panics under this lock").get(&key) {
            return Ok(Arc::clone(client));
        }
        let known = self.transports.lock().expect("no panics under this lock").get(&host).cloned();
        let refuse = |reason: String| ImageError::Registry {
            reference: reference.to_string(),
            host: host.authority.clone(),
            reason,
            kind: ErrorKind::FailedPrecondition,
        };
        let transport = match known {
            Some(transport) => transport,
            None => client::transport(&host).map_err(refuse)?,
        };
        let client = Arc::new(HostClient::new(host.clone(), transport.clone(), credentials));
        let mut transports = self.transports.lock().expect("no panics under this lock");
        if transports.len() >= KEPT {
            transports.clear();
        }
        transports.insert(host.clone(), transport);
        drop(transports);
        let mut clients = self.clients.lock().expect("no panics under this lock");
        if clients.len() >= KEPT {
            clients.clear();
        }
        Ok(Arc::clone(clients.entry(key).or_insert(client)))
    }
}

/// One image at its registry, seen with one caller's credentials.
pub(crate) struct Session {
    pub(crate) reference: Reference,
    /// The hosts, and whether they could not be reached.
    clients: Vec<(Arc<HostClient>, AtomicBool)>,
    /// Why credentials of this machine could not be used.
    troubles: Vec<String>,
    stall: Duration,
    counters: Arc<Counters>,
}

/// A manifest or index as the registry gave it.
pub(crate) struct Document {
    pub(crate) digest: Digest,
    pub(crate) media_type: Option<String>,
    pub(crate) body: Vec<u8>,
}

impl Session {
    /// Fetches what the reference names: by its digest, which is checked, or by its tag.
    pub(crate) async fn resolve(&self) -> Result<Document, ImageError> {
        self.manifest(self.reference.target(), self.reference.digest()).await
    }

    /// Fetches a manifest by digest.
    pub(crate) async fn manifest_by_digest(&self, digest: &Digest) -> Result<Document, ImageError> {
        self.manifest(digest.as_str(), Some(digest)).await
    }

    async fn manifest(&self, target: &str, digest: Option<&Digest>) -> Result<Document, ImageError> {
        let ask = Ask { path: format!("manifests/{target}"), accept: client::MANIFESTS, offset: 0 };
        let by_tag = digest.is_none();
        let (body, headers) = self.document(&ask, MAX_MANIFEST, digest, by_tag).await?;
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let digest = match (digest, claimed(&headers)) {
            (Some(digest), _) => digest.clone(),
            (None, Some(claimed)) => claimed,
            (None, None) => Digest::of(&body),
        };
        let media_type = header("content-type").map(|t| t.split(';').next().unwrap_or(t).trim().to_owned());
        Ok(Document { digest, media_type, body })
    }

    /// Fetches a small blob whole; the digest is checked.
    pub(crate) async fn small_blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, ImageError> {
        let ask = Ask { path: format!("blobs/{digest}"), accept: client::ANYTHING, offset: 0 };
        Ok(self.document(&ask, limit, Some(digest), false).await?.0)
    }

    /// The hosts that may be asked, in order: for tags, or for content by digest. One that could not be
    /// reached is left out as long as there are others.
    fn hosts(&self, by_tag: bool) -> Vec<&Arc<HostClient>> {
        let able = |host: &Host| if by_tag { host.resolve } else { host.pull };
        let all = || self.clients.iter().filter(|(client, _)| able(&client.host));
        let up: Vec<_> = all().filter(|(_, down)| !down.load(Ordering::Relaxed)).collect();
        let chosen = if up.is_empty() { all().collect() } else { up };
        chosen.into_iter().map(|(client, _)| client).collect()
    }

    /// Remembers that a host could not be reached.
    fn is_down(&self, down: &Arc<HostClient>) {
        for (_, flag) in self.clients.iter().filter(|(client, _)| Arc::ptr_eq(client, down)) {
            flag.store(true, Ordering::Relaxed);
        }
    }

    /// Asks the hosts in order until one has it. When none has, the last one's answer counts if it is the registry
    /// itself; otherwise all of them do. One that is followed by others is not asked long.
    async fn document(
        &self,
        ask: &Ask<'_>,
        limit: u64,
        digest: Option<&Digest>,
        by_tag: bool,
    ) -> Result<(Vec<u8>, reqwest::header::HeaderMap), ImageError> {
        let mut failed = Vec::new();
        let hosts = self.hosts(by_tag);
        for (index, client) in hosts.iter().enumerate() {
            let is_last = index + 1 == hosts.len();
            let mut retry = Retry { attempts: if is_last { 0 } else { ATTEMPTS - ATTEMPTS_WITH_OTHERS } };
            loop {
                let failure = match self.attempt(client, ask, limit, digest).await {
                    Ok(found) => return Ok(found),
                    Err(failure) => failure,
                };
                let error = failure.error;
                tracing::debug!(host = %client.host.authority, %error, "registry request failed");
                if failure.unreachable {
                    self.is_down(client);
                }
                let again = failure.retry.filter(|_| is_last || !failure.unreachable);
                let pause = match again {
                    Some(after) => retry.pause(after).await,
                    None => false,
                };
                if !pause {
                    failed.push(error);
                    break;
                }
                add(&self.counters.retries, 1);
            }
        }
        let decides = hosts.last().is_some_and(|client| client.host.upstream);
        Err(self.in_one(failed, decides))
    }

    /// The last error, with what the hosts before said, and why there were no credentials. `decides`: the last was
    /// the registry itself.
    fn in_one(&self, mut errors: Vec<ImageError>, decides: bool) -> ImageError {
        let kinds: Vec<ErrorKind> = errors.iter().map(ImageError::kind).collect();
        let Some(mut last) = errors.pop() else { return self.no_host() };
        if let ImageError::Registry { reason, kind, .. } = &mut last {
            if !decides {
                *kind = ErrorKind::of_all(&kinds);
            }
            for error in &errors {
                if let ImageError::Registry { host, reason: said, .. } = error {
                    reason.push_str(&format!("; asked before, {host}: {said}"));
                }
            }
            if *kind == ErrorKind::Unauthenticated && !self.troubles.is_empty() {
                let troubles = self.troubles.join("; ");
                reason.push_str(&format!("; credentials of this machine could not be used: {troubles}"));
            }
        }
        last
    }

    async fn attempt(
        &self,
        client: &HostClient,
        ask: &Ask<'_>,
        limit: u64,
        digest: Option<&Digest>,
    ) -> Result<(Vec<u8>, reqwest::header::HeaderMap), Failure> {
        let whole = async {
            let response = client.get(&self.reference, ask, self.stall).await?;
            let headers = response.headers().clone();
            let body = client::read_bounded(response, limit).await;
            Ok((body.map_err(|error| client.body_failure(&self.reference, &ask.path, error))?, headers))
        };
        let limit = self.stall.saturating_mul(2);
        let (body, headers) = tokio::time::timeout(limit, whole)
            .await
            .unwrap_or_else(|_| Err(client.silent(&self.reference, &ask.path, limit)))?;
        match digest.cloned().or_else(|| claimed(&headers)) {
            Some(promised) if !promised.matches(&body) => {
                let reason = format!(
                    "{} has the digest {}, not {promised}: the host or a proxy before it serves damaged or other content",
                    ask.path,
                    Digest::of(&body)
                );
                Err(client.failure(&self.reference, ErrorKind::DataLoss, reason, None))
            }
            _ => Ok((body, headers)),
        }
    }

    fn no_host(&self) -> ImageError {
        let reason = "no host is configured that may be asked; look at 'capabilities' in its hosts.toml";
        ImageError::image(&self.reference, ErrorKind::FailedPrecondition, reason)
    }
}

/// The digest that a host says its manifest has.
fn claimed(headers: &reqwest::header::HeaderMap) -> Option<Digest> {
    Digest::parse(headers.get("docker-content-digest")?.to_str().ok()?).ok()
}

/// Bounded attempts with growing pauses.
#[derive(Default)]
struct Retry {
    attempts: u32,
}

impl Retry {
    /// Waits before the next attempt, at least as long as the host asked for; false when there were
    /// enough attempts, or when the host wants to be left alone for longer than a caller waits.
    async fn pause(&mut self, asked: Option<Duration>) -> bool {
        let asked = asked.unwrap_or_default();
        self.attempts += 1;
        if self.attempts >= ATTEMPTS || asked > LONGEST_REST {
            return false;
        }
        tokio::time::sleep(self.step().max(asked)).await;
        true
    }

    /// Between half of and one and a half times a span that doubles: clients that failed together shall not
    /// come back together.
    fn step(&self) -> Duration {
        let step = Duration::from_millis(200 << self.attempts.min(6));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        step / 2 + step.mul_f64(f64::from(now.subsec_micros() % 1000) / 1000.0)
    }
}
