//! Calls whose messages are bytes: for requests that no client with types would send.

use bytes::{Buf, BufMut, Bytes};
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::Channel,
};

/// Calls `/PACKAGE.SERVICE/METHOD` with an encoded request and answers the encoded response; of a stream
/// its first message, or nothing if it ends before.
pub async fn call(channel: &Channel, method: &str, request: Vec<u8>, stream: bool) -> Result<Bytes, Status> {
    let path: PathAndQuery = method.parse().map_err(|error| Status::internal(format!("{error}")))?;
    let mut client = Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    if stream {
        let answer = client.server_streaming(Request::new(request), path, Raw).await?;
        return Ok(answer.into_inner().message().await?.unwrap_or_default());
    }
    Ok(client.unary(Request::new(request), path, Raw).await?.into_inner())
}

#[derive(Debug, Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
