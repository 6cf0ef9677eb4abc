//! Credentials: `podhold_image` (credentials): Docker's `config.json`, answers of helpers and token services.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podhold_image::{
    fuzzing::{docker_config, helper_answer, token},
    is_server_of,
};

fuzz_target!(|json: &[u8]| {
    let _credentials = helper_answer(json);
    assert!(token(json).is_none_or(|token| !token.is_empty()));
    if let Ok(text) = std::str::from_utf8(json) {
        assert!(
            !is_server_of(text, "other.example") || !is_server_of(text, "quay.io"),
            "{text:?} is two servers"
        );
    }
    for registry in ["docker.io", "quay.io", "localhost:5000"] {
        match docker_config(json, registry, "team/app") {
            Err(reason) => assert!(reason.starts_with("it is no"), "{reason:?} may hold a secret"),
            Ok((helper, entry)) => {
                if let Some((name, server)) = helper {
                    assert!(!name.is_empty() && !server.contains('*'), "{name:?} {server:?}");
                }
                if let Err(reason) = entry {
                    assert!(reason.ends_with("is not base64 of user:password"), "{reason:?}");
                }
            }
        }
    }
});
