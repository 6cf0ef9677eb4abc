//! Registry configuration: `podhold_image` (hosts).
#![no_main]

use libfuzzer_sys::fuzz_target;
use podhold_image::fuzzing::hosts_toml;

fuzz_target!(|text: &str| {
    for own in [true, false] {
        let hosts = match hosts_toml(text, "quay.io", own) {
            Ok(hosts) => hosts,
            Err(reason) => {
                assert!(!reason.is_empty());
                continue;
            }
        };
        assert!(!hosts.is_empty(), "nobody to ask");
        for (url, upstream) in &hosts {
            assert!(url.starts_with("http://") || url.starts_with("https://"), "{url:?}");
            assert!(!url.contains(['?', '#', ' ', '\n']), "{url:?} cannot be gone on with");
            let authority = url.split("://").nth(1).and_then(|rest| rest.split('/').next());
            assert!(authority.is_some_and(|authority| !authority.contains('@')), "{url:?} has credentials");
            // A file for all registries decides nothing about one registry's credentials.
            assert!(own || !upstream || authority == Some("quay.io"), "{url:?} sees credentials");
        }
    }
});
