//! The one change to a link that Podhold makes itself: loopback up. By rtnetlink(7), without `unsafe`.

use std::io;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink::SocketAddrNetlink, recv, sendto,
    socket_with,
};

const LOOPBACK: i32 = 1;
const HEADER: usize = 16;

/// Brings up the loopback interface of the calling thread's network namespace.
pub(crate) fn loopback_up() -> io::Result<()> {
    // Protocol 0 is NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    sendto(&socket, &set_up(LOOPBACK), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = [0u8; 1024];
    let (received, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
    acknowledged(answer.get(..received).unwrap_or_default())
}

/// `RTM_NEWLINK` with `IFF_UP` for one interface, as netlink(7) lays it out.
fn set_up(index: i32) -> [u8; 32] {
    let up = nix::libc::IFF_UP.cast_unsigned();
    let flags = (nix::libc::NLM_F_REQUEST | nix::libc::NLM_F_ACK) as u16;
    let mut message = [0u8; 32];
    message[0..4].copy_from_slice(&32u32.to_ne_bytes());
    message[4..6].copy_from_slice(&nix::libc::RTM_NEWLINK.to_ne_bytes());
    message[6..8].copy_from_slice(&flags.to_ne_bytes());
    message[8..12].copy_from_slice(&1u32.to_ne_bytes());
    // ifinfomsg: family and type stay 0.
    message[20..24].copy_from_slice(&index.to_ne_bytes());
    message[24..28].copy_from_slice(&up.to_ne_bytes());
    message[28..32].copy_from_slice(&up.to_ne_bytes());
    message
}

/// Reads `NLMSG_ERROR`: a negated error number, 0 for success.
fn acknowledged(answer: &[u8]) -> io::Result<()> {
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let code = answer.get(HEADER..HEADER + 4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(2), Some(0)) => Ok(()),
        (Some(2), Some(code)) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "netlink answered without an acknowledgement")),
    }
}
