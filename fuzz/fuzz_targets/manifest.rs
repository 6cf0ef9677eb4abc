//! Manifests and indexes: `podhold_image` (manifest).
#![no_main]

use libfuzzer_sys::fuzz_target;
use podhold_image::{Digest, fuzzing::manifest};

fuzz_target!(|body: &[u8]| {
    for media_type in [None, Some("application/vnd.oci.image.index.v1+json"), Some("text/\u{1b}[html")] {
        let Some(blobs) = manifest(body, media_type) else { continue };
        assert!(blobs.len() <= body.len(), "more blobs than octets that could name them");
        for (digest, _) in &blobs {
            assert!(Digest::parse(digest).is_ok(), "{digest:?} is no digest");
        }
    }
});
