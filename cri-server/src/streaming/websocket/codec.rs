//! Base64 that arrives in pieces.

use base64::{Engine, engine::general_purpose::STANDARD};

/// Characters that are no base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message is not base64")]
pub(in crate::streaming) struct InvalidBase64;

/// Decodes one message after the other (RFC 4648, section 4).
#[derive(Default)]
pub(in crate::streaming) struct Base64Decoder {
    /// Characters that wait for the rest of their group of four.
    group: Vec<u8>,
    /// The message had its last group, which is not a whole one.
    padded: bool,
}

impl Base64Decoder {
    /// Decodes a part of a message; `last` says that the message ends with it.
    pub(in crate::streaming) fn decode(
        &mut self,
        characters: &[u8],
        last: bool,
    ) -> Result<Vec<u8>, InvalidBase64> {
        if self.padded && !characters.is_empty() {
            return Err(InvalidBase64);
        }
        self.group.extend_from_slice(characters);
        let whole = self.group.len() - self.group.len() % 4;
        let octets = STANDARD.decode(&self.group[..whole]).map_err(|_| InvalidBase64)?;
        self.padded = !last && (self.padded || self.group[..whole].ends_with(b"="));
        self.group.drain(..whole);
        self.group.shrink_to(4);
        if self.group.is_empty() || !last && !self.padded { Ok(octets) } else { Err(InvalidBase64) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_the_same_in_any_pieces() {
        let decode = |pieces: &[&str]| -> Result<Vec<u8>, InvalidBase64> {
            let mut decoder = Base64Decoder::default();
            let mut octets = Vec::new();
            for (at, piece) in pieces.iter().enumerate() {
                octets.extend(decoder.decode(piece.as_bytes(), at + 1 == pieces.len())?);
            }
            // The next message begins anew.
            assert_eq!(decoder.decode(b"QUI=", true), Ok(b"AB".to_vec()));
            Ok(octets)
        };
        assert_eq!(decode(&["Q", "UJDR", "", "A=="]), Ok(b"ABCD".to_vec()));
        assert_eq!(decode(&["QQ==", ""]), Ok(b"A".to_vec()));
        for wrong in [&["QQ==QUI="][..], &["QQ==", "QUI="], &["QQ==Q", "UI="], &["QUI=", "Q", ""], &["QUJDR"]]
        {
            assert_eq!(decode(wrong), Err(InvalidBase64), "{wrong:?}");
        }
    }
}
