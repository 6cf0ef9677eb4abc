//! Exec over WebSocket in every protocol.

use std::collections::HashMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use futures::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;

use super::{
    ALL, OUTPUT, Rig, TERMINAL,
    client::{WebSocket, websocket},
    commands::SUCCESS,
    soon,
};

/// What came on each channel until an orderly close.
async fn rest(socket: &mut WebSocket, text: bool) -> HashMap<u8, String> {
    let mut channels: HashMap<u8, Vec<u8>> = HashMap::new();
    loop {
        match soon(socket.next()).await.expect("a close frame comes first").unwrap() {
            Message::Binary(octets) if !text => {
                channels.entry(octets[0]).or_default().extend(&octets[1..]);
            }
            Message::Text(characters) if text => {
                let (channel, octets) = characters.split_at(1);
                let octets = STANDARD.decode(octets).unwrap();
                channels.entry(channel.parse().unwrap()).or_default().extend(octets);
            }
            Message::Close(Some(frame)) => {
                assert_eq!(u16::from(frame.code), 1000);
                break;
            }
            Message::Ping(_) | Message::Pong(_) => {}
            other => panic!("{other:?}"),
        }
    }
    channels.into_iter().map(|(channel, octets)| (channel, String::from_utf8(octets).unwrap())).collect()
}

fn message(text: bool, channel: u8, octets: &[u8]) -> Message {
    if text {
        Message::text(format!("{channel}{}", STANDARD.encode(octets)))
    } else {
        Message::binary([&[channel], octets].concat())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn websocket_tells_output_and_exit_code_in_every_version() {
    let rig = Rig::new().await;
    let words = "command terminated with non-zero exit code: exit code 7";
    let cases = [
        ("v5.channel.k8s.io", 5, false),
        ("v4.channel.k8s.io", 4, false),
        ("v4.base64.channel.k8s.io", 4, true),
        ("v3.channel.k8s.io", 3, false),
        ("v2.channel.k8s.io", 2, false),
        ("channel.k8s.io", 1, false),
        ("base64.channel.k8s.io", 1, true),
        ("", 1, false),
    ];
    for (protocol, version, text) in cases {
        let script = "head -n 1; echo err >&2; exit 7";
        let offered = if protocol.is_empty() { vec![] } else { vec!["v9.channel.k8s.io", protocol] };
        let (mut socket, chosen) = websocket(&rig.exec(script, ALL), &offered).await.unwrap();
        assert_eq!(chosen.as_deref().unwrap_or_default(), protocol);
        socket.send(message(text, 0, b"hello ")).await.unwrap();
        socket.send(message(text, 0, b"")).await.unwrap();
        socket.send(message(text, 9, b"nobody listens")).await.unwrap();
        socket.send(Message::Ping("life".into())).await.unwrap();
        socket.send(message(text, 0, b"world\n")).await.unwrap();
        let seen = rest(&mut socket, text).await;
        assert_eq!(seen[&1], "hello world\n", "{protocol}");
        assert_eq!(seen[&2], "err\n");
        if version >= 4 {
            assert!(seen[&3].contains(r#""reason":"ExitCode""#) && seen[&3].contains(words), "{seen:?}");
        } else {
            assert_eq!(seen[&3], words);
        }

        let (mut socket, _) = websocket(&rig.exec("echo fine", OUTPUT), &offered).await.unwrap();
        let seen = rest(&mut socket, text).await;
        assert_eq!(seen[&1], "fine\n");
        let told = seen.get(&3).map_or("", String::as_str);
        assert_eq!(told, if version >= 4 { SUCCESS } else { "" });
    }
    rig.host.settled(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn version_5_ends_input_alone() {
    let rig = Rig::new().await;
    let (mut socket, _) = websocket(&rig.exec("cat; echo end", ALL), &["v5.channel.k8s.io"]).await.unwrap();
    socket.send(Message::binary(&b"\0some"[..])).await.unwrap();
    socket.send(Message::binary(&[255, 4][..])).await.unwrap();
    socket.send(Message::binary(&[255, 0][..])).await.unwrap();
    let seen = rest(&mut socket, false).await;
    assert_eq!((seen[&1].as_str(), seen[&3].as_str()), ("someend\n", SUCCESS));

    // Before version 5 it is a channel that nobody listens to.
    let (mut socket, _) = websocket(&rig.exec("head -n 1", ALL), &["v4.channel.k8s.io"]).await.unwrap();
    socket.send(Message::binary(&[255, 0][..])).await.unwrap();
    socket.send(Message::binary(&b"\0still open\n"[..])).await.unwrap();
    assert_eq!(rest(&mut socket, false).await[&1], "still open\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn websocket_terminal_is_resized() {
    let rig = Rig::new().await;
    for (protocol, text) in [("v5.channel.k8s.io", false), ("v4.base64.channel.k8s.io", true)] {
        let url = rig.exec("read line; stty size", TERMINAL);
        let (mut socket, _) = websocket(&url, &[protocol]).await.unwrap();
        socket.send(message(text, 4, b"{\"Width\":99,\"Height\":33}")).await.unwrap();
        // Sizes and input are separate streams: the size is taken well before a person types.
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        socket.send(message(text, 0, b"\n")).await.unwrap();
        assert_eq!(rest(&mut socket, text).await[&1], "\r\n33 99\r\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_any_length_pass() {
    let rig = Rig::new().await;
    let octets: Vec<u8> = (0..8 << 20).map(|at: u32| b'a' + (at % 23) as u8).collect();
    // md5sum of these octets.
    let sum = "b5640edf2706a64c0b710779f6ded27d";
    for (protocol, text) in [("v5.channel.k8s.io", false), ("base64.channel.k8s.io", true)] {
        let script = format!("head -c {} | md5sum", octets.len());
        let (mut socket, _) = websocket(&rig.exec(&script, ALL), &[protocol]).await.unwrap();
        soon(socket.send(message(text, 0, &octets))).await.unwrap();
        let seen = rest(&mut socket, text).await;
        assert_eq!(seen[&1], format!("{sum}  -\n"), "{protocol}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn websocket_refuses_protocols_it_does_not_know() {
    let rig = Rig::new().await;
    assert_eq!(websocket(&rig.exec("true", ALL), &["v9.channel.k8s.io"]).await.err(), Some(403));
    let forward = rig.streaming.port_forward_url("p".into(), vec![]).unwrap();
    assert_eq!(websocket(&forward, &["v4.channel.k8s.io"]).await.err(), Some(400), "no port is named");
}
