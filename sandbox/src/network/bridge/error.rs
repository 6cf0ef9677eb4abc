//! Why the built-in network cannot do what it is asked. No I/O.

use std::{io, path::PathBuf};

use super::{
    ledger::{Denied, HostPort},
    pool::Subnet,
    record::Pools,
};
use crate::{PodId, netns::NetnsError, record::RecordError};

/// Why an operation on the built-in network failed.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// The kernel has refused a change of a link, or a question about it.
    #[error("built-in network: cannot {operation} {link}{}", mend(source))]
    Link {
        /// What was attempted.
        operation: &'static str,
        /// The link.
        link: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel has refused a change of the rules.
    #[error("built-in network: cannot {operation} nftables table {table}{}", mend(source))]
    Rules {
        /// What was attempted.
        operation: &'static str,
        /// The table.
        table: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A setting of the kernel cannot be changed.
    #[error("built-in network: cannot set {}; set it yourself", path.display())]
    Setting {
        /// The file that stands for it.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A link of this name belongs to somebody else.
    #[error(
        "built-in network: there is a link {name} that this daemon has not made: set another \
         network.bridge, or remove it with `ip link delete {name}`"
    )]
    Foreign {
        /// The link.
        name: String,
    },
    /// All ranges are in use.
    #[error(
        "built-in network: routes of this host lead into {wanted} and all ranges after it: set \
         network.ipv4_pool or network.ipv6_pool to one that is free"
    )]
    NoPool {
        /// The range that was wanted.
        wanted: Subnet,
    },
    /// All addresses are taken.
    #[error("built-in network: all {count} addresses of {pool} are taken: remove pods, or set a larger pool")]
    Full {
        /// The range.
        pool: Subnet,
        /// How many pods it has room for.
        count: u32,
    },
    /// Somebody else has a port of the host.
    #[error("host port {port} is in use by {by}: choose another one, or end that first")]
    PortTaken {
        /// Port, protocol and address.
        port: String,
        /// Who has it.
        by: String,
    },
    /// The pod asks for what this network cannot do.
    #[error("pod {pod}: {field} {value:?}: {reason}")]
    BadRequest {
        /// The pod.
        pod: PodId,
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is wrong and the mend.
        reason: &'static str,
    },
    /// The pod's network namespace cannot be entered.
    #[error(transparent)]
    Namespace(#[from] NetnsError),
    /// A record could not be read or written.
    #[error(transparent)]
    Record(#[from] RecordError),
}

fn mend(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => " (CAP_NET_ADMIN is needed)",
        Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) => {
            " (the kernel lacks it: load bridge, veth, nf_tables, nft_chain_nat, nft_masq, nft_fib_inet)"
        }
        _ => "",
    }
}

/// Why a pod gets no place.
pub(super) fn denial(denied: Denied, pools: Pools) -> BridgeError {
    match denied {
        Denied::Full => BridgeError::Full { pool: pools.v4, count: pools.last().saturating_sub(1) },
        Denied::Taken { port, by } => taken_by(&port, &format!("pod {by}")),
    }
}

/// Why a pod does not get this port.
pub(super) fn taken_by(port: &HostPort, by: &str) -> BridgeError {
    let at = port.ip.map(|ip| format!(" of {ip}")).unwrap_or_default();
    BridgeError::PortTaken { port: format!("{}/{}{at}", port.port, port.protocol.name()), by: by.to_owned() }
}
