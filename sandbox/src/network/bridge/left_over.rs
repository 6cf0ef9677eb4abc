//! What daemons that are gone have left of the built-in network, whatever their directories were.
//!
//! Invariant: a bridge with a pod at it is nobody's to remove. Whose it was stands on it; whether that one is
//! gone is for the caller to know.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use super::{
    base,
    error::BridgeError,
    forwarding,
    links::{Link, Links},
    rules, turn,
};
use crate::netns::Unpinned;

/// What one daemon has left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOver {
    table: String,
    bridge: Option<String>,
    owner: Option<PathBuf>,
}

impl fmt::Display for LeftOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.bridge, &self.owner) {
            (Some(bridge), Some(owner)) => write!(f, "bridge {bridge} of {}", owner.display()),
            (Some(bridge), None) => write!(f, "bridge {bridge}"),
            (None, _) => write!(f, "nftables table {}", self.table),
        }
    }
}

/// Bridges with no pod whose daemon `lives` does not know by its state directory, and tables without a bridge.
pub fn left_over(lives: impl Fn(&Path) -> bool) -> Result<Vec<LeftOver>, BridgeError> {
    let all = Links::open()?.list()?;
    let bridges: BTreeMap<&str, &Link> =
        all.iter().filter_map(|link| base::mark(link).map(|mark| (mark, link))).collect();
    let tables = rules::tables()?;
    let without = tables.iter().filter(|table| !bridges.contains_key(table.as_str()));
    let mut found: Vec<LeftOver> =
        without.map(|table| LeftOver { table: table.clone(), bridge: None, owner: None }).collect();
    for (mark, bridge) in bridges {
        let is_used = all.iter().any(|link| link.master == Some(bridge.index));
        let owner = base::owner(bridge).filter(|owner| !is_used && !lives(owner));
        found.extend(owner.map(|owner| LeftOver {
            table: mark.to_owned(),
            bridge: Some(bridge.name.clone()),
            owner: Some(owner),
        }));
    }
    Ok(found)
}

/// Removes it: rules, bridge, and what of the host's settings was changed for it.
pub fn remove(left: &LeftOver) -> Result<(), BridgeError> {
    let _turn = turn::wait();
    let (own, others) = rules::uplinks(&left.table)?;
    rules::remove(&left.table)?;
    if let Some(bridge) = &left.bridge {
        Links::open()?.remove(bridge)?;
    }
    forwarding::give_back_unknown(&own, &others);
    Ok(())
}

/// Makes all that a pod's network is made of, in network namespaces that end with this: whether the kernel has
/// what is needed.
pub fn try_out() -> Result<(), BridgeError> {
    let pod = Unpinned::make()?;
    Unpinned::make()?.run(|| base::try_out(&pod))?
}
