//! The daemon's configuration: one file, drop-ins beside it, flags on top.
//!
//! Invariant: a [`Config`] that was loaded is complete and checked; unknown keys are errors that name
//! file, line and key.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use podhold_cgroups::{CgroupPath, Driver};
use serde::{Deserialize, Serialize};

/// Where the configuration is looked for when no `--config` is given.
pub const DEFAULT_FILE: &str = "/etc/podhold/config.toml";

/// Longest path of a unix socket, in bytes (unix(7)).
const LONGEST_SOCKET: usize = 107;

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Directory of what a reboot forgets: sockets, namespaces, mounts.
    pub run_dir: PathBuf,
    /// Directory of what a reboot keeps: images, records.
    pub state_dir: PathBuf,
    /// The unix socket of the CRI services; empty is `podhold.sock` in the run directory.
    pub socket: PathBuf,
    /// What is logged: error, warn, info, debug, trace, or a `tracing` filter such as `podhold=debug`.
    pub log_level: String,
    /// Control groups.
    pub cgroups: CgroupsConfig,
    /// Pod network.
    pub cni: CniConfig,
    /// Images and registries.
    pub image: ImageConfig,
    /// The pods' shims.
    pub shim: ShimConfig,
    /// Where exec, attach and port-forward are served.
    pub streaming: StreamingConfig,
    /// Where numbers of the daemon itself are served.
    pub metrics: MetricsConfig,
}

/// Section `[cgroups]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CgroupsConfig {
    /// `cgroupfs` or `systemd`; must equal the kubelet's `cgroupDriver`.
    pub driver: DriverName,
    /// Parent of the pods that name none.
    pub parent: String,
}

/// The names of the cgroup drivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriverName {
    /// Podhold writes the cgroup file system itself.
    Cgroupfs,
    /// systemd is asked to make slices and scopes.
    Systemd,
}

/// Section `[cni]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CniConfig {
    /// Directory of the network configuration lists; the first by name is used.
    pub conf_dir: PathBuf,
    /// Directories in which plugins are looked for, in order.
    pub bin_dirs: Vec<PathBuf>,
    /// How long one plugin may take, in seconds.
    pub timeout_seconds: u64,
}

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
    /// Layers of one pull that are fetched and unpacked side by side.
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

/// Section `[shim]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShimConfig {
    /// The `podhold-shim` program; empty: beside `podhold` itself, then /usr/libexec/podhold.
    pub binary: PathBuf,
}

/// Section `[streaming]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StreamingConfig {
    /// The address the kubelet reaches this host at; what is served there is not encrypted, so other
    /// hosts should not reach it.
    pub address: IpAddr,
    /// TCP port; 0 is one that is free.
    pub port: u16,
}

/// Section `[metrics]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// Address and TCP port at which Prometheus finds `/metrics`, such as `127.0.0.1:9393`; empty: nowhere.
    pub address: String,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("configuration {path}: cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// A file holds something that is not configuration; the message has line, column and key.
    #[error("configuration {path}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What and where.
        message: String,
    },
    /// A value cannot be used.
    #[error("configuration: {key} = {value}: {reason}")]
    Value {
        /// The key, with its section.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is wrong and the mend.
        reason: String,
    },
}

impl Default for Config {
    fn default() -> Self {
        Self {
            run_dir: "/run/podhold".into(),
            state_dir: "/var/lib/podhold".into(),
            socket: PathBuf::new(),
            log_level: "info".into(),
            cgroups: CgroupsConfig::default(),
            cni: CniConfig::default(),
            image: ImageConfig::default(),
            shim: ShimConfig::default(),
            streaming: StreamingConfig::default(),
            metrics: MetricsConfig::default(),
        }
    }
}

impl Default for StreamingConfig {
    fn default() -> Self {
        Self { address: Ipv4Addr::LOCALHOST.into(), port: 0 }
    }
}

impl Default for CgroupsConfig {
    fn default() -> Self {
        Self { driver: DriverName::Cgroupfs, parent: "/podhold".into() }
    }
}

impl Default for CniConfig {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            timeout_seconds: 60,
        }
    }
}

impl Default for ImageConfig {
    fn default() -> Self {
        Self {
            hosts_dirs: ["/etc/podhold/certs.d", "/etc/containerd/certs.d", "/etc/docker/certs.d"]
                .map(PathBuf::from)
                .to_vec(),
            credential_files: credential_files(std::env::var_os("DOCKER_CONFIG").map(PathBuf::from)),
            credential_helper_dirs: ["/usr/local/bin", "/usr/bin", "/bin"].map(PathBuf::from).to_vec(),
            parallel_layers: 4,
            pinned: Vec::new(),
            stall_timeout_seconds: 30,
            keep_imported_blobs: true,
            preload_dir: PathBuf::new(),
        }
    }
}

impl Config {
    /// Reads `file` and the drop-ins `conf.d/*.toml` beside it, in the order of their names; later
    /// values win. Without `file` the default file is read if it exists.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let main = file.unwrap_or(Path::new(DEFAULT_FILE));
        let mut merged = toml::Table::new();
        if file.is_some() || main.exists() {
            merge(&mut merged, read(main)?);
        }
        for drop_in in drop_ins(main)? {
            merge(&mut merged, read(&drop_in)?);
        }
        let config: Self = merged.try_into().map_err(|error: toml::de::Error| parse_error(main, &error))?;
        config.checked()
    }

    /// The configuration, if all its values can be used.
    pub fn checked(self) -> Result<Self, ConfigError> {
        let refuse = |key, value: &dyn std::fmt::Debug, reason: &str| {
            Err(ConfigError::Value { key, value: format!("{value:?}"), reason: reason.to_owned() })
        };
        for (key, path) in [("run_dir", &self.run_dir), ("state_dir", &self.state_dir)] {
            if !path.is_absolute() {
                return refuse(key, path, "give an absolute path");
            }
        }
        if self.run_dir == self.state_dir {
            return refuse("run_dir", &self.run_dir, "must differ from state_dir");
        }
        self.cgroup_parent()?;
        if self.cgroups.driver == DriverName::Systemd {
            return refuse(
                "cgroups.driver",
                &"systemd",
                "is not built yet; use cgroupfs, in the kubelet as well",
            );
        }
        if !self.socket.as_os_str().is_empty() && !self.socket.is_absolute() {
            return refuse("socket", &self.socket, "give an absolute path");
        }
        if self.socket().as_os_str().len() > LONGEST_SOCKET {
            return refuse("socket", &self.socket(), "is longer than the 107 bytes of a socket address");
        }
        if !self.shim.binary.as_os_str().is_empty() && !self.shim.binary.is_absolute() {
            return refuse("shim.binary", &self.shim.binary, "give an absolute path");
        }
        let plain = ["error", "warn", "info", "debug", "trace", "off"].contains(&self.log_level.as_str());
        if !plain && !self.log_level.contains('=') {
            let reason = "use error, warn, info, debug, trace, or a filter such as podhold=debug";
            return refuse("log_level", &self.log_level, reason);
        }
        if self.image.parallel_layers == 0 || self.image.parallel_layers > 64 {
            return refuse(
                "image.parallel_layers",
                &self.image.parallel_layers,
                "give a number from 1 to 64",
            );
        }
        if !self.image.preload_dir.as_os_str().is_empty() && !self.image.preload_dir.is_absolute() {
            return refuse("image.preload_dir", &self.image.preload_dir, "give an absolute path");
        }
        let lists = [
            ("image.hosts_dirs", &self.image.hosts_dirs),
            ("image.credential_files", &self.image.credential_files),
            ("image.credential_helper_dirs", &self.image.credential_helper_dirs),
        ];
        for (key, list) in lists {
            if let Some(path) = list.iter().find(|path| !path.is_absolute()) {
                return refuse(key, path, "give absolute paths");
            }
        }
        if self.streaming.address.is_unspecified() {
            let reason = "clients cannot connect to it; give one address of this host";
            return refuse("streaming.address", &self.streaming.address, reason);
        }
        if !self.metrics.address.is_empty() && self.metrics_address().is_none() {
            let reason = "give an address and a port, such as 127.0.0.1:9393, or nothing";
            return refuse("metrics.address", &self.metrics.address, reason);
        }
        if self.image.stall_timeout_seconds == 0 {
            return refuse("image.stall_timeout_seconds", &0, "give a positive number of seconds");
        }
        if self.cni.timeout_seconds == 0 {
            return refuse("cni.timeout_seconds", &0, "give a positive number of seconds");
        }
        Ok(self)
    }

    /// The parent of the pods that name none.
    pub fn cgroup_parent(&self) -> Result<CgroupPath, ConfigError> {
        CgroupPath::parse(&self.cgroups.parent).map_err(|error| ConfigError::Value {
            key: "cgroups.parent",
            value: format!("{:?}", self.cgroups.parent),
            reason: error.reason.to_owned(),
        })
    }

    /// The unix socket of the CRI services.
    pub fn socket(&self) -> PathBuf {
        if self.socket.as_os_str().is_empty() {
            self.run_dir.join("podhold.sock")
        } else {
            self.socket.clone()
        }
    }

    /// Where exec, attach and port-forward are served.
    pub fn streaming_address(&self) -> SocketAddr {
        SocketAddr::new(self.streaming.address, self.streaming.port)
    }

    /// Where numbers of the daemon itself are served.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.address.parse().ok()
    }

    /// The cgroup driver.
    pub fn cgroup_driver(&self) -> Driver {
        match self.cgroups.driver {
            DriverName::Cgroupfs => Driver::Cgroupfs,
            DriverName::Systemd => Driver::Systemd,
        }
    }

    /// How long one CNI plugin may take.
    pub fn cni_timeout(&self) -> Duration {
        Duration::from_secs(self.cni.timeout_seconds)
    }

    /// How long a registry may be silent.
    pub fn stall_timeout(&self) -> Duration {
        Duration::from_secs(self.image.stall_timeout_seconds)
    }

    /// The configuration as a file.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every field has a TOML form")
    }
}

/// Where the peers keep credentials, ours first.
fn credential_files(docker: Option<PathBuf>) -> Vec<PathBuf> {
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

/// Reads one file, and checks it alone so that an error names it.
fn read(path: &Path) -> Result<toml::Table, ConfigError> {
    let text =
        fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    toml::from_str::<Config>(&text).map_err(|error| parse_error(path, &error))?;
    toml::from_str(&text).map_err(|error| parse_error(path, &error))
}

fn parse_error(path: &Path, error: &toml::de::Error) -> ConfigError {
    ConfigError::Parse { path: path.to_owned(), message: error.to_string().trim_end().to_owned() }
}

/// The drop-ins of a configuration file.
fn drop_ins(main: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let dir = main.parent().unwrap_or(Path::new("/")).join("conf.d");
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(ConfigError::Read { path: dir, source }),
    };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|ext| ext == "toml"))
        .collect();
    files.sort();
    Ok(files)
}

/// Lays `over` on `base`, section by section.
fn merge(base: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(base)), toml::Value::Table(over)) => merge(base, over),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_named_with_file_and_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        fs::write(&file, "log_level = \"info\"\n[cgroups]\ndrivr = \"systemd\"\n").unwrap();
        let message = Config::load(Some(&file)).unwrap_err().to_string();
        assert!(message.contains("config.toml") && message.contains("line 3"), "{message}");
        assert!(message.contains("drivr") && message.contains("driver"), "{message}");
    }

    #[test]
    fn drop_ins_win_in_the_order_of_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        fs::write(&file, "log_level = \"warn\"\n[image]\nparallel_layers = 2\n").unwrap();
        fs::create_dir(dir.path().join("conf.d")).unwrap();
        fs::write(dir.path().join("conf.d/20.toml"), "[image]\nparallel_layers = 9\n").unwrap();
        fs::write(dir.path().join("conf.d/10.toml"), "log_level = \"debug\"\n[image]\nparallel_layers = 5\n")
            .unwrap();
        let config = Config::load(Some(&file)).unwrap();
        assert_eq!((config.log_level.as_str(), config.image.parallel_layers), ("debug", 9));
    }

    #[test]
    fn the_default_configuration_is_its_own_file() {
        let default = Config::default().checked().unwrap();
        assert_eq!(toml::from_str::<Config>(&default.to_toml()).unwrap(), default);
    }

    #[test]
    fn values_that_cannot_be_used_are_refused() {
        for text in [
            "run_dir = \"run\"",
            "run_dir = \"/var/lib/podhold\"",
            "[cgroups]\nparent = \"podhold\"",
            "[image]\nparallel_layers = 0",
            "[image]\npreload_dir = \"archives\"",
            "[cni]\ntimeout_seconds = 0",
            "log_level = \"loud\"",
            "socket = \"podhold.sock\"",
            "[cgroups]\ndriver = \"systemd\"",
            "[shim]\nbinary = \"podhold-shim\"",
            "[streaming]\naddress = \"0.0.0.0\"",
            "[metrics]\naddress = \"localhost\"",
            "[image]\nhosts_dirs = [\"certs.d\"]",
            "[image]\ncredential_files = [\"config.json\"]",
        ] {
            let config: Config = toml::from_str(text).unwrap();
            assert!(config.checked().is_err(), "{text}");
        }
    }
    #[test]
    fn hosts_directories_are_one_or_more() {
        let dirs = |text: &str| toml::from_str::<Config>(text).map(|config| config.image.hosts_dirs);
        let one = vec![PathBuf::from("/a")];
        assert_eq!(dirs("[image]\nhosts_dir = \"/a\"").unwrap(), one);
        assert_eq!(dirs("[image]\nhosts_dirs = [\"/a\"]").unwrap(), one);
        assert_eq!(dirs("[image]\nhosts_dirs = \"/a\"").unwrap(), one);
        let message = dirs("[image]\nhosts_dirs = 1").unwrap_err().to_string();
        assert!(message.contains("a path or a list of paths"), "{message}");
    }

    #[test]
    fn dockers_directory_is_where_its_variable_says() {
        assert!(credential_files(None).contains(&"/root/.docker/config.json".into()));
        assert!(credential_files(Some("rel".into())).contains(&"/root/.docker/config.json".into()));
        let moved = credential_files(Some("/x".into()));
        assert_eq!(moved.last(), Some(&PathBuf::from("/x/config.json")));
    }
}
