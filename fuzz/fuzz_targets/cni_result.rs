//! Results of network plugins: `podhold_sandbox::network::cni`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podhold_sandbox::fuzzing::cni_result;

fuzz_target!(|json: &[u8]| {
    let Ok(value) = serde_json::from_slice(json) else { return };
    let Some(result) = cni_result(&value, "eth0") else { return };
    for ip in &result.addresses {
        assert!(!ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast(), "{ip} is no pod's");
    }
    let mut distinct = result.addresses.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), result.addresses.len(), "an address twice: {:?}", result.addresses);
    for interface in &result.interfaces {
        let name = interface.name.as_str();
        assert!((1..=15).contains(&name.len()) && !name.contains(['/', ' ']), "{name:?} is no interface");
        assert!(!matches!(name, "." | ".."), "{name:?} is no interface");
    }
    let dns = &result.dns;
    let texts = dns.nameservers.iter().chain(&dns.search).chain(&dns.options).chain([&dns.domain]);
    let interfaces = result.interfaces.iter().flat_map(|i| [&i.name, &i.mac, &i.sandbox]);
    for text in texts.chain(interfaces) {
        assert!(!text.chars().any(char::is_control), "{text:?} would change the file it is put into");
    }
});
