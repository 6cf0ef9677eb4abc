//! What the kernel remembers of flows (ctnetlink): it sends a flow on as it did at its first packet, whatever
//! the rules say since. A UDP flow has no end, so one to a host port that was opened or closed has to be
//! forgotten.
//!
//! Invariant: only flows to an address of this host and to a port that is named are forgotten; what cannot be
//! forgotten is told in the log and fails nothing.

use std::{collections::BTreeSet, io, net::IpAddr};

use super::{
    ledger::HostPort,
    links::{Links, address},
    nft,
};
use crate::{
    netlink::{Attributes, DUMP, Message, Socket, attribute, short},
    network::Protocol,
};

const SUBSYSTEM: u16 = short(libc::NFNL_SUBSYS_CTNETLINK);
// linux/netfilter/nfnetlink_conntrack.h; libc has no names for them.
const GET: u16 = 1;
const DELETE: u16 = 2;
const TUPLE_ORIGINAL: u16 = 1;
const ID: u16 = 12;
const ZONE: u16 = 18;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const DESTINATION4: u16 = 2;
const DESTINATION6: u16 = 4;
const PROTOCOL_NUMBER: u16 = 1;
const DESTINATION_PORT: u16 = 3;

/// Forgets the flows to those of the ports that are UDP.
pub(super) fn forget(ports: &[HostPort]) {
    let udp: Vec<&HostPort> = ports.iter().filter(|port| port.protocol == Protocol::Udp).collect();
    if udp.is_empty() {
        return;
    }
    let forgotten = own_addresses().and_then(|own| forget_all(&udp, &own));
    if let Err(error) = forgotten {
        tracing::warn!(%error, "flows to UDP host ports are not forgotten: clients that go on with one go astray until it is");
    }
}

fn own_addresses() -> io::Result<BTreeSet<IpAddr>> {
    let found = Links::open().and_then(|links| links.addresses());
    found.map(|found| found.into_iter().collect()).map_err(io::Error::other)
}

fn forget_all(ports: &[&HostPort], own: &BTreeSet<IpAddr>) -> io::Result<()> {
    let socket = nft::open()?;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let family = u8::try_from(family).expect("both are small");
        let header = [family, 0, 0, 0];
        let question = Message::new(SUBSYSTEM << 8 | GET, DUMP, &header, Attributes::new());
        let ours = |body: &[u8]| flow(body).is_some_and(|flow| leads_to(flow, ports, own));
        for found in socket.list_of(&question, ours)? {
            forget_one(&socket, &header, &found.body)?;
        }
    }
    Ok(())
}

fn forget_one(socket: &Socket, header: &[u8], body: &[u8]) -> io::Result<()> {
    let rest = body.get(4..).unwrap_or_default();
    let original = attribute(rest, TUPLE_ORIGINAL).unwrap_or_default();
    let mut which = Attributes::new().told(TUPLE_ORIGINAL, original);
    for kind in [ID, ZONE] {
        if let Some(value) = attribute(rest, kind) {
            which = which.bytes(kind, value);
        }
    }
    match socket.send(&[Message::new(SUBSYSTEM << 8 | DELETE, 0, header, which).acknowledged()]) {
        Err(refusal) if refusal.errno() != libc::ENOENT => Err(refusal.source),
        _ => Ok(()),
    }
}

/// Protocol, destination and its port of a flow's first packet.
fn flow(body: &[u8]) -> Option<(u8, IpAddr, u16)> {
    let original = attribute(body.get(4..)?, TUPLE_ORIGINAL)?;
    let (ip, protocol) = (attribute(original, TUPLE_IP)?, attribute(original, TUPLE_PROTOCOL)?);
    let to = address(attribute(ip, DESTINATION4).or_else(|| attribute(ip, DESTINATION6))?)?;
    let port = u16::from_be_bytes(attribute(protocol, DESTINATION_PORT)?.try_into().ok()?);
    Some((*attribute(protocol, PROTOCOL_NUMBER)?.first()?, to, port))
}

fn leads_to((protocol, to, number): (u8, IpAddr, u16), ports: &[&HostPort], own: &BTreeSet<IpAddr>) -> bool {
    let is_own = || to.is_loopback() || own.contains(&to);
    let is = |port: &&HostPort| port.port == number && port.ip.is_none_or(|ip| ip == to);
    protocol == Protocol::Udp.number() && ports.iter().any(is) && is_own()
}
