//! The settings of the kernel that traffic of pods needs: forwarding, where the host does not forward, and
//! answers to host ports by way of loopback.
//!
//! Invariant: where the host forwards already nothing is changed but the bridge. What is changed elsewhere is
//! remembered in a file first, and given back unless somebody has changed it since.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::error::BridgeError;
use crate::record;

const IPV4: &str = "/proc/sys/net/ipv4/conf";
const IPV6: &str = "/proc/sys/net/ipv6/conf";

/// A setting that was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Setting {
    path: PathBuf,
    before: String,
    after: String,
}

/// What forwards for our sake, on disk and here.
#[derive(Debug, Clone)]
pub(super) struct Forwarding {
    file: PathBuf,
    changed: Vec<Setting>,
    /// Interfaces that forward IPv4 for our sake alone; `None` where the host forwards.
    pub(super) uplinks4: Option<Vec<String>>,
    /// The same for IPv6.
    pub(super) uplinks6: Option<Vec<String>>,
}

impl Forwarding {
    /// Lets the bridge forward, and where the host does not, `others` too: what they take in has to be sent
    /// on to pods.
    pub(super) fn open(
        file: PathBuf,
        bridge: &str,
        others: &[String],
        v6: bool,
    ) -> Result<Self, BridgeError> {
        let mut changed = known(&file);
        let before = changed.len();
        // Of an interface that has gone nothing is to be given back.
        changed.retain(|setting| setting.path.exists());
        if changed.is_empty() {
            record::remove(&file)?;
        } else if changed.len() < before {
            record::write(&file, &changed)?;
        }
        let mut forwarding = Self { file, changed, uplinks4: None, uplinks6: None };
        let bridge4 = Path::new(IPV4).join(bridge);
        write(&bridge4.join("route_localnet"), "1")?;
        if !is_on(&Path::new(IPV4).join("all/forwarding")) {
            write(&bridge4.join("forwarding"), "1")?;
            for name in others {
                forwarding.change(&Path::new(IPV4).join(name).join("forwarding"), "1")?;
            }
            forwarding.uplinks4 = Some(others.to_vec());
            tracing::info!(bridge, interfaces = ?others, "this host does not forward IPv4; these interfaces do for pods now");
        }
        let all6 = Path::new(IPV6).join("all/forwarding");
        let changed = forwarding.changed.iter().any(|setting| setting.path == all6);
        if v6 && (changed || !is_on(&all6)) {
            forwarding.open_v6(bridge, others)?;
            forwarding.uplinks6 = Some(others.to_vec());
            tracing::info!(bridge, interfaces = ?others, "this host does not forward IPv6; these interfaces do for pods now");
        }
        Ok(forwarding)
    }

    fn open_v6(&mut self, bridge: &str, others: &[String]) -> Result<(), BridgeError> {
        let bridge = Path::new(IPV6).join(bridge);
        // Since Linux 6.17; without it the kernel looks at the host's setting alone.
        if bridge.join("force_forwarding").exists() {
            write(&bridge.join("force_forwarding"), "1")?;
            for name in others {
                self.change(&Path::new(IPV6).join(name).join("force_forwarding"), "1")?;
            }
            return Ok(());
        }
        for name in others {
            // A host that forwards takes no routes from routers unless it is told to.
            let accept = Path::new(IPV6).join(name).join("accept_ra");
            if is_on(&accept) {
                self.change(&accept, "2")?;
            }
        }
        self.change(&Path::new(IPV6).join("all/forwarding"), "1")
    }

    /// Whether any interface forwards for our sake alone.
    pub(super) fn is_ours(&self) -> bool {
        self.uplinks4.is_some() || self.uplinks6.is_some()
    }

    /// Whether the host forwards as little as it did when this was opened, and has these other interfaces.
    pub(super) fn is_current(&self, others: &[String]) -> bool {
        let same = |uplinks: &Option<Vec<String>>, conf: &str| {
            let setting = Path::new(conf).join("all/forwarding");
            let changed = self.changed.iter().any(|known| known.path == setting);
            uplinks.as_ref().is_none_or(|uplinks| uplinks == others && (changed || !is_on(&setting)))
        };
        same(&self.uplinks4, IPV4) && same(&self.uplinks6, IPV6)
    }

    fn change(&mut self, path: &Path, after: &str) -> Result<(), BridgeError> {
        let before = match fs::read_to_string(path) {
            Ok(before) => before.trim().to_owned(),
            // The interface is gone, or has no such family.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(BridgeError::Setting { path: path.to_owned(), source }),
        };
        if before == after {
            return Ok(());
        }
        self.changed.retain(|setting| setting.path != path);
        self.changed.push(Setting { path: path.to_owned(), before, after: after.to_owned() });
        record::write(&self.file, &self.changed)?;
        write(path, after)
    }
}

/// Gives back what was changed.
pub(super) fn give_back(file: &Path) {
    for setting in known(file).iter().rev() {
        let now = fs::read_to_string(&setting.path).unwrap_or_default();
        if now.trim() == setting.after
            && setting.path.starts_with("/proc/sys/net")
            && let Err(error) = fs::write(&setting.path, &setting.before)
        {
            tracing::warn!(path = %setting.path.display(), %error, "setting not given back");
        }
    }
    let _missing_mostly = fs::remove_file(file);
}

fn known(file: &Path) -> Vec<Setting> {
    match record::read(file) {
        Ok(changed) => changed,
        Err(error) => {
            if !error.is_missing() {
                tracing::warn!(%error, "what was changed for pods to be forwarded is not known; it stays");
            }
            Vec::new()
        }
    }
}

fn is_on(path: &Path) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.trim() == "1")
}

fn write(path: &Path, value: &str) -> Result<(), BridgeError> {
    fs::write(path, value).map_err(|source| BridgeError::Setting { path: path.to_owned(), source })
}
