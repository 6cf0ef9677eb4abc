//! Clients attached to running containers.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    io::{Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::Duration,
};

use podhold_sandbox::{
    ContainerId,
    launch::{AttachEnd, AttachSpec, Attached, LaunchError, Launcher, SignalTo, StartSpec},
};

use common::{Host, LIMIT, Pod, possible, until};

fn all(id: &ContainerId) -> AttachSpec {
    AttachSpec { container: id.clone(), stdin: true, stdout: true, stderr: true }
}

fn output(id: &ContainerId) -> AttachSpec {
    AttachSpec { stdin: false, ..all(id) }
}

/// A container with stdin that runs `sh -c script`.
fn with_stdin(host: &Host, script: &str) -> StartSpec {
    StartSpec { stdin: true, ..host.shell("c1", script) }
}

fn with_terminal(host: &Host, script: &str) -> StartSpec {
    let start = host.container("c1", &["sh", "-c", script], |spec| {
        let mut process = spec.process().clone().unwrap();
        process.set_terminal(Some(true));
        spec.set_process(Some(process));
    });
    StartSpec { tty: true, stdin: true, ..start }
}

/// A stream that waits, at most for a time that is longer than anything here takes.
fn waiting(stream: Option<OwnedFd>) -> UnixStream {
    let stream = UnixStream::from(stream.unwrap());
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

/// Reads until the text has come.
fn read_until(stream: &mut UnixStream, text: &str) -> String {
    let mut got = Vec::new();
    while !String::from_utf8_lossy(&got).contains(text) {
        let mut chunk = [0; 4096];
        let count = stream.read(&mut chunk).unwrap();
        assert!(count > 0, "ended before {text:?}: {:?}", String::from_utf8_lossy(&got));
        got.extend_from_slice(&chunk[..count]);
    }
    String::from_utf8(got).unwrap()
}

fn write(fd: &Option<OwnedFd>, text: &str) {
    fs::File::from(fd.as_ref().unwrap().try_clone().unwrap()).write_all(text.as_bytes()).unwrap();
}

async fn ended(attached: &Attached) -> AttachEnd {
    tokio::time::timeout(LIMIT, attached.session.ended()).await.expect("it ends in time").unwrap()
}

async fn refusal(pod: &Pod, attach: AttachSpec) -> String {
    match pod.live.attach(attach).await {
        Err(LaunchError::NotRunning { reason, .. }) => reason,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("attached"),
    }
}

/// Attaches with stdin, as soon as the client before is known to be gone.
async fn attach_next(pod: &Pod, id: &ContainerId) -> Attached {
    let limit = std::time::Instant::now() + LIMIT;
    loop {
        match pod.live.attach(all(id)).await {
            Ok(attached) => return attached,
            Err(error) => assert!(std::time::Instant::now() < limit, "{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_clients_get_the_same_output_and_the_log_has_it_too() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let mut pod = host.open().await;
    let start = with_stdin(&host, "read x; seq 1 20000; echo $x-err >&2; exit 6");
    let id = start.id.clone();
    pod.live.start(start).await.unwrap();
    let mut first = pod.live.attach(all(&id)).await.unwrap();
    let mut second = pod.live.attach(output(&id)).await.unwrap();
    assert!(second.stdin.is_none() && first.terminal.is_none());
    write(&first.stdin, "go\n");
    assert_eq!(pod.exit(&id).await.code, 6);
    let expected: String = (1..=20000).map(|n| format!("{n}\n")).collect();
    for client in [&mut first, &mut second] {
        assert_eq!(ended(client).await, AttachEnd::Exited(6));
        let (mut out, mut err) = (String::new(), String::new());
        waiting(client.stdout.take()).read_to_string(&mut out).unwrap();
        waiting(client.stderr.take()).read_to_string(&mut err).unwrap();
        assert!(out == expected && err == "go-err\n", "{} {err}", out.len());
    }
    let log = host.log_text(&id);
    assert!(log.contains(" stdout F 20000\n") && log.contains(" stderr F go-err\n"));
    assert_eq!(refusal(&pod, output(&id)).await, "it does not run");
    pod.close(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_cut_off_and_slows_nobody() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let mut pod = host.open().await;
    // More than the buffers of the clients hold.
    let start = with_stdin(&host, "read x; head -c 100000000 /dev/zero | tr '\\0' x; echo; echo all");
    let id = start.id.clone();
    pod.live.start(start).await.unwrap();
    let mut lazy = pod.live.attach(all(&id)).await.unwrap();
    let mut eager = pod.live.attach(output(&id)).await.unwrap();
    let mut stdout = waiting(eager.stdout.take());
    let reading = tokio::task::spawn_blocking(move || {
        let mut got = Vec::new();
        stdout.read_to_end(&mut got).unwrap();
        got
    });
    write(&lazy.stdin, "go\n");
    assert_eq!(ended(&lazy).await, AttachEnd::TooSlow);
    assert_eq!(pod.exit(&id).await.code, 0);
    let mut kept = Vec::new();
    waiting(lazy.stdout.take()).read_to_end(&mut kept).unwrap();
    assert!((1 << 20..100_000_000).contains(&kept.len()), "some is kept for it: {}", kept.len());
    let got = reading.await.unwrap();
    assert_eq!(ended(&eager).await, AttachEnd::Exited(0));
    assert!(got.len() == 100_000_005 && got.ends_with(b"\nall\n"), "{}", got.len());
    assert!(host.log_text(&id).ends_with(" stdout F all\n"));
    pod.close(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_has_stdin_at_a_time_and_it_outlives_each() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let mut pod = host.open().await;
    let start = with_stdin(&host, "while read line; do echo got $line; done; echo over");
    let id = start.id.clone();
    pod.live.start(start).await.unwrap();
    let mut first = pod.live.attach(all(&id)).await.unwrap();
    let words = refusal(&pod, all(&id)).await;
    assert!(words.contains("another client is attached to its stdin"), "{words}");
    let mut watcher = pod.live.attach(output(&id)).await.expect("output is for everyone");
    let mut watched = waiting(watcher.stdout.take());
    write(&first.stdin, "one\n");
    read_until(&mut watched, "got one\n");

    // Given up alone: the session goes on.
    first.stdin = None;
    first.session.give_up_stdin();
    let second = attach_next(&pod, &id).await;
    write(&second.stdin, "two\n");
    read_until(&mut waiting(first.stdout.take()), "got two\n");
    // Gone altogether.
    drop(second);
    let third = attach_next(&pod, &id).await;
    write(&third.stdin, "three\n");
    read_until(&mut watched, "got three\n");
    assert!(!host.log_text(&id).contains("over"), "stdin has outlived its clients");
    drop(third);

    pod.live.signal(&id, 9, SignalTo::All).await.unwrap();
    assert_eq!(pod.exit(&id).await.code, 137);
    assert_eq!(ended(&watcher).await, AttachEnd::Exited(137));
    pod.close(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stdin_once_ends_with_its_first_client() {
    if !possible() {
        return;
    }
    for leave in [false, true] {
        let host = Host::new();
        let mut pod = host.open().await;
        let mut start = with_stdin(&host, "cat; echo over; sleep 1000");
        start.stdin_once = true;
        let id = start.id.clone();
        pod.live.start(start).await.unwrap();
        let mut watcher = pod.live.attach(output(&id)).await.unwrap();
        let mut client = pod.live.attach(all(&id)).await.unwrap();
        write(&client.stdin, "words\n");
        if leave {
            drop(client);
        } else {
            client.stdin = None;
            client.session.give_up_stdin();
            read_until(&mut waiting(client.stdout.take()), "over\n");
        }
        assert_eq!(read_until(&mut waiting(watcher.stdout.take()), "over\n"), "words\nover\n");
        let words = refusal(&pod, all(&id)).await;
        assert!(words.contains("stdin_once"), "{words}");
        pod.live.delete(&id).await.unwrap();
        let _ = pod.event().await;
        pod.close(&host).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_without_stdin_says_so() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let pod = host.open().await;
    let start = host.shell("c1", "sleep 1000");
    let id = start.id.clone();
    pod.live.start(start).await.unwrap();
    let words = refusal(&pod, all(&id)).await;
    assert!(words.contains("created without stdin"), "{words}");
    assert_eq!(refusal(&pod, all(&ContainerId::parse("c9").unwrap())).await, "it does not exist");
    pod.close(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_takes_input_and_size_and_outlives_the_daemon() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let pod = host.open().await;
    let start = with_terminal(&host, "while read line; do echo got $line $(stty size); done; echo over");
    let id = start.id.clone();
    pod.live.start(start).await.unwrap();
    let mut first = pod.live.attach(all(&id)).await.unwrap();
    assert!(first.stdin.is_none());
    let terminal = podhold_sandbox::terminal::Terminal::input(first.terminal.take().unwrap()).unwrap();
    terminal.resize(99, 33).unwrap();
    let mut stdout = waiting(first.stdout.take());
    {
        use tokio::io::AsyncWriteExt;
        terminal.clone().write_all(b"one\n").await.unwrap();
    }
    read_until(&mut stdout, "got one 33 99");
    // All handles of this daemon go, as when it dies.
    drop((first, terminal, stdout, pod));

    let reopened = host.launcher.reopen_pod(&host.pod).await.unwrap();
    let mut pod = Pod { live: reopened.pod, events: reopened.events };
    let mut second = attach_next(&pod, &id).await;
    let mut stdout = waiting(second.stdout.take());
    write(&second.terminal, "two\n");
    let got = read_until(&mut stdout, "got two 33 99");
    assert!(!got.contains("over"), "{got}");
    pod.live.signal(&id, 9, SignalTo::All).await.unwrap();
    assert_eq!(pod.exit(&id).await.code, 137);
    assert_eq!(ended(&second).await, AttachEnd::Exited(137));
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).unwrap();
    pod.close(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_and_stdin_outlive_a_lost_connection_and_execs_do_not() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let pod = host.open().await;
    let start = with_stdin(&host, "while read line; do echo got $line; done");
    let id = start.id.clone();
    pod.live.start(start).await.unwrap();
    let mut client = pod.live.attach(all(&id)).await.unwrap();
    let mut stdout = waiting(client.stdout.take());
    let io = podhold_sandbox::launch::ExecIo::Files { stdin: None, stdout: None, stderr: None };
    let process = common::shell("sleep 1000 & sleep 1000");
    let exec = podhold_sandbox::launch::ExecSpec { container: id.clone(), process, io, timeout: None };
    let session = pod.live.exec(exec).await.unwrap();
    let pid = session.pid();
    drop((session, pod));
    until("the exec of the daemon that is gone ends", || {
        !fs::exists(format!("/proc/{pid}")).unwrap() && {
            let left = host.left();
            !left.iter().any(|what| what.contains("sleep 1000"))
        }
    });
    write(&client.stdin, "words\n");
    read_until(&mut stdout, "got words\n");

    let reopened = host.launcher.reopen_pod(&host.pod).await.unwrap();
    let pod = Pod { live: reopened.pod, events: reopened.events };
    assert!(refusal(&pod, all(&id)).await.contains("another client"));
    drop(client);
    let next = attach_next(&pod, &id).await;
    drop(next);
    pod.close(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_leave_are_forgotten_by_shim_and_logger() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let pod = host.open().await;
    let start = host.shell("c1", "sleep 1000");
    let id = start.id.clone();
    pod.live.start(start).await.unwrap();
    let files = |pid: u32| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let logger = host.logger();
    let shim = parent(logger);
    let before = (files(shim), files(logger));
    for _ in 0..3 {
        let mut clients = Vec::new();
        for _ in 0..64 {
            clients.push(pod.live.attach(output(&id)).await.unwrap());
        }
        let refused = pod.live.attach(output(&id)).await.err().expect("refused").to_string();
        assert!(refused.contains("64 clients"), "{refused}");
        drop(clients);
        // The container is silent: nothing but their leaving tells.
        until("files are closed", || (files(shim), files(logger)) == before);
    }
    tokio::time::timeout(Duration::from_secs(20), pod.close(&host)).await.unwrap();
}

fn parent(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:\t")).unwrap().parse().unwrap()
}
