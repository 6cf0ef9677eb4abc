//! Image references: `podhold_image::Reference`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podhold_image::Reference;

fuzz_target!(|text: &str| {
    let Ok(reference) = Reference::parse(text) else { return };
    let canonical = reference.to_string();
    assert_eq!(Reference::parse(&canonical).as_ref(), Ok(&reference), "{canonical:?} reads back as another");
    assert!(reference.tag().is_some() || reference.digest().is_some(), "{canonical:?} names nothing");
    // Both go into URLs and into paths.
    for part in [reference.repository(), reference.target()] {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/' | b':');
        assert!(part.bytes().all(plain) && !part.is_empty(), "{part:?} is not plain");
        assert!(part.split('/').all(|name| !matches!(name, "" | "." | "..")), "{part:?} is no path beneath");
    }
    assert!(!reference.registry().contains(['/', '@', '?', '#', '%', '\\']), "{canonical:?}: registry");
});
