//! Configurations of images: `podhold_image` (manifest).
#![no_main]

use libfuzzer_sys::fuzz_target;
use podhold_image::fuzzing::image_config;

fuzz_target!(|json: &[u8]| {
    let Some((diff_ids, chain)) = image_config(json) else { return };
    assert_eq!(diff_ids, chain, "as many chain ids as diff ids");
});
