//! Debian's `docker-registry`, run on loopback with a directory of its own.

use std::{path::Path, process::Stdio, time::Duration};

use tokio::process::{Child, Command};

use super::{MANIFEST, TestImage};

/// A registry process; ended by [`DebianRegistry::stop`], or when the value goes.
pub struct DebianRegistry {
    port: u16,
    process: Child,
    client: reqwest::Client,
    _dir: tempfile::TempDir,
}

impl DebianRegistry {
    /// Starts it; `None`, and says so, where it is not installed.
    pub async fn start() -> Option<Self> {
        let program = Path::new("/usr/bin/docker-registry");
        if !program.exists() {
            println!("SKIPPED: {} is not installed (apt-get install docker-registry)", program.display());
            return None;
        }
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let data = dir.path().join("data");
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: 127.0.0.1:{port}}}\n",
            data.display()
        );
        std::fs::write(dir.path().join("config.yml"), config).unwrap();
        let mut command = Command::new(program);
        command.arg("serve").arg(dir.path().join("config.yml")).kill_on_drop(true);
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let registry = Self { port, process, client: reqwest::Client::new(), _dir: dir };
        for attempt in 0.. {
            if registry.client.get(registry.url("")).send().await.is_ok() {
                break;
            }
            assert!(attempt < 200, "docker-registry does not start");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Some(registry)
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/v2/{path}", self.port)
    }

    /// The full name of an image here.
    pub fn name(&self, rest: &str) -> podhold_image::Reference {
        podhold_image::Reference::parse(&format!("127.0.0.1:{}/{rest}", self.port)).unwrap()
    }

    /// Pushes an image as `repository:latest`.
    pub async fn push(&self, repository: &str, image: &TestImage) {
        for (digest, blob) in &image.blobs {
            let started =
                self.client.post(self.url(&format!("{repository}/blobs/uploads/"))).send().await.unwrap();
            let location = started.headers()["location"].to_str().unwrap().to_owned();
            let url = format!("{location}{}digest={digest}", if location.contains('?') { '&' } else { '?' });
            let put = self.client.put(url).body(blob.clone()).send().await.unwrap();
            assert!(put.status().is_success(), "{}", put.status());
        }
        let put = self.client.put(self.url(&format!("{repository}/manifests/latest")));
        let put = put.header("content-type", MANIFEST).body(image.manifest.clone()).send().await.unwrap();
        assert!(put.status().is_success(), "{}", put.status());
    }

    pub async fn stop(mut self) {
        self.process.kill().await.unwrap();
    }
}
