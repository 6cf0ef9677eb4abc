//! What a pod asks of its network: host ports, and settings that belong to interfaces.

use std::net::IpAddr;

use podhold_proto::cri;
use podhold_sandbox::network::{Attachment, PortMapping, Protocol};

use super::Runtime;
use crate::{
    error::{Error, Result},
    state::PodRecord,
};

impl Runtime {
    pub(super) async fn attach_network(&self, record: &PodRecord) -> Result<Vec<IpAddr>> {
        if record.host_network() {
            return Ok(Vec::new());
        }
        let metadata = record.config.metadata.clone().unwrap_or_default();
        let netns = self.layout.netns(&record.id);
        let mut attachment =
            Attachment::new(record.id.clone(), netns, &metadata.namespace, &metadata.name, &metadata.uid);
        attachment.port_mappings = port_mappings(&record.config)?;
        attachment.annotations = record.config.annotations.clone().into_iter().collect();
        self.networks.add(&attachment).await.map_err(Error::from)
    }
}

fn sysctls(record: &PodRecord) -> impl Iterator<Item = (&str, &str)> {
    let sysctls = record.config.linux.iter().flat_map(|linux| &linux.sysctls);
    sysctls.map(|(name, value)| (name.as_str(), value.as_str()))
}

/// Whether the pod asks for settings of its network.
pub(super) fn sets_network(record: &PodRecord) -> bool {
    sysctls(record).any(|(name, _)| name.starts_with("net.") || name.starts_with("net/"))
}

/// The addresses that are left when the pod's settings have switched IPv6 off, unless there are no others.
pub(super) fn without_forbidden(ips: Vec<IpAddr>, record: &PodRecord) -> Vec<IpAddr> {
    let off = |(name, value): (&str, &str)| {
        let name = name.replace('/', ".");
        let of = name.strip_prefix("net.ipv6.conf.").and_then(|rest| rest.strip_suffix(".disable_ipv6"));
        matches!(of, Some("all" | "eth0")) && value.trim() != "0"
    };
    if !ips.iter().any(IpAddr::is_ipv4) || !sysctls(record).any(off) {
        return ips;
    }
    ips.into_iter().filter(IpAddr::is_ipv4).collect()
}

/// Host ports; an entry without one maps nothing.
pub(super) fn port_mappings(config: &cri::PodSandboxConfig) -> Result<Vec<PortMapping>> {
    let mut mappings = Vec::new();
    for (index, mapping) in config.port_mappings.iter().enumerate() {
        let port = |field: &str, value: i32, least: i32| {
            u16::try_from(value).ok().filter(|_| value >= least).ok_or_else(|| {
                let reason = format!("{value} is not a port");
                Error::invalid(format!("port_mappings[{index}].{field}"), reason)
            })
        };
        let host_port = port("host_port", mapping.host_port, 0)?;
        let container_port = port("container_port", mapping.container_port, 1)?;
        let host_ip = match mapping.host_ip.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| {
                let reason = format!("{text:?} is not an IP address");
                Error::invalid(format!("port_mappings[{index}].host_ip"), reason)
            })?),
        };
        let protocol = match cri::Protocol::try_from(mapping.protocol) {
            Ok(cri::Protocol::Tcp) => Protocol::Tcp,
            Ok(cri::Protocol::Udp) => Protocol::Udp,
            Ok(cri::Protocol::Sctp) => Protocol::Sctp,
            Err(_) => {
                let reason = format!("{} is not TCP, UDP or SCTP", mapping.protocol);
                return Err(Error::invalid(format!("port_mappings[{index}].protocol"), reason));
            }
        };
        if host_port != 0 {
            mappings.push(PortMapping { host_port, container_port, protocol, host_ip });
        }
    }
    Ok(mappings)
}
