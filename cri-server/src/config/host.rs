//! What of the host is used: control groups, and the shim's program.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{
    Config,
    error::{ConfigError, absolute_or_empty, refused},
};

/// Section `[cgroups]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CgroupsConfig {
    /// `cgroupfs` or `systemd`; must equal the kubelet's `cgroupDriver`.
    pub driver: DriverName,
    /// Parent of the pods that name none; that of `podhold run` is /podhold-run where this is the default.
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

/// Section `[shim]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShimConfig {
    /// The `podhold-shim` program; empty: beside `podhold` itself, then /usr/libexec/podhold.
    pub binary: PathBuf,
}

impl Default for CgroupsConfig {
    fn default() -> Self {
        Self { driver: DriverName::Cgroupfs, parent: "/podhold".into() }
    }
}

/// Whether these values can be used.
pub(super) fn check(config: &Config) -> Result<(), ConfigError> {
    config.cgroup_parent()?;
    if config.cgroups.driver == DriverName::Systemd {
        let reason = "is not built yet; use cgroupfs, in the kubelet as well";
        return Err(refused("cgroups.driver", &"systemd", reason));
    }
    absolute_or_empty("shim.binary", &config.shim.binary)
}
