//! Exec and attach in every protocol.

use super::{
    ALL, OUTPUT, Rig, TERMINAL,
    client::{Reader, Seen, Writer, dial},
    soon,
};

pub(super) const SUCCESS: &str = r#"{"metadata":{},"status":"Success"}"#;

/// The streams of a command, in the order Go's client opens them.
struct Open {
    error: u32,
    stdin: u32,
    stdout: u32,
    stderr: u32,
    resize: u32,
}

/// Opens these streams and waits for the replies, as Go's client does.
async fn open(reader: &mut Reader, writer: &mut Writer, names: &[&str]) -> Open {
    let mut open = Open { error: 0, stdin: 0, stdout: 0, stderr: 0, resize: 0 };
    for name in names {
        let stream = writer.open(&[("streamtype", name)]).await;
        assert_eq!(reader.next().await, super::client::Event::Reply(stream));
        match *name {
            "error" => open.error = stream,
            "stdin" => open.stdin = stream,
            "stdout" => open.stdout = stream,
            "stderr" => open.stderr = stream,
            _ => open.resize = stream,
        }
    }
    open
}

async fn finish(mut reader: Reader) -> Seen {
    let seen = soon(reader.rest()).await;
    assert!(seen.went_away);
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn spdy_tells_output_and_exit_code_in_every_version() {
    let rig = Rig::new().await;
    let words = "command terminated with non-zero exit code: exit code 7";
    let status = format!(
        r#"{{"details":{{"causes":[{{"message":"7","reason":"ExitCode"}}]}},"message":"{words}","metadata":{{}},"reason":"NonZeroExitCode","status":"Failure"}}"#
    );
    let cases = [
        (&["v4.channel.k8s.io"][..], status.as_str()),
        (&["v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io"], status.as_str()),
        (&["v3.channel.k8s.io"], words),
        (&["v2.channel.k8s.io"], words),
        (&["channel.k8s.io"], words),
        (&[], words),
    ];
    for (protocols, expected) in cases {
        let script = "cat; echo err >&2; exit 7";
        let (mut reader, mut writer) = dial(&rig.exec(script, ALL), protocols).await.unwrap();
        let open = open(&mut reader, &mut writer, &["error", "stdin", "stdout", "stderr"]).await;
        writer.data(open.stdin, b"hello ", false).await.unwrap();
        writer.data(open.stdin, b"world", true).await.unwrap();
        let seen = finish(reader).await;
        assert_eq!(seen.text(open.stdout), "hello world", "{protocols:?}");
        assert_eq!(seen.text(open.stderr), "err\n");
        assert_eq!(seen.text(open.error), expected);
        assert!(seen.resets.is_empty() && seen.streams.values().all(|stream| stream.finished));

        let (mut reader, mut writer) = dial(&rig.exec("echo fine", OUTPUT), protocols).await.unwrap();
        // A stream that was not asked for is open and stays silent.
        let open = self::open(&mut reader, &mut writer, &["error", "stderr", "stdout"]).await;
        let seen = finish(reader).await;
        assert_eq!(seen.text(open.stdout), "fine\n");
        assert_eq!(seen.text(open.error), if expected == words { "" } else { SUCCESS });
    }
    rig.host.settled(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spdy_terminal_is_resized_and_echoes() {
    let rig = Rig::new().await;
    for protocol in ["v4.channel.k8s.io", "v3.channel.k8s.io"] {
        let script = "read line; stty size; echo got $line; tty | sed s/[0-9]*$//";
        let (mut reader, mut writer) = dial(&rig.exec(script, TERMINAL), &[protocol]).await.unwrap();
        let open = open(&mut reader, &mut writer, &["error", "stdin", "stdout", "resize"]).await;
        writer.data(open.resize, b"{\"Width\":123,", false).await.unwrap();
        writer.data(open.resize, b"\"Height\":45}\n", false).await.unwrap();
        // Sizes and input are separate streams: the size is taken well before a person types.
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        writer.data(open.stdin, b"typed\n", false).await.unwrap();
        let seen = finish(reader).await;
        assert_eq!(seen.text(open.stdout), "typed\r\n45 123\r\ngot typed\r\n/dev/pts/\r\n");
        if protocol.starts_with("v4") {
            assert_eq!(seen.text(open.error), SUCCESS);
        }
    }
    rig.host.settled(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attach_ends_in_success_whatever_the_container_ends_with() {
    let rig = Rig::new().await;
    let (mut reader, mut writer) = dial(&rig.attach(), &["v4.channel.k8s.io"]).await.unwrap();
    let open = open(&mut reader, &mut writer, &["error", "stdin", "stdout", "stderr"]).await;
    writer.data(open.stdin, b"in", true).await.unwrap();
    let seen = finish(reader).await;
    assert_eq!((seen.text(open.stdout), seen.text(open.error)), ("in", SUCCESS));
}
