//! SPDY/3.1 as Kubernetes' clients speak it (<https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1/>),
//! the server's side.
//!
//! Flow control windows are neither kept nor demanded: Go's library never sends WINDOW_UPDATE, so honouring
//! them would stall after 64 KiB. What is not taken is not read, which slows the whole connection down.

pub(super) mod connection;
pub(super) mod dictionary;
pub(super) mod frame;
pub(super) mod headers;
pub(super) mod stream;
