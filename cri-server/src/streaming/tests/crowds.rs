//! Clients that are too many: who is beyond a limit is refused alone, and who is silent keeps nobody out.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::{
    OUTPUT, Rig, Settings,
    client::{Event, Reader, Writer, dial},
    soon,
};

const V4: &[&str] = &["v4.channel.k8s.io"];

async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = tcp.split();
                let _copied = copy(&mut read, &mut write).await;
                let _sent = write.shutdown().await;
            });
        }
    });
    port
}

/// Opens so many pairs of streams to a port: how many answer, and the words that others are refused with.
async fn pairs(reader: &mut Reader, writer: &mut Writer, port: u16, count: usize) -> (usize, Vec<String>) {
    let port = port.to_string();
    for id in 0..count {
        let id = id.to_string();
        for kind in ["error", "data"] {
            let stream = writer.open(&[("streamtype", kind), ("port", &port), ("requestid", &id)]).await;
            if kind == "data" {
                // A pair that is refused may be gone by now.
                let _sent = writer.data(stream, b"x", false).await;
            }
        }
    }
    let (mut answered, mut refused) = (0, Vec::new());
    while answered + refused.len() < count {
        match soon(reader.next()).await {
            Event::Data(_, octets, _) if octets == b"x" => answered += 1,
            Event::Data(_, octets, _) if !octets.is_empty() => {
                refused.push(String::from_utf8(octets).unwrap());
            }
            Event::Closed | Event::GoAway => panic!("the connection ended after {answered} answers"),
            _ => {}
        }
    }
    (answered, refused)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_wants_more_files_than_there_are_is_refused_alone() {
    // 5 are for connections without a token, 1 is for this one.
    let rig = Rig::with(Settings { files: 40, ..Settings::default() }).await;
    let port = echo().await;
    for _ in 0..2 {
        let url = rig.streaming.port_forward_url("p".into(), vec![]).unwrap();
        let (mut reader, mut writer) = dial(&url, &["portforward.k8s.io"]).await.unwrap();
        let (answered, refused) = pairs(&mut reader, &mut writer, port, 30).await;
        assert_eq!((answered, refused.len()), (17, 13), "{refused:?}");
        assert!(refused.iter().all(|words| words.contains("LimitNOFILE")), "{refused:?}");
        // Not even a connection has room now, and its client learns that at once.
        let answer = dial(&rig.exec("true", OUTPUT), V4).await.err().expect("refused");
        assert!(answer.starts_with("http/1.1 503"), "{answer}");
        drop((reader, writer));
        // All of it comes back.
        let url = rig.exec("true", OUTPUT);
        let dialled = soon(async {
            loop {
                match dial(&url, V4).await {
                    Ok(client) => return client,
                    Err(answer) => assert!(answer.starts_with("http/1.1 503"), "{answer}"),
                }
            }
        });
        let (mut reader, mut writer) = dialled.await;
        for name in ["error", "stdout"] {
            writer.open(&[("streamtype", name)]).await;
        }
        soon(reader.rest()).await;
        rig.host.settled(0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_keep_nobody_out() {
    // 8 of them for connections without a token.
    let rig = Rig::with(Settings { files: 64, ..Settings::default() }).await;
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(rig.streaming.address()).await.unwrap());
        // Nor does one that has passed count.
        if silent.len() % 10 == 0 {
            let url = rig.exec("echo here", OUTPUT);
            let dialled = timeout(Duration::from_secs(5), dial(&url, V4)).await;
            let (mut reader, mut writer) = dialled.expect("served at once").unwrap();
            writer.open(&[("streamtype", "error")]).await;
            let stdout = writer.open(&[("streamtype", "stdout")]).await;
            assert_eq!(soon(reader.rest()).await.text(stdout), "here\n");
        }
    }
    // The oldest went, the youngest are still heard.
    for tcp in &mut silent[..30] {
        assert_eq!(soon(tcp.read(&mut [0; 8])).await.unwrap_or(0), 0);
    }
    let mut last = silent.pop().unwrap();
    last.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    soon(last.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 404");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_not_ended_for_those_without_a_token() {
    let rig = Rig::with(Settings { files: 64, ..Settings::default() }).await;
    let (mut reader, mut writer) = dial(&rig.exec("read x; echo $x", super::ALL), V4).await.unwrap();
    let mut streams = Vec::new();
    for name in ["error", "stdin", "stdout", "stderr"] {
        streams.push(writer.open(&[("streamtype", name)]).await);
    }
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(rig.streaming.address()).await.unwrap());
    }
    assert_eq!(soon(silent[0].read(&mut [0; 8])).await.unwrap_or(0), 0);
    writer.data(streams[1], b"words\n", true).await.unwrap();
    assert_eq!(soon(reader.rest()).await.text(streams[2]), "words\n");
}
