//! Port-forward in every protocol, against real TCP servers.

use std::{collections::HashMap, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use futures::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::TcpListener,
};
use tokio_tungstenite::tungstenite::Message;

use super::{
    Rig, Settings,
    client::{Event, Reader, Writer, dial, tunnel, websocket},
    soon,
};
use crate::streaming::spdy::frame::{Status, reset};

/// A server that sends back what it gets, and a greeting after its end.
async fn echo(greeting: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut read, mut write) = tcp.split();
                let _copied = copy(&mut read, &mut write).await;
                let _sent = write.write_all(greeting.as_bytes()).await;
            });
        }
    });
    port
}

async fn both(rig: &Rig, tunnelled: bool) -> (Reader, Writer) {
    let url = rig.streaming.port_forward_url("p".into(), vec![]).unwrap();
    if tunnelled { tunnel(&url).await } else { dial(&url, &["portforward.k8s.io"]).await.unwrap() }
}

/// Opens the streams of a connection: error, then data.
async fn pair(writer: &mut Writer, port: u16, id: &str) -> (u32, u32) {
    let port = port.to_string();
    let error = writer.open(&[("streamtype", "error"), ("port", &port), ("requestid", id)]).await;
    writer.data(error, &[], true).await.unwrap();
    let data = writer.open(&[("streamtype", "data"), ("port", &port), ("requestid", id)]).await;
    (error, data)
}

/// Reads until the given streams have ended; what came on each.
async fn ended(reader: &mut Reader, mut streams: Vec<u32>) -> HashMap<u32, Vec<u8>> {
    let mut seen: HashMap<u32, Vec<u8>> = HashMap::new();
    while !streams.is_empty() {
        match soon(reader.next()).await {
            Event::Data(stream, octets, fin) => {
                seen.entry(stream).or_default().extend(octets);
                if fin {
                    streams.retain(|waiting| *waiting != stream);
                }
            }
            Event::Reset(stream, _) => streams.retain(|waiting| *waiting != stream),
            Event::Reply(_) | Event::Ping(_) => {}
            other => panic!("{other:?} while {streams:?} are open"),
        }
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn one_direction_may_end_before_the_other() {
    let rig = Rig::new().await;
    let port = echo(" and bye").await;
    for tunnelled in [false, true] {
        let (mut reader, mut writer) = both(&rig, tunnelled).await;
        let (error, data) = pair(&mut writer, port, "0").await;
        writer.data(data, b"hello", false).await.unwrap();
        writer.data(data, b"", true).await.unwrap();
        let seen = ended(&mut reader, vec![error, data]).await;
        assert_eq!(seen[&data], b"hello and bye");
        assert_eq!(seen[&error], b"");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_connections_at_once_to_several_ports() {
    let rig = Rig::new().await;
    let ports = [echo("a").await, echo("b").await, echo("c").await];
    for tunnelled in [false, true] {
        let (mut reader, mut writer) = both(&rig, tunnelled).await;
        let mut pairs = Vec::new();
        for id in 0..100 {
            pairs.push(pair(&mut writer, ports[id % 3], &id.to_string()).await);
        }
        for round in 0..3 {
            for (id, (_, data)) in pairs.iter().enumerate() {
                writer.data(*data, format!("{id}.{round};").as_bytes(), round == 2).await.unwrap();
            }
        }
        let seen = ended(&mut reader, pairs.iter().flat_map(|(error, data)| [*error, *data]).collect()).await;
        for (id, (error, data)) in pairs.iter().enumerate() {
            let greeting = ["a", "b", "c"][id % 3];
            let expected = format!("{id}.0;{id}.1;{id}.2;{greeting}");
            assert_eq!(String::from_utf8_lossy(&seen[data]), expected);
            assert_eq!(seen[error], b"");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_nobody_listens_on_harms_its_pair_alone() {
    let rig = Rig::new().await;
    let port = echo("!").await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let (mut reader, mut writer) = both(&rig, false).await;
    let (error, data) = pair(&mut writer, free, "0").await;
    let seen = ended(&mut reader, vec![error, data]).await;
    let words = String::from_utf8_lossy(&seen[&error]);
    assert!(words.contains(&format!("port {free}")) && words.contains("refused"), "{words}");
    let (error, data) = pair(&mut writer, port, "1").await;
    writer.data(data, b"works", true).await.unwrap();
    assert_eq!(ended(&mut reader, vec![error, data]).await[&data], b"works!");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_without_a_partner_time_out() {
    let settings = Settings { stream_creation: Duration::from_millis(300), ..Settings::default() };
    let rig = Rig::with(settings).await;
    let port = echo("").await.to_string();
    let (mut reader, mut writer) = both(&rig, false).await;
    let error = writer.open(&[("streamtype", "error"), ("port", &port), ("requestid", "7")]).await;
    let data = writer.open(&[("streamtype", "data"), ("port", &port), ("requestid", "8")]).await;
    let seen = ended(&mut reader, vec![error, data]).await;
    assert!(String::from_utf8_lossy(&seen[&error]).contains("timed out"));
    for wrong in [
        [("streamtype", "data"), ("port", "0"), ("requestid", "1")],
        [("streamtype", "data"), ("port", "70000"), ("requestid", "1")],
        [("streamtype", "stdin"), ("port", "80"), ("requestid", "1")],
        [("streamtype", "data"), ("port", "80"), ("requestid", &"1".repeat(65))],
    ] {
        let stream = writer.open(&wrong).await;
        assert!(matches!(soon(reader.next()).await, Event::Reset(reset, _) if reset == stream), "{wrong:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_slows_its_own_stream_alone() {
    let rig = Rig::new().await;
    // Takes nothing until it is told to.
    let stuck = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = echo("").await;
    let (mut reader, mut writer) = both(&rig, false).await;
    let (_, held) = pair(&mut writer, stuck.local_addr().unwrap().port(), "0").await;
    let (mut backend, _) = stuck.accept().await.unwrap();
    let (_, torn) = pair(&mut writer, stuck.local_addr().unwrap().port(), "1").await;
    let (mut second, _) = stuck.accept().await.unwrap();
    writer.data(held, &[b'x'; 100_000], true).await.unwrap();
    let (error, data) = pair(&mut writer, port, "2").await;
    writer.data(data, b"passes", true).await.unwrap();
    assert_eq!(ended(&mut reader, vec![error, data]).await[&data], b"passes");
    let mut all = Vec::new();
    soon(backend.read_to_end(&mut all)).await.unwrap();
    assert_eq!(all.len(), 100_000);
    // A stream that its client resets closes its connection.
    writer.raw(&reset(torn, Status::Cancel)).await.unwrap();
    assert_eq!(soon(second.read(&mut [0; 8])).await.unwrap_or(0), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_reset_half_way_through_a_frame_leaves_the_others_whole() {
    let rig = Rig::new().await;
    let port = echo("").await;
    // Sends without end.
    let spring = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let spring_port = spring.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = spring.accept().await.unwrap();
            tokio::spawn(async move { while tcp.write_all(&[b'x'; 65536]).await.is_ok() {} });
        }
    });
    for tunnelled in [false, true] {
        let (mut reader, mut writer) = both(&rig, tunnelled).await;
        let (_, first) = pair(&mut writer, spring_port, "0").await;
        let (_, second) = pair(&mut writer, spring_port, "1").await;
        // The client reads nothing, until the server cannot finish a frame.
        tokio::time::sleep(Duration::from_millis(700)).await;
        for stream in [first, second] {
            writer.raw(&reset(stream, Status::Cancel)).await.unwrap();
        }
        let (error, data) = pair(&mut writer, port, "2").await;
        writer.data(data, b"whole", true).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(ended(&mut reader, vec![error, data]).await[&data], b"whole");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn websocket_channels_carry_several_ports() {
    let rig = Rig::new().await;
    let ports = [echo("").await, echo("").await];
    for (protocol, text) in [("v4.channel.k8s.io", false), ("v4.base64.channel.k8s.io", true), ("", false)] {
        let url = rig.streaming.port_forward_url("p".into(), ports.to_vec()).unwrap();
        let offered = if protocol.is_empty() { vec![] } else { vec![protocol] };
        let (mut socket, _) = websocket(&url, &offered).await.unwrap();
        let mut seen: HashMap<u8, Vec<u8>> = HashMap::new();
        for channel in [0u8, 2] {
            let octets = format!("to {channel}");
            let message = if text {
                Message::text(format!("{channel}{}", STANDARD.encode(&octets)))
            } else {
                Message::binary([&[channel], octets.as_bytes()].concat())
            };
            socket.send(message).await.unwrap();
        }
        while seen.values().map(Vec::len).sum::<usize>() < 4 * 2 + 8 {
            match soon(socket.next()).await.unwrap().unwrap() {
                Message::Binary(octets) => seen.entry(octets[0]).or_default().extend(&octets[1..]),
                Message::Text(characters) => {
                    let octets = STANDARD.decode(&characters[1..]).unwrap();
                    seen.entry(characters.as_bytes()[0] - b'0').or_default().extend(octets);
                }
                other => panic!("{other:?}"),
            }
        }
        for (at, port) in ports.iter().enumerate() {
            let channel = 2 * at as u8;
            let expected = [&port.to_le_bytes()[..], format!("to {channel}").as_bytes()].concat();
            assert_eq!(seen[&channel], expected, "{protocol}");
            assert_eq!(seen[&(channel + 1)], port.to_le_bytes());
        }
    }
}
