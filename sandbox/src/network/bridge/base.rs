//! What all pods of a daemon share: the bridge, its addresses, the settings and the rules.
//!
//! Invariant: whose bridge it is and which ranges it has stands on the bridge itself (its alias), so that no
//! file can disagree with the kernel. Pods that are there keep their ranges.

use std::{net::IpAddr, path::Path};

use super::{
    BridgeConfig,
    error::BridgeError,
    forwarding::{self, Forwarding},
    links::{Link, Links, Route},
    pool,
    record::Pools,
    rules::{self, Ground, Mapping},
};

/// Name of the file with the settings that were changed.
const FORWARDING: &str = "forwarding";
/// How often a bridge is made anew since another daemon has taken its range at the same time.
const TRIES: usize = 8;

/// Names of what one daemon makes, from the directory that is its own.
#[derive(Debug, Clone)]
pub(super) struct Names {
    pub(super) bridge: String,
    pub(super) table: String,
    /// First word of the bridge's alias.
    mark: String,
    mac: [u8; 6],
}

impl Names {
    pub(super) fn of(config: &BridgeConfig) -> Self {
        let [a, b, c, d, e, ..] = tag(&config.owner).to_be_bytes();
        let tag = format!("{a:02x}{b:02x}{c:02x}{d:x}").chars().take(7).collect::<String>();
        let table = format!("{}{tag}", rules::PREFIX);
        let bridge = if config.name.is_empty() { table.clone() } else { config.name.clone() };
        // 02: nobody has registered it.
        Self { bridge, mark: table.clone(), table, mac: [2, a, b, c, d, e] }
    }

    fn alias(&self, pools: Pools) -> String {
        pools.all().fold(self.mark.clone(), |alias, pool| format!("{alias} {pool}"))
    }

    /// The ranges that stand on a bridge of ours.
    fn pools(&self, link: &Link) -> Option<Pools> {
        let mut words = link.alias.split(' ');
        let ours = link.kind == "bridge" && words.next() == Some(&self.mark);
        let v4 = words.next().filter(|_| ours)?.parse().ok()?;
        Some(Pools { v4, v6: words.next().and_then(|v6| v6.parse().ok()) })
    }

    fn is_ours(&self, link: &Link) -> bool {
        self.pools(link).is_some()
    }
}

/// A bridge that is ready for pods.
#[derive(Debug, Clone)]
pub(super) struct Base {
    pub(super) index: u32,
    pub(super) pools: Pools,
    forwarding: Forwarding,
}

impl Base {
    /// Whether it is as it was.
    pub(super) fn is_current(&self, names: &Names, links: &Links) -> Result<bool, BridgeError> {
        let index = links.find(&names.bridge)?.map(|link| link.index);
        if index != Some(self.index) || !self.forwarding.is_ours() {
            return Ok(index == Some(self.index));
        }
        Ok(self.forwarding.is_current(&uplinks(links, self.index)?))
    }

    /// Makes the rules anew, with these ports.
    pub(super) fn replace_rules(&self, names: &Names, mappings: &[Mapping]) -> Result<(), BridgeError> {
        let pools: Vec<_> = self.pools.all().collect();
        let uplinks4 = self.forwarding.uplinks4.as_deref().unwrap_or_default();
        let uplinks6 = self.forwarding.uplinks6.as_deref().unwrap_or_default();
        let ground = Ground { table: &names.table, bridge: &names.bridge, pools: &pools, uplinks4, uplinks6 };
        rules::replace(ground, mappings)
    }
}

/// The ranges of the bridge that is there, when it is ours.
pub(super) fn standing(names: &Names, links: &Links) -> Result<Option<(Link, Pools)>, BridgeError> {
    let found = links.find(&names.bridge)?;
    Ok(found.and_then(|link| names.pools(&link).map(|pools| (link, pools))))
}

/// Makes the bridge, or uses the one that is there. `kept` are the ranges that pods have addresses of.
pub(super) fn make(
    config: &BridgeConfig,
    names: &Names,
    links: &Links,
    kept: Option<Pools>,
) -> Result<Base, BridgeError> {
    let (link, pools) = match links.find(&names.bridge)? {
        Some(link) if !names.is_ours(&link) => {
            return Err(BridgeError::Foreign { name: names.bridge.clone() });
        }
        Some(link) => stand_or_move(config, names, links, (link, kept))?,
        None => lay(config, names, links, kept)?,
    };
    let (index, v6) = (link.index, pools.v6.is_some());
    let others = uplinks(links, index)?;
    let forwarding = Forwarding::open(config.dir.join(FORWARDING), &names.bridge, &others, v6)?;
    Ok(Base { index, pools, forwarding })
}

/// Removes all of it.
pub(super) fn remove(config: &BridgeConfig, names: &Names, links: &Links) -> Result<(), BridgeError> {
    rules::remove(&names.table)?;
    if links.find(&names.bridge)?.is_some_and(|link| names.is_ours(&link)) {
        links.remove(&names.bridge)?;
    }
    forwarding::give_back(&config.dir.join(FORWARDING));
    Ok(())
}

/// Interfaces that traffic of pods may come in by: not loopback, not another bridge, not what is on one.
fn uplinks(links: &Links, bridge: u32) -> Result<Vec<String>, BridgeError> {
    let other = |link: &Link| {
        link.index != bridge && link.name != "lo" && link.master.is_none() && link.kind != "bridge"
    };
    Ok(links.list()?.into_iter().filter(other).map(|link| link.name).collect())
}

/// The bridge that is there, unless nobody needs its ranges and they are not to be used any more.
fn stand_or_move(
    config: &BridgeConfig,
    names: &Names,
    links: &Links,
    (link, kept): (Link, Option<Pools>),
) -> Result<(Link, Pools), BridgeError> {
    let pools = names.pools(&link).expect("it is ours");
    let routes = links.routes()?;
    let in_use = pools.all().any(|pool| {
        let foreign = |route: &Route| route.link != link.index && route.to.prefix() >= pool.prefix();
        routes.iter().any(|route| foreign(route) && route.to.overlaps(&pool))
    });
    let v6 = config.v6.filter(|_| has_v6());
    let wanted = pools.v4.prefix() == config.v4.prefix() && pools.v6.is_some() == v6.is_some();
    match kept {
        Some(kept) if kept == pools => {}
        None if wanted && !in_use && is_near(config, pools) => {}
        _ => {
            links.remove(&names.bridge)?;
            return lay(config, names, links, kept);
        }
    }
    // An earlier daemon may have died before it had given it its addresses.
    for pool in pools.all() {
        links.add_address(&link, pool.nth(1), pool.prefix())?;
    }
    Ok((link, pools))
}

/// Whether the ranges are among those that this configuration leads to.
fn is_near(config: &BridgeConfig, pools: Pools) -> bool {
    let v6 = config.v6.zip(pools.v6).is_none_or(|(wanted, v6)| wanted.leads_to(&v6));
    config.v4.leads_to(&pools.v4) && v6
}

/// Makes a new bridge in ranges that nobody has.
fn lay(
    config: &BridgeConfig,
    names: &Names,
    links: &Links,
    kept: Option<Pools>,
) -> Result<(Link, Pools), BridgeError> {
    let v6 = config.v6.filter(|_| has_v6());
    for _ in 0..TRIES {
        let routes: Vec<_> = links.routes()?.iter().map(|route| route.to).collect();
        let chosen = || pool::choose(config.v4, v6, &routes).map(|(v4, v6)| Pools { v4, v6 });
        let pools = kept.or_else(chosen).ok_or(BridgeError::NoPool { wanted: config.v4 })?;
        links.make_bridge(&names.bridge, &names.alias(pools), names.mac, config.mtu)?;
        let link = links.find(&names.bridge)?;
        let link = link.ok_or_else(|| BridgeError::Foreign { name: names.bridge.clone() })?;
        for pool in pools.all() {
            links.add_address(&link, pool.nth(1), pool.prefix())?;
        }
        // Another daemon may have chosen the same at the same time: the elder link stays.
        let elder = |route: &Route| route.link < link.index && pools.all().any(|pool| pool == route.to);
        if kept.is_none() && links.routes()?.iter().any(elder) {
            links.remove(&names.bridge)?;
            continue;
        }
        if (pools.v4, pools.v6) != (config.v4, v6) && kept.is_none() {
            let (wanted, taken) = (config.v4, pools.v4);
            tracing::warn!(bridge = names.bridge, %wanted, %taken, v6 = ?pools.v6, "addresses for pods are in use by another route; the next free range is taken");
        }
        tracing::info!(bridge = names.bridge, pool = %pools.v4, "bridge for pods made");
        tell_what_is_in_the_way(names);
        return Ok((link, pools));
    }
    Err(BridgeError::NoPool { wanted: config.v4 })
}

/// Whether this host has IPv6 at all.
fn has_v6() -> bool {
    let off = |of: &str| {
        let setting = std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{of}/disable_ipv6"));
        setting.is_ok_and(|text| text.trim() != "0")
    };
    let has = Path::new("/proc/sys/net/ipv6").exists() && !off("all") && !off("default");
    if !has {
        tracing::info!("this host has no IPv6; pods have IPv4 addresses only");
    }
    has
}

/// Another program may drop what is forwarded; nothing in a table of ours can undo that.
fn tell_what_is_in_the_way(names: &Names) {
    for chain in rules::in_the_way().unwrap_or_default() {
        let bridge = &names.bridge;
        tracing::warn!(
            chain,
            mend = format!(
                "iptables -I DOCKER-USER -i {bridge} -j ACCEPT; iptables -I DOCKER-USER -o {bridge} -j ACCEPT"
            ),
            "drops what is forwarded: pods reach each other and this host, and nothing else, until it lets their bridge through"
        );
    }
}

/// A number that stands for a directory (FNV-1a).
fn tag(path: &Path) -> u64 {
    path.as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// The link of a pod on the host.
pub(super) fn link_of(pod: &crate::PodId) -> String {
    format!("pod{}", pod.as_str().chars().take(12).collect::<String>())
}

/// The hardware address of a pod: the same for the same address, so that nobody remembers a wrong one.
pub(super) fn mac_of(address: IpAddr) -> [u8; 6] {
    let IpAddr::V4(address) = address else { return [2, 0, 0, 0, 0, 2] };
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}
