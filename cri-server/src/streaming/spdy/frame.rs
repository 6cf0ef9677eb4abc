//! The frames of SPDY/3.1 as bytes. Pure: no I/O, no state, no allocation by what a peer claims.

/// Octets before every frame's body.
pub(in crate::streaming) const HEAD: usize = 8;
/// The longest control frame that is read; clients send a few hundred octets.
pub(in crate::streaming) const CONTROL_LIMIT: usize = 16 * 1024;

const VERSION: u16 = 3;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

const FLAG_FIN: u8 = 1;
const STREAM_MASK: u32 = 0x7fff_ffff;

/// Why a peer's octets are no frame. It ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::streaming) enum FrameError {
    /// Another version of the protocol.
    #[error("a frame of SPDY version {0}, not 3")]
    Version(u16),
    /// A control frame beyond [`CONTROL_LIMIT`].
    #[error("a control frame of {0} octets")]
    TooLong(usize),
    /// A frame whose length does not fit its kind.
    #[error("a frame of type {kind} with {length} octets")]
    Length {
        /// The frame's type.
        kind: u16,
        /// Octets it has.
        length: usize,
    },
    /// A frame about stream 0.
    #[error("a frame of type {0} for stream 0")]
    StreamZero(u16),
}

/// The first eight octets of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::streaming) enum Head {
    /// Octets of a stream follow.
    Data {
        /// Which stream.
        stream: u32,
        /// The peer sends nothing after them.
        fin: bool,
        /// How many octets.
        length: usize,
    },
    /// A control frame's body follows; see [`control`].
    Control {
        /// The frame's type.
        kind: u16,
        /// Its flags.
        flags: u8,
        /// How many octets.
        length: usize,
    },
}

/// A control frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::streaming) enum Control<'a> {
    /// Opens a stream.
    SynStream {
        /// Its number.
        stream: u32,
        /// The peer sends nothing on it.
        fin: bool,
        /// The compressed headers.
        block: &'a [u8],
    },
    /// Accepts a stream.
    SynReply {
        /// Its number.
        stream: u32,
        /// The compressed headers.
        block: &'a [u8],
    },
    /// More headers of a stream.
    Headers {
        /// Its number.
        stream: u32,
        /// The peer sends nothing after them.
        fin: bool,
        /// The compressed headers.
        block: &'a [u8],
    },
    /// Ends a stream at once.
    Reset {
        /// Its number.
        stream: u32,
        /// Why; see [`Status`].
        status: u32,
    },
    /// To be sent back.
    Ping(u32),
    /// The peer is about to go.
    GoAway,
    /// Settings, window updates and what this version does not know.
    Ignored,
}

/// Reasons in RST_STREAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(in crate::streaming) enum Status {
    /// Not done, and nothing happened.
    Refused = 3,
    /// No longer wanted.
    Cancel = 5,
}

/// Reads the first octets of a frame.
pub(in crate::streaming) fn head(octets: [u8; HEAD]) -> Result<Head, FrameError> {
    let first = word(&octets, 0);
    let second = word(&octets, 4);
    let [flags, ..] = second.to_be_bytes();
    let length = (second & 0x00ff_ffff) as usize;
    if first & !STREAM_MASK == 0 {
        return match first {
            0 => Err(FrameError::StreamZero(0)),
            stream => Ok(Head::Data { stream, fin: flags & FLAG_FIN != 0, length }),
        };
    }
    let [version_high, version_low, kind_high, kind_low] = first.to_be_bytes();
    let version = u16::from_be_bytes([version_high & 0x7f, version_low]);
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    if length > CONTROL_LIMIT {
        return Err(FrameError::TooLong(length));
    }
    Ok(Head::Control { kind: u16::from_be_bytes([kind_high, kind_low]), flags, length })
}

/// Reads the body of a control frame.
pub(in crate::streaming) fn control(kind: u16, flags: u8, body: &[u8]) -> Result<Control<'_>, FrameError> {
    let length = body.len();
    let sized = |least: usize, exact: bool| {
        if length < least || exact && length != least {
            Err(FrameError::Length { kind, length })
        } else {
            Ok(())
        }
    };
    let stream = || match word(body, 0) & STREAM_MASK {
        0 => Err(FrameError::StreamZero(kind)),
        stream => Ok(stream),
    };
    let fin = flags & FLAG_FIN != 0;
    match kind {
        SYN_STREAM => {
            sized(10, false)?;
            Ok(Control::SynStream { stream: stream()?, fin, block: &body[10..] })
        }
        SYN_REPLY => {
            sized(4, false)?;
            Ok(Control::SynReply { stream: stream()?, block: &body[4..] })
        }
        HEADERS => {
            sized(4, false)?;
            Ok(Control::Headers { stream: stream()?, fin, block: &body[4..] })
        }
        RST_STREAM => {
            sized(8, true)?;
            Ok(Control::Reset { stream: stream()?, status: word(body, 4) })
        }
        PING => {
            sized(4, true)?;
            Ok(Control::Ping(word(body, 0)))
        }
        GOAWAY => {
            sized(8, true)?;
            Ok(Control::GoAway)
        }
        WINDOW_UPDATE => {
            sized(8, true)?;
            Ok(Control::Ignored)
        }
        SETTINGS => {
            sized(4, false)?;
            if !(length - 4).is_multiple_of(8) || word(body, 0) as usize != (length - 4) / 8 {
                return Err(FrameError::Length { kind, length });
            }
            Ok(Control::Ignored)
        }
        _ => Ok(Control::Ignored),
    }
}

/// The head of a data frame. `length` is below 16 MiB.
pub(in crate::streaming) fn data_head(stream: u32, fin: bool, length: usize) -> [u8; HEAD] {
    debug_assert!(length < 1 << 24, "a data frame's length has 24 bits");
    let mut octets = [0; HEAD];
    octets[..4].copy_from_slice(&(stream & STREAM_MASK).to_be_bytes());
    octets[4..].copy_from_slice(&(length as u32).to_be_bytes());
    octets[4] = if fin { FLAG_FIN } else { 0 };
    octets
}

/// A SYN_STREAM frame; for clients, which means tests.
#[cfg(any(test, fuzzing))]
pub(in crate::streaming) fn syn_stream(stream: u32, block: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(10 + block.len());
    body.extend_from_slice(&stream.to_be_bytes());
    body.extend_from_slice(&[0; 6]);
    body.extend_from_slice(block);
    control_frame(SYN_STREAM, &body)
}

/// A SYN_REPLY frame.
pub(in crate::streaming) fn syn_reply(stream: u32, block: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(4 + block.len());
    body.extend_from_slice(&stream.to_be_bytes());
    body.extend_from_slice(block);
    control_frame(SYN_REPLY, &body)
}

/// An RST_STREAM frame.
pub(in crate::streaming) fn reset(stream: u32, status: Status) -> Vec<u8> {
    two_words(RST_STREAM, stream, status as u32)
}

/// A GOAWAY frame; `status` 0 is an orderly end, 1 a broken protocol.
pub(in crate::streaming) fn go_away(last_stream: u32, status: u32) -> Vec<u8> {
    two_words(GOAWAY, last_stream, status)
}

/// A PING frame.
pub(in crate::streaming) fn ping(id: u32) -> Vec<u8> {
    control_frame(PING, &id.to_be_bytes())
}

fn two_words(kind: u16, first: u32, second: u32) -> Vec<u8> {
    let mut body = [0; 8];
    body[..4].copy_from_slice(&first.to_be_bytes());
    body[4..].copy_from_slice(&second.to_be_bytes());
    control_frame(kind, &body)
}

fn control_frame(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEAD + body.len());
    frame.extend_from_slice(&(0x8000 | VERSION).to_be_bytes());
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.extend_from_slice(&(body.len() as u32).to_be_bytes());
    frame.extend_from_slice(body);
    frame
}

fn word(octets: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&octets[at..at + 4]);
    u32::from_be_bytes(word)
}
