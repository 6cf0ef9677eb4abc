//! The rules of the built-in network: one table for each daemon, and in it a map of host ports.
//!
//! Invariant: nothing outside the table is touched, and no rule in it concerns traffic that neither comes
//! from nor goes to the bridge, except that host ports lead there.

use std::{
    io,
    net::{IpAddr, Ipv6Addr},
};

use super::{
    error::BridgeError,
    forwarding::Uplinks,
    ledger::HostPort,
    links::address,
    nft::{self, Changes, Element, Header, Hook, Meta, Rule, Set},
    pool::{Subnet, octets},
};
use crate::{
    netlink::{Refused, Socket},
    network::Protocol,
};

/// Beginning of the names of all daemons' tables.
pub(super) const PREFIX: &str = "podhold-";

const IPV4: u8 = libc::NFPROTO_IPV4 as u8;
const IPV6: u8 = libc::NFPROTO_IPV6 as u8;
/// Types as nft(8) numbers them, to print them; a concatenation has six bits for each.
const TYPE_IPV4: u32 = 7;
const TYPE_IPV6: u32 = 8;
const TYPE_PROTOCOL: u32 = 12;
const TYPE_PORT: u32 = 13;
const TYPE_INTERFACE: u32 = 41;
const PORT: u32 = TYPE_PROTOCOL << 6 | TYPE_PORT;

/// Ports of all the host's addresses, and those of one.
const PORTS4: Set = Set { name: "ports4", key: (PORT, 8), data: Some((TYPE_IPV4 << 6 | TYPE_PORT, 8)) };
const PORTS6: Set = Set { name: "ports6", key: (PORT, 8), data: Some((TYPE_IPV6 << 6 | TYPE_PORT, 20)) };
const AT4: Set = Set { name: "at4", key: (TYPE_IPV4 << 12 | PORT, 12), ..PORTS4 };
const AT6: Set = Set { name: "at6", key: (TYPE_IPV6 << 12 | PORT, 24), ..PORTS6 };
/// Interfaces that forward for our sake alone.
const UPLINKS4: Set = Set { name: "uplinks4", key: (TYPE_INTERFACE, 16), data: None };
const UPLINKS6: Set = Set { name: "uplinks6", ..UPLINKS4 };

/// A host port and where it leads.
#[derive(Debug, Clone)]
pub(super) struct Mapping {
    pub(super) port: HostPort,
    /// The pod's addresses, at most one of each family.
    pub(super) to: Vec<IpAddr>,
}

/// What the table is made for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ground<'a> {
    pub(super) table: &'a str,
    pub(super) bridge: &'a str,
    pub(super) pools: &'a [Subnet],
    /// Interfaces that forward for our sake alone.
    pub(super) uplinks: &'a Uplinks,
}

/// Makes the table, or makes it anew, with these ports in it. At no moment it is missing.
pub(super) fn replace(ground: Ground<'_>, mappings: &[Mapping]) -> Result<(), BridgeError> {
    let mut changes = Changes::of(ground.table);
    // What does not exist cannot be deleted.
    changes.make_table();
    changes.delete_table();
    changes.make_table();
    for set in [PORTS4, PORTS6, AT4, AT6, UPLINKS4, UPLINKS6] {
        changes.make_set(&set);
    }
    changes.make_chain("ports");
    changes.make_base_chain("prerouting", "nat", Hook::Prerouting, -100);
    changes.make_base_chain("output", "nat", Hook::Output, -100);
    changes.make_base_chain("postrouting", "nat", Hook::Postrouting, 100);
    changes.make_base_chain("guard", "filter", Hook::Prerouting, -300);
    changes.make_base_chain("forward", "filter", Hook::Forward, 0);
    host_ports(&mut changes);
    masquerade(&mut changes, ground);
    guard(&mut changes, ground);
    for (set, names) in [(UPLINKS4, &ground.uplinks.v4), (UPLINKS6, &ground.uplinks.v6)] {
        let names = names.iter().map(|name| Element { key: interface(name), data: None });
        changes.add_elements(set.name, &names.collect::<Vec<_>>());
    }
    for set in [PORTS4, PORTS6, AT4, AT6] {
        let elements = mappings.iter().flat_map(elements).filter(|(to, _)| *to == set.name);
        let elements: Vec<Element> = elements.map(|(_, element)| element).collect();
        changes.add_elements(set.name, &elements);
    }
    commit(changes, ground.table, "make the rules of")
}

/// Opens ports. Answers false when the table has gone.
pub(super) fn open_ports(table: &str, mappings: &[Mapping]) -> Result<bool, BridgeError> {
    let mut changes = Changes::of(table);
    for (set, element) in mappings.iter().flat_map(elements) {
        changes.add_elements(set, std::slice::from_ref(&element));
    }
    match changes.commit(&socket(table)?) {
        Ok(()) => Ok(true),
        Err(refusal) if refusal.errno() == libc::ENOENT => Ok(false),
        Err(refusal) => Err(failed("open host ports in", table)(refusal)),
    }
}

/// Closes ports. Those that are not open are a success.
pub(super) fn close_ports(table: &str, mappings: &[Mapping]) -> Result<(), BridgeError> {
    let socket = socket(table)?;
    for (set, element) in mappings.iter().flat_map(elements) {
        let element = Element { data: None, ..element };
        // One by one: what is missing would keep the others.
        let mut changes = Changes::of(table);
        changes.delete_element(set, &element);
        match changes.commit(&socket) {
            Err(refusal) if refusal.errno() != libc::ENOENT => {
                return Err(failed("close host ports in", table)(refusal));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Removes the table. A missing one is a success.
pub(super) fn remove(table: &str) -> Result<(), BridgeError> {
    let mut changes = Changes::of(table);
    changes.make_table();
    changes.delete_table();
    commit(changes, table, "remove the rules of")
}

/// Tables of all daemons.
pub(super) fn tables() -> Result<Vec<String>, BridgeError> {
    tables_by(&nft::open().map_err(unasked)?)
}

fn tables_by(socket: &Socket) -> Result<Vec<String>, BridgeError> {
    let mut tables = nft::tables(socket).map_err(unasked)?;
    tables.retain(|table| table.starts_with(PREFIX));
    Ok(tables)
}

/// Whether there is the table.
pub(super) fn stand(table: &str) -> Result<bool, BridgeError> {
    nft::has_table(&socket(table)?, table).map_err(unasked)
}

/// Interfaces that forward for the sake of this table's daemon, and those that do for others'.
pub(super) fn uplinks(table: &str) -> Result<(Uplinks, Uplinks), BridgeError> {
    let socket = socket(table)?;
    let (mut own, mut others) = (Uplinks::default(), Uplinks::default());
    for other in tables_by(&socket)? {
        let of = |set: &Set| nft::elements(&socket, &other, set.name).map_err(unasked);
        let into = if other == table { &mut own } else { &mut others };
        into.v4.extend(of(&UPLINKS4)?.iter().map(name_of));
        into.v6.extend(of(&UPLINKS6)?.iter().map(name_of));
    }
    Ok((own, others))
}

/// The ports that are open, and where each leads.
pub(super) fn open_now(table: &str) -> Result<Vec<(HostPort, IpAddr)>, BridgeError> {
    let socket = socket(table)?;
    let mut found = Vec::new();
    for set in [PORTS4, PORTS6, AT4, AT6] {
        let elements = nft::elements(&socket, table, set.name).map_err(unasked)?;
        found.extend(elements.iter().filter_map(mapping));
    }
    Ok(found)
}

/// The table of another daemon that has one of these ports open.
pub(super) fn open_elsewhere(
    table: &str,
    mappings: &[Mapping],
) -> Result<Option<(HostPort, String)>, BridgeError> {
    let socket = socket(table)?;
    for other in tables_by(&socket)?.into_iter().filter(|other| other != table) {
        for mapping in mappings {
            for (set, element) in elements(mapping) {
                if nft::has_element(&socket, &other, set, &element).map_err(unasked)? {
                    return Ok(Some((mapping.port.clone(), other)));
                }
            }
        }
    }
    Ok(None)
}

/// Chains of others that let nothing through to pods and from them, as far as nftables tells.
pub(super) fn in_the_way() -> io::Result<Vec<String>> {
    let closed = nft::closed_forwards(&nft::open()?)?;
    Ok(closed.into_iter().map(|closed| format!("{} {}", closed.table, closed.chain)).collect())
}

/// What comes to a port of the host is sent on to its pod.
fn host_ports(changes: &mut Changes<'_>) {
    let port = |rule: Rule, n| rule.meta(Meta::Transport, n).payload(Header::Transport, 2, 2, n + 1);
    let of = |family: u8| Rule::new().meta(Meta::Family, 0).is(&[family]);
    // That of one address before that of all.
    let rules = [
        port(of(IPV4).payload(Header::Network, 16, 4, 0), 1).looked_up(AT4.name).redirect(IPV4, 1),
        port(of(IPV4), 0).looked_up(PORTS4.name).redirect(IPV4, 1),
        port(of(IPV6).payload(Header::Network, 24, 16, 0), 4).looked_up(AT6.name).redirect(IPV6, 4),
        port(of(IPV6), 0).looked_up(PORTS6.name).redirect(IPV6, 4),
    ];
    for rule in &rules {
        changes.add_rule("ports", rule);
    }
    // The kernel sends nothing from ::1 to a pod: refused, `localhost` is tried again as 127.0.0.1.
    let loopback = of(IPV6).payload(Header::Network, 24, 16, 0).is(&Ipv6Addr::LOCALHOST.octets());
    changes.add_rule("output", &loopback.leave());
    for chain in ["prerouting", "output"] {
        changes.add_rule(chain, &Rule::new().for_this_host().jump("ports"));
    }
}

/// What leaves the pool has the host's address; and so has what comes back to the pool by a host port, since
/// the answer would otherwise not come by here.
fn masquerade(changes: &mut Changes<'_>, ground: Ground<'_>) {
    let bridge = interface(ground.bridge);
    let loopback = Rule::new().meta(Meta::InterfaceOut, 0).is(&bridge).meta(Meta::Family, 0).is(&[IPV4]);
    let loopback = loopback.payload(Header::Network, 12, 1, 0).is(&[127]).masquerade();
    changes.add_rule("postrouting", &loopback);
    for pool in ground.pools {
        let v4 = pool.address().is_ipv4();
        let (family, source, destination, length) = if v4 { (IPV4, 12, 16, 4) } else { (IPV6, 8, 24, 16) };
        let from_pool = |rule: Rule| {
            let rule = rule.meta(Meta::Family, 0).is(&[family]);
            rule.payload(Header::Network, source, length, 0).masked(&pool.mask()).is(&pool.octets())
        };
        let back = from_pool(Rule::new().meta(Meta::InterfaceOut, 0).is(&bridge));
        changes.add_rule("postrouting", &back.was_redirected().masquerade());
        let away = from_pool(Rule::new().meta(Meta::InterfaceOut, 0).differs(&bridge));
        let away = away.payload(Header::Network, destination, 1, 0);
        // Not what is for many.
        let away = if v4 { away.masked(&[0xf0]).differs(&[0xe0]) } else { away.differs(&[0xff]) };
        changes.add_rule("postrouting", &away.masquerade());
    }
}

/// The host's loopback stays closed to pods, though it is opened for answers to host ports; and interfaces
/// that forward for our sake forward nothing else.
fn guard(changes: &mut Changes<'_>, ground: Ground<'_>) {
    for offset in [12, 16] {
        let rule = Rule::new().meta(Meta::InterfaceIn, 0).is(&interface(ground.bridge));
        let rule = rule.meta(Meta::Family, 0).is(&[IPV4]);
        changes.add_rule("guard", &rule.payload(Header::Network, offset, 1, 0).is(&[127]).drop());
    }
    for (family, set) in [(IPV4, UPLINKS4.name), (IPV6, UPLINKS6.name)] {
        let rule = Rule::new().meta(Meta::Family, 0).is(&[family]);
        let rule = rule.meta(Meta::InterfaceIn, 0).in_set(set).meta(Meta::InterfaceOut, 0).in_set(set);
        changes.add_rule("forward", &rule.drop());
    }
}

/// The elements that a mapping is, each with its map.
fn elements(mapping: &Mapping) -> Vec<(&'static str, Element)> {
    let port = &mapping.port;
    let mut service = vec![port.protocol.number(), 0, 0, 0];
    service.extend(port.port.to_be_bytes());
    service.extend([0, 0]);
    let usable = |to: &&IpAddr| port.ip.is_none_or(|ip| ip.is_ipv4() == to.is_ipv4());
    let element = |to: &IpAddr| {
        let set = match (port.ip, to) {
            (None, IpAddr::V4(_)) => PORTS4,
            (None, IpAddr::V6(_)) => PORTS6,
            (Some(_), IpAddr::V4(_)) => AT4,
            (Some(_), IpAddr::V6(_)) => AT6,
        };
        let key = [port.ip.map(octets).unwrap_or_default(), service.clone()].concat();
        let data = [octets(*to), port.to.to_be_bytes().to_vec(), vec![0, 0]].concat();
        (set.name, Element { key, data: Some(data) })
    };
    mapping.to.iter().filter(usable).map(element).collect()
}

/// What an element of a map says: the inverse of [`elements`].
fn mapping(element: &Element) -> Option<(HostPort, IpAddr)> {
    let at = element.key.len().checked_sub(8)?;
    let (ip, service) = element.key.split_at(at);
    let ip = if at == 0 { None } else { Some(address(ip)?) };
    let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let protocol = protocol.into_iter().find(|protocol| protocol.number() == service[0])?;
    let data = element.data.as_ref()?;
    let (to, port) = data.split_at_checked(data.len().checked_sub(4)?)?;
    let number = |bytes: &[u8]| Some(u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?));
    let port = HostPort { protocol, ip, port: number(&service[4..])?, to: number(port)? };
    Some((port, address(to)?))
}

fn name_of(element: &Element) -> String {
    String::from_utf8_lossy(&element.key).trim_end_matches('\0').to_owned()
}

/// A name as the kernel compares it.
fn interface(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

fn socket(table: &str) -> Result<Socket, BridgeError> {
    let failed =
        |source| BridgeError::Rules { operation: "open a netlink socket for", table: table.into(), source };
    nft::open().map_err(failed)
}

/// A question about tables that the kernel has not answered.
pub(super) fn unasked(source: io::Error) -> BridgeError {
    BridgeError::Rules { operation: "look into", table: "of pods".into(), source }
}

fn commit(changes: Changes<'_>, table: &str, operation: &'static str) -> Result<(), BridgeError> {
    changes.commit(&socket(table)?).map_err(failed(operation, table))
}

fn failed(operation: &'static str, table: &str) -> impl FnOnce(Refused) -> BridgeError {
    let table = table.to_owned();
    move |refusal| BridgeError::Rules { operation, table, source: refusal.source }
}
