//! What the fuzz targets (`fuzz/`) reach of the parsers of streams. Not there in an ordinary build.

use super::{
    remote_command::resize::Sizes,
    spdy::{
        dictionary::DICTIONARY,
        frame::{self, Control, Head},
        headers,
    },
    websocket::{Base64Decoder, Unmasked, frame_header},
};

/// The longest control frame, and the longest header block when it is inflated.
pub const LIMITS: (usize, usize) = (frame::CONTROL_LIMIT, headers::BLOCK_LIMIT);

/// What SPDY's header blocks are compressed with.
pub fn dictionary() -> &'static [u8] {
    &DICTIONARY
}

/// The head of a data frame as we write it.
pub fn data_head(stream: u32, fin: bool, length: usize) -> Vec<u8> {
    frame::data_head(stream, fin, length).to_vec()
}

/// A frame that opens a stream, as a client writes it.
pub fn syn_stream(stream: u32, block: &[u8]) -> Vec<u8> {
    frame::syn_stream(stream, block)
}

/// A frame of a client.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// So many octets of a stream follow.
    Data {
        /// Its number.
        stream: u32,
        /// It ends with them.
        fin: bool,
        /// How many.
        length: usize,
    },
    /// It opens a stream, or says more of it.
    Headers {
        /// Its number.
        stream: u32,
        /// Names and values.
        headers: Vec<(String, String)>,
    },
    /// Another one.
    Other,
}

/// Reads a client's frames.
#[derive(Default)]
pub struct Frames(headers::Reader);

impl Frames {
    /// Takes a data frame's head or a control frame from the octets; `None` when they are too few.
    pub fn next(&mut self, octets: &mut &[u8]) -> Option<Result<Frame, String>> {
        let (head, rest) = octets.split_first_chunk()?;
        let (kind, flags, length) = match frame::head(*head) {
            Err(error) => return Some(Err(error.to_string())),
            Ok(Head::Data { stream, fin, length }) => {
                *octets = rest;
                return Some(Ok(Frame::Data { stream, fin, length }));
            }
            Ok(Head::Control { kind, flags, length }) => (kind, flags, length),
        };
        assert!(length <= frame::CONTROL_LIMIT, "a control frame of {length} octets is waited for");
        let (body, rest) = rest.split_at_checked(length)?;
        *octets = rest;
        let read = match frame::control(kind, flags, body) {
            Ok(Control::SynStream { stream, block, .. } | Control::Headers { stream, block, .. }) => {
                let headers = self.0.read(block).map_err(|error| error.to_string());
                headers.map(|headers| Frame::Headers { stream, headers: headers.0 })
            }
            Ok(_) => Ok(Frame::Other),
            Err(error) => Err(error.to_string()),
        };
        Some(read)
    }
}

/// The mask, the payload's length and the own length of a WebSocket frame's header; `Ok(None)` when the octets
/// are too few.
#[expect(clippy::type_complexity, reason = "of the three parts each is plain")]
pub fn websocket_header(octets: &[u8]) -> Result<Option<(Option<[u8; 4]>, u64, usize)>, String> {
    let header = frame_header(octets).map_err(|error| error.to_string())?;
    Ok(header.map(|(header, length, own)| (header.mask, length, own)))
}

/// A frame's payload without its mask, when it arrives in these pieces.
pub fn unmasked<'a>(mask: [u8; 4], pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let (mut mask, mut payload) = (Unmasked::new(mask), Vec::new());
    for piece in pieces {
        let from = payload.len();
        payload.extend_from_slice(piece);
        mask.apply(&mut payload[from..]);
    }
    payload
}

/// Messages of base64, each in its pieces; `None` when one of them is not.
pub fn base64(messages: &[Vec<&[u8]>]) -> Option<Vec<Vec<u8>>> {
    let mut decoder = Base64Decoder::default();
    let message = |pieces: &Vec<&[u8]>| {
        let mut octets = Vec::new();
        for (at, piece) in pieces.iter().enumerate() {
            octets.extend(decoder.decode(piece, at + 1 == pieces.len()).ok()?);
        }
        Some(octets)
    };
    messages.iter().map(message).collect()
}

/// The newest size, columns first, that a resize stream tells; `Err` when it tells something else.
pub fn newest_size<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Option<(u16, u16)>, ()> {
    let (mut sizes, mut newest) = (Sizes::default(), None);
    for piece in pieces {
        if let Some(size) = sizes.read(piece).map_err(|_| ())? {
            newest = Some((size.width, size.height));
        }
    }
    Ok(newest)
}
