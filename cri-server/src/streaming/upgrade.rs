//! What an HTTP request wants to become, and the answer to it. Pure.

use hyper::{
    HeaderMap, Method, Response, StatusCode,
    header::{CONNECTION, HeaderName, HeaderValue, UPGRADE},
};

const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_PROTOCOLS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
const WEBSOCKET_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const WEBSOCKET_ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");
const WEBSOCKET_VERSION: HeaderName = HeaderName::from_static("sec-websocket-version");
const WEBSOCKET_PROTOCOL: HeaderName = HeaderName::from_static("sec-websocket-protocol");

/// Protocols that are looked at in one request.
const OFFERS: usize = 32;

/// What carries the streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    /// SPDY/3.1.
    Spdy,
    /// WebSocket.
    WebSocket,
}

/// Why a request is not served.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    text: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Refusal {
    /// An answer with these words.
    pub(super) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into(), headers: Vec::new() }
    }

    /// The answer.
    pub(super) fn answer(self) -> Response<String> {
        let mut response = Response::new(self.text + "\n");
        *response.status_mut() = self.status;
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        for (name, value) in self.headers {
            response.headers_mut().append(name, value);
        }
        response
    }
}

/// What a request asks to be upgraded to.
pub(super) fn wire(method: &Method, headers: &HeaderMap) -> Result<Wire, Refusal> {
    let named = |name: &HeaderName, word: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|value| value.trim().eq_ignore_ascii_case(word))
    };
    if !named(&CONNECTION, "upgrade") {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "unable to upgrade: missing upgrade headers"));
    }
    if named(&UPGRADE, "spdy/3.1") {
        return match *method {
            Method::GET | Method::POST => Ok(Wire::Spdy),
            _ => Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "only GET and POST can be upgraded")),
        };
    }
    if !named(&UPGRADE, "websocket") {
        let text = "unable to upgrade: the header Upgrade must be SPDY/3.1 or websocket";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, text));
    }
    if method != Method::GET {
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "a WebSocket begins with GET"));
    }
    if !named(&WEBSOCKET_VERSION, "13") {
        let mut refusal = Refusal::new(StatusCode::UPGRADE_REQUIRED, "only WebSocket version 13 is spoken");
        refusal.headers.push((WEBSOCKET_VERSION, HeaderValue::from_static("13")));
        return Err(refusal);
    }
    if headers.get(WEBSOCKET_KEY).is_none_or(|key| key.len() != 24) {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "the header Sec-WebSocket-Key is missing or wrong",
        ));
    }
    Ok(Wire::WebSocket)
}

/// The protocol both know, the client's first choice; `None` when the client names none.
pub(super) fn negotiate<'a>(
    wire: Wire,
    headers: &HeaderMap,
    known: &[&'a str],
) -> Result<Option<&'a str>, Refusal> {
    let header = match wire {
        Wire::Spdy => STREAM_PROTOCOL,
        Wire::WebSocket => WEBSOCKET_PROTOCOL,
    };
    let offered: Vec<&str> = headers
        .get_all(header)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|value| !value.is_empty())
        .take(OFFERS)
        .collect();
    if offered.is_empty() {
        return Ok(None);
    }
    let choice = offered.iter().find_map(|offer| known.iter().find(|known| *known == offer));
    choice.copied().map(Some).ok_or_else(|| {
        let text = format!("unable to upgrade: unable to negotiate protocol: server accepts {known:?}");
        let mut refusal = Refusal::new(StatusCode::FORBIDDEN, text);
        let accepted = known.iter().filter_map(|known| HeaderValue::from_str(known).ok());
        refusal.headers.extend(accepted.map(|known| (ACCEPTED_PROTOCOLS, known)));
        refusal
    })
}

/// The answer that switches protocols.
pub(super) fn switch(wire: Wire, headers: &HeaderMap, protocol: Option<&'static str>) -> Response<String> {
    let mut response = Response::new(String::new());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    answer.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    let protocol = protocol.map(HeaderValue::from_static);
    match wire {
        Wire::Spdy => {
            answer.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
            answer.extend(protocol.map(|protocol| (STREAM_PROTOCOL, protocol)));
        }
        Wire::WebSocket => {
            answer.insert(UPGRADE, HeaderValue::from_static("websocket"));
            answer.extend(protocol.map(|protocol| (WEBSOCKET_PROTOCOL, protocol)));
            let key = headers.get(WEBSOCKET_KEY).map(HeaderValue::as_bytes).unwrap_or_default();
            let accept = HeaderValue::from_str(&tungstenite::handshake::derive_accept_key(key));
            answer.extend(accept.ok().map(|accept| (WEBSOCKET_ACCEPT, accept)));
        }
    }
    response
}
