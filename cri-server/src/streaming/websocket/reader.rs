//! Reads a client's messages piece by piece and answers its control frames.

use std::{
    io::{self, Cursor},
    sync::Arc,
};

use bytes::BytesMut;
use tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Control, Data, OpCode},
};

use super::{close, pong};
use crate::streaming::link::{Link, Source};

/// The longest payload of a control frame (RFC 6455, section 5.5).
const CONTROL_LIMIT: u64 = 125;
/// Close codes of section 7.4.1: done; broken protocol.
const NORMAL: u16 = 1000;
const BROKEN: u16 = 1002;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(in crate::streaming) enum WebSocketError {
    /// The connection broke.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// The client broke RFC 6455.
    #[error("no WebSocket frame: {0}")]
    Frame(&'static str),
    /// The client broke the channel protocol.
    #[error("no channel message: {0}")]
    Channel(&'static str),
    /// The client closed the connection without a word, while it had to wait.
    #[error("the client has closed the connection")]
    Gone,
}

/// A part of a message, in order.
pub(in crate::streaming) struct Piece {
    /// Its octets, unmasked.
    pub(in crate::streaming) data: BytesMut,
    /// It begins a message.
    pub(in crate::streaming) first: bool,
    /// It ends a message.
    pub(in crate::streaming) last: bool,
}

/// Reads messages; the only reader of its connection.
pub(in crate::streaming) struct Reader {
    source: Source,
    /// Of the frame that is being read: what is missing, and whether the message ends with it.
    left: u64,
    last: bool,
    mask: Unmasked,
    /// Within a frame.
    within: bool,
    /// Within a message, and whether a part of it was passed on.
    message: Option<bool>,
}

impl Reader {
    /// Reads from a connection that was upgraded.
    pub(in crate::streaming) fn new(source: Source) -> Self {
        let mask = Unmasked::new([0; 4]);
        Self { source, left: 0, last: false, mask, within: false, message: None }
    }

    /// The connection it reads from.
    pub(in crate::streaming) fn link(&self) -> &Arc<Link> {
        self.source.link()
    }

    /// The next part of a message; `None` when the client has closed. Answers pings and the close.
    pub(in crate::streaming) async fn next(&mut self) -> Result<Option<Piece>, WebSocketError> {
        let piece = self.piece().await;
        if let Err(WebSocketError::Frame(_)) = piece {
            self.link().post_now(&close(BROKEN));
        }
        piece
    }

    async fn piece(&mut self) -> Result<Option<Piece>, WebSocketError> {
        while !self.within {
            let Some((header, length)) = self.header().await? else { return Ok(None) };
            self.mask = Unmasked::new(header.mask.ok_or(WebSocketError::Frame("it is not masked"))?);
            match header.opcode {
                OpCode::Control(control) => {
                    if !self.control(control, header.is_final, length).await? {
                        return Ok(None);
                    }
                }
                OpCode::Data(data) => self.begin(data, header.is_final, length)?,
            }
        }
        if self.left > 0 && self.source.buffer.is_empty() && !self.source.more().await? {
            return Ok(None);
        }
        let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(self.source.buffer.len());
        let mut data = self.source.buffer.split_to(length);
        self.mask.apply(&mut data);
        self.left -= length as u64;
        let first = self.message != Some(true);
        self.message = Some(true);
        self.within = self.left > 0;
        let last = self.last && !self.within;
        if last {
            self.message = None;
        }
        Ok(Some(Piece { data, first, last }))
    }

    fn begin(&mut self, data: Data, last: bool, length: u64) -> Result<(), WebSocketError> {
        match (data, self.message) {
            (Data::Text | Data::Binary, None) => self.message = Some(false),
            (Data::Continue, Some(_)) => {}
            (Data::Continue, None) => return Err(WebSocketError::Frame("it continues no message")),
            (Data::Text | Data::Binary, Some(_)) => {
                return Err(WebSocketError::Frame("a message begins within another"));
            }
            (Data::Reserved(_), _) => return Err(WebSocketError::Frame("its kind is reserved")),
        }
        self.left = length;
        self.last = last;
        self.within = true;
        Ok(())
    }

    /// False when the client closes.
    async fn control(&mut self, control: Control, last: bool, length: u64) -> Result<bool, WebSocketError> {
        if !last || length > CONTROL_LIMIT {
            return Err(WebSocketError::Frame("a control frame is in parts or too long"));
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        while self.source.buffer.len() < length {
            if !self.source.more().await? {
                return Ok(false);
            }
        }
        let mut payload = self.source.buffer.split_to(length);
        self.mask.apply(&mut payload);
        match control {
            Control::Ping => self.link().post(&pong(&payload)).await,
            Control::Pong => {}
            Control::Close => {
                self.link().post_now(&close(NORMAL));
                return Ok(false);
            }
            Control::Reserved(_) => return Err(WebSocketError::Frame("its kind is reserved")),
        }
        Ok(true)
    }

    async fn header(&mut self) -> Result<Option<(FrameHeader, u64)>, WebSocketError> {
        loop {
            if let Some((header, length, size)) = frame_header(&self.source.buffer)? {
                let _header = self.source.buffer.split_to(size);
                return Ok(Some((header, length)));
            }
            if !self.source.more().await? {
                return Ok(None);
            }
        }
    }
}

/// The header at the beginning of some octets, its payload's length, and its own; `None` when they are too few.
pub(in crate::streaming) fn frame_header(
    octets: &[u8],
) -> Result<Option<(FrameHeader, u64, usize)>, WebSocketError> {
    let mut cursor = Cursor::new(octets);
    let header = FrameHeader::parse(&mut cursor).map_err(|_| WebSocketError::Frame("its header is wrong"))?;
    let Some((header, length)) = header else { return Ok(None) };
    if header.rsv1 || header.rsv2 || header.rsv3 {
        return Err(WebSocketError::Frame("it uses an extension that was not agreed"));
    }
    if length >> 63 != 0 {
        return Err(WebSocketError::Frame("its length is beyond 63 bits"));
    }
    Ok(Some((header, length, cursor.position() as usize)))
}

/// The mask of a frame, and how far it was applied (section 5.3).
pub(in crate::streaming) struct Unmasked {
    mask: [u8; 4],
}

impl Unmasked {
    /// A frame's mask, not applied yet.
    pub(in crate::streaming) fn new(mask: [u8; 4]) -> Self {
        Self { mask }
    }

    /// Unmasks what follows of the frame.
    pub(in crate::streaming) fn apply(&mut self, octets: &mut [u8]) {
        let wide = u64::from_ne_bytes([self.mask, self.mask].concat().try_into().unwrap_or_default());
        let (words, rest) = octets.as_chunks_mut::<8>();
        for word in words {
            *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
        }
        for (octet, mask) in rest.iter_mut().zip(self.mask.iter().cycle()) {
            *octet ^= mask;
        }
        self.mask.rotate_left(rest.len() % 4);
    }
}
