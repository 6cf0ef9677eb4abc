//! Terminal sizes: JSON values `{"Width":80,"Height":24}` one after the other, from version 3 on.

use serde::Deserialize;

/// The longest value that is read.
const LIMIT: usize = 1024;

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::streaming) struct Size {
    /// Columns.
    pub(in crate::streaming) width: u16,
    /// Rows.
    pub(in crate::streaming) height: u16,
}

/// No size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the resize stream carries no terminal size")]
pub(in crate::streaming) struct InvalidSize;

/// Reads sizes that arrive in pieces.
#[derive(Default)]
pub(in crate::streaming) struct Sizes {
    rest: Vec<u8>,
}

impl Sizes {
    /// The newest size in the stream so far, if a new one came.
    pub(in crate::streaming) fn read(&mut self, octets: &[u8]) -> Result<Option<Size>, InvalidSize> {
        self.rest.extend_from_slice(octets);
        let mut rest = self.rest.trim_ascii_start();
        let mut newest = None;
        while let Some(first) = rest.first() {
            if *first != b'{' {
                return Err(InvalidSize);
            }
            // A parser would have to tell what is cut from what is wrong; of whole values it need not.
            let Some(end) = end_of_object(rest) else { break };
            if end > LIMIT {
                return Err(InvalidSize);
            }
            newest = Some(serde_json::from_slice(&rest[..end]).map_err(|_| InvalidSize)?);
            rest = rest[end..].trim_ascii_start();
        }
        let read = self.rest.len() - rest.len();
        self.rest.drain(..read);
        self.rest.shrink_to_fit();
        if self.rest.len() > LIMIT { Err(InvalidSize) } else { Ok(newest) }
    }
}

/// Where the object ends that these octets begin with, if it does.
fn end_of_object(octets: &[u8]) -> Option<usize> {
    let (mut depth, mut string, mut escaped) = (0usize, false, false);
    for (at, octet) in octets.iter().enumerate() {
        match octet {
            _ if escaped => escaped = false,
            b'\\' if string => escaped = true,
            b'"' => string = !string,
            b'{' if !string => depth += 1,
            b'}' if !string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return Some(at + 1);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_come_in_any_pieces() {
        let mut sizes = Sizes::default();
        assert_eq!(sizes.read(b"{\"Width\":80,\"Hei"), Ok(None));
        assert_eq!(sizes.read(b"ght\":24}\n"), Ok(Some(Size { width: 80, height: 24 })));
        let two = b"{\"Width\":1,\"Height\":2}{\"Height\":4,\"Width\":3}";
        assert_eq!(sizes.read(two), Ok(Some(Size { width: 3, height: 4 })));
        assert_eq!(sizes.read(b"{\"Width\":70000,\"Height\":2}"), Err(InvalidSize));
        assert_eq!(Sizes::default().read(b"]"), Err(InvalidSize));
        assert_eq!(Sizes::default().read(&[b' '; 5000]), Ok(None));
        assert_eq!(Sizes::default().read(&[&b"{\""[..], &[b'a'; 5000]].concat()), Err(InvalidSize));
        assert_eq!(Sizes::default().read(b"652E"), Err(InvalidSize), "as its first half");
        assert_eq!(Sizes::default().read(b"[80,24]"), Err(InvalidSize));
        let mut sizes = Sizes::default();
        assert_eq!(sizes.read(b"{\"Other\":{\"}\":1e"), Ok(None));
        assert_eq!(sizes.read(b"1},\"Width\":1,\"Height\":2}"), Ok(Some(Size { width: 1, height: 2 })));
        let padded = [&b"{"[..], &[b' '; 5000], b"\"Width\":1,\"Height\":2}"].concat();
        assert_eq!(Sizes::default().read(&padded), Err(InvalidSize), "as it is in pieces");
    }
}
