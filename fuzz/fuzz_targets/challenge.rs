//! Challenges of registries (`WWW-Authenticate`): `podhold_image` (registry, auth).
#![no_main]

use libfuzzer_sys::fuzz_target;
use podhold_image::fuzzing::challenge;

fuzz_target!(|text: &str| {
    let headers: Vec<String> = text.lines().map(str::to_owned).collect();
    if let Some(Some((realm, _, _))) = challenge(&headers) {
        assert!(!realm.is_empty(), "nowhere to go");
        assert!(text.to_ascii_lowercase().contains("bearer"), "nobody has asked for a token");
    }
    // What comes after the challenge that is answered changes nothing.
    let first = challenge(&headers[..headers.len().min(1)]);
    if matches!(first, Some(Some(_))) {
        assert_eq!(first, challenge(&headers));
    }
});
