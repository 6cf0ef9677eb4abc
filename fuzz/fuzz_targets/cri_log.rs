//! The CRI log format: written by the shim's logger, read by `podhold run`.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use podhold::fuzzing::read_log;
use podhold_sandbox::fuzzing::write_log;

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    /// Output of a container, or a log.
    bytes: &'a [u8],
    /// How often it is taken: once, or many times over, so that limits are reached.
    times: u16,
    /// Where it is cut.
    piece: u16,
}

fuzz_target!(|input: Input<'_>| {
    let times = (usize::from(input.times) % 4096).min((1 << 17) / input.bytes.len().max(1)).max(1);
    let bytes = input.bytes.repeat(times);
    // Not so small that there is nothing but the taking of pieces.
    let piece = usize::from(input.piece).max(bytes.len() / 64).max(1);

    // Any bytes as a log.
    assert_eq!(read_log([bytes.as_slice()]), read_log(bytes.chunks(piece)), "pieces change what is read");

    // Any bytes as output.
    let log = write_log([bytes.as_slice()]);
    assert_eq!(log, write_log(bytes.chunks(piece)), "pieces change what is written");
    assert!(log.is_empty() || log.ends_with(b"\n"), "a log ends with a whole entry");
    let mut read = read_log(log.chunks(piece));
    if !bytes.ends_with(b"\n") {
        assert_eq!(read.pop(), (!bytes.is_empty()).then_some(b'\n'), "the last line is closed");
    }
    assert!(read == bytes, "what was written is read back as something else");
});
