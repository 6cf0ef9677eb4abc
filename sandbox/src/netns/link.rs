//! The one change to a link that every pod needs, whatever its network: loopback up.

use std::io;

use crate::netlink::{Attributes, Family, Message, Socket};

/// Its number in every network namespace.
const LOOPBACK: u32 = 1;

/// Brings up the loopback interface of the calling thread's network namespace.
pub(crate) fn loopback_up() -> io::Result<()> {
    let up = libc::IFF_UP.cast_unsigned();
    // ifinfomsg: family and type stay 0.
    let header = [0, LOOPBACK, up, up].map(u32::to_ne_bytes).concat();
    let set = Message::new(libc::RTM_NEWLINK, 0, &header, Attributes::new()).acknowledged();
    Socket::open(Family::Route)?.send(&[set]).map_err(|refusal| refusal.source)
}
