//! Links, addresses and routes: what rtnetlink(7) is told for a bridge and for a pod's end of a pair.
//!
//! Invariant: each function is one datagram, or a question. Which links there should be is not decided here.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
};

use libc::{
    IFA_ADDRESS, IFA_LOCAL, IFLA_ADDRESS, IFLA_GROUP, IFLA_IFALIAS, IFLA_IFNAME, IFLA_INFO_DATA,
    IFLA_INFO_KIND, IFLA_INFO_SLAVE_DATA, IFLA_INFO_SLAVE_KIND, IFLA_LINKINFO, IFLA_MASTER, IFLA_MTU,
    IFLA_NET_NS_FD, RTA_DST, RTA_GATEWAY, RTA_OIF,
};

use super::{
    error::BridgeError,
    pool::{Subnet, octets},
};
use crate::netlink::{
    Attributes, CREATE, DUMP, EXCLUSIVE, Family, Message, REPLACE, Refused, Socket, attribute,
};

/// What libc has no names for.
const IFLA_BRPORT_MODE: u16 = 4;
const VETH_INFO_PEER: u16 = 1;
const IFA_FLAGS: u16 = 8;
/// The pod's own interface.
pub(super) const INTERFACE: &str = "eth0";

/// A conversation about the links of the thread's network namespace.
pub(super) struct Links(Socket);

/// A link, as the kernel tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) alias: String,
    pub(super) kind: String,
    pub(super) master: Option<u32>,
    /// 0 is that of all which nobody has put into another.
    pub(super) group: u32,
}

/// A route, and the link it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) to: Subnet,
    pub(super) link: u32,
}

/// A bridge that is to be made.
#[derive(Debug, Clone, Copy)]
pub(super) struct NewBridge<'a> {
    pub(super) name: &'a str,
    /// What is written on it.
    pub(super) alias: &'a str,
    pub(super) mac: [u8; 6],
    /// 0: the kernel's choice.
    pub(super) mtu: u32,
    /// The links that go together.
    pub(super) group: u32,
}

/// What is common to both ends of a pod's pair of links.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair<'a> {
    /// The host's end.
    pub(super) name: &'a str,
    /// What is written on it, for whoever looks.
    pub(super) alias: &'a str,
    /// The bridge.
    pub(super) master: u32,
    /// The pod's hardware address.
    pub(super) mac: [u8; 6],
    /// 0: the kernel's choice.
    pub(super) mtu: u32,
    /// The group of the host's end.
    pub(super) group: u32,
}

/// An address of a pod, and the way out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Address {
    pub(super) address: IpAddr,
    pub(super) prefix: u8,
    pub(super) gateway: IpAddr,
}

impl Address {
    /// What a pod at this place has of a range.
    pub(super) fn at(pool: Subnet, place: u32) -> Self {
        Self { address: pool.nth(place), prefix: pool.prefix(), gateway: pool.nth(1) }
    }
}

impl Links {
    pub(super) fn open() -> Result<Self, BridgeError> {
        Socket::open(Family::Route).map(Self).map_err(failed("open a netlink socket for", "links"))
    }

    /// The link of this name.
    pub(super) fn find(&self, name: &str) -> Result<Option<Link>, BridgeError> {
        let question = Message::new(libc::RTM_GETLINK, 0, &link_header(0, false), name_of(name));
        match self.0.ask(&question) {
            Ok(found) => Ok(found.iter().find_map(|link| link_of(&link.body))),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(failed("look for", name)(error)),
        }
    }

    /// All links.
    pub(super) fn list(&self) -> Result<Vec<Link>, BridgeError> {
        let question = Message::new(libc::RTM_GETLINK, DUMP, &link_header(0, false), Attributes::new());
        let found = self.0.list(&question).map_err(failed("list", "links"))?;
        Ok(found.iter().filter_map(|link| link_of(&link.body)).collect())
    }

    /// All routes but those to the host's own addresses.
    pub(super) fn routes(&self) -> Result<Vec<Route>, BridgeError> {
        // A family of 0 means all of them.
        let question = Message::new(libc::RTM_GETROUTE, DUMP, &[0; 12], Attributes::new());
        let found = self.0.list(&question).map_err(failed("list the routes of", "all links"))?;
        Ok(found.iter().filter_map(|route| route_of(&route.body)).collect())
    }

    /// The addresses of the host itself.
    pub(super) fn addresses(&self) -> Result<Vec<IpAddr>, BridgeError> {
        let question = Message::new(libc::RTM_GETADDR, DUMP, &[0; 8], Attributes::new());
        let found = self.0.list(&question).map_err(failed("list the addresses of", "all links"))?;
        Ok(found.iter().filter_map(|address| own_address(&address.body)).collect())
    }

    /// Makes the bridge and brings it up.
    pub(super) fn make_bridge(&self, bridge: NewBridge<'_>) -> Result<(), BridgeError> {
        let NewBridge { name, alias, mac, mtu, group } = bridge;
        let kind = Attributes::new().text(IFLA_INFO_KIND, "bridge");
        // An address of its own: otherwise it has that of a pod, and another one when that pod ends.
        let mut attributes =
            name_of(name).native(IFLA_GROUP, group).bytes(IFLA_ADDRESS, &mac).nest(IFLA_LINKINFO, &kind);
        if mtu > 0 {
            attributes = attributes.native(IFLA_MTU, mtu);
        }
        let make = Message::new(libc::RTM_NEWLINK, CREATE | EXCLUSIVE, &link_header(0, true), attributes);
        self.0.send(&[make, written(name, alias)]).map_err(refused("make the bridge", name))
    }

    /// Writes anew what stands on a link.
    pub(super) fn write(&self, name: &str, alias: &str) -> Result<(), BridgeError> {
        self.0.send(&[written(name, alias)]).map_err(refused("write on", name))
    }

    /// Gives a link an address. One it has already is a success.
    pub(super) fn add_address(&self, link: &Link, address: IpAddr, prefix: u8) -> Result<(), BridgeError> {
        let add = address_message(link.index, address, prefix).acknowledged();
        let name = format!("{} to {}", address, link.name);
        self.0.send(&[add]).map_err(refused("give the address", &name))
    }

    /// Removes a link. A missing one is a success.
    pub(super) fn remove(&self, name: &str) -> Result<(), BridgeError> {
        let remove = Message::new(libc::RTM_DELLINK, 0, &link_header(0, false), name_of(name)).acknowledged();
        match self.0.send(&[remove]) {
            Err(refusal) if refusal.errno() != libc::ENODEV => Err(refused("remove", name)(refusal)),
            _ => Ok(()),
        }
    }

    /// Removes all links of a group at once: the kernel takes no longer for them than for one, which is tens of
    /// milliseconds. None is a success.
    pub(super) fn remove_group(&self, group: u32) -> Result<(), BridgeError> {
        let group = Attributes::new().native(IFLA_GROUP, group);
        let remove = Message::new(libc::RTM_DELLINK, 0, &link_header(0, false), group).acknowledged();
        match self.0.send(&[remove]) {
            Err(refusal) if refusal.errno() != libc::ENODEV => {
                Err(refused("remove", "links of a group")(refusal))
            }
            _ => Ok(()),
        }
    }

    /// Connects a link to the bridge and brings it up. Answers whether there is such a link.
    pub(super) fn connect(&self, name: &str, master: u32) -> Result<bool, BridgeError> {
        let attributes = name_of(name).native(IFLA_MASTER, master);
        let set = Message::new(libc::RTM_NEWLINK, 0, &link_header(0, true), attributes);
        let turn = Message::new(libc::RTM_NEWLINK, 0, &link_header(0, false), hairpin(name_of(name)));
        match self.0.send(&[set, turn.acknowledged()]) {
            Ok(()) => Ok(true),
            Err(refusal) if refusal.errno() == libc::ENODEV => Ok(false),
            Err(refusal) => Err(refused("connect to the bridge", name)(refusal)),
        }
    }

    /// Makes a pair of links: one on the bridge, which is up, and one in the network namespace, which cannot be
    /// up before the pair is whole.
    pub(super) fn make_pair(&self, pair: Pair<'_>, namespace: impl AsFd) -> Result<(), BridgeError> {
        let namespace = u32::try_from(namespace.as_fd().as_raw_fd()).unwrap_or(u32::MAX);
        let with_mtu = |attributes: Attributes| match pair.mtu {
            0 => attributes,
            mtu => attributes.native(IFLA_MTU, mtu),
        };
        let inner = with_mtu(name_of(INTERFACE).bytes(IFLA_ADDRESS, &pair.mac));
        let inner = inner.native(IFLA_NET_NS_FD, namespace);
        let peer = Attributes::new().headed(VETH_INFO_PEER, &link_header(0, false), &inner);
        let info = Attributes::new().text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, &peer);
        let outer = with_mtu(name_of(pair.name))
            .native(IFLA_GROUP, pair.group)
            .native(IFLA_MASTER, pair.master)
            .nest(IFLA_LINKINFO, &info);
        let make = Message::new(libc::RTM_NEWLINK, CREATE | EXCLUSIVE, &link_header(0, true), outer);
        let written = hairpin(name_of(pair.name).text(IFLA_IFALIAS, pair.alias));
        let write = Message::new(libc::RTM_NEWLINK, 0, &link_header(0, false), written).acknowledged();
        self.0.send(&[make, write]).map_err(refused("make the link", pair.name))
    }

    /// In the pod's namespace: brings its interface up, and gives it addresses and the routes out.
    pub(super) fn address_pod(&self, addresses: &[Address]) -> Result<(), BridgeError> {
        let index = self.find(INTERFACE)?.map(|link| link.index);
        let missing = || failed("find the pod's interface", INTERFACE)(io::ErrorKind::NotFound.into());
        let index = index.ok_or_else(missing)?;
        let up = Message::new(libc::RTM_NEWLINK, 0, &link_header(index, true), Attributes::new());
        let mut messages = vec![up];
        messages.extend(addresses.iter().map(|to| address_message(index, to.address, to.prefix)));
        messages.extend(addresses.iter().map(|to| {
            let family = family(to.gateway);
            let header =
                [family, 0, 0, 0, libc::RT_TABLE_MAIN, libc::RTPROT_BOOT, 0, libc::RTN_UNICAST, 0, 0, 0, 0];
            let attributes = Attributes::new().bytes(RTA_GATEWAY, &octets(to.gateway)).native(RTA_OIF, index);
            Message::new(libc::RTM_NEWROUTE, CREATE | REPLACE, &header, attributes)
        }));
        let messages: Vec<Message> = messages.into_iter().map(Message::acknowledged).collect();
        self.0.send(&messages).map_err(refused("give addresses and routes to the pod's", INTERFACE))
    }
}

fn written(name: &str, alias: &str) -> Message {
    let alias = name_of(name).text(IFLA_IFALIAS, alias);
    Message::new(libc::RTM_NEWLINK, 0, &link_header(0, false), alias).acknowledged()
}

fn address_message(index: u32, address: IpAddr, prefix: u8) -> Message {
    let mut header = vec![family(address), prefix, 0, 0];
    header.extend(index.to_ne_bytes());
    let mut attributes =
        Attributes::new().bytes(IFA_LOCAL, &octets(address)).bytes(IFA_ADDRESS, &octets(address));
    if address.is_ipv6() {
        // No wait until it is known to be ours alone: we give them out.
        attributes = attributes.native(IFA_FLAGS, libc::IFA_F_NODAD);
    }
    Message::new(libc::RTM_NEWADDR, CREATE | REPLACE, &header, attributes)
}

/// `ifinfomsg` of a link that is named, by number or by an attribute.
fn link_header(index: u32, up: bool) -> Vec<u8> {
    let flags = if up { libc::IFF_UP.cast_unsigned() } else { 0 };
    let mut header = vec![0; 4];
    for number in [index, flags, flags] {
        header.extend(number.to_ne_bytes());
    }
    header
}

/// Lets the bridge send back by a port what has come in by it: where it applies the host's rules itself
/// (br_netfilter), that is how a pod reaches its own host port.
fn hairpin(attributes: Attributes) -> Attributes {
    let mode = Attributes::new().bytes(IFLA_BRPORT_MODE, &[1]);
    let info = Attributes::new().text(IFLA_INFO_SLAVE_KIND, "bridge").nest(IFLA_INFO_SLAVE_DATA, &mode);
    attributes.nest(IFLA_LINKINFO, &info)
}

fn name_of(name: &str) -> Attributes {
    Attributes::new().text(IFLA_IFNAME, name)
}

fn family(address: IpAddr) -> u8 {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    u8::try_from(family).expect("both are small")
}

fn link_of(body: &[u8]) -> Option<Link> {
    let index = u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?);
    let rest = body.get(16..)?;
    let text = |kind| attribute(rest, kind).map(text).unwrap_or_default();
    let number = |kind| Some(u32::from_ne_bytes(attribute(rest, kind)?.try_into().ok()?));
    let kind = attribute(rest, IFLA_LINKINFO).and_then(|info| attribute(info, IFLA_INFO_KIND));
    Some(Link {
        index,
        name: text(IFLA_IFNAME),
        alias: text(IFLA_IFALIAS),
        kind: kind.map(self::text).unwrap_or_default(),
        master: number(IFLA_MASTER),
        group: number(IFLA_GROUP).unwrap_or(0),
    })
}

fn own_address(body: &[u8]) -> Option<IpAddr> {
    let rest = body.get(8..)?;
    address(attribute(rest, IFA_LOCAL).or_else(|| attribute(rest, IFA_ADDRESS))?)
}

/// An address in the order of the network.
pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}

fn route_of(body: &[u8]) -> Option<Route> {
    let (prefix, table, kind) = (*body.get(1)?, *body.get(4)?, *body.get(7)?);
    let rest = body.get(12..)?;
    let address = address(attribute(rest, RTA_DST)?)?;
    let link = attribute(rest, RTA_OIF).and_then(|link| link.try_into().ok()).map_or(0, u32::from_ne_bytes);
    let ours = table != libc::RT_TABLE_LOCAL && kind == libc::RTN_UNICAST;
    ours.then_some(()).and_then(|()| Some(Route { to: Subnet::around(address, prefix)?, link }))
}

fn failed(operation: &'static str, link: &str) -> impl FnOnce(io::Error) -> BridgeError {
    let link = link.to_owned();
    move |source| BridgeError::Link { operation, link, source }
}

fn refused(operation: &'static str, link: &str) -> impl FnOnce(Refused) -> BridgeError {
    let failed = failed(operation, link);
    move |refusal| failed(refusal.source)
}
