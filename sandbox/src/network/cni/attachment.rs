//! What a pod asks of its network, and how plugins are told: CNI_ARGS and capabilities. No I/O.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::CniError;
use crate::PodId;

/// A request to connect a pod.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// The pod; its id is the container id plugins see.
    pub pod: PodId,
    /// Where its network namespace is pinned.
    pub netns: PathBuf,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Uid of the pod.
    pub uid: String,
    /// Ports of the host that lead to the pod.
    pub port_mappings: Vec<PortMapping>,
    /// Limits of traffic.
    pub bandwidth: Option<Bandwidth>,
    /// Name servers, for plugins that serve names.
    pub dns: Option<super::Dns>,
    /// Further names of the pod in this network.
    pub aliases: Vec<String>,
    /// The pod's cgroup, for plugins that match traffic by it.
    pub cgroup_path: Option<String>,
    /// The pod's annotations, for plugins that ask for `io.kubernetes.cri.pod-annotations`.
    pub annotations: BTreeMap<String, String>,
}

/// A port of the host that leads to the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMapping {
    /// On the host; 0 means that none is asked for, and the mapping is left out.
    pub host_port: u16,
    /// In the pod.
    pub container_port: u16,
    /// Transport.
    pub protocol: Protocol,
    /// The host's address; `None` is all.
    pub host_ip: Option<IpAddr>,
}

/// Transport protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// As IANA has numbered it.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// As plugins and people call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// Limits of traffic in bits per second and bursts in bits; 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bandwidth {
    /// To the pod.
    pub ingress_rate: u64,
    /// To the pod, at once.
    pub ingress_burst: u64,
    /// From the pod.
    pub egress_rate: u64,
    /// From the pod, at once.
    pub egress_burst: u64,
}

impl Attachment {
    /// A request with nothing but the pod's identity.
    pub fn new(pod: PodId, netns: PathBuf, namespace: &str, name: &str, uid: &str) -> Self {
        Self {
            pod,
            netns,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            port_mappings: Vec::new(),
            bandwidth: None,
            dns: None,
            aliases: Vec::new(),
            cgroup_path: None,
            annotations: BTreeMap::new(),
        }
    }

    /// Refuses what would become a further argument in CNI_ARGS.
    pub(super) fn check(&self) -> Result<(), CniError> {
        let fields = [("namespace", &self.namespace), ("name", &self.name), ("uid", &self.uid)];
        for (field, value) in fields {
            if value.contains(';') || value.chars().any(char::is_control) || value.len() > 1024 {
                return Err(CniError::BadRequest {
                    pod: self.pod.clone(),
                    field,
                    value: value.chars().take(100).collect(),
                    reason: "it holds ';' or a control character, or is too long",
                });
            }
        }
        Ok(())
    }

    /// CNI_ARGS as plugins know them from every Kubernetes runtime.
    pub(super) fn args(&self) -> String {
        format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            self.namespace, self.name, self.pod, self.uid
        )
    }

    /// Values for `runtimeConfig`, by capability. Each plugin gets those it declares.
    pub(super) fn capabilities(&self, network: &str) -> Map<String, Value> {
        let mut capabilities = Map::new();
        let ports: Vec<Value> =
            self.port_mappings.iter().filter(|mapping| mapping.host_port != 0).map(port_mapping).collect();
        if !ports.is_empty() {
            capabilities.insert("portMappings".to_owned(), Value::from(ports));
        }
        if let Some(limits) = self.bandwidth {
            let value = json!({
                "ingressRate": limits.ingress_rate, "ingressBurst": limits.ingress_burst,
                "egressRate": limits.egress_rate, "egressBurst": limits.egress_burst,
            });
            capabilities.insert("bandwidth".to_owned(), value);
        }
        if let Some(dns) = &self.dns {
            let value = json!({"servers": dns.nameservers, "searches": dns.search, "options": dns.options});
            capabilities.insert("dns".to_owned(), value);
        }
        if !self.aliases.is_empty() {
            capabilities.insert("aliases".to_owned(), json!({network: self.aliases}));
        }
        if let Some(path) = &self.cgroup_path {
            capabilities.insert("cgroupPath".to_owned(), Value::from(path.as_str()));
        }
        if !self.annotations.is_empty() {
            capabilities.insert("io.kubernetes.cri.pod-annotations".to_owned(), json!(self.annotations));
        }
        capabilities
    }
}

fn port_mapping(mapping: &PortMapping) -> Value {
    json!({
        "hostPort": mapping.host_port,
        "containerPort": mapping.container_port,
        "protocol": mapping.protocol.name(),
        "hostIP": mapping.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
    })
}
