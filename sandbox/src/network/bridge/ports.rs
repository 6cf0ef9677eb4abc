//! Whether a program of this host has a port that a pod asks for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, socket_with, sockopt},
};

use super::ledger::HostPort;
use crate::network::Protocol;

/// Whether a program listens at the port, found by trying to have it.
pub(super) fn is_taken(port: &HostPort) -> bool {
    let all = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let addresses: &[IpAddr] = port.ip.as_ref().map_or(&all[..], std::slice::from_ref);
    addresses.iter().any(|ip| taken_at(port.protocol, SocketAddr::new(*ip, port.port)))
}

fn taken_at(protocol: Protocol, address: SocketAddr) -> bool {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let (kind, protocol_number) = match protocol {
        Protocol::Tcp => (SocketType::STREAM, ipproto::TCP),
        Protocol::Udp => (SocketType::DGRAM, ipproto::UDP),
        Protocol::Sctp => (SocketType::STREAM, ipproto::SCTP),
    };
    // What cannot be asked of this kernel no program can have.
    let Ok(socket) = socket_with(family, kind, SocketFlags::CLOEXEC, Some(protocol_number)) else {
        return false;
    };
    // Connections that have just ended are in nobody's way; who listens is.
    if protocol != Protocol::Udp && sockopt::set_socket_reuseaddr(&socket, true).is_err() {
        return false;
    }
    if address.is_ipv6() && sockopt::set_ipv6_v6only(&socket, true).is_err() {
        return false;
    }
    bind(&socket, &address) == Err(Errno::ADDRINUSE)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn whoever_listens_has_the_port() {
        let port = |protocol, ip: Option<&str>, port| HostPort {
            protocol,
            ip: ip.map(|ip| ip.parse().unwrap()),
            port,
            to: 80,
        };
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let number = tcp.local_addr().unwrap().port();
        assert!(is_taken(&port(Protocol::Tcp, None, number)));
        assert!(is_taken(&port(Protocol::Tcp, Some("127.0.0.1"), number)));
        assert!(!is_taken(&port(Protocol::Tcp, Some("127.0.0.2"), number)));
        drop(tcp);
        assert!(!is_taken(&port(Protocol::Tcp, None, number)));
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(is_taken(&port(Protocol::Udp, None, udp.local_addr().unwrap().port())));
    }
}
