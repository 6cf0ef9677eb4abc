//! How netlink(7) lays out messages and attributes. No I/O.
//!
//! Invariant: what is read stays within what was received, whatever lengths it claims.

const HEADER: usize = 16;
const ATTRIBUTE: usize = 4;

/// A constant of C as the fields of messages have it: the lower half.
pub(crate) const fn short(constant: libc::c_int) -> u16 {
    (constant & 0xffff) as u16
}

pub(crate) const CREATE: u16 = short(libc::NLM_F_CREATE);
pub(crate) const EXCLUSIVE: u16 = short(libc::NLM_F_EXCL);
pub(crate) const REPLACE: u16 = short(libc::NLM_F_REPLACE);
pub(crate) const APPEND: u16 = short(libc::NLM_F_APPEND);
pub(crate) const DUMP: u16 = short(libc::NLM_F_DUMP);
const REQUEST: u16 = short(libc::NLM_F_REQUEST);
const ACKNOWLEDGE: u16 = short(libc::NLM_F_ACK);
const DUMP_INTERRUPTED: u16 = short(libc::NLM_F_DUMP_INTR);
const NESTED: u16 = short(libc::NLA_F_NESTED);
/// Without the bits that say how an attribute is to be read.
const KIND: u16 = short(libc::NLA_TYPE_MASK);
const ERROR: u16 = short(libc::NLMSG_ERROR);
const DONE: u16 = short(libc::NLMSG_DONE);
/// Those before it are about messages.
const FIRST_OBJECT: u16 = 16;

/// Attributes, one after another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(ATTRIBUTE + value.len()).expect("our attributes are short");
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(ATTRIBUTE), 0);
        self
    }

    /// A name, with the zero that ends it.
    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// A number as rtnetlink writes it.
    pub(crate) fn native(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// A number as netfilter writes it.
    pub(crate) fn big(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn nest(self, kind: u16, inner: &Attributes) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    /// Attributes that the kernel has told of, as they are.
    pub(crate) fn told(self, kind: u16, inner: &[u8]) -> Self {
        self.bytes(kind | NESTED, inner)
    }

    /// As [`nest`](Self::nest), with what comes before the inner attributes.
    pub(crate) fn headed(self, kind: u16, header: &[u8], inner: &Attributes) -> Self {
        self.bytes(kind, &[header, &inner.0].concat())
    }
}

/// A message to the kernel.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    kind: u16,
    flags: u16,
    header: Vec<u8>,
    attributes: Attributes,
}

impl Message {
    /// `header` is what the family of messages begins with, such as `ifinfomsg`.
    pub(crate) fn new(kind: u16, flags: u16, header: &[u8], attributes: Attributes) -> Self {
        Self { kind, flags: flags | REQUEST, header: header.to_vec(), attributes }
    }

    /// The same message, which is answered also when all is well.
    pub(crate) fn acknowledged(mut self) -> Self {
        self.flags |= ACKNOWLEDGE;
        self
    }

    pub(super) fn is_acknowledged(&self) -> bool {
        self.flags & ACKNOWLEDGE != 0
    }

    pub(super) fn encode(&self, sequence: u32, into: &mut Vec<u8>) {
        let header = self.header.len().next_multiple_of(ATTRIBUTE);
        let length = u32::try_from(HEADER + header + self.attributes.0.len()).expect("bounded by its parts");
        into.extend(length.to_ne_bytes());
        into.extend(self.kind.to_ne_bytes());
        into.extend(self.flags.to_ne_bytes());
        into.extend(sequence.to_ne_bytes());
        into.extend(0u32.to_ne_bytes());
        let begin = into.len();
        into.extend(&self.header);
        into.resize(begin + header, 0);
        into.extend(&self.attributes.0);
    }
}

/// Something the kernel has told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Received {
    /// What follows the header of the message.
    pub(crate) body: Vec<u8>,
    /// Whether the list it is part of has changed meanwhile.
    pub(super) interrupted: bool,
}

/// One answer of the kernel.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// What became of a message: an error number, 0 for success.
    Told {
        sequence: u32,
        code: i32,
    },
    Object(Received),
    /// The end of a list.
    End,
    /// The end of a list that has changed meanwhile.
    Changed,
}

/// The messages of a datagram.
pub(super) fn answers(mut bytes: &[u8]) -> Vec<Answer> {
    let mut found = Vec::new();
    while bytes.len() >= HEADER {
        let length = usize::try_from(u32_at(bytes, 0)).unwrap_or(usize::MAX).max(HEADER);
        let Some(message) = bytes.get(..length) else { break };
        let (kind, flags, sequence) = (u16_at(message, 4), u16_at(message, 6), u32_at(message, 8));
        let body = &message[HEADER..];
        let interrupted = flags & DUMP_INTERRUPTED != 0;
        match kind {
            ERROR => {
                let code = u32_at(body, 0).cast_signed().saturating_neg();
                found.push(Answer::Told { sequence, code });
            }
            DONE if interrupted => found.extend([Answer::Changed, Answer::End]),
            DONE => match u32_at(body, 0).cast_signed() {
                code if code < 0 => found.push(Answer::Told { sequence, code: code.saturating_neg() }),
                _ => found.push(Answer::End),
            },
            FIRST_OBJECT.. => found.push(Answer::Object(Received { body: body.to_vec(), interrupted })),
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(ATTRIBUTE)..).unwrap_or_default();
    }
    found
}

/// The attributes in `bytes`, by kind.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.len() < ATTRIBUTE {
            return None;
        }
        let length = usize::from(u16_at(rest, 0)).max(ATTRIBUTE);
        let kind = u16_at(rest, 2) & KIND;
        let value = rest.get(ATTRIBUTE..length)?;
        rest = rest.get(length.next_multiple_of(ATTRIBUTE)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of a kind.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(other, _)| *other == kind).map(|(_, value)| value)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_padded_and_says_how_long_it_is() {
        let inner = Attributes::new().text(1, "veth");
        let attributes = Attributes::new().bytes(3, &[7]).nest(18, &inner);
        let mut bytes = Vec::new();
        Message::new(16, 0x400, &[1, 2, 3], attributes).acknowledged().encode(5, &mut bytes);
        assert_eq!(bytes.len(), 16 + 4 + 8 + 4 + 12);
        assert_eq!((u32_at(&bytes, 0), u16_at(&bytes, 6), u32_at(&bytes, 8)), (44, 0x405, 5));
        let found: Vec<(u16, &[u8])> = self::attributes(&bytes[20..]).collect();
        assert_eq!(found[0], (3, &[7][..]));
        assert_eq!(attribute(found[1].1, 1), Some(&b"veth\0"[..]));
    }

    #[test]
    fn lengths_that_lead_outside_end_the_reading() {
        for length in [0u16, 1, 3, 200, u16::MAX] {
            let mut bytes = length.to_ne_bytes().to_vec();
            bytes.extend([1, 0, 9, 9]);
            assert!(attributes(&bytes).count() <= 2, "{length}");
        }
        for length in [0u32, 15, 17, 1 << 20, u32::MAX] {
            let mut bytes = length.to_ne_bytes().to_vec();
            bytes.extend(ERROR.to_ne_bytes());
            bytes.extend([0; 14]);
            assert!(answers(&bytes).len() <= 2, "{length}");
        }
    }

    #[test]
    fn errors_ends_and_objects_are_told_apart() {
        let message = |kind: u16, flags: u16, body: &[u8]| {
            let mut bytes = Vec::new();
            Message { kind, flags, header: body.to_vec(), attributes: Attributes::new() }
                .encode(2, &mut bytes);
            bytes
        };
        let refused = message(ERROR, 0, &(-17i32).to_ne_bytes());
        assert_eq!(answers(&refused), [Answer::Told { sequence: 2, code: 17 }]);
        let both = [message(28, 0, &[1, 2, 3, 4]), message(DONE, 0, &[0; 4])].concat();
        let object = Received { body: vec![1, 2, 3, 4], interrupted: false };
        assert_eq!(answers(&both), [Answer::Object(object), Answer::End]);
        assert_eq!(answers(&message(DONE, DUMP_INTERRUPTED, &[0; 4])), [Answer::Changed, Answer::End]);
    }
}
