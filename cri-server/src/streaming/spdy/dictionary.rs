//! The dictionary that every SPDY/3 header block is compressed with (draft 3, section 2.6.10.1).

use std::sync::LazyLock;

/// Adler-32 of the dictionary, which the zlib header names.
pub(in crate::streaming) const ID: u32 = 0xe3c6_a7c2;

/// The dictionary's octets.
pub(in crate::streaming) static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let words = WORDS.split_ascii_whitespace().map(|word| word.replace('_', " "));
    let mut dictionary: Vec<u8> =
        words.flat_map(|word| [&(word.len() as u32).to_be_bytes(), word.as_bytes()].concat()).collect();
    dictionary.extend_from_slice(TAIL.as_bytes());
    dictionary
});

/// Each with its length before it; `_` is a space.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding
    accept-language accept-ranges age allow authorization cache-control connection content-base
    content-encoding content-language content-length content-location content-md5 content-range
    content-type date etag expect expires from host if-match if-modified-since if-none-match if-range
    if-unmodified-since last-modified location max-forwards pragma proxy-authenticate
    proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade user-agent
    vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie
    keep-alive origin";

const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417\
    502504505203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request\
    401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented\
    503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, \
    Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,\
    application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8\
    charset=iso-8859-1,utf-,*,enq=0.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dictionary_is_the_one_its_id_names() {
        let (mut a, mut b) = (1u32, 0u32);
        for octet in DICTIONARY.iter() {
            a = (a + u32::from(*octet)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!(DICTIONARY.len(), 1423);
        assert_eq!(b << 16 | a, ID);
    }
}
