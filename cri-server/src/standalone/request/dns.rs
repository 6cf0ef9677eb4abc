//! Names: a pod's own, and how it looks up those of others. Pure.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::PodSpec;
use podhold_proto::cri;

use crate::standalone::{
    host::Host,
    manifest::{Findings, ManifestError, check_name, refuse},
};

/// The domain of a cluster's names.
const CLUSTER: &str = "cluster.local";
/// Longest host name of the kernel.
const LONGEST: usize = 64;
/// Most servers and search domains that resolvers take.
const SERVERS: usize = 3;
const SEARCHES: usize = 32;

/// What a pod is called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::standalone) struct Names {
    /// The short name.
    pub(in crate::standalone) host: String,
    /// With its domain; empty when it has none.
    pub(in crate::standalone) full: String,
    /// What the kernel tells.
    pub(super) kernel: String,
}

impl Names {
    pub(super) fn of(
        spec: &PodSpec,
        name: &str,
        namespace: &str,
        host: &Host,
    ) -> Result<Self, ManifestError> {
        if spec.host_network == Some(true) {
            if spec.hostname_override.is_some() {
                return refuse(
                    "spec.hostnameOverride",
                    "cannot be had with hostNetwork; leave one of the two out",
                );
            }
            return Ok(Self { host: host.name.clone(), full: String::new(), kernel: host.name.clone() });
        }
        let long = spec.set_hostname_as_fqdn == Some(true);
        if let Some(name) = &spec.hostname_override {
            check_name("spec.hostnameOverride", name, LONGEST)?;
            if long {
                return refuse(
                    "spec.setHostnameAsFQDN",
                    "cannot be had with hostnameOverride; leave one out",
                );
            }
            return Ok(Self { host: name.clone(), full: String::new(), kernel: name.clone() });
        }
        if let Some(hostname) = &spec.hostname {
            check_name("spec.hostname", hostname, 63)?;
        }
        let short: String = name.chars().take(63).collect();
        let short = spec.hostname.clone().unwrap_or_else(|| short.trim_end_matches(['-', '.']).to_owned());
        let Some(subdomain) = spec.subdomain.as_deref().filter(|domain| !domain.is_empty()) else {
            return Ok(Self { kernel: short.clone(), host: short, full: String::new() });
        };
        check_name("spec.subdomain", subdomain, 63)?;
        let full = format!("{short}.{subdomain}.{namespace}.svc.{CLUSTER}");
        if long && full.len() > LONGEST {
            let reason = format!("makes {full:?}, and a host name has at most {LONGEST} characters");
            return refuse("spec.setHostnameAsFQDN", reason);
        }
        Ok(Self { kernel: if long { full.clone() } else { short.clone() }, host: short, full })
    }
}

/// The resolver configuration; `None` is the host's as it is.
pub(super) fn config(spec: &PodSpec, host: &Host) -> Result<Option<cri::DnsConfig>, ManifestError> {
    let mut found = Findings::default();
    let own = match spec.dns_policy.as_deref() {
        // There is no cluster; the kubelet of a node without a cluster's DNS does the same.
        None | Some("" | "ClusterFirst" | "ClusterFirstWithHostNet" | "Default") => false,
        Some("None") => true,
        Some(other) => {
            let reason = format!("{other:?} is not ClusterFirst, ClusterFirstWithHostNet, Default or None");
            found.part::<()>(refuse("spec.dnsPolicy", reason));
            false
        }
    };
    let asked = spec.dns_config.clone().unwrap_or_default();
    let servers = asked.nameservers.unwrap_or_default();
    if own && servers.is_empty() {
        let reason = "is empty; with dnsPolicy None a pod needs one";
        found.part::<()>(refuse("spec.dnsConfig.nameservers", reason));
    }
    if spec.dns_config.is_none() {
        return found.whole(None);
    }
    for (index, server) in servers.iter().enumerate() {
        if server.parse::<IpAddr>().is_err() {
            let reason = format!("{server:?} is not an address");
            found.part::<()>(refuse(format!("spec.dnsConfig.nameservers[{index}]"), reason));
        }
    }
    let mut config = if own { cri::DnsConfig::default() } else { parse(&host.resolv_conf) };
    let add = |list: &mut Vec<String>, more: Vec<String>| {
        for word in more {
            if !list.contains(&word) {
                list.push(word);
            }
        }
    };
    add(&mut config.servers, servers);
    let searches = asked.searches.unwrap_or_default();
    let is_word =
        |word: &str| !word.is_empty() && !word.contains(|c: char| c.is_whitespace() || c.is_control());
    if let Some(index) = searches.iter().position(|word| !is_word(word)) {
        let reason = format!("{:?} is not a domain", searches[index]);
        found.part::<()>(refuse(format!("spec.dnsConfig.searches[{index}]"), reason));
    }
    add(&mut config.searches, searches);
    for (index, option) in asked.options.into_iter().flatten().enumerate() {
        let (name, value) = (option.name.unwrap_or_default(), option.value);
        let text = value.map_or_else(|| name.clone(), |value| format!("{name}:{value}"));
        if !is_word(&name) || !is_word(&text) {
            let reason = format!("{text:?} is not an option");
            found.part::<()>(refuse(format!("spec.dnsConfig.options[{index}]"), reason));
        }
        let is_same = |known: &String| known.split(':').next() == Some(&name);
        config.options.retain(|known| !is_same(known));
        config.options.push(text);
    }
    for (field, count, most) in
        [("nameservers", config.servers.len(), SERVERS), ("searches", config.searches.len(), SEARCHES)]
    {
        if count > most {
            let reason = format!("{count} with those of the host; a resolver takes {most}");
            found.part::<()>(refuse(format!("spec.dnsConfig.{field}"), reason));
        }
    }
    found.whole(Some(config))
}

/// A resolver configuration as the CRI has it. Of several `search` lines the last counts (resolv.conf(5)).
fn parse(text: &str) -> cri::DnsConfig {
    let mut config = cri::DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let word = words.next().unwrap_or_default();
        let rest = words.map(str::to_owned);
        match word {
            "nameserver" => config.servers.extend(rest.take(1)),
            "search" | "domain" => config.searches = rest.collect(),
            "options" => config.options.extend(rest),
            _ => {}
        }
    }
    config.servers.truncate(SERVERS);
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: serde_json::Value) -> PodSpec {
        serde_json::from_value(json).unwrap()
    }

    fn host() -> Host {
        let resolv_conf = "# x\nnameserver 10.0.0.1\nsearch a.example b.example\noptions ndots:1 rotate\n";
        Host { name: "node".into(), resolv_conf: resolv_conf.into(), ..Host::default() }
    }

    #[test]
    fn what_is_asked_for_is_added_to_what_the_host_has() {
        let dns = |json| config(&spec(json), &host()).map_err(|error| error.to_string());
        assert_eq!(dns(serde_json::json!({"dnsPolicy": "Default"})), Ok(None));
        let more = serde_json::json!({"nameservers": ["10.0.0.2"], "searches": ["a.example", "c"],
            "options": [{"name": "ndots", "value": "5"}, {"name": "edns0"}]});
        let both = dns(serde_json::json!({"dnsConfig": more})).unwrap().unwrap();
        assert_eq!(both.servers, ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(both.searches, ["a.example", "b.example", "c"]);
        assert_eq!(both.options, ["rotate", "ndots:5", "edns0"]);
        let own = dns(serde_json::json!({"dnsPolicy": "None", "dnsConfig": more})).unwrap().unwrap();
        assert_eq!((own.servers.len(), own.searches.len(), own.options.len()), (1, 2, 2));
        for (json, field) in [
            (serde_json::json!({"dnsPolicy": "None"}), "spec.dnsConfig.nameservers: is empty"),
            (serde_json::json!({"dnsPolicy": "Some"}), "spec.dnsPolicy: \"Some\" is not"),
            (
                serde_json::json!({"dnsConfig": {"nameservers": ["x"]}}),
                "spec.dnsConfig.nameservers[0]: \"x\"",
            ),
            (serde_json::json!({"dnsConfig": {"searches": ["a b"]}}), "spec.dnsConfig.searches[0]: "),
            (
                serde_json::json!({"dnsConfig": {"nameservers": ["::1", "::2", "::3"]}}),
                "spec.dnsConfig.nameservers: 4",
            ),
        ] {
            let error = dns(json).unwrap_err();
            assert!(error.starts_with(field), "{error}");
        }
    }

    #[test]
    fn a_pod_is_called_as_in_a_cluster() {
        let names = |json| Names::of(&spec(json), "web", "shop", &host()).map_err(|error| error.to_string());
        let called = |host: &str, full: &str, kernel: &str| {
            Ok(Names { host: host.into(), full: full.into(), kernel: kernel.into() })
        };
        let full = "a.b.shop.svc.cluster.local";
        for (json, want) in [
            (serde_json::json!({}), called("web", "", "web")),
            (serde_json::json!({"hostname": "a"}), called("a", "", "a")),
            (serde_json::json!({"hostname": "a", "subdomain": "b"}), called("a", full, "a")),
            (
                serde_json::json!({"hostname": "a", "subdomain": "b", "setHostnameAsFQDN": true}),
                called("a", full, full),
            ),
            (serde_json::json!({"hostnameOverride": "x.y"}), called("x.y", "", "x.y")),
            (serde_json::json!({"hostNetwork": true}), called("node", "", "node")),
        ] {
            assert_eq!(names(json.clone()), want, "{json}");
        }
        let long = serde_json::json!({"subdomain": "x".repeat(60), "setHostnameAsFQDN": true});
        assert!(names(long).unwrap_err().starts_with("spec.setHostnameAsFQDN: makes"));
        assert!(names(serde_json::json!({"hostname": "A_b"})).unwrap_err().starts_with("spec.hostname: "));
    }
}
