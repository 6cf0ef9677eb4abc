//! Ports of the host that lead into the pod. Pure.

use k8s_openapi::api::core::v1::{Container, ContainerPort, PodSpec};
use podhold_proto::cri;

use crate::standalone::manifest::{Findings, ManifestError, refuse};

/// All that the pod's containers ask for.
pub(super) fn of(spec: &PodSpec) -> Result<Vec<cri::PortMapping>, ManifestError> {
    let (mut mappings, mut found): (Vec<cri::PortMapping>, _) = (Vec::new(), Findings::default());
    let on_host = spec.host_network == Some(true);
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let list = |which: &'static str, containers: &'_ [Container]| -> Vec<(String, ContainerPort)> {
        let of = |(index, container): (usize, &Container)| {
            let ports = container.ports.clone().unwrap_or_default();
            ports
                .into_iter()
                .enumerate()
                .map(move |(at, port)| (format!("spec.{which}[{index}].ports[{at}]"), port))
        };
        containers.iter().enumerate().flat_map(of).collect()
    };
    for (field, port) in list("initContainers", init).into_iter().chain(list("containers", &spec.containers))
    {
        let Some(mapping) = found.part(self::port(&port, &field)) else { continue };
        if on_host && !matches!(port.host_port, None | Some(0)) && mapping.host_port != mapping.container_port
        {
            let reason = "is not containerPort, and the pod has the host's network";
            found.part::<()>(refuse(format!("{field}.hostPort"), reason));
        }
        if on_host || mapping.host_port == 0 {
            continue;
        }
        let any = |ip: &str| ip.is_empty() || ip == "0.0.0.0" || ip == "::";
        let is_same = |known: &&cri::PortMapping| {
            (known.protocol, known.host_port) == (mapping.protocol, mapping.host_port)
                && (any(&known.host_ip) || any(&mapping.host_ip) || known.host_ip == mapping.host_ip)
        };
        if mappings.iter().find(is_same).is_some() {
            let reason = format!("{} is asked for twice; give one of them another", mapping.host_port);
            found.part::<()>(refuse(format!("{field}.hostPort"), reason));
        }
        mappings.push(mapping);
    }
    found.whole(mappings)
}

fn port(port: &ContainerPort, field: &str) -> Result<cri::PortMapping, ManifestError> {
    let mut found = Findings::default();
    let host = port.host_port.filter(|port| *port != 0);
    let numbers = [("containerPort", Some(port.container_port)), ("hostPort", host)];
    for (name, number) in numbers.into_iter().filter_map(|(name, number)| Some((name, number?))) {
        if !(1..=65_535).contains(&number) {
            let reason = format!("{number} is not a port from 1 to 65535");
            found.part::<()>(refuse(format!("{field}.{name}"), reason));
        }
    }
    let protocol = match port.protocol.as_deref() {
        None | Some("TCP") => cri::Protocol::Tcp,
        Some("UDP") => cri::Protocol::Udp,
        Some("SCTP") => cri::Protocol::Sctp,
        Some(other) => {
            let reason = format!("{other:?} is not TCP, UDP or SCTP");
            found.part::<()>(refuse(format!("{field}.protocol"), reason));
            cri::Protocol::Tcp
        }
    };
    let host_ip = port.host_ip.clone().unwrap_or_default();
    if !host_ip.is_empty() && host_ip.parse::<std::net::IpAddr>().is_err() {
        let reason = format!("{host_ip:?} is not an address");
        found.part::<()>(refuse(format!("{field}.hostIP"), reason));
    }
    found.whole(cri::PortMapping {
        protocol: protocol.into(),
        container_port: port.container_port,
        host_port: host.unwrap_or_default(),
        host_ip,
    })
}
