//! The channel protocols of Kubernetes (`channel.k8s.io` and its versions): each message begins with the
//! number of its channel, as an octet or, in the base64 protocols, as a digit.

use std::{io, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::BytesMut;

use super::{Base64Decoder, Reader, WebSocketError, pong, wrap, wrap_text};
use crate::streaming::{
    inbox::{Budget, End, Inbox, Receiver},
    link::{Link, Packet},
};

/// The channel that ends other channels, from version 5 on.
const CLOSE: u8 = 255;

/// How octets travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::streaming) enum Codec {
    /// Binary messages.
    Binary,
    /// Text messages of base64.
    Base64,
}

/// Reads channels until the client goes.
pub(in crate::streaming) struct Channels {
    reader: Reader,
    codec: Codec,
    half_close: bool,
    budget: Arc<Budget>,
    inboxes: Vec<Option<Arc<Inbox>>>,
    decoder: Base64Decoder,
    target: Target,
    sign_of_life: Vec<u8>,
}

/// Where the message that is being read goes.
#[derive(Clone, Copy)]
enum Target {
    /// Its channel is still to come.
    Unknown,
    Channel(usize),
    /// Octets of a close message, which has one.
    Close(Option<u8>),
}

impl Channels {
    /// Reads a client's channels; with `half_close` (version 5) it may end single ones.
    pub(in crate::streaming) fn new(reader: Reader, codec: Codec, half_close: bool) -> Self {
        Self {
            reader,
            codec,
            half_close,
            budget: Arc::default(),
            inboxes: Vec::new(),
            decoder: Base64Decoder::default(),
            target: Target::Unknown,
            sign_of_life: pong(&[]),
        }
    }

    /// What arrives on a channel; on all others it is ignored.
    pub(in crate::streaming) fn listen(&mut self, channel: u8) -> Receiver {
        let (inbox, receiver) = Inbox::new(self.budget.clone());
        let channel = usize::from(channel);
        if self.inboxes.len() <= channel {
            self.inboxes.resize_with(channel + 1, || None);
        }
        self.inboxes[channel] = Some(inbox);
        receiver
    }

    /// Writes to a channel.
    pub(in crate::streaming) fn outgoing(&self, channel: u8) -> Outgoing {
        Outgoing { link: self.reader.link().clone(), codec: self.codec, channel }
    }

    /// Reads until the client goes or breaks the protocol; `Ok` is an orderly close.
    pub(in crate::streaming) async fn run(mut self) -> Result<(), WebSocketError> {
        let result = self.read().await;
        for inbox in self.inboxes.iter().flatten() {
            inbox.end(End::Reset);
        }
        result
    }

    async fn read(&mut self) -> Result<(), WebSocketError> {
        while let Some(mut piece) = self.reader.next().await? {
            if piece.first {
                self.target = Target::Unknown;
                self.decoder = Base64Decoder::default();
            }
            self.piece(&mut piece.data, piece.last).await?;
        }
        Ok(())
    }

    async fn piece(&mut self, data: &mut BytesMut, last: bool) -> Result<(), WebSocketError> {
        if let (Target::Unknown, false) = (self.target, data.is_empty()) {
            let number = data.split_to(1)[0];
            self.target = self.target(number);
        }
        match self.target {
            Target::Unknown => Ok(()),
            Target::Channel(channel) => self.data(channel, data.split(), last).await,
            Target::Close(named) => {
                let named = match (named, &data[..]) {
                    (named, []) => named,
                    (None, [channel]) => Some(*channel),
                    _ => return Err(WebSocketError::Channel("a close message names several channels")),
                };
                self.target = Target::Close(named);
                if !last {
                    return Ok(());
                }
                let named = named.and_then(|channel| self.inboxes.get(usize::from(channel)));
                match named {
                    Some(Some(inbox)) => inbox.end(End::Finished),
                    // A channel that the session does not use.
                    Some(None) => {}
                    None => return Err(WebSocketError::Channel("a close message names no channel")),
                }
                Ok(())
            }
        }
    }

    fn target(&self, number: u8) -> Target {
        match self.codec {
            Codec::Binary if self.half_close && number == CLOSE => Target::Close(None),
            Codec::Binary => Target::Channel(usize::from(number)),
            Codec::Base64 => Target::Channel(usize::from(number.wrapping_sub(b'0'))),
        }
    }

    async fn data(&mut self, channel: usize, data: BytesMut, last: bool) -> Result<(), WebSocketError> {
        let Some(Some(inbox)) = self.inboxes.get(channel) else { return Ok(()) };
        let data = match self.codec {
            Codec::Binary => data,
            Codec::Base64 => {
                let decoded = self.decoder.decode(&data, last);
                BytesMut::from(
                    &decoded.map_err(|_| WebSocketError::Channel("its characters are not base64"))?[..],
                )
            }
        };
        tokio::select! {
            biased;
            () = inbox.room() => inbox.push(data),
            () = self.reader.link().gone(&self.sign_of_life) => return Err(WebSocketError::Gone),
        }
        Ok(())
    }
}

/// The direction to the client of one channel.
pub(in crate::streaming) struct Outgoing {
    link: Arc<Link>,
    codec: Codec,
    channel: u8,
}

impl Outgoing {
    /// Sends one message.
    pub(in crate::streaming) async fn send(&mut self, packet: Packet) -> io::Result<()> {
        let packet = match self.codec {
            Codec::Binary => {
                let mut packet = packet;
                packet.prepend(&[self.channel]);
                wrap(&mut packet);
                packet
            }
            Codec::Base64 => {
                let text = STANDARD.encode(packet.bytes());
                let mut packet = Packet::new(text.as_bytes());
                packet.prepend(&[b'0'.wrapping_add(self.channel)]);
                wrap_text(&mut packet);
                packet
            }
        };
        self.link.send(packet).await
    }
}
