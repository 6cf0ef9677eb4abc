//! What all pods of a daemon share: the bridge, its addresses, the settings and the rules.
//!
//! Invariant: whose bridge it is and which ranges it has stands on the bridge itself (its alias), so that no
//! file can disagree with the kernel, nor a name in the configuration. Pods that are there keep their ranges.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    thread,
};

use super::{
    BridgeConfig,
    error::BridgeError,
    forwarding::{self, Forwarding, Uplinks},
    links::{Address, INTERFACE, Link, Links, NewBridge, Pair, Route},
    pool::{self, Subnet},
    record::Pools,
    rules::{self, Ground, Mapping},
};
use crate::netns::Unpinned;

/// Name of the file with the settings that were changed.
const FORWARDING: &str = "forwarding";
/// What has room on a link (`IFALIASZ`), without the zero at its end.
const LONGEST_ALIAS: usize = 255;

/// Names of what one daemon makes, from the directory that is its own.
#[derive(Debug, Clone)]
pub(super) struct Names {
    pub(super) bridge: String,
    pub(super) table: String,
    /// That of the bridge and of the pods' links.
    pub(super) group: u32,
    mac: [u8; 6],
    owner: PathBuf,
}

impl Names {
    pub(super) fn of(config: &BridgeConfig) -> Self {
        let [a, b, c, d, e, f, ..] = tag(&config.owner).to_be_bytes();
        // Far from the small numbers that people give to theirs.
        let group = u32::from_be_bytes([a & 0x3f | 0x40, b, c, f]);
        let tag = format!("{a:02x}{b:02x}{c:02x}{d:x}").chars().take(7).collect::<String>();
        let table = format!("{}{tag}", rules::PREFIX);
        let bridge = if config.name.is_empty() { table.clone() } else { config.name.clone() };
        // 02: nobody has registered it.
        Self { bridge, table, group, mac: [2, a, b, c, d, e], owner: config.owner.clone() }
    }

    /// What stands on the bridge: whose it is, its ranges, and the directory of whose it is where that has room.
    fn alias(&self, pools: Pools) -> String {
        let v6 = pools.v6.map_or_else(|| "-".to_owned(), |v6| v6.to_string());
        let alias = format!("{} {} {v6}", self.table, pools.v4);
        let owner = self.owner.to_str().map(|owner| format!("{alias} {owner}"));
        owner.filter(|whole| whole.len() <= LONGEST_ALIAS).unwrap_or(alias)
    }

    /// The ranges that stand on a bridge of ours.
    fn pools(&self, link: &Link) -> Option<Pools> {
        let ours = mark(link) == Some(&self.table);
        let mut words = link.alias.split(' ').skip(1);
        let v4 = words.next().filter(|_| ours)?.parse().ok()?;
        Some(Pools { v4, v6: words.next().and_then(|v6| v6.parse().ok()) })
    }
}

/// Which daemon's bridge a link is: the name of its table.
pub(super) fn mark(link: &Link) -> Option<&str> {
    let mark = link.alias.split(' ').next()?;
    let tag = mark.strip_prefix(rules::PREFIX).filter(|_| link.kind == "bridge")?;
    tag.bytes().all(|byte| byte.is_ascii_hexdigit()).then_some(mark)
}

/// The directory of whose bridge a link is.
pub(super) fn owner(link: &Link) -> Option<PathBuf> {
    link.alias.splitn(4, ' ').nth(3).map(PathBuf::from)
}

/// A bridge that is ready for pods.
#[derive(Debug, Clone)]
pub(super) struct Base {
    pub(super) index: u32,
    name: String,
    pub(super) pools: Pools,
    forwarding: Forwarding,
}

impl Base {
    /// Whether it is as it was, with its rules and settings.
    pub(super) fn is_current(&self, names: &Names, links: &Links) -> Result<bool, BridgeError> {
        let index = links.find(&self.name)?.map(|link| link.index);
        if index != Some(self.index) || !rules::stand(&names.table)? {
            return Ok(false);
        }
        self.forwarding.is_current(|| uplinks(links, self.index))
    }

    /// Makes the rules anew, with these ports.
    pub(super) fn replace_rules(&self, names: &Names, mappings: &[Mapping]) -> Result<(), BridgeError> {
        let pools: Vec<_> = self.pools.all().collect();
        let (table, bridge, uplinks) = (&names.table, &self.name, &self.forwarding.uplinks);
        rules::replace(Ground { table, bridge, pools: &pools, uplinks }, mappings)
    }
}

/// Our bridge that is there, whatever its name, and its ranges.
pub(super) fn standing(names: &Names, links: &Links) -> Result<Option<(Link, Pools)>, BridgeError> {
    let ours = |link: Link| names.pools(&link).map(|pools| (link, pools));
    match links.find(&names.bridge)?.and_then(ours) {
        None => Ok(links.list()?.into_iter().find_map(ours)),
        found => Ok(found),
    }
}

/// Refuses to go on where somebody else has the name.
pub(super) fn check_name(names: &Names, links: &Links) -> Result<(), BridgeError> {
    match links.find(&names.bridge)? {
        Some(link) if names.pools(&link).is_none() => {
            Err(BridgeError::Foreign { name: names.bridge.clone() })
        }
        _ => Ok(()),
    }
}

/// Makes the bridge, or uses the one that is there. `kept` are the ranges that pods have addresses of.
pub(super) fn make(
    config: &BridgeConfig,
    names: &Names,
    links: &Links,
    kept: Option<Pools>,
) -> Result<Base, BridgeError> {
    let (link, pools) = match standing(names, links)? {
        Some(standing) => stand_or_move(config, names, links, (standing, kept))?,
        None => lay(config, names, links, kept)?,
    };
    forwarding::distrust(&link.name)?;
    let others = uplinks(links, link.index)?;
    let (_, elsewhere) = rules::uplinks(&names.table)?;
    let (file, v6) = (config.dir.join(FORWARDING), pools.v6.is_some());
    let forwarding = Forwarding::open(file, &link.name, v6, &others, &elsewhere)?;
    Ok(Base { index: link.index, name: link.name, pools, forwarding })
}

/// Removes all of it, and the links of pods that are on it.
pub(super) fn remove(config: &BridgeConfig, names: &Names, links: &Links) -> Result<(), BridgeError> {
    let (_, elsewhere) = rules::uplinks(&names.table)?;
    // At the same time: the kernel takes tens of milliseconds for links, and not few for rules.
    let (without_rules, without_links) = thread::scope(|scope| {
        let removal = thread::Builder::new().name("rules".to_owned());
        let removal = removal.spawn_scoped(scope, || rules::remove(&names.table));
        let without_links = remove_links(names, links);
        let without_rules = match removal {
            Ok(removal) => removal.join().expect("no code panics while it removes rules"),
            Err(_no_thread) => rules::remove(&names.table),
        };
        (without_rules, without_links)
    });
    without_rules.and(without_links)?;
    forwarding::give_back(&config.dir.join(FORWARDING), &elsewhere);
    Ok(())
}

/// Removes the bridge and the links of pods, all at once where nobody else's are in our group.
fn remove_links(names: &Names, links: &Links) -> Result<(), BridgeError> {
    let Some((bridge, _)) = standing(names, links)? else { return Ok(()) };
    let mut ours = links.list()?;
    ours.retain(|link| link.group == names.group || link.index == bridge.index);
    let on_it = |link: &Link| link.index == bridge.index || link.master == Some(bridge.index);
    if ours.iter().all(|link| link.group == names.group && on_it(link)) {
        return links.remove_group(names.group);
    }
    ours.iter().filter(|link| on_it(link)).try_for_each(|link| links.remove(&link.name))
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
    ((link, pools), kept): ((Link, Pools), Option<Pools>),
) -> Result<(Link, Pools), BridgeError> {
    let routes = links.routes()?;
    let in_use = pools.all().any(|pool| {
        let foreign = |route: &Route| route.link != link.index && route.to.prefix() >= pool.prefix();
        routes.iter().any(|route| foreign(route) && route.to.overlaps(&pool))
    });
    let v6 = config.v6.filter(|_| has_v6());
    let named = link.name == names.bridge;
    let wanted = named && pools.v4.prefix() == config.v4.prefix() && pools.v6.is_some() == v6.is_some();
    match kept {
        Some(kept) if kept == pools => {}
        None if wanted && !in_use && is_near(config, pools) => {}
        _ => {
            links.remove(&link.name)?;
            return lay(config, names, links, kept);
        }
    }
    if link.alias != names.alias(pools) {
        links.write(&link.name, &names.alias(pools))?;
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

/// Makes a new bridge in ranges that nobody has. It is our turn: no other daemon chooses at the same time.
fn lay(
    config: &BridgeConfig,
    names: &Names,
    links: &Links,
    kept: Option<Pools>,
) -> Result<(Link, Pools), BridgeError> {
    check_name(names, links)?;
    let v6 = config.v6.filter(|_| has_v6());
    let routes: Vec<_> = links.routes()?.iter().map(|route| route.to).collect();
    let chosen = || pool::choose(config.v4, v6, &routes).map(|(v4, v6)| Pools { v4, v6 });
    let pools = kept.or_else(chosen).ok_or(BridgeError::NoPool { wanted: config.v4 })?;
    links.make_bridge(NewBridge {
        name: &names.bridge,
        alias: &names.alias(pools),
        mac: names.mac,
        mtu: config.mtu,
        group: names.group,
    })?;
    let link = links.find(&names.bridge)?;
    let link = link.ok_or_else(|| BridgeError::Foreign { name: names.bridge.clone() })?;
    for pool in pools.all() {
        links.add_address(&link, pool.nth(1), pool.prefix())?;
    }
    if (pools.v4, pools.v6) != (config.v4, v6) && kept.is_none() {
        let (wanted, taken) = (config.v4, pools.v4);
        tracing::warn!(bridge = names.bridge, %wanted, %taken, v6 = ?pools.v6, "addresses for pods are in use by another route; the next free range is taken");
    }
    tracing::info!(bridge = names.bridge, pool = %pools.v4, "bridge for pods made");
    tell_what_is_in_the_way(names);
    Ok((link, pools))
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

/// A bridge, rules, and a pod in its namespace, on a host that is the thread's own namespace.
pub(super) fn try_out(pod: &Unpinned) -> Result<(), BridgeError> {
    let config = BridgeConfig {
        dir: PathBuf::new(),
        owner: PathBuf::from("/"),
        name: String::new(),
        v4: Subnet::around([10, 214, 0, 0].into(), 22).expect("22 bits are not too many"),
        v6: Subnet::around([0xfd50, 0x6f64, 0, 0, 0, 0, 0, 0].into(), 64),
        mtu: 0,
    };
    let (names, links) = (Names::of(&config), Links::open()?);
    let (bridge, pools) = lay(&config, &names, &links, None)?;
    forwarding::distrust(&bridge.name)?;
    let pair = Pair {
        name: "pod",
        alias: "",
        master: bridge.index,
        mac: mac_of(pools.v4.nth(2)),
        mtu: config.mtu,
        group: names.group,
    };
    links.make_pair(pair, pod)?;
    let inside: Vec<Address> = pools.all().map(|pool| Address::at(pool, 2)).collect();
    pod.run(|| {
        forwarding::distrust(INTERFACE)?;
        Links::open()?.address_pod(&inside)
    })??;
    let pools: Vec<_> = pools.all().collect();
    let uplinks = Uplinks::default();
    rules::replace(
        Ground { table: &names.table, bridge: &bridge.name, pools: &pools, uplinks: &uplinks },
        &[],
    )
}
