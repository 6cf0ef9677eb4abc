//! A session lives as long as its client, and ends with everything told.

use std::time::Duration;

use futures::SinkExt;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::Message;

use super::{
    ALL, OUTPUT, Rig, Settings,
    client::{Event, Reader, Writer, dial, websocket},
    commands::SUCCESS,
    soon,
};
use crate::streaming::spdy::frame;

const V4: &[&str] = &["v4.channel.k8s.io"];

/// Error, stdin, stdout, stderr.
async fn start(rig: &Rig, script: &str) -> (Reader, Writer, [u32; 4]) {
    let (mut reader, mut writer) = dial(&rig.exec(script, ALL), V4).await.unwrap();
    let mut streams = [0; 4];
    for (stream, name) in streams.iter_mut().zip(["error", "stdin", "stdout", "stderr"]) {
        *stream = writer.open(&[("streamtype", name)]).await;
        assert_eq!(reader.next().await, Event::Reply(*stream));
    }
    (reader, writer, streams)
}

/// Writes until the server takes no more; how much that was.
async fn fill(writer: &mut Writer, stream: u32) -> usize {
    let mut taken = 0;
    while timeout(Duration::from_secs(1), writer.data(stream, &[b'x'; 32 * 1024], false)).await.is_ok() {
        taken += 32 * 1024;
    }
    taken
}

#[tokio::test(flavor = "multi_thread")]
async fn session_ends_with_its_client() {
    let rig = Rig::new().await;
    let idle = start(&rig, "exec sleep 1000").await;
    rig.host.settled(1).await;
    drop(idle);
    rig.host.settled(0).await;

    let (reader, mut writer, streams) = start(&rig, "exec sleep 1000").await;
    let taken = fill(&mut writer, streams[1]).await;
    assert!(taken < 16 << 20, "{taken} octets were taken that nobody reads");
    assert_eq!(rig.host.alive.load(std::sync::atomic::Ordering::SeqCst), 1);
    drop((reader, writer));
    rig.host.settled(0).await;

    let deaf = start(&rig, "exec yes").await;
    rig.host.settled(1).await;
    drop(deaf);
    rig.host.settled(0).await;

    let (_reader, mut writer, _) = start(&rig, "exec sleep 1000").await;
    writer.raw(&frame::go_away(0, 0)).await.unwrap();
    rig.host.settled(0).await;

    let (mut socket, _) = websocket(&rig.exec("exec sleep 1000", ALL), &["v5.channel.k8s.io"]).await.unwrap();
    rig.host.settled(1).await;
    socket.send(Message::Close(None)).await.unwrap();
    rig.host.settled(0).await;

    let (socket, _) = websocket(&rig.exec("exec yes", ALL), &["v5.channel.k8s.io"]).await.unwrap();
    rig.host.settled(1).await;
    drop(socket);
    rig.host.settled(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_end_with_the_server() {
    let rig = Rig::new().await;
    let _running = start(&rig, "exec sleep 1000").await;
    rig.host.settled(1).await;
    let Rig { host, streaming } = rig;
    drop(streaming);
    host.settled(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_sessions_and_late_streams_are_ended() {
    let short = Duration::from_millis(300);
    let rig = Rig::with(Settings { idle: short, ..Settings::default() }).await;
    let (mut reader, _writer, _) = start(&rig, "exec sleep 1000").await;
    soon(reader.rest()).await;
    rig.host.settled(0).await;

    let rig = Rig::with(Settings { stream_creation: short, ..Settings::default() }).await;
    let (mut reader, mut writer) = dial(&rig.exec("true", ALL), V4).await.unwrap();
    writer.open(&[("streamtype", "error")]).await;
    assert!(soon(reader.rest()).await.went_away);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_output_comes_before_the_end_however_slow_the_client() {
    let rig = Rig::new().await;
    let (mut reader, _writer, streams) = start(&rig, "head -c 20000000 /dev/zero").await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let seen = soon(reader.rest()).await;
    assert_eq!(seen.streams[&streams[2]].octets.len(), 20_000_000);
    assert_eq!(seen.text(streams[0]), SUCCESS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_background_child_does_not_hold_the_end() {
    let rig = Rig::new().await;
    let began = Instant::now();
    let (mut reader, _writer, streams) = start(&rig, "sleep 12 & echo hi; exit 3").await;
    let seen = soon(reader.rest()).await;
    assert_eq!(seen.text(streams[2]), "hi\n");
    assert!(seen.text(streams[0]).contains(r#""message":"3""#));
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_is_told_to_a_client_that_still_sends() {
    let rig = Rig::new().await;
    for _ in 0..3 {
        let (mut reader, mut writer, streams) = start(&rig, "head -c 1 >/dev/null; echo out; exit 4").await;
        let sending =
            tokio::spawn(
                async move { while writer.data(streams[1], &[b'x'; 32 * 1024], false).await.is_ok() {} },
            );
        let seen = soon(reader.rest()).await;
        assert_eq!(seen.text(streams[2]), "out\n");
        assert!(seen.text(streams[0]).contains(r#""message":"4""#));
        drop(reader);
        soon(sending).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_start_says_why() {
    let rig = Rig::new().await;
    let request = crate::runtime::session::ExecRequest {
        container: "c".into(),
        command: vec!["/no/such/program".into()],
        streams: OUTPUT,
    };
    let url = rig.streaming.exec_url(request).unwrap();
    let (mut reader, mut writer) = dial(&url, V4).await.unwrap();
    let error = writer.open(&[("streamtype", "error")]).await;
    writer.open(&[("streamtype", "stdout")]).await;
    let seen = soon(reader.rest()).await;
    let status: serde_json::Value = serde_json::from_str(seen.text(error)).unwrap();
    assert_eq!(status["reason"], "InternalError");
    assert!(status["message"].as_str().unwrap().contains("/no/such/program"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn megabytes_pass_both_ways() {
    let rig = Rig::new().await;
    let (mut reader, mut writer, streams) = start(&rig, "cat").await;
    const SIZE: usize = 64 << 20;
    let upload = async {
        for at in 0..SIZE / 65536 {
            writer.data(streams[1], &[at as u8; 65536], false).await.unwrap();
        }
        writer.data(streams[1], &[], true).await.unwrap();
    };
    let (_, seen) = tokio::join!(upload, reader.rest());
    let octets = &seen.streams[&streams[2]].octets;
    assert_eq!(octets.len(), SIZE);
    assert!(octets.chunks(65536).enumerate().all(|(at, chunk)| chunk.iter().all(|octet| *octet == at as u8)));
    assert_eq!(seen.text(streams[0]), SUCCESS);
}
