//! Images and registries.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::error::{ConfigError, absolute_or_empty, refused};

/// Section `[image]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageConfig {
    /// Directories of per-registry settings (`HOST/hosts.toml`, containerd's format; certificates in Docker's
    /// layout); the first that has something for a registry counts. `hosts_dir = "/one"` means the same.
    #[serde(alias = "hosts_dir", deserialize_with = "one_or_more")]
    pub hosts_dirs: Vec<PathBuf>,
    /// Files with credentials of this node, in Docker's form, for pulls that bring none and for mirrors; the
    /// first that has some counts. With `DOCKER_CONFIG` in the daemon's environment the default names the file
    /// there in place of root's own.
    pub credential_files: Vec<PathBuf>,
    /// Directories in which the credential helpers (`docker-credential-NAME`) that these files name are looked
    /// for, in order.
    pub credential_helper_dirs: Vec<PathBuf>,
    /// Layers that are fetched and unpacked side by side, of all pulls together. Each keeps more than one processor
    /// busy, so the default is one for each processor, and from 2 to 4.
    pub parallel_layers: usize,
    /// References of images that are never collected.
    pub pinned: Vec<String>,
    /// How long a registry may be silent, and in which time a download must move, in seconds. What stalls is
    /// tried again some times, at the next host where there is one, before the pull fails.
    pub stall_timeout_seconds: u64,
    /// Whether the compressed blobs of imported images are kept beside the unpacked layers, so that these
    /// images can be exported where no registry has them.
    pub keep_imported_blobs: bool,
    /// Directory of archives (OCI layouts, `docker save`; plain, gzip or zstd) that are imported when the daemon
    /// starts; empty: none.
    pub preload_dir: PathBuf,
}

impl Default for ImageConfig {
    fn default() -> Self {
        Self {
            hosts_dirs: ["/etc/podhold/certs.d", "/etc/containerd/certs.d", "/etc/docker/certs.d"]
                .map(PathBuf::from)
                .to_vec(),
            credential_files: credential_files(std::env::var_os("DOCKER_CONFIG").map(PathBuf::from)),
            credential_helper_dirs: ["/usr/local/bin", "/usr/bin", "/bin"].map(PathBuf::from).to_vec(),
            parallel_layers: std::thread::available_parallelism().map_or(2, |all| all.get().clamp(2, 4)),
            pinned: Vec::new(),
            stall_timeout_seconds: 30,
            keep_imported_blobs: true,
            preload_dir: PathBuf::new(),
        }
    }
}

impl ImageConfig {
    /// Whether these values can be used.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.parallel_layers == 0 || self.parallel_layers > 64 {
            return Err(refused(
                "image.parallel_layers",
                &self.parallel_layers,
                "give a number from 1 to 64",
            ));
        }
        if self.stall_timeout_seconds == 0 {
            let reason = "give a positive number of seconds";
            return Err(refused("image.stall_timeout_seconds", &0, reason));
        }
        let lists = [
            ("image.hosts_dirs", &self.hosts_dirs),
            ("image.credential_files", &self.credential_files),
            ("image.credential_helper_dirs", &self.credential_helper_dirs),
        ];
        for (key, list) in lists {
            if let Some(path) = list.iter().find(|path| !path.is_absolute()) {
                return Err(refused(key, path, "give absolute paths"));
            }
        }
        absolute_or_empty("image.preload_dir", &self.preload_dir)
    }
}

/// Where the peers keep credentials, ours first.
pub(super) fn credential_files(docker: Option<PathBuf>) -> Vec<PathBuf> {
    vec![
        "/etc/podhold/auth.json".into(),
        "/var/lib/kubelet/config.json".into(),
        "/run/containers/0/auth.json".into(),
        "/root/.config/containers/auth.json".into(),
        docker.filter(|dir| dir.is_absolute()).unwrap_or_else(|| "/root/.docker".into()).join("config.json"),
    ]
}

/// A path, or a list of paths.
fn one_or_more<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a path or a list of paths")]
    enum Paths {
        One(PathBuf),
        More(Vec<PathBuf>),
    }
    Ok(match Paths::deserialize(deserializer)? {
        Paths::One(path) => vec![path],
        Paths::More(paths) => paths,
    })
}
