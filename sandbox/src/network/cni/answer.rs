//! Results of plugins: decoded, bounded and checked. Pure.
//!
//! A plugin's answer is foreign input: nothing of it is believed that could not be true.

use std::net::IpAddr;

use serde_json::{Map, Value};

const MOST_ENTRIES: usize = 256;
const LONGEST_NAME: usize = 15;
const LONGEST_TEXT: usize = 4096;

/// A checked result.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Answer {
    pub(crate) interfaces: Vec<Interface>,
    addresses: Vec<Address>,
    pub(crate) dns: Dns,
}

/// An interface a plugin made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address; may be empty.
    pub mac: String,
    /// The namespace it is in; empty for the host's.
    pub sandbox: String,
}

/// Name servers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// Addresses of name servers.
    pub nameservers: Vec<String>,
    /// Local domain.
    pub domain: String,
    /// Search domains.
    pub search: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
struct Address {
    ip: IpAddr,
    interface: Option<usize>,
}

impl Answer {
    /// Takes any version's result. The error says what is wrong.
    pub(crate) fn parse(value: &Value) -> Result<Self, String> {
        let object = value.as_object().ok_or("it is not a JSON object")?;
        let interfaces = list(object, "interfaces")?.iter().map(interface).collect::<Result<Vec<_>, _>>()?;
        let mut addresses = Vec::new();
        for entry in list(object, "ips")? {
            addresses.push(address(entry, interfaces.len())?);
        }
        // The form before 0.3.0.
        for family in ["ip4", "ip6"] {
            if let Some(text) = object.get(family).and_then(|config| config.get("ip")) {
                addresses.push(Address { ip: ip_of(text)?, interface: None });
            }
        }
        let dns = match object.get("dns") {
            None | Some(Value::Null) => Dns::default(),
            Some(dns) => parse_dns(dns)?,
        };
        Ok(Self { interfaces, addresses, dns })
    }

    /// The addresses of the pod's interface `name`, in order, without repetition.
    pub(crate) fn addresses_of(&self, name: &str) -> Vec<IpAddr> {
        let ours = |address: &Address| match address.interface.and_then(|index| self.interfaces.get(index)) {
            Some(interface) => interface.name == name && !interface.sandbox.is_empty(),
            None => true,
        };
        let mut ips: Vec<IpAddr> = Vec::new();
        for address in self.addresses.iter().filter(|address| ours(address)) {
            if !ips.contains(&address.ip) {
                ips.push(address.ip);
            }
        }
        ips
    }
}

fn list<'a>(object: &'a Map<String, Value>, key: &str) -> Result<&'a [Value], String> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(entries)) if entries.len() <= MOST_ENTRIES => Ok(entries),
        Some(Value::Array(_)) => Err(format!("\"{key}\" has more than {MOST_ENTRIES} entries")),
        Some(_) => Err(format!("\"{key}\" is not a list")),
    }
}

fn interface(value: &Value) -> Result<Interface, String> {
    let object = value.as_object().ok_or("an interface is not a JSON object")?;
    let name = text(object, "name", LONGEST_NAME)?;
    if name.is_empty() || name.contains(['/', ' ']) || name == "." || name == ".." {
        return Err(format!("{name:?} is not the name of an interface"));
    }
    Ok(Interface { name, mac: text(object, "mac", 64)?, sandbox: text(object, "sandbox", LONGEST_TEXT)? })
}

fn address(value: &Value, interfaces: usize) -> Result<Address, String> {
    let object = value.as_object().ok_or("an entry of \"ips\" is not a JSON object")?;
    let ip = ip_of(object.get("address").unwrap_or(&Value::Null))?;
    let interface = match object.get("interface") {
        None | Some(Value::Null) => None,
        Some(index) => {
            let index = index.as_u64().and_then(|index| usize::try_from(index).ok());
            let index = index.filter(|index| *index < interfaces);
            Some(index.ok_or_else(|| format!("the interface of address {ip} is not in \"interfaces\""))?)
        }
    };
    Ok(Address { ip, interface })
}

/// An address with its prefix length, such as `10.0.0.2/24`.
fn ip_of(value: &Value) -> Result<IpAddr, String> {
    let text = value.as_str().ok_or("an address is missing or not a string")?;
    let shown: String = text.chars().take(100).collect();
    let (ip, prefix) = text.split_once('/').unwrap_or((text, "0"));
    let parsed = ip.parse::<IpAddr>().ok().zip(prefix.parse::<u8>().ok());
    let (ip, prefix) = parsed.ok_or_else(|| format!("{shown:?} is not an address with a prefix length"))?;
    let longest = if ip.is_ipv4() { 32 } else { 128 };
    if prefix > longest {
        return Err(format!("{shown:?} has an impossible prefix length"));
    }
    if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() {
        return Err(format!("{shown:?} cannot be the address of a pod"));
    }
    Ok(ip)
}

fn parse_dns(value: &Value) -> Result<Dns, String> {
    let object = value.as_object().ok_or("\"dns\" is not a JSON object")?;
    let texts = |key: &str| -> Result<Vec<String>, String> {
        let entries = list(object, key)?.iter();
        entries
            .map(|entry| checked(entry.as_str().ok_or("\"dns\" holds something else than text")?, 255))
            .collect()
    };
    let nameservers = texts("nameservers")?;
    if let Some(bad) = nameservers.iter().find(|server| server.parse::<IpAddr>().is_err()) {
        return Err(format!("name server {bad:?} is not an address"));
    }
    Ok(Dns {
        nameservers,
        domain: text(object, "domain", 255)?,
        search: texts("search")?,
        options: texts("options")?,
    })
}

fn text(object: &Map<String, Value>, key: &str, longest: usize) -> Result<String, String> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => checked(text, longest),
        Some(_) => Err(format!("\"{key}\" is not text")),
    }
}

/// Such text ends up in resolv.conf and in logs.
fn checked(text: &str, longest: usize) -> Result<String, String> {
    if text.len() > longest || text.chars().any(char::is_control) {
        let shown: String = text.chars().take(100).collect();
        return Err(format!("{shown:?} is longer than {longest} bytes or holds control characters"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ips(value: &Value) -> Result<Vec<String>, String> {
        let answer = Answer::parse(value)?;
        Ok(answer.addresses_of("eth0").iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_pods_own_addresses_are_picked_in_order() {
        let value = json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "br0"}, {"name": "eth0", "sandbox": "/ns"}, {"name": "eth1", "sandbox": "/ns"}],
            "ips": [
                {"address": "10.1.0.2/24", "interface": 1}, {"address": "10.9.9.9/24", "interface": 0},
                {"address": "fd00::2/64", "interface": 1}, {"address": "10.1.0.2/24", "interface": 1},
                {"address": "10.2.0.2/24", "interface": 2}
            ],
            "dns": {"nameservers": ["10.1.0.1"], "search": ["x"]}
        });
        assert_eq!(ips(&value).unwrap(), ["10.1.0.2", "fd00::2"]);
        assert_eq!(Answer::parse(&value).unwrap().dns.nameservers, ["10.1.0.1"]);
    }

    #[test]
    fn results_of_the_oldest_versions_are_understood() {
        let value = json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.1.0.2/24"}, "ip6": {"ip": "fd00::2/64"}});
        assert_eq!(ips(&value).unwrap(), ["10.1.0.2", "fd00::2"]);
    }

    #[test]
    fn impossible_results_are_refused() {
        for bad in [
            json!([]),
            json!("x"),
            json!({"ips": {}}),
            json!({"ips": [{}]}),
            json!({"ips": [{"address": "10.1.0.2/33"}]}),
            json!({"ips": [{"address": "10.1.0.2/24/1"}]}),
            json!({"ips": [{"address": "127.0.0.1/8"}]}),
            json!({"ips": [{"address": "::/0"}]}),
            json!({"ips": [{"address": "224.0.0.1/8"}]}),
            json!({"ips": [{"address": "10.1.0.2/24", "interface": 0}]}),
            json!({"ips": [{"address": "10.1.0.2/24", "interface": -1}]}),
            json!({"interfaces": [{"name": "../../etc"}]}),
            json!({"interfaces": [{"name": "a-name-that-is-too-long"}]}),
            json!({"dns": {"nameservers": ["10.0.0.1\nnameserver 6.6.6.6"]}}),
            json!({"dns": {"search": ["a\nb"]}}),
            json!({"ips": vec![json!({"address": "10.1.0.2/24"}); 1000]}),
        ] {
            assert!(Answer::parse(&bad).is_err(), "{bad}");
        }
    }
}
