//! Messages of D-Bus, as far as systemd's manager needs them: written whole, read strictly. No I/O.
//!
//! Invariant: nothing is read beyond the bytes of a message, whatever its length fields say. The byte order is
//! the machine's own: both ends are on it.

/// Longest message that is read; longer ones are nobody's answer to us.
pub(super) const LONGEST: usize = 64 << 10;
/// Bytes at the beginning of a message that tell its length.
pub(super) const FIXED: usize = 16;
/// Longest message that D-Bus allows.
const LONGEST_OF_ALL: u64 = 128 << 20;

const METHOD_CALL: u8 = 1;
const ORDER: u8 = if cfg!(target_endian = "little") { b'l' } else { b'B' };

/// What a message is, and what matters of its header.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) kind: u8,
    pub(super) reply_to: Option<u32>,
    pub(super) error: Option<String>,
    pub(super) member: Option<String>,
    pub(super) signature: String,
    body: Vec<u8>,
}

/// Kinds of messages that come.
pub(super) const RETURN: u8 = 2;
pub(super) const ERROR: u8 = 3;
pub(super) const SIGNAL: u8 = 4;

/// A method to call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Method<'a> {
    pub(super) destination: &'a str,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
    pub(super) member: &'a str,
}

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the answer is no message of D-Bus: {0}")]
pub(super) struct Malformed(&'static str);

/// Writes values one after the other, each where its kind has to begin.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.align(4);
        self.0.extend(value.to_ne_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.align(8);
        self.0.extend(value.to_ne_bytes());
    }

    pub(super) fn text(&mut self, text: &str) {
        self.u32(length(text.len()));
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    pub(super) fn signature(&mut self, signature: &str) {
        self.0.push(u8::try_from(signature.len()).expect("signatures here are short"));
        self.0.extend(signature.as_bytes());
        self.0.push(0);
    }

    /// An array of what begins at multiples of `to`.
    pub(super) fn array(&mut self, to: usize, fill: impl FnOnce(&mut Self)) {
        self.u32(0);
        let count = self.0.len() - 4;
        self.align(to);
        let begin = self.0.len();
        fill(self);
        let bytes = length(self.0.len() - begin).to_ne_bytes();
        self.0[count..count + 4].copy_from_slice(&bytes);
    }

    fn field(&mut self, code: u8, signature: &str, value: impl FnOnce(&mut Self)) {
        self.align(8);
        self.0.push(code);
        self.signature(signature);
        value(self);
    }
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("messages of ours are short")
}

/// The bytes of a call with `body`, which has this signature and brings `fds` descriptors.
pub(super) fn call(method: Method<'_>, serial: u32, signature: &str, body: Writer, fds: u32) -> Vec<u8> {
    let mut message = Writer(vec![ORDER, METHOD_CALL, 0, 1]);
    message.u32(length(body.0.len()));
    message.u32(serial);
    message.array(8, |fields| {
        fields.field(1, "o", |field| field.text(method.path));
        fields.field(2, "s", |field| field.text(method.interface));
        fields.field(3, "s", |field| field.text(method.member));
        fields.field(6, "s", |field| field.text(method.destination));
        if !signature.is_empty() {
            fields.field(8, "g", |field| field.signature(signature));
        }
        if fds > 0 {
            fields.field(9, "u", |field| field.u32(fds));
        }
    });
    message.align(8);
    message.0.extend(body.0);
    message.0
}

/// How long the message is that begins with these bytes.
pub(super) fn whole_length(fixed: [u8; FIXED]) -> Result<u64, Malformed> {
    if fixed[0] != ORDER || fixed[3] != 1 {
        return Err(Malformed("another byte order or version"));
    }
    let number =
        |at: usize| u64::from(u32::from_ne_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]));
    let whole = (FIXED as u64 + number(12)).next_multiple_of(8) + number(4);
    if whole > LONGEST_OF_ALL { Err(Malformed("it is too long")) } else { Ok(whole) }
}

/// Reads a whole message.
pub(super) fn parse(bytes: &[u8]) -> Result<Message, Malformed> {
    let fixed = bytes.first_chunk::<FIXED>().ok_or(Malformed("it is too short"))?;
    if whole_length(*fixed)? != bytes.len() as u64 {
        return Err(Malformed("its length is not the one it tells"));
    }
    let mut message = Message { kind: fixed[1], ..Message::default() };
    let mut reader = Reader { bytes, at: 12 };
    let end = reader.u32()? as usize + FIXED;
    while reader.at < end {
        reader.align(8)?;
        let code = reader.u8()?;
        let signature = reader.signature()?;
        match (code, signature.as_str()) {
            (3, "s") => message.member = Some(reader.text()?),
            (4, "s") => message.error = Some(reader.text()?),
            (5, "u") => message.reply_to = Some(reader.u32()?),
            (8, "g") => message.signature = reader.signature()?,
            (_, "s" | "o") => drop(reader.text()?),
            (_, "u") => drop(reader.u32()?),
            (_, "g") => drop(reader.signature()?),
            _ => return Err(Malformed("a field of its header has an unknown type")),
        }
    }
    if reader.at != end {
        return Err(Malformed("its header ends within a field"));
    }
    reader.align(8)?;
    message.body = bytes[reader.at..].to_vec();
    Ok(message)
}

impl Message {
    /// The texts a body consists of, a number among them as decimals. `None` for other types.
    pub(super) fn words(&self) -> Option<Vec<String>> {
        let mut reader = Reader { bytes: &self.body, at: 0 };
        let mut signature = self.signature.clone();
        if signature == "v" {
            signature = reader.signature().ok()?;
        }
        let word = |kind| match kind {
            's' | 'o' => reader.text().ok(),
            'u' => reader.u32().ok().map(|number| number.to_string()),
            _ => None,
        };
        signature.chars().map(word).collect()
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take(&mut self, count: usize) -> Result<&[u8], Malformed> {
        let end = self.at.checked_add(count).ok_or(Malformed("a length is too large"))?;
        let taken = self.bytes.get(self.at..end).ok_or(Malformed("it ends within a value"))?;
        self.at = end;
        Ok(taken)
    }

    fn align(&mut self, to: usize) -> Result<(), Malformed> {
        let padding = self.at.next_multiple_of(to) - self.at;
        self.take(padding).map(drop)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        self.take(1).map(|byte| byte[0])
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.align(4)?;
        let bytes = self.take(4)?;
        Ok(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn text(&mut self) -> Result<String, Malformed> {
        let length = self.u32()? as usize;
        self.ended_text(length)
    }

    fn signature(&mut self) -> Result<String, Malformed> {
        let length = usize::from(self.u8()?);
        self.ended_text(length)
    }

    fn ended_text(&mut self, length: usize) -> Result<String, Malformed> {
        let text =
            String::from_utf8(self.take(length)?.to_vec()).map_err(|_| Malformed("a text is not UTF-8"))?;
        match self.u8()? {
            0 => Ok(text),
            _ => Err(Malformed("a text does not end")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METHOD: Method<'_> = Method { destination: "a.b", path: "/a", interface: "a.b.C", member: "Do" };

    fn sample() -> Vec<u8> {
        let mut body = Writer::default();
        body.text("one");
        body.u32(7);
        body.text("three");
        call(METHOD, 9, "sus", body, 0)
    }

    #[test]
    fn what_is_written_is_read_again() {
        let bytes = sample();
        let message = parse(&bytes).unwrap();
        assert_eq!((message.kind, message.member.as_deref()), (METHOD_CALL, Some("Do")));
        assert_eq!(message.words().unwrap(), ["one", "7", "three"]);
    }

    /// By the specification's rules for alignment, worked out by hand.
    #[test]
    fn a_call_has_the_bytes_of_the_specification() {
        if cfg!(target_endian = "big") {
            return;
        }
        let method = Method { destination: "d", path: "/", interface: "i", member: "m" };
        let bytes = call(method, 1, "", Writer::default(), 0);
        let expected = b"l\x01\0\x01\0\0\0\0\x01\0\0\0\x3a\0\0\0\
            \x01\x01o\0\x01\0\0\0/\0\0\0\0\0\0\0\x02\x01s\0\x01\0\0\0i\0\0\0\0\0\0\0\
            \x03\x01s\0\x01\0\0\0m\0\0\0\0\0\0\0\x06\x01s\0\x01\0\0\0d\0\0\0\0\0\0\0";
        assert_eq!(bytes, expected);
        let mut body = Writer::default();
        body.array(8, |array| {
            array.align(8);
            array.text("k");
            array.signature("t");
            array.u64(1);
        });
        let expected = b"\x18\0\0\0\0\0\0\0\x01\0\0\0k\0\x01t\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0";
        assert_eq!(body.0, expected);
    }

    #[test]
    fn no_damage_is_taken_for_a_message_nor_ends_the_process() {
        let good = sample();
        for length in 0..good.len() {
            assert!(parse(&good[..length]).is_err(), "{length}");
        }
        for at in 0..good.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                let _read = parse(&bad).map(|message| message.words());
            }
        }
    }
}
