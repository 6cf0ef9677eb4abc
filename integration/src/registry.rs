//! A private registry: Debian's `docker-registry` on the loopback address, and pushing images to it.
//!
//! Speaks plain HTTP to 127.0.0.1 only. The storage directory outlives the process, so that images
//! pushed once can be served read-only to many tests.

use std::{
    fs, io,
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::images::{Blob, Catalogue, Image};

/// How long the registry may take to listen, or to answer one request.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why the registry does not do what we need.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A file or process of ours.
    #[error("{what}")]
    Io {
        /// What was attempted.
        what: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// It ended or stayed silent instead of listening.
    #[error("docker-registry does not listen: {0}")]
    Silent(String),
    /// A request that was not answered.
    #[error("{what}")]
    Http {
        /// What was attempted.
        what: String,
        /// Why it failed.
        #[source]
        source: reqwest::Error,
    },
    /// A request that was answered otherwise than it should be.
    #[error("{what}: the registry answered {status}: {body}")]
    Answer {
        /// What was attempted.
        what: String,
        /// The HTTP status.
        status: u16,
        /// The answer's beginning.
        body: String,
    },
}

/// Whether a registry takes pushes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Images can be pushed and pulled.
    Write,
    /// Images can be pulled.
    Read,
}

/// A running `docker-registry`. Ends when dropped.
#[derive(Debug)]
pub struct Registry {
    process: Child,
    port: u16,
}

impl Registry {
    /// Starts a registry on `port` (0: any free one) of the loopback address, with its storage in
    /// `directory`, and waits until it listens.
    pub async fn start(directory: &Path, port: u16, access: Access) -> Result<Self, RegistryError> {
        let io = |what: &str| {
            let what = what.to_owned();
            move |source| RegistryError::Io { what, source }
        };
        let port = if port == 0 { free_port().map_err(io("find a free port"))? } else { port };
        let settings = tempfile::NamedTempFile::new().map_err(io("make a configuration file"))?;
        fs::write(settings.path(), configuration(directory, port, access))
            .map_err(io("write the registry's configuration"))?;
        let mut process = Command::new("docker-registry")
            .arg("serve")
            .arg(settings.path())
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(io("start docker-registry (Debian package docker-registry)"))?;
        let said = process.stderr.take().expect("stderr is piped");
        timeout(PATIENCE, listening(said))
            .await
            .map_err(|_| RegistryError::Silent(format!("nothing in {PATIENCE:?}")))??;
        Ok(Self { process, port })
    }

    /// The registry's address as it stands in image references: `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("{}:{}", Ipv4Addr::LOCALHOST, self.port)
    }

    /// The registry's process.
    pub fn pid(&self) -> Option<u32> {
        self.process.id()
    }

    /// Pushes every image of the catalogue.
    pub async fn push_all(&self, catalogue: &Catalogue) -> Result<(), RegistryError> {
        for named in &catalogue.images {
            self.push(named.repository, named.tag, &named.image).await?;
        }
        Ok(())
    }

    /// Pushes one image under a tag (OCI distribution specification, "Push").
    pub async fn push(&self, repository: &str, tag: &str, image: &Image) -> Result<(), RegistryError> {
        let push = Push { client: client(), base: format!("http://{}/v2/{repository}", self.address()) };
        for blob in &image.blobs {
            if is_manifest(blob) {
                push.manifest(&blob.digest(), blob).await?;
            } else {
                push.blob(blob).await?;
            }
        }
        push.manifest(tag, &image.top).await
    }

    /// Ends the registry and waits for it.
    pub async fn stop(mut self) -> Result<(), RegistryError> {
        self.process
            .kill()
            .await
            .map_err(|source| RegistryError::Io { what: "end docker-registry".into(), source })
    }
}

/// Reads what the registry says until it says that it listens; what follows is discarded by a task.
async fn listening(said: tokio::process::ChildStderr) -> Result<(), RegistryError> {
    let mut lines = BufReader::new(said).lines();
    let mut last = String::from("it said nothing");
    while let Ok(Some(line)) = lines.next_line().await {
        if line.contains("listening on") {
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return Ok(());
        }
        last = line;
    }
    Err(RegistryError::Silent(last))
}

fn configuration(directory: &Path, port: u16, access: Access) -> String {
    let settings = serde_json::json!({
        "version": 0.1,
        "log": {"level": "info", "accesslog": {"disabled": true}},
        "storage": {
            "filesystem": {"rootdirectory": directory},
            "delete": {"enabled": true},
            "maintenance": {
                "uploadpurging": {"enabled": false},
                "readonly": {"enabled": access == Access::Read},
            },
        },
        "http": {"addr": format!("{}:{port}", Ipv4Addr::LOCALHOST), "secret": "not a secret"},
    });
    // JSON is YAML.
    settings.to_string()
}

/// A port nobody listens on now. Somebody may take it before the caller does; then the start fails.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn is_manifest(blob: &Blob) -> bool {
    use crate::images::blob::media::{INDEX, MANIFEST};
    matches!(blob.media_type, INDEX | MANIFEST)
}

fn client() -> reqwest::Client {
    // reqwest wants a TLS provider even for plain HTTP. Somebody else's is as good as ours.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("the settings fit together")
}

struct Push {
    client: reqwest::Client,
    base: String,
}

impl Push {
    async fn blob(&self, blob: &Blob) -> Result<(), RegistryError> {
        let digest = blob.digest();
        let known = self.client.head(format!("{}/blobs/{digest}", self.base));
        if send("look for a blob", known).await?.status().is_success() {
            return Ok(());
        }
        let begin = self.client.post(format!("{}/blobs/uploads/", self.base));
        let begun = expect_success("begin an upload", send("begin an upload", begin).await?).await?;
        let place = begun.headers().get("location").and_then(|v| v.to_str().ok()).unwrap_or_default();
        let separator = if place.contains('?') { '&' } else { '?' };
        let put = self
            .client
            .put(format!("{place}{separator}digest={digest}"))
            .header("content-type", "application/octet-stream")
            .body(blob.bytes.clone());
        expect_success("upload a blob", send("upload a blob", put).await?).await.map(drop)
    }

    async fn manifest(&self, name: &str, blob: &Blob) -> Result<(), RegistryError> {
        let put = self
            .client
            .put(format!("{}/manifests/{name}", self.base))
            .header("content-type", blob.media_type)
            .body(blob.bytes.clone());
        expect_success("put a manifest", send("put a manifest", put).await?).await.map(drop)
    }
}

async fn send(what: &str, request: reqwest::RequestBuilder) -> Result<reqwest::Response, RegistryError> {
    request.send().await.map_err(|source| RegistryError::Http { what: what.to_owned(), source })
}

async fn expect_success(what: &str, answer: reqwest::Response) -> Result<reqwest::Response, RegistryError> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let body = answer.text().await.unwrap_or_default().chars().take(500).collect();
    Err(RegistryError::Answer { what: what.to_owned(), status: status.as_u16(), body })
}
