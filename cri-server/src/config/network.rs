//! The pods' network: plugins that somebody configures, or the built-in one.

use std::{net::IpAddr, path::PathBuf};

use podhold_sandbox::network::{Kind, bridge::Subnet};
use serde::{Deserialize, Serialize};

use super::{
    Config,
    error::{ConfigError, refused},
};

/// Longest name of a link, in bytes (`IFNAMSIZ`).
const LONGEST_LINK: usize = 15;

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

/// Section `[network]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkConfig {
    /// Which network new pods join: `cni`; `bridge`, which is built in and needs no plugin; `auto`, CNI's where
    /// a configuration is there and otherwise the built-in one. Empty is `cni` for a daemon, since a kubelet
    /// waits for its network add-on, and `auto` for `podhold run`.
    pub kind: KindName,
    /// Name of the daemon's bridge; empty, and for `podhold run`: `podhold-` and a number made from the state
    /// directory.
    pub bridge: String,
    /// IPv4 addresses of pods on the bridge. When another route leads there, the next range of this size is
    /// taken.
    pub ipv4_pool: String,
    /// The same for IPv6; empty: pods have no IPv6.
    pub ipv6_pool: String,
    /// Largest packet on the bridge, in bytes; 0 is the kernel's choice.
    pub mtu: u32,
}

/// The names of the networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KindName {
    /// Whatever suits the command.
    #[default]
    #[serde(rename = "")]
    Usual,
    /// CNI's if there is one.
    Auto,
    /// CNI's.
    Cni,
    /// The built-in one.
    Bridge,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            kind: KindName::Usual,
            bridge: String::new(),
            ipv4_pool: "10.214.0.0/22".into(),
            ipv6_pool: "fd50:6f64::/64".into(),
            mtu: 0,
        }
    }
}

impl NetworkConfig {
    /// Which network new pods join; the usual one is a daemon's.
    pub fn kind(&self) -> Kind {
        match self.kind {
            KindName::Usual | KindName::Cni => Kind::Cni,
            KindName::Auto => Kind::Auto,
            KindName::Bridge => Kind::Bridge,
        }
    }

    /// Addresses on the bridge.
    pub fn v4(&self) -> Result<Subnet, ConfigError> {
        let key = "network.ipv4_pool";
        let pool = pool(key, &self.ipv4_pool)?;
        if !pool.address().is_ipv4() || !(16..=28).contains(&pool.prefix()) {
            return Err(refused(key, &self.ipv4_pool, "give an IPv4 range of a length from /16 to /28"));
        }
        unusable(key, &pool).map_or(Ok(pool), Err)
    }

    /// The same for IPv6, if there are to be some.
    pub fn v6(&self) -> Result<Option<Subnet>, ConfigError> {
        let key = "network.ipv6_pool";
        if self.ipv6_pool.is_empty() {
            return Ok(None);
        }
        let pool = pool(key, &self.ipv6_pool)?;
        if !pool.address().is_ipv6() || !(48..=112).contains(&pool.prefix()) {
            return Err(refused(key, &self.ipv6_pool, "give an IPv6 range of a length from /48 to /112"));
        }
        unusable(key, &pool).map_or(Ok(Some(pool)), Err)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let dots = matches!(self.bridge.as_str(), "." | ".." | "all" | "default" | "lo");
        if self.bridge.len() > LONGEST_LINK || dots || !self.bridge.bytes().all(fits) {
            let reason = "the name of a link has at most 15 letters, digits, '-', '_' and '.'";
            return Err(refused("network.bridge", &self.bridge, reason));
        }
        if self.mtu != 0 && !(1280..=65535).contains(&self.mtu) {
            let reason = "give 0, or a number from 1280, which IPv6 needs, to 65535";
            return Err(refused("network.mtu", &self.mtu, reason));
        }
        self.v4()?;
        self.v6()?;
        Ok(())
    }
}

fn pool(key: &'static str, text: &str) -> Result<Subnet, ConfigError> {
    text.parse().map_err(|reason| refused(key, &text, reason))
}

/// Ranges that mean something else everywhere.
fn unusable(key: &'static str, pool: &Subnet) -> Option<ConfigError> {
    let address = pool.address();
    let local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.octets()[0] == 0,
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let bad = local || address.is_loopback() || address.is_multicast() || address.is_unspecified();
    bad.then(|| refused(key, pool, "hosts cannot have such addresses; give a private range"))
}

/// Whether these values can be used.
pub(super) fn check(config: &Config) -> Result<(), ConfigError> {
    config.network.check()?;
    if config.cni.timeout_seconds == 0 {
        return Err(refused("cni.timeout_seconds", &0, "give a positive number of seconds"));
    }
    Ok(())
}
