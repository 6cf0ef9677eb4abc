//! SPDY/3.1 as clients of the streaming server send it: frames and header blocks.
#![no_main]

use arbitrary::Arbitrary;
use flate2::{Compress, Compression, FlushCompress};
use libfuzzer_sys::fuzz_target;
use podhold::fuzzing::streams::{Frame, Frames, LIMITS, data_head, dictionary, syn_stream};

#[derive(Debug, Arbitrary)]
enum Input<'a> {
    /// Any octets as a connection.
    Connection(&'a [u8]),
    /// Any octets as header blocks, inflated: the compression is right, and what is in it is not.
    Blocks { level: u8, times: u8, blocks: Vec<&'a [u8]> },
    /// Streams of a client that does everything right.
    Streams { level: u8, times: u8, streams: Vec<Vec<(&'a str, &'a str)>> },
    /// The head of a data frame.
    Data { stream: u32, fin: bool, length: u32 },
}

/// As clients do it: one zlib stream for the whole connection, flushed after each block.
struct Writer(Compress);

impl Writer {
    fn new(level: u8) -> Self {
        let mut compress = Compress::new(Compression::new((level % 10).into()), true);
        compress.set_dictionary(dictionary()).expect("a zlib stream can have a dictionary");
        Self(compress)
    }

    fn block(&mut self, plain: &[u8]) -> Vec<u8> {
        let mut block = Vec::with_capacity(plain.len() + plain.len() / 8 + 256);
        let before = self.0.total_in();
        self.0.compress_vec(plain, &mut block, FlushCompress::Sync).expect("octets can be compressed");
        assert_eq!((self.0.total_in() - before) as usize, plain.len(), "the test's block has no room");
        block
    }
}

fn plain(headers: &[(String, String)]) -> Vec<u8> {
    let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        plain.extend((text.len() as u32).to_be_bytes());
        plain.extend(text.as_bytes());
    }
    plain
}

/// What holds for every frame that is taken, whoever sent it.
fn check(frame: &Frame) {
    match frame {
        Frame::Data { stream, length, .. } => {
            assert!((1..1 << 31).contains(stream) && *length < 1 << 24, "{frame:?}");
        }
        Frame::Headers { stream, headers } => {
            assert!((1..1 << 31).contains(stream), "{frame:?}");
            assert!(headers.len() <= 64 && plain(headers).len() <= LIMITS.1, "more headers than can be");
            for (at, (name, value)) in headers.iter().enumerate() {
                assert!(
                    !name.is_empty() && !name.bytes().any(|octet| octet.is_ascii_uppercase()),
                    "{name:?}"
                );
                assert!(!value.contains('\0'), "{name:?} has several values");
                assert!(headers[..at].iter().all(|(other, _)| other != name), "{name:?} twice");
            }
        }
        Frame::Other => {}
    }
}

/// Reads to the end or to the first error, as a connection does; at most one frame for every eight octets.
fn read(mut octets: &[u8]) -> usize {
    let (mut frames, mut left, mut count) = (Frames::default(), octets.len() / 8, 0);
    while let Some(Ok(frame)) = frames.next(&mut octets) {
        left = left.checked_sub(1).expect("a frame has eight octets");
        check(&frame);
        if let Frame::Data { length, .. } = frame {
            octets = octets.get(length..).unwrap_or_default();
        }
        count += 1;
    }
    count
}

fuzz_target!(|input: Input<'_>| match input {
    Input::Connection(octets) => drop(read(octets)),
    Input::Blocks { level, times, blocks } => {
        let (mut writer, mut connection) = (Writer::new(level), Vec::new());
        for (at, block) in blocks.iter().enumerate() {
            // Often enough that limits are reached: by the last block, so that those before it are read.
            let times = if at + 1 == blocks.len() { usize::from(times) * 64 } else { 1 };
            let block = writer.block(&block.repeat(times.min((1 << 20) / block.len().max(1)).max(1)));
            connection.extend(syn_stream(2 * at as u32 + 1, &block));
        }
        read(&connection);
    }
    Input::Streams { level, times, streams } => {
        let (mut writer, mut frames) = (Writer::new(level), Frames::default());
        // Beyond the window, when there is enough.
        for headers in streams.iter().cycle().take(streams.len() * (usize::from(times) % 16 + 1)) {
            let mut known: Vec<(String, String)> = Vec::new();
            for (name, value) in headers {
                let (name, value) = (name.to_ascii_lowercase(), value.replace('\0', ""));
                if !name.is_empty() && known.len() < 64 && known.iter().all(|(other, _)| *other != name) {
                    known.push((name, value));
                }
            }
            let plain = plain(&known);
            let frame = syn_stream(1, &writer.block(&plain));
            if plain.len() > LIMITS.1 / 2 || frame.len() > LIMITS.0 {
                return;
            }
            let mut octets = frame.as_slice();
            let read = frames.next(&mut octets).expect("a whole frame");
            assert_eq!(read, Ok(Frame::Headers { stream: 1, headers: known }), "not what was written");
            assert!(octets.is_empty(), "a part of the frame is left");
        }
    }
    Input::Data { stream, fin, length } => {
        let (stream, length) = (stream % (1 << 31), (length % (1 << 24)) as usize);
        let read = Frames::default().next(&mut &data_head(stream, fin, length)[..]);
        match stream {
            0 => assert!(read.is_some_and(|read| read.is_err()), "data of stream 0"),
            stream => assert_eq!(read, Some(Ok(Frame::Data { stream, fin, length }))),
        }
    }
});
