//! The daemon's configuration: one file, drop-ins beside it, flags on top.
//!
//! Invariant: a [`Config`] that was loaded is complete and checked; unknown keys are errors that name
//! file, line and key.

mod error;
mod host;
mod image;
mod load;
mod network;
mod serving;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use self::error::{absolute_or_empty, refused};
pub use self::{
    error::ConfigError,
    host::{CgroupsConfig, DriverName, ShimConfig},
    image::ImageConfig,
    network::{CniConfig, KindName, NetworkConfig},
    serving::{MetricsConfig, StreamingConfig},
};

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
    /// Which network pods join.
    pub network: NetworkConfig,
    /// Plugins for the pods' network.
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

impl Default for Config {
    fn default() -> Self {
        Self {
            run_dir: "/run/podhold".into(),
            state_dir: "/var/lib/podhold".into(),
            socket: PathBuf::new(),
            log_level: "info".into(),
            cgroups: CgroupsConfig::default(),
            network: NetworkConfig::default(),
            cni: CniConfig::default(),
            image: ImageConfig::default(),
            shim: ShimConfig::default(),
            streaming: StreamingConfig::default(),
            metrics: MetricsConfig::default(),
        }
    }
}

impl Config {
    /// The configuration, if all its values can be used.
    pub fn checked(self) -> Result<Self, ConfigError> {
        for (key, path) in [("run_dir", &self.run_dir), ("state_dir", &self.state_dir)] {
            if !path.is_absolute() {
                return Err(refused(key, path, "give an absolute path"));
            }
        }
        if self.run_dir == self.state_dir {
            return Err(refused("run_dir", &self.run_dir, "must differ from state_dir"));
        }
        absolute_or_empty("socket", &self.socket)?;
        if self.socket().as_os_str().len() > LONGEST_SOCKET {
            let reason = "is longer than the 107 bytes of a socket address";
            return Err(refused("socket", &self.socket(), reason));
        }
        let plain = ["error", "warn", "info", "debug", "trace", "off"].contains(&self.log_level.as_str());
        if !plain && !self.log_level.contains('=') {
            let reason = "use error, warn, info, debug, trace, or a filter such as podhold=debug";
            return Err(refused("log_level", &self.log_level, reason));
        }
        host::check(&self)?;
        self.image.check()?;
        serving::check(&self)?;
        network::check(&self)?;
        Ok(self)
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
