//! The hosts file of a pod, as the kubelet writes it. Pure.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::PodSpec;

use super::{dns::Names, facts::PodFacts};
use crate::standalone::{
    host::Host,
    manifest::{Findings, ManifestError, refuse},
};

/// What every host knows.
const LOCAL: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
                     fe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n";

/// A pod's hosts file, but for its addresses.
#[derive(Debug, Clone, Default)]
pub(super) struct Hosts {
    before: String,
    /// Empty where the addresses are not told.
    names: String,
    after: String,
}

impl Hosts {
    pub(super) fn of(spec: &PodSpec, names: &Names, host: &Host) -> Result<Self, ManifestError> {
        let (mut after, mut found) = (String::new(), Findings::default());
        for (index, alias) in spec.host_aliases.iter().flatten().enumerate() {
            let field = format!("spec.hostAliases[{index}]");
            if alias.ip.parse::<IpAddr>().is_err() {
                let reason = format!("{:?} is not an address", alias.ip);
                found.part::<()>(refuse(format!("{field}.ip"), reason));
            }
            let aliases = alias.hostnames.as_deref().unwrap_or_default();
            let is_name = |name: &String| {
                !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
            };
            if let Some(at) = aliases.iter().position(|name| !is_name(name)) {
                let reason = format!("{:?} is not a host name", aliases[at]);
                found.part::<()>(refuse(format!("{field}.hostnames[{at}]"), reason));
            }
            after.push_str(&format!("{}\t{}\n", alias.ip, aliases.join("\t")));
        }
        if !after.is_empty() {
            after.insert_str(0, "\n# spec.hostAliases:\n");
        }
        let on_host = spec.host_network == Some(true);
        let before = if on_host {
            format!("# Made by Podhold from the host's.\n{}\n", host.hosts.trim_end())
        } else {
            format!("# Made by Podhold.\n{LOCAL}")
        };
        let names = match (on_host, names.full.as_str()) {
            (true, _) => String::new(),
            (false, "") => names.host.clone(),
            (false, full) => format!("{full}\t{}", names.host),
        };
        found.whole(Self { before, names, after })
    }

    /// The file.
    pub(super) fn text(&self, facts: &PodFacts) -> String {
        let mut text = self.before.clone();
        for address in facts.addresses.iter().filter(|_| !self.names.is_empty()) {
            text.push_str(&format!("{address}\t{}\n", self.names));
        }
        text + &self.after
    }
}
