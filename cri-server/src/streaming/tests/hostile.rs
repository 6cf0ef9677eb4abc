//! What clients must not do: each harms its own connection alone.

use std::time::Duration;

use flate2::{Compress, Compression, FlushCompress};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{
    ALL, OUTPUT, Rig, Settings,
    client::{Event, Writer, dial, parts, request, spdy_head},
    soon,
};
use crate::runtime::session::ExecRequest;
use crate::streaming::{
    remote_command::resize::Sizes,
    spdy::{
        dictionary::DICTIONARY,
        frame::{self, Head},
        headers,
    },
    websocket::{Base64Decoder, Unmasked, frame_header},
};

const V4: &[&str] = &["v4.channel.k8s.io"];

fn control(kind: u16, body: &[u8]) -> Vec<u8> {
    [&[0x80, 3][..], &kind.to_be_bytes(), &(body.len() as u32).to_be_bytes(), body].concat()
}

/// Frames that end a connection, by name.
fn broken_frames(writer: &mut Writer) -> Vec<(&'static str, Vec<u8>)> {
    let good = |writer: &mut Writer| writer.block(&[("streamtype", "error")]);
    let first = good(writer);
    let second = writer.block(&[("streamtype", "stdin")]);
    let bomb = writer.block(&[("streamtype", &"x".repeat(256 << 10))]);
    let names: Vec<String> = (0..100).map(|at| format!("n{at}")).collect();
    let many = writer.block(&names.iter().map(|name| (name.as_str(), "")).collect::<Vec<_>>());
    let opened = frame::syn_stream(3, &first);
    let after = |frame: Vec<u8>| [&opened[..], &frame].concat();
    vec![
        ("SPDY/2", vec![0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]),
        ("data for stream 0", frame::data_head(0, false, 4).to_vec()),
        ("data for a stream that never was", frame::data_head(9, false, 4).to_vec()),
        ("data for an even stream", after(frame::data_head(2, false, 4).to_vec())),
        ("a control frame of 16 MiB", vec![0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]),
        ("a ping of 8 octets", control(6, &[1; 8])),
        ("a reset of 4 octets", control(3, &[0, 0, 0, 1])),
        ("a reset of stream 0", control(3, &[0; 8])),
        ("a reset of a stream that never was", frame::reset(77, frame::Status::Cancel)),
        ("a go-away of 4 octets", control(7, &[0; 4])),
        ("a window update of 4 octets", control(9, &[0; 4])),
        ("settings that lie about their number", control(4, &[0xff, 0xff, 0xff, 0xff])),
        ("a stream of 9 octets", control(1, &[0; 9])),
        ("a stream without headers", control(1, &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0])),
        ("stream 0", frame::syn_stream(0, &first)),
        ("an even stream", frame::syn_stream(2, &first)),
        ("a stream twice", after(frame::syn_stream(3, &second))),
        ("a stream out of order", after(frame::syn_stream(1, &second))),
        ("a reply", frame::syn_reply(1, &first)),
        ("headers that are not zlib", frame::syn_stream(1, b"no zlib at all\0\0\xff\xff")),
        (
            "headers with another dictionary",
            frame::syn_stream(1, &[&first[..2], &[0; 4], &first[6..]].concat()),
        ),
        ("headers that are cut", frame::syn_stream(1, &first[..first.len() - 3])),
        ("broken deflate", frame::syn_stream(1, &[&first[..6], &[0xff; 20], &[0, 0, 0xff, 0xff]].concat())),
        ("a zlib bomb", after([frame::syn_stream(5, &second), frame::syn_stream(7, &bomb)].concat())),
        ("a hundred headers", after([frame::syn_stream(5, &second), frame::syn_stream(7, &many)].concat())),
        ("noise", (0..4096u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_spdy_frames_end_their_connection_alone() {
    let rig = Rig::new().await;
    let (mut other, mut writing) = dial(&rig.exec("cat", ALL), V4).await.unwrap();
    let mut streams = Vec::new();
    for name in ["error", "stdin", "stdout", "stderr"] {
        streams.push(writing.open(&[("streamtype", name)]).await);
        assert!(matches!(other.next().await, Event::Reply(_)));
    }
    let mut count = 0;
    loop {
        let (mut reader, mut writer) = dial(&rig.exec("cat", ALL), V4).await.unwrap();
        let frames = broken_frames(&mut writer);
        let Some((name, octets)) = frames.get(count) else { break };
        // The server may close before all is written.
        let _written = writer.raw(octets).await;
        let ended =
            timeout(Duration::from_secs(5), async { while !matches!(reader.next().await, Event::Closed) {} });
        assert!(ended.await.is_ok(), "{name} did not end the connection");
        count += 1;
    }
    println!("{count} kinds of broken frames");
    writing.data(streams[1], b"unharmed", true).await.unwrap();
    assert_eq!(soon(other.rest()).await.text(streams[2]), "unharmed");
    rig.host.settled(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_are_bounded() {
    let rig = Rig::new().await;
    // Streams: refused, then taken for a flood.
    let (mut reader, mut writer) = dial(&rig.exec("cat", ALL), V4).await.unwrap();
    let flood = async {
        for _ in 0..5000 {
            let block = writer.block(&[("streamtype", "flood")]);
            let last = writer.last + 2 - writer.last % 2 - 1;
            writer.last = last + 1;
            if writer.raw(&frame::syn_stream(last, &block)).await.is_err() {
                return;
            }
        }
    };
    let (_, seen) = tokio::join!(flood, soon(reader.rest()));
    assert!(seen.resets.len() < 1100, "{} streams were answered", seen.resets.len());

    // Streams that are opened and reset, with nobody reading the answers.
    let url = rig.streaming.port_forward_url("p".into(), vec![]).unwrap();
    let (_reader, mut writer) = dial(&url, &[]).await.unwrap();
    let mut opened = 0;
    let mut batch = Vec::new();
    loop {
        batch.clear();
        for _ in 0..500 {
            opened += 1;
            let id = opened.to_string();
            let block = writer.block(&[("streamtype", "data"), ("port", "1"), ("requestid", &id)]);
            batch.extend(frame::syn_stream(2 * opened + 1, &block));
            batch.extend(frame::reset(2 * opened + 1, frame::Status::Cancel));
        }
        let written = timeout(Duration::from_secs(1), writer.raw(&batch)).await;
        if !written.is_ok_and(|written| written.is_ok()) {
            break;
        }
        assert!(opened < 200_000, "streams are opened without end");
    }

    // Pings: not read by the client, so not read by the server either.
    let (mut reader, mut writer) = dial(&rig.exec("cat", ALL), V4).await.unwrap();
    let pings: Vec<u8> = (0..1000).flat_map(|id| frame::ping(2 * id + 1)).collect();
    let mut sent = 0;
    while timeout(Duration::from_secs(1), writer.raw(&pings)).await.is_ok_and(|sent| sent.is_ok()) {
        sent += pings.len();
        assert!(sent < 64 << 20, "the server reads pings without end");
    }
    assert!(matches!(soon(reader.next()).await, Event::Ping(1)));
}

#[test]
fn decoders_take_any_octets() {
    let mut writer = Compress::new(Compression::best(), true);
    writer.set_dictionary(&DICTIONARY).unwrap();
    let mut block = Vec::with_capacity(256);
    let plain = b"\0\0\0\x01\0\0\0\x0astreamtype\0\0\0\x05error";
    writer.compress_vec(plain, &mut block, FlushCompress::Sync).unwrap();
    let seeds = [frame::syn_stream(1, &block), frame::ping(1), frame::go_away(1, 0), block.clone()];
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below as u64) as usize
    };
    let mut headers = 0;
    for _ in 0..50_000 {
        let mut octets = seeds[next(seeds.len())].clone();
        for _ in 0..next(4) {
            let at = next(octets.len());
            octets[at] = next(256) as u8;
        }
        octets.truncate(octets.len() - next(3));
        if let Some(head) = octets.first_chunk::<8>()
            && let Ok(Head::Control { kind, flags, .. }) = frame::head(*head)
        {
            let _control = frame::control(kind, flags, &octets[8..]);
        }
        headers += usize::from(headers::Reader::default().read(&octets).is_ok());
        let _header = frame_header(&octets);
        let _decoded = Base64Decoder::default().decode(&octets, next(2) == 0);
        let _sizes = Sizes::default().read(&octets);
        Unmasked::new([1, 2, 3, 4]).apply(&mut octets);
    }
    assert!(headers > 1000, "the seeds are good");
}

/// A WebSocket frame; `masked` with zeros, which change nothing.
fn message(first: u8, second: u8, payload: &[u8]) -> Vec<u8> {
    [&[first, second | 0x80][..], &[0; 4], payload].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_websocket_frames_end_their_connection_alone() {
    let rig = Rig::new().await;
    let v5 = "v5.channel.k8s.io";
    let cases: &[(&str, &str, Vec<u8>)] = &[
        ("not masked", v5, vec![0x82, 2, 0, b'x']),
        ("a reserved bit", v5, message(0xc2, 2, &[0, b'x'])),
        ("a reserved data kind", v5, message(0x83, 2, &[0, b'x'])),
        ("a reserved control kind", v5, message(0x8b, 0, &[])),
        ("a continuation of nothing", v5, message(0x80, 2, &[0, b'x'])),
        ("a message within another", v5, [message(0x02, 1, &[0]), message(0x82, 1, &[0])].concat()),
        ("a ping in parts", v5, message(0x09, 1, &[0])),
        ("a ping of 126 octets", v5, [&[0x89, 0xfe, 0, 126, 0, 0, 0, 0][..], &[0; 126]].concat()),
        (
            "a length beyond 63 bits",
            v5,
            vec![0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0],
        ),
        ("the end of two channels at once", v5, message(0x82, 3, &[255, 0, 1])),
        ("the end of no channel", v5, message(0x82, 1, &[255])),
        ("the end of channel 200", v5, message(0x82, 2, &[255, 200])),
        ("no base64", "v4.base64.channel.k8s.io", message(0x81, 5, b"0????")),
        ("cut base64", "v4.base64.channel.k8s.io", message(0x81, 4, b"0YWI")),
    ];
    for (name, protocol, octets) in cases {
        let url = rig.exec("cat", ALL);
        let (address, path) = parts(&url);
        let mut tcp = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
             Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
        );
        let (answer, _) = request(&mut tcp, &head).await;
        assert!(answer.starts_with("http/1.1 101"), "{answer}");
        tcp.write_all(octets).await.unwrap();
        let mut rest = Vec::new();
        let closed = timeout(Duration::from_secs(5), tcp.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "{name} did not end the connection");
    }
    println!("{} kinds of broken messages", cases.len());
    rig.host.settled(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_without_a_right_are_refused() {
    let rig = Rig::with(Settings { url_life: Duration::from_millis(400), ..Settings::default() }).await;
    let expired = rig.exec("true", OUTPUT);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let used = rig.exec("true", OUTPUT);
    dial(&used, V4).await.unwrap();
    let path = |url: &str| parts(url).1.to_owned();
    let fresh = || path(&rig.exec("true", OUTPUT));
    let upgrade = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n";
    let websocket = "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n";
    let key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
    let cases = [
        ("expired", "POST", path(&expired), upgrade.to_owned(), 404),
        ("used", "POST", path(&used), upgrade.to_owned(), 404),
        ("unknown", "POST", format!("/exec/{}", "A".repeat(22)), upgrade.to_owned(), 404),
        ("of another kind", "POST", fresh().replace("exec", "attach"), upgrade.to_owned(), 404),
        ("longer", "POST", fresh() + "A", upgrade.to_owned(), 404),
        ("deeper", "POST", fresh() + "/", upgrade.to_owned(), 404),
        ("no token", "POST", "/exec/".to_owned(), upgrade.to_owned(), 404),
        ("another path", "GET", "/metrics".to_owned(), String::new(), 404),
        ("no upgrade", "POST", fresh(), String::new(), 400),
        ("upgrade to HTTP/2", "POST", fresh(), upgrade.replace("SPDY/3.1", "h2c"), 400),
        ("DELETE", "DELETE", fresh(), upgrade.to_owned(), 405),
        ("WebSocket by POST", "POST", fresh(), websocket.to_owned(), 405),
        ("WebSocket 8", "GET", fresh(), format!("{websocket}{key}Sec-WebSocket-Version: 8\r\n"), 426),
        ("no key", "GET", fresh(), format!("{websocket}Sec-WebSocket-Version: 13\r\n"), 400),
        (
            "an unknown protocol",
            "POST",
            fresh(),
            format!("{upgrade}X-Stream-Protocol-Version: v9.channel.k8s.io\r\n"),
            403,
        ),
        ("a hundred headers", "POST", fresh(), "X: y\r\n".repeat(200), 431),
        ("a long header", "POST", fresh(), format!("X: {}\r\n", "y".repeat(64 * 1024)), 431),
    ];
    for (name, method, path, headers, status) in &cases {
        let mut tcp = TcpStream::connect(rig.streaming.address()).await.unwrap();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        let (answer, _) = soon(request(&mut tcp, &head)).await;
        assert!(answer.starts_with(&format!("http/1.1 {status}")), "{name}: {answer}");
        if *status == 403 {
            assert!(
                answer.contains("x-accepted-stream-protocol-versions: v4.channel.k8s.io\r\n"),
                "{answer}"
            );
        }
    }
    println!("{} kinds of refused requests", cases.len());
    let most: Vec<_> =
        (0..1100).map_while(|_| rig.streaming.port_forward_url("p".into(), vec![]).ok()).collect();
    assert!(most.len() <= 1000);
    let error = rig.streaming.port_forward_url("p".into(), vec![]).unwrap_err();
    assert_eq!(error.code(), tonic::Code::ResourceExhausted);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_wait_take_little_memory() {
    let rig = Rig::with(Settings { url_life: Duration::from_millis(400), ..Settings::default() }).await;
    // Empty words take memory, too.
    for words in [vec!["x".repeat(1 << 20)], vec![String::new(); 100_000]] {
        let request = || ExecRequest { container: "c".into(), command: words.clone(), streams: OUTPUT };
        let given = (0..100).map_while(|_| rig.streaming.exec_url(request()).ok()).count();
        assert!((2..16).contains(&given), "{given}");
        assert_eq!(rig.streaming.exec_url(request()).unwrap_err().code(), tonic::Code::ResourceExhausted);
        tokio::time::sleep(Duration::from_millis(500)).await;
        rig.streaming.exec_url(request()).unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_heads_are_cut_off() {
    let rig = Rig::new().await;
    let mut tcp = TcpStream::connect(rig.streaming.address()).await.unwrap();
    let head = spdy_head("POST", "/exec/slow", V4);
    let trickle = async {
        for octet in head.as_bytes() {
            if tcp.write_all(&[*octet]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    assert!(timeout(Duration::from_secs(15), trickle).await.is_ok(), "the server waits for ever");
}
