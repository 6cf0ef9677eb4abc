//! A SPDY client as Go's: its own zlib states, no flow control.

use std::{
    collections::{HashMap, VecDeque},
    io,
};

use bytes::BytesMut;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest},
};

use crate::streaming::spdy::{
    dictionary::DICTIONARY,
    frame::{self, Control, Head},
};

pub(super) type WebSocket = WebSocketStream<TcpStream>;

/// The address and the path of a URL.
pub(super) fn parts(url: &str) -> (&str, &str) {
    let rest = url.strip_prefix("http://").unwrap();
    rest.split_at(rest.find('/').unwrap())
}

/// Sends a request's head and reads the answer's; what follows it is returned as well.
pub(super) async fn request(tcp: &mut TcpStream, head: &str) -> (String, BytesMut) {
    tcp.write_all(head.as_bytes()).await.unwrap();
    let mut read = BytesMut::new();
    loop {
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = read.split_to(end + 4);
            return (String::from_utf8(head.to_vec()).unwrap().to_ascii_lowercase(), read);
        }
        if tcp.read_buf(&mut read).await.unwrap_or(0) == 0 {
            return (String::from_utf8_lossy(&read).to_ascii_lowercase(), BytesMut::new());
        }
    }
}

/// The head of a SPDY upgrade.
pub(super) fn spdy_head(method: &str, path: &str, protocols: &[&str]) -> String {
    let protocols: String =
        protocols.iter().map(|name| format!("X-Stream-Protocol-Version: {name}\r\n")).collect();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n{protocols}\r\n"
    )
}

/// Opens a WebSocket; an error is the answer's status.
pub(super) async fn websocket(url: &str, protocols: &[&str]) -> Result<(WebSocket, Option<String>), u16> {
    let tcp = TcpStream::connect(parts(url).0).await.unwrap();
    let mut request = url.replacen("http:", "ws:", 1).into_client_request().unwrap();
    if !protocols.is_empty() {
        request.headers_mut().insert("sec-websocket-protocol", protocols.join(", ").parse().unwrap());
    }
    match client_async(request, tcp).await {
        Ok((socket, answer)) => {
            let chosen = answer.headers().get("sec-websocket-protocol");
            Ok((socket, chosen.map(|chosen| chosen.to_str().unwrap().to_owned())))
        }
        Err(tokio_tungstenite::tungstenite::Error::Http(answer)) => Err(answer.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

enum WriteHalf {
    Tcp(OwnedWriteHalf),
    Tunnel(SplitSink<WebSocket, Message>),
}

enum ReadHalf {
    Tcp(OwnedReadHalf),
    Tunnel(SplitStream<WebSocket>),
}

/// Writes frames.
pub(super) struct Writer {
    half: WriteHalf,
    compress: Compress,
    pub(super) last: u32,
}

impl Writer {
    pub(super) async fn raw(&mut self, octets: &[u8]) -> io::Result<()> {
        match &mut self.half {
            WriteHalf::Tcp(tcp) => tcp.write_all(octets).await,
            WriteHalf::Tunnel(sink) => {
                sink.send(Message::binary(octets.to_vec())).await.map_err(io::Error::other)
            }
        }
    }

    pub(super) fn block(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend((text.len() as u32).to_be_bytes());
            plain.extend(text.as_bytes());
        }
        let mut block = Vec::with_capacity(plain.len() + 256);
        self.compress.compress_vec(&plain, &mut block, FlushCompress::Sync).unwrap();
        block
    }

    pub(super) async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        self.last = if self.last == 0 { 1 } else { self.last + 2 };
        let block = self.block(headers);
        self.raw(&frame::syn_stream(self.last, &block)).await.unwrap();
        self.last
    }

    pub(super) async fn data(&mut self, stream: u32, octets: &[u8], fin: bool) -> io::Result<()> {
        let frame = [&frame::data_head(stream, fin, octets.len())[..], octets].concat();
        self.raw(&frame).await
    }
}

/// What a server sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    Reply(u32),
    Data(u32, Vec<u8>, bool),
    Reset(u32, u32),
    Ping(u32),
    GoAway,
    Closed,
}

/// Reads frames.
pub(super) struct Reader {
    half: ReadHalf,
    buffer: BytesMut,
    inflate: Decompress,
    replies: usize,
}

impl Reader {
    async fn fill(&mut self, length: usize) -> bool {
        while self.buffer.len() < length {
            match &mut self.half {
                ReadHalf::Tcp(tcp) => {
                    self.buffer.reserve(256 * 1024);
                    if tcp.read_buf(&mut self.buffer).await.unwrap_or(0) == 0 {
                        return false;
                    }
                }
                ReadHalf::Tunnel(stream) => match stream.next().await {
                    Some(Ok(Message::Binary(octets))) => self.buffer.extend_from_slice(&octets),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    _ => return false,
                },
            }
        }
        true
    }

    pub(super) async fn next(&mut self) -> Event {
        if !self.fill(frame::HEAD).await {
            return Event::Closed;
        }
        let head: [u8; 8] = self.buffer.split_to(8)[..].try_into().unwrap();
        // A server's even pings and its replies are all that a client reads besides data.
        match frame::head(head).unwrap() {
            Head::Data { stream, fin, length } => {
                assert!(self.fill(length).await, "a data frame is whole");
                Event::Data(stream, self.buffer.split_to(length).to_vec(), fin)
            }
            Head::Control { kind, flags, length } => {
                assert!(self.fill(length).await, "a control frame is whole");
                let body = self.buffer.split_to(length);
                match frame::control(kind, flags, &body).unwrap() {
                    Control::SynReply { stream, block } => {
                        self.inflate_empty(block);
                        Event::Reply(stream)
                    }
                    Control::Reset { stream, status } => Event::Reset(stream, status),
                    Control::Ping(id) => Event::Ping(id),
                    Control::GoAway => Event::GoAway,
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    fn inflate_empty(&mut self, mut block: &[u8]) {
        let mut plain = Vec::with_capacity(64);
        if self.replies == 0 {
            self.inflate.decompress_vec(block, &mut plain, FlushDecompress::Sync).unwrap_err();
            self.inflate.set_dictionary(&DICTIONARY).unwrap();
            block = &block[self.inflate.total_in() as usize..];
        }
        self.replies += 1;
        self.inflate.decompress_vec(block, &mut plain, FlushDecompress::Sync).unwrap();
        assert_eq!(plain, [0; 4], "a reply has no headers");
    }

    /// Everything until the connection is closed.
    pub(super) async fn rest(&mut self) -> Seen {
        let mut seen = Seen::default();
        loop {
            match self.next().await {
                Event::Data(stream, octets, fin) => {
                    let stream = seen.streams.entry(stream).or_default();
                    assert!(!stream.finished, "nothing follows the end");
                    stream.octets.extend(octets);
                    stream.finished = fin;
                }
                Event::Reset(stream, status) => drop(seen.resets.insert(stream, status)),
                Event::GoAway => seen.went_away = true,
                Event::Closed => return seen,
                Event::Reply(stream) => seen.replies.push_back(stream),
                Event::Ping(_) => {}
            }
        }
    }
}

/// What came on a stream.
#[derive(Debug, Default)]
pub(super) struct Received {
    pub(super) octets: Vec<u8>,
    pub(super) finished: bool,
}

/// What came on a connection.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) streams: HashMap<u32, Received>,
    pub(super) resets: HashMap<u32, u32>,
    pub(super) replies: VecDeque<u32>,
    pub(super) went_away: bool,
}

impl Seen {
    pub(super) fn text(&self, stream: u32) -> &str {
        self.streams.get(&stream).map_or("", |stream| std::str::from_utf8(&stream.octets).unwrap())
    }
}

/// Dials a URL; an error is the answer.
pub(super) async fn dial(url: &str, protocols: &[&str]) -> Result<(Reader, Writer), String> {
    let (address, path) = parts(url);
    let mut tcp = TcpStream::connect(address).await.unwrap();
    let (answer, begun) = request(&mut tcp, &spdy_head("POST", path, protocols)).await;
    if !answer.starts_with("http/1.1 101") {
        return Err(answer);
    }
    assert!(answer.contains("upgrade: spdy/3.1\r\n"), "{answer}");
    let (read, write) = tcp.into_split();
    Ok(client(ReadHalf::Tcp(read), WriteHalf::Tcp(write), begun))
}

/// Dials a URL and tunnels SPDY through a WebSocket.
pub(super) async fn tunnel(url: &str) -> (Reader, Writer) {
    let protocol = "SPDY/3.1+portforward.k8s.io";
    let (socket, chosen) = websocket(url, &[protocol]).await.unwrap();
    assert_eq!(chosen.as_deref(), Some(protocol));
    let (sink, stream) = socket.split();
    client(ReadHalf::Tunnel(stream), WriteHalf::Tunnel(sink), BytesMut::new())
}

fn client(read: ReadHalf, write: WriteHalf, begun: BytesMut) -> (Reader, Writer) {
    let mut compress = Compress::new(Compression::best(), true);
    compress.set_dictionary(&DICTIONARY).unwrap();
    let reader = Reader { half: read, buffer: begun, inflate: Decompress::new(true), replies: 0 };
    (reader, Writer { half: write, compress, last: 0 })
}
