//! What of the host is used: control groups, and the shim's program.

use std::path::PathBuf;

use podhold_cgroups::{CgroupPath, Driver};
use serde::{Deserialize, Serialize};

use super::{
    Config,
    error::{ConfigError, absolute_or_empty},
};

/// Section `[cgroups]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CgroupsConfig {
    /// `auto`, `cgroupfs` or `systemd`. The kubelet asks which (RuntimeConfig); one that does not has to have the
    /// same `cgroupDriver`.
    pub driver: DriverName,
    /// Parent of the pods that name none: a path, or under systemd a slice. Empty: `/podhold` or `podhold.slice`,
    /// and for `podhold run` `/podhold-run` or `podhold-run.slice`.
    pub parent: String,
    /// Whether the pods are those of `podhold run`.
    #[serde(skip)]
    pub alone: bool,
}

/// The names of the cgroup drivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriverName {
    /// systemd where it runs the machine and has the unified hierarchy of cgroups, else cgroupfs.
    Auto,
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
        Self { driver: DriverName::Auto, parent: String::new(), alone: false }
    }
}

impl Config {
    /// The cgroup driver that is asked for; `None` leaves it to the machine. A parent that somebody has chosen
    /// has the form of one driver alone.
    pub fn wanted_driver(&self) -> Option<Driver> {
        match self.cgroups.driver {
            DriverName::Cgroupfs => Some(Driver::Cgroupfs),
            DriverName::Systemd => Some(Driver::Systemd),
            DriverName::Auto if self.cgroups.parent.is_empty() => None,
            DriverName::Auto if self.cgroups.parent.ends_with(".slice") => Some(Driver::Systemd),
            DriverName::Auto => Some(Driver::Cgroupfs),
        }
    }

    /// The parent of the pods that name none, under this driver.
    pub fn cgroup_parent(&self, driver: Driver) -> Result<CgroupPath, ConfigError> {
        let usual = match (driver, self.cgroups.alone) {
            (Driver::Cgroupfs, false) => "/podhold",
            (Driver::Cgroupfs, true) => "/podhold-run",
            (Driver::Systemd, false) => "podhold.slice",
            (Driver::Systemd, true) => "podhold-run.slice",
        };
        let chosen = if self.cgroups.parent.is_empty() { usual } else { &self.cgroups.parent };
        driver.parent(chosen).map_err(|error| ConfigError::Value {
            key: "cgroups.parent",
            value: format!("{chosen:?}"),
            reason: error.reason.to_owned(),
        })
    }
}

/// Whether these values can be used.
pub(super) fn check(config: &Config) -> Result<(), ConfigError> {
    config.cgroup_parent(config.wanted_driver().unwrap_or_default())?;
    absolute_or_empty("shim.binary", &config.shim.binary)
}
