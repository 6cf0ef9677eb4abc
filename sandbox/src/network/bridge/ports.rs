//! What a pod asks of the host's ports, and whether a program of this host has one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, socket_with, sockopt},
};

use super::{BridgeError, ledger::HostPort};
use crate::network::{Attachment, Protocol};

/// Annotations that ask for what this network does not do.
pub(super) const BANDWIDTH: [&str; 2] = ["kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"];

/// What the pod asks of the host's ports; refuses what cannot be done.
pub(super) fn host_ports(attachment: &Attachment) -> Result<Vec<HostPort>, BridgeError> {
    let refuse = |field, value: String, reason| {
        Err(BridgeError::BadRequest { pod: attachment.pod.clone(), field, value, reason })
    };
    for name in BANDWIDTH {
        if let Some(value) = attachment.annotations.get(name) {
            let reason = "the built-in network does not limit bandwidth; remove the annotation, or install \
                          the CNI plugin bandwidth";
            return refuse(name, value.chars().take(100).collect(), reason);
        }
    }
    let mut ports = Vec::new();
    for mapping in attachment.port_mappings.iter().filter(|mapping| mapping.host_port != 0) {
        let ip = mapping.host_ip.map(|ip| ip.to_canonical()).filter(|ip| !ip.is_unspecified());
        if mapping.container_port == 0 {
            return refuse(
                "container_port",
                "0".to_owned(),
                "a host port has to lead to a port from 1 to 65535",
            );
        }
        if let Some(ip) = ip.filter(IpAddr::is_multicast) {
            return refuse("host_ip", ip.to_string(), "it is no address of one host");
        }
        if ip.is_some_and(|ip| ip.is_ipv6() && ip.is_loopback()) {
            let reason = "the kernel sends nothing from ::1 to a pod; use 127.0.0.1, or another address";
            return refuse("host_ip", "::1".to_owned(), reason);
        }
        let port =
            HostPort { protocol: mapping.protocol, ip, port: mapping.host_port, to: mapping.container_port };
        // Kubernetes lets a pod name one twice.
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    Ok(ports)
}

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
