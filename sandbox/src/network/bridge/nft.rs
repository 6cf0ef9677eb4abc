//! The language of nftables, as nfnetlink is told it: tables, chains, rules of expressions, sets and maps.
//!
//! Invariant: what is committed together happens together or not at all. What rules there should be is not
//! decided here.

use std::io;

use crate::netlink::{
    APPEND, Attributes, CREATE, DUMP, Family, Message, Received, Refused, Socket, attribute, attributes,
    short,
};

const SUBSYSTEM: u16 = short(libc::NFNL_SUBSYS_NFTABLES);
/// Tables of both address families.
const INET: u8 = libc::NFPROTO_INET as u8;
/// First of the registers of four bytes; the n-th value of a concatenation is in the n-th after it.
const REGISTER: u32 = libc::NFT_REG32_00 as u32;

// Attributes that every object has in common; libc has no names for them.
const LIST_ELEMENT: u16 = 1;
const VALUE: u16 = 1;
const VERDICT: u16 = 2;

/// Where packets come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    Prerouting = libc::NF_INET_PRE_ROUTING as isize,
    Forward = libc::NF_INET_FORWARD as isize,
    Output = libc::NF_INET_LOCAL_OUT as isize,
    Postrouting = libc::NF_INET_POST_ROUTING as isize,
}

/// What is known of a packet.
#[derive(Debug, Clone, Copy)]
pub(super) enum Meta {
    InterfaceIn = libc::NFT_META_IIFNAME as isize,
    InterfaceOut = libc::NFT_META_OIFNAME as isize,
    Family = libc::NFT_META_NFPROTO as isize,
    Transport = libc::NFT_META_L4PROTO as isize,
}

/// Which header of a packet.
#[derive(Debug, Clone, Copy)]
pub(super) enum Header {
    Network = libc::NFT_PAYLOAD_NETWORK_HEADER as isize,
    Transport = libc::NFT_PAYLOAD_TRANSPORT_HEADER as isize,
}

/// A rule: expressions, one after another. The first that does not match ends it.
#[derive(Debug, Clone, Default)]
pub(super) struct Rule(Attributes);

impl Rule {
    pub(super) fn new() -> Self {
        Self::default()
    }

    fn expression(self, name: &str, data: &Attributes) -> Self {
        let expression = Attributes::new().text(1, name).nest(2, data);
        Self(self.0.nest(LIST_ELEMENT, &expression))
    }

    /// Puts what is known of the packet into the n-th register.
    pub(super) fn meta(self, what: Meta, n: u32) -> Self {
        self.expression("meta", &Attributes::new().big(1, REGISTER + n).big(2, what as u32))
    }

    /// Puts bytes of the packet into the n-th register and those after it.
    pub(super) fn payload(self, header: Header, offset: u32, length: u32, n: u32) -> Self {
        let data = Attributes::new().big(1, REGISTER + n).big(2, header as u32);
        self.expression("payload", &data.big(3, offset).big(4, length))
    }

    /// Goes on where the first register holds these bytes.
    pub(super) fn is(self, bytes: &[u8]) -> Self {
        self.compare(libc::NFT_CMP_EQ, bytes)
    }

    /// Goes on where the first register does not hold these bytes.
    pub(super) fn differs(self, bytes: &[u8]) -> Self {
        self.compare(libc::NFT_CMP_NEQ, bytes)
    }

    fn compare(self, operation: libc::c_int, bytes: &[u8]) -> Self {
        let data = Attributes::new().big(1, REGISTER).big(2, operation.cast_unsigned());
        self.expression("cmp", &data.nest(3, &value(bytes)))
    }

    /// Leaves those bits of the first register that the mask has.
    pub(super) fn masked(self, mask: &[u8]) -> Self {
        let length = u32::try_from(mask.len()).expect("a register is short");
        let data = Attributes::new().big(1, REGISTER).big(2, REGISTER).big(3, length);
        let zero = vec![0; mask.len()];
        self.expression("bitwise", &data.nest(4, &value(mask)).nest(5, &value(&zero)))
    }

    /// Goes on where the packet is for this host.
    pub(super) fn for_this_host(self) -> Self {
        const TYPE: u32 = 3;
        const DESTINATION: u32 = 2;
        const LOCAL: u32 = 2;
        let data = Attributes::new().big(1, REGISTER).big(2, TYPE).big(3, DESTINATION);
        self.expression("fib", &data).is(&LOCAL.to_ne_bytes())
    }

    /// Goes on where the connection's destination was changed.
    pub(super) fn was_redirected(self) -> Self {
        const STATUS: u32 = libc::NFT_CT_STATUS as u32;
        const DESTINATION_CHANGED: u32 = 1 << 5;
        let data = Attributes::new().big(1, REGISTER).big(2, STATUS);
        self.expression("ct", &data).masked(&DESTINATION_CHANGED.to_ne_bytes()).differs(&[0; 4])
    }

    /// Goes on where the set has what begins in the first register.
    pub(super) fn in_set(self, set: &str) -> Self {
        self.expression("lookup", &Attributes::new().text(1, set).big(2, REGISTER))
    }

    /// Puts what the map has for the registers from the first on into them; goes on where it has something.
    pub(super) fn looked_up(self, map: &str) -> Self {
        self.expression("lookup", &Attributes::new().text(1, map).big(2, REGISTER).big(3, REGISTER))
    }

    /// Changes the destination to the address in the first register and the port in the n-th.
    pub(super) fn redirect(self, family: u8, n: u32) -> Self {
        const DESTINATION: u32 = libc::NFT_NAT_DNAT as u32;
        let data = Attributes::new().big(1, DESTINATION).big(2, u32::from(family)).big(3, REGISTER);
        self.expression("nat", &data.big(5, REGISTER + n))
    }

    /// Changes the source to the address of the interface the packet leaves by.
    pub(super) fn masquerade(self) -> Self {
        self.expression("masq", &Attributes::new())
    }

    pub(super) fn jump(self, chain: &str) -> Self {
        self.verdict(&Attributes::new().big(1, libc::NFT_JUMP.cast_unsigned()).text(2, chain))
    }

    /// Leaves the chain.
    pub(super) fn leave(self) -> Self {
        self.verdict(&Attributes::new().big(1, libc::NFT_RETURN.cast_unsigned()))
    }

    pub(super) fn drop(self) -> Self {
        self.verdict(&Attributes::new().big(1, libc::NF_DROP.cast_unsigned()))
    }

    fn verdict(self, verdict: &Attributes) -> Self {
        let data = Attributes::new().nest(VERDICT, verdict);
        self.expression(
            "immediate",
            &Attributes::new().big(1, libc::NFT_REG_VERDICT.cast_unsigned()).nest(2, &data),
        )
    }
}

/// A set, or a map where `data` is given: nft(8)'s number for the type, and its length.
#[derive(Debug, Clone, Copy)]
pub(super) struct Set {
    pub(super) name: &'static str,
    pub(super) key: (u32, u32),
    pub(super) data: Option<(u32, u32)>,
}

/// An element: its key, and what a map has for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) key: Vec<u8>,
    pub(super) data: Option<Vec<u8>>,
}

/// Changes of one table that happen together.
#[derive(Debug)]
pub(super) struct Changes<'a> {
    table: &'a str,
    messages: Vec<Message>,
}

impl<'a> Changes<'a> {
    pub(super) fn of(table: &'a str) -> Self {
        Self { table, messages: Vec::new() }
    }

    fn push(&mut self, kind: libc::c_int, flags: u16, attributes: Attributes) {
        self.messages.push(message(kind, flags, INET, attributes));
    }

    pub(super) fn make_table(&mut self) {
        self.push(libc::NFT_MSG_NEWTABLE, CREATE, Attributes::new().text(1, self.table));
    }

    pub(super) fn delete_table(&mut self) {
        self.push(libc::NFT_MSG_DELTABLE, 0, Attributes::new().text(1, self.table));
    }

    /// A chain that rules jump to.
    pub(super) fn make_chain(&mut self, name: &str) {
        self.push(libc::NFT_MSG_NEWCHAIN, CREATE, Attributes::new().text(1, self.table).text(3, name));
    }

    /// A chain that packets come by at a hook; `kind` is `nat` or `filter`.
    pub(super) fn make_base_chain(&mut self, name: &str, kind: &str, hook: Hook, priority: i32) {
        let hook = Attributes::new().big(1, hook as u32).big(2, priority.cast_unsigned());
        let attributes = Attributes::new().text(1, self.table).text(3, name).nest(4, &hook).text(7, kind);
        self.push(libc::NFT_MSG_NEWCHAIN, CREATE, attributes);
    }

    pub(super) fn add_rule(&mut self, chain: &str, rule: &Rule) {
        let attributes = Attributes::new().text(1, self.table).text(2, chain).nest(4, &rule.0);
        self.push(libc::NFT_MSG_NEWRULE, CREATE | APPEND, attributes);
    }

    pub(super) fn make_set(&mut self, set: &Set) {
        // Names the set within this batch.
        let id = u32::try_from(self.messages.len()).expect("a batch is short");
        let flags = if set.data.is_some() { libc::NFT_SET_MAP.cast_unsigned() } else { 0 };
        let mut attributes = Attributes::new().text(1, self.table).text(2, set.name).big(3, flags);
        attributes = attributes.big(4, set.key.0).big(5, set.key.1);
        if let Some((kind, length)) = set.data {
            attributes = attributes.big(6, kind).big(7, length);
        }
        self.push(libc::NFT_MSG_NEWSET, CREATE, attributes.big(10, id));
    }

    pub(super) fn add_elements(&mut self, set: &str, elements: &[Element]) {
        for some in elements.chunks(AT_ONCE) {
            let attributes = elements_of(self.table, set, some);
            self.push(libc::NFT_MSG_NEWSETELEM, CREATE, attributes);
        }
    }

    pub(super) fn delete_element(&mut self, set: &str, element: &Element) {
        let attributes = elements_of(self.table, set, std::slice::from_ref(element));
        self.push(libc::NFT_MSG_DELSETELEM, 0, attributes);
    }

    /// Has them happen.
    pub(super) fn commit(self, socket: &Socket) -> Result<(), Refused> {
        let Some(last) = self.messages.len().checked_sub(1) else { return Ok(()) };
        let mut batch = vec![batch_mark(libc::NFNL_MSG_BATCH_BEGIN)];
        for (index, message) in self.messages.into_iter().enumerate() {
            batch.push(if index == last { message.acknowledged() } else { message });
        }
        batch.push(batch_mark(libc::NFNL_MSG_BATCH_END));
        socket.send(&batch)
    }
}

/// Elements of one message: its attributes have to stay under 64 KiB.
const AT_ONCE: usize = 256;

/// A chain at the forward hook that drops what no rule lets through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Closed {
    pub(super) table: String,
    pub(super) chain: String,
}

pub(super) fn open() -> io::Result<Socket> {
    Socket::open(Family::Netfilter)
}

/// Names of all tables for both address families.
pub(super) fn tables(socket: &Socket) -> io::Result<Vec<String>> {
    let found = socket.list(&message(libc::NFT_MSG_GETTABLE, DUMP, INET, Attributes::new()))?;
    Ok(found.iter().filter(|table| table.body.first() == Some(&INET)).map(|table| name(table, 1)).collect())
}

/// Whether there is this table.
pub(super) fn has_table(socket: &Socket, table: &str) -> io::Result<bool> {
    let question = message(libc::NFT_MSG_GETTABLE, 0, INET, Attributes::new().text(1, table));
    some(socket.ask(&question)).map(|found| !found.is_empty())
}

/// The elements of a table's set. None when there is no such table or set.
pub(super) fn elements(socket: &Socket, table: &str, set: &str) -> io::Result<Vec<Element>> {
    let question =
        message(libc::NFT_MSG_GETSETELEM, DUMP, INET, Attributes::new().text(1, table).text(2, set));
    let found = some(socket.list(&question))?;
    let lists = found.iter().filter_map(|part| attribute(part.body.get(4..)?, 3));
    let value = |element, kind| attribute(attribute(element, kind)?, VALUE).map(<[u8]>::to_vec);
    let element = |(_, element)| Some(Element { key: value(element, 1)?, data: value(element, 2) });
    Ok(lists.flat_map(attributes).filter_map(element).collect())
}

/// What is not there is nothing.
fn some(answer: io::Result<Vec<Received>>) -> io::Result<Vec<Received>> {
    match answer {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
        answer => answer,
    }
}

/// Whether a table's set has an element. Not when there is no such table or set.
pub(super) fn has_element(socket: &Socket, table: &str, set: &str, element: &Element) -> io::Result<bool> {
    let key = Element { key: element.key.clone(), data: None };
    let attributes = elements_of(table, set, std::slice::from_ref(&key));
    some(socket.ask(&message(libc::NFT_MSG_GETSETELEM, 0, INET, attributes))).map(|found| !found.is_empty())
}

/// Chains of whoever that drop what is forwarded unless a rule of theirs lets it through.
pub(super) fn closed_forwards(socket: &Socket) -> io::Result<Vec<Closed>> {
    // A family of 0 means all of them.
    let found = socket.list(&message(libc::NFT_MSG_GETCHAIN, DUMP, 0, Attributes::new()))?;
    let number = |bytes: &[u8], kind| Some(u32::from_be_bytes(attribute(bytes, kind)?.try_into().ok()?));
    let closed = found.iter().filter(|chain| {
        let rest = chain.body.get(4..).unwrap_or_default();
        let hook = attribute(rest, 4).and_then(|hook| number(hook, 1));
        hook == Some(Hook::Forward as u32) && number(rest, 5) == Some(0)
    });
    Ok(closed.map(|chain| Closed { table: name(chain, 1), chain: name(chain, 3) }).collect())
}

fn name(object: &Received, kind: u16) -> String {
    let name = object.body.get(4..).and_then(|rest| attribute(rest, kind)).unwrap_or_default();
    String::from_utf8_lossy(name).trim_end_matches('\0').to_owned()
}

fn elements_of(table: &str, set: &str, elements: &[Element]) -> Attributes {
    let list = elements.iter().fold(Attributes::new(), |list, element| {
        let mut attributes = Attributes::new().nest(1, &value(&element.key));
        if let Some(data) = &element.data {
            attributes = attributes.nest(2, &value(data));
        }
        list.nest(LIST_ELEMENT, &attributes)
    });
    Attributes::new().text(1, table).text(2, set).nest(3, &list)
}

fn value(bytes: &[u8]) -> Attributes {
    Attributes::new().bytes(VALUE, bytes)
}

fn message(kind: libc::c_int, flags: u16, family: u8, attributes: Attributes) -> Message {
    Message::new(SUBSYSTEM << 8 | short(kind), flags, &[family, 0, 0, 0], attributes)
}

fn batch_mark(kind: libc::c_int) -> Message {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    Message::new(short(kind), 0, &[0, 0, high, low], Attributes::new())
}
