//! WebSocket as clients of the streaming server send it: headers, masks, base64 messages, terminal sizes.
#![no_main]

use arbitrary::Arbitrary;
use base64::{Engine, engine::general_purpose::STANDARD};
use libfuzzer_sys::fuzz_target;
use podhold::fuzzing::streams::{base64, newest_size, unmasked, websocket_header};

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    /// How they are taken.
    kind: Kind,
    /// Where they are cut.
    cuts: [u8; 4],
    octets: &'a [u8],
}

#[derive(Debug, Arbitrary)]
enum Kind {
    /// Any octets as a header.
    Header,
    /// A header that is right.
    Written { code: u8, last: bool, mask: Option<[u8; 4]>, length: u64 },
    /// A masked payload.
    Payload([u8; 4]),
    /// Messages of characters, most of them base64; a line each.
    Characters { times: u8 },
    /// Octets as base64.
    Encoded,
    /// A resize stream.
    Sizes { times: u8 },
}

/// The octets in pieces of these lengths, again and again; pieces of none are among them.
fn pieces<'a>(mut octets: &'a [u8], cuts: [u8; 4]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for length in cuts.into_iter().cycle().map(usize::from) {
        if octets.is_empty() || cuts == [0; 4] {
            break;
        }
        let (piece, rest) = octets.split_at(length.min(octets.len()));
        pieces.push(piece);
        octets = rest;
    }
    pieces.push(octets);
    pieces
}

/// What is known of a header can only become more.
fn header(octets: &[u8]) {
    let whole = websocket_header(octets);
    if let Ok(Some((_, length, own))) = &whole {
        assert!(*own <= octets.len().min(14) && *length < 1 << 63, "{whole:?}");
    }
    for end in 0..octets.len().min(16) {
        match websocket_header(&octets[..end]) {
            Ok(None) => {}
            part => assert_eq!(part, whole, "more octets change the header"),
        }
    }
}

/// As RFC 6455 has it in section 5.2.
fn written(code: u8, last: bool, mask: Option<[u8; 4]>, length: u64) -> Vec<u8> {
    let masked = u8::from(mask.is_some()) << 7;
    let mut octets = vec![u8::from(last) << 7 | code];
    match length {
        0..126 => octets.push(masked | length as u8),
        126..=0xffff => {
            octets.push(masked | 126);
            octets.extend((length as u16).to_be_bytes());
        }
        _ => {
            octets.push(masked | 127);
            octets.extend(length.to_be_bytes());
        }
    }
    octets.extend(mask.iter().flatten());
    octets
}

fuzz_target!(|input: Input<'_>| {
    let Input { kind, cuts, octets } = input;
    match kind {
        Kind::Header => header(octets),
        Kind::Written { code, last, mask, length } => {
            let code = [0, 1, 2, 8, 9, 10][usize::from(code) % 6];
            let length = length % (1 << 63) >> (cuts[0] % 63);
            let header = written(code, last, mask, length);
            let read = websocket_header(&[&header, octets].concat());
            assert_eq!(read, Ok(Some((mask, length, header.len()))), "not what was written");
        }
        Kind::Payload(mask) => {
            let plain: Vec<u8> =
                octets.iter().zip(mask.iter().cycle()).map(|(octet, mask)| octet ^ mask).collect();
            assert!(unmasked(mask, [octets]) == plain, "a mask is not taken off");
            assert!(unmasked(mask, pieces(octets, cuts)) == plain, "pieces change what is unmasked");
            assert!(unmasked(mask, [plain.as_slice()]) == octets, "a mask is not put on again");
        }
        Kind::Characters { times } => {
            let text = octets.repeat(usize::from(times % 16) + 1);
            let lines: Vec<&[u8]> = text.split(|octet| *octet == b'\n').collect();
            let known: Option<Vec<_>> = lines.iter().map(|line| STANDARD.decode(line).ok()).collect();
            let whole: Vec<_> = lines.iter().map(|line| vec![*line]).collect();
            assert!(base64(&whole) == known, "messages are decoded as something else");
            let cut: Vec<_> = lines.iter().map(|line| pieces(line, cuts)).collect();
            assert!(base64(&cut) == known, "pieces change what is decoded");
        }
        Kind::Encoded => {
            let text = STANDARD.encode(octets);
            let message = pieces(text.as_bytes(), cuts);
            assert!(
                base64(&[message.clone(), message]) == Some(vec![octets.to_vec(); 2]),
                "not what was encoded"
            );
        }
        Kind::Sizes { times } => {
            let text = octets.repeat(usize::from(times % 64) + 1);
            let text = &text[..text.len().min(1 << 14)];
            let whole = newest_size([text]);
            assert_eq!(newest_size(pieces(text, cuts)), whole, "pieces change what is told");
        }
    }
});
