//! What a pod can learn of the host it runs on. Looks, and changes nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// Addresses of documentation (RFC 5737, RFC 3849): routed like any far host, and nobody's.
const FAR: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), 9),
];

/// The host.
#[derive(Debug, Clone, Default)]
pub(super) struct Host {
    /// Its name, in small letters as nodes have it.
    pub(super) name: String,
    /// Its addresses towards other hosts, at most one of each family.
    pub(super) addresses: Vec<IpAddr>,
    /// Its resolver configuration.
    pub(super) resolv_conf: String,
    /// Its hosts file.
    pub(super) hosts: String,
    /// Processors.
    pub(super) processors: i64,
    /// Memory, in bytes.
    pub(super) memory: i64,
    /// Its cgroups of version 2 limit memory.
    pub(super) limits_groups: bool,
}

impl Host {
    /// Looks at this host; `host_network` tells whether the pod reaches what listens on its loopback.
    pub(super) fn look(host_network: bool) -> Self {
        let memory = rustix::system::sysinfo();
        let bytes = u128::from(memory.totalram) * u128::from(memory.mem_unit);
        Self {
            name: rustix::system::uname().nodename().to_string_lossy().to_lowercase(),
            addresses: FAR.iter().filter_map(|far| towards(*far)).collect(),
            resolv_conf: crate::runtime::host_resolv_conf(host_network),
            hosts: std::fs::read_to_string("/etc/hosts").unwrap_or_default(),
            processors: nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN)
                .ok()
                .flatten()
                .unwrap_or(1),
            memory: i64::try_from(bytes).unwrap_or(i64::MAX),
            // The file is at the root of the only hierarchy there is, and nowhere in a mixed setup.
            limits_groups: std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
                .is_ok_and(|controllers| controllers.split_whitespace().any(|name| name == "memory")),
        }
    }

    /// Its first address.
    pub(super) fn address(&self) -> String {
        self.addresses.first().map_or_else(|| "127.0.0.1".to_owned(), ToString::to_string)
    }
}

/// The address this host has towards another. Nothing is sent: a datagram socket is only bound.
fn towards(far: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr =
        if far.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(far).ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|address| !address.is_loopback())
}
