//! The pods' network.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{
    Config,
    error::{ConfigError, refused},
};

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

impl Default for CniConfig {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            timeout_seconds: 60,
        }
    }
}

/// Whether these values can be used.
pub(super) fn check(config: &Config) -> Result<(), ConfigError> {
    if config.cni.timeout_seconds == 0 {
        return Err(refused("cni.timeout_seconds", &0, "give a positive number of seconds"));
    }
    Ok(())
}
