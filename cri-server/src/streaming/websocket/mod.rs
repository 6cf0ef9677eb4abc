//! WebSocket (RFC 6455), the server's side. Headers are read and written by the `tungstenite` crate; payloads
//! are passed on as they arrive, so a message of any length costs no more memory than a short one.

pub(super) mod channels;
mod codec;
mod reader;

pub(super) use codec::Base64Decoder;
pub(super) use reader::{Reader, WebSocketError};
#[cfg(any(test, fuzzing))]
pub(super) use reader::{Unmasked, frame_header};

use tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Control, Data, OpCode},
};

use super::link::Packet;

/// Puts the header of a binary message before a packet.
pub(super) fn wrap(packet: &mut Packet) {
    prepend(packet, OpCode::Data(Data::Binary));
}

/// Puts the header of a text message before a packet.
pub(super) fn wrap_text(packet: &mut Packet) {
    prepend(packet, OpCode::Data(Data::Text));
}

/// A pong; unasked for, it tells the client that we are there.
pub(super) fn pong(payload: &[u8]) -> Vec<u8> {
    control(Control::Pong, payload)
}

/// A close frame with this status code (RFC 6455, section 7.4).
pub(super) fn close(code: u16) -> Vec<u8> {
    control(Control::Close, &code.to_be_bytes())
}

fn control(kind: Control, payload: &[u8]) -> Vec<u8> {
    let mut packet = Packet::new(payload);
    prepend(&mut packet, OpCode::Control(kind));
    packet.bytes().to_vec()
}

fn prepend(packet: &mut Packet, opcode: OpCode) {
    let length = packet.bytes().len() as u64;
    let header = FrameHeader { opcode, ..FrameHeader::default() };
    let mut octets = [0; 10];
    let size = header.len(length);
    header.format(length, &mut &mut octets[..]).expect("an unmasked header has at most ten octets");
    packet.prepend(&octets[..size]);
}
