//! What is served beside the CRI: streams and numbers.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use super::{
    Config,
    error::{ConfigError, refused},
};

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

impl Default for StreamingConfig {
    fn default() -> Self {
        Self { address: Ipv4Addr::LOCALHOST.into(), port: 0 }
    }
}

/// Whether these values can be used.
pub(super) fn check(config: &Config) -> Result<(), ConfigError> {
    if config.streaming.address.is_unspecified() {
        let reason = "clients cannot connect to it; give one address of this host";
        return Err(refused("streaming.address", &config.streaming.address, reason));
    }
    if !config.metrics.address.is_empty() && config.metrics_address().is_none() {
        let reason = "give an address and a port, such as 127.0.0.1:9393, or nothing";
        return Err(refused("metrics.address", &config.metrics.address, reason));
    }
    Ok(())
}
