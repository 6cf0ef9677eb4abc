//! Streaming: what sessions may leave behind, and what a client may do to others.

use std::time::Duration;

use podhold_integration::{
    configs,
    footprint::Footprint,
    rig,
    rig::{BUSYBOX, Rig},
    streams::{Client, OUTPUT, PIPES, STDIN, STDOUT, TERMINAL, V4},
};
use podhold_proto::cri::{ContainerConfig, ContainerState};
use tokio::time::{interval, timeout};
use tokio_tungstenite::tungstenite::http::StatusCode;

use super::busybox;

/// What the memory of a process may grow by over hundreds of sessions: less than 32 KiB for each.
const GROWTH: usize = 6 << 10;

/// A container whose stdin lasts, as its first process: this script.
fn script(name: &str, tty: bool, script: &str) -> ContainerConfig {
    let mut config = configs::container(name, BUSYBOX, &["-c", script]);
    config.command = vec!["/bin/sh".into()];
    config.stdin = true;
    config.tty = tty;
    config
}

/// Waits until no process of the container has this word in its command line.
async fn gone(rig: &Rig, container: &str, word: &str) {
    let mut ticks = interval(Duration::from_millis(50));
    let wait = async {
        loop {
            ticks.tick().await;
            let processes = rig.cri().exec_well(container, &["ps", "-o", "args"]).await.unwrap();
            if !processes.contains(word) {
                return;
            }
        }
    };
    let left = timeout(Duration::from_secs(10), wait).await;
    assert!(left.is_ok(), "a process with {word:?} in its command line is left");
}

/// containerd kept a routine and its memory for ever for each client that went while the size of its
/// terminal was waited for, or whose command did not start.
#[tokio::test]
async fn cve_2022_23471_a_client_that_goes_while_its_terminal_is_resized_leaves_nothing() {
    let rig = rig!();
    let config = rig.pod("resize");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let container = rig.run(&pod, &config, &busybox("resize")).await;
    let one = async |number: u16| {
        let command = match number % 4 {
            0 => ["/no/such/program"].as_slice(),
            1 => ["sh", "-c", "trap '' HUP; echo up; sleep 4321"].as_slice(),
            _ => ["sleep", "4321"].as_slice(),
        };
        let url = rig.cri().exec_url(&container, command, TERMINAL).await;
        let mut client = Client::command(&rig.machine, &url).await;
        if number % 4 == 1 {
            client.until(STDOUT, "up").await;
        }
        for size in 0..number % 8 {
            client.resize(80 + size, 24).await;
        }
    };
    for number in 0..16 {
        one(number).await;
    }
    gone(&rig, &container, "4321").await;
    let before = Footprint::of(&rig, &[&pod]).await;
    for number in 0..200 {
        one(number).await;
    }
    gone(&rig, &container, "4321").await;
    before.returns(&rig, &[&pod], GROWTH).await;
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

/// containerd kept a routine for ever for each client of Attach that went.
#[tokio::test]
async fn cve_2025_64329_attached_clients_that_go_leave_nothing() {
    let rig = rig!();
    let config = rig.pod("attach");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let chatter = "while true; do echo tick; sleep 0.01; done & cat";
    let piped = rig.run(&pod, &config, &script("piped", false, chatter)).await;
    let terminal = rig.run(&pod, &config, &script("terminal", true, chatter)).await;
    let one = async |number: u16| {
        let (container, streams) = match number % 4 {
            0 => (&piped, PIPES),
            1 | 2 => (&piped, OUTPUT),
            _ => (&terminal, TERMINAL),
        };
        let url = rig.cri().attach_url(container, streams).await;
        let mut client = Client::command(&rig.machine, &url).await;
        match number % 4 {
            // Attached for certain; the others go wherever they are.
            2 => drop(client.until(STDOUT, "tick").await),
            3 => drop(client.resize(80, 24).await),
            _ => {}
        }
    };
    for number in 0..16 {
        one(number).await;
    }
    // Stdin is given back, so that nobody is left of those before.
    let before = Footprint::of(&rig, &[&pod]).await;
    for number in 0..400 {
        one(number).await;
    }
    before.returns(&rig, &[&pod], GROWTH).await;
    for (container, streams) in [(&piped, PIPES), (&terminal, TERMINAL)] {
        let url = rig.cri().attach_url(container, streams).await;
        let mut client = Client::command(&rig.machine, &url).await;
        assert!(client.send(STDIN, b"stdin is free\n").await);
        client.until(STDOUT, "stdin is free").await;
    }
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_url_works_once_and_for_its_own_kind_alone() {
    let rig = rig!();
    let config = rig.pod("urls");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let container = rig.run(&pod, &config, &busybox("urls")).await;
    let urls = [
        ("/exec/", rig.cri().exec_url(&container, &["sleep", "4321"], OUTPUT).await),
        ("/attach/", rig.cri().attach_url(&container, OUTPUT).await),
        ("/portforward/", rig.cri().forward_url(&pod, 80).await),
    ];
    for (kind, url) in &urls {
        assert!(url.contains(kind), "{url}");
        for (other, _) in urls.iter().filter(|(other, _)| other != kind) {
            let wrong = url.replace(kind, other);
            let refusal = Client::dial(&rig.machine, &wrong, V4).await.err();
            assert_eq!(refusal, Some(StatusCode::NOT_FOUND), "{kind} under {other}");
        }
        let client = Client::dial(&rig.machine, url, V4).await;
        assert!(client.is_ok(), "{kind}: a wrong path has used it up");
        for when in ["during", "after"] {
            let refusal = Client::dial(&rig.machine, url, V4).await.err();
            assert_eq!(refusal, Some(StatusCode::NOT_FOUND), "{kind} again, {when} its session");
        }
    }
    gone(&rig, &container, "4321").await;
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

/// Signals that can be ignored are; children in the background are as well in the session.
#[tokio::test]
async fn a_command_whose_client_goes_is_killed_with_its_children() {
    let rig = rig!();
    let config = rig.pod("killed");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let container = rig.run(&pod, &config, &busybox("killed")).await;
    let script = "trap '' HUP TERM INT PIPE; sleep 4321 & (sleep 4322; true) >/dev/null 2>&1 & \
                  echo up; sleep 4323; true";
    for streams in [OUTPUT, PIPES, TERMINAL] {
        let url = rig.cri().exec_url(&container, &["sh", "-c", script], streams).await;
        let mut client = Client::command(&rig.machine, &url).await;
        client.until(STDOUT, "up").await;
        let running = rig.cri().exec_well(&container, &["ps", "-o", "args"]).await.unwrap();
        assert!(running.contains("sleep 4321"), "{running}");
        drop(client);
        gone(&rig, &container, "432").await;
    }
    let status = rig.cri().status(&container).await.unwrap();
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

/// It costs neither the container nor another client anything, and nothing is kept for it.
#[tokio::test]
async fn a_client_that_never_reads_is_cut_off_alone() {
    const ROUND: usize = 256 << 10;
    const ROUNDS: usize = 256;
    let rig = rig!();
    let config = rig.pod("slow");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let rounds = format!("while read line; do head -c {ROUND} /dev/zero; done");
    let container = rig.run(&pod, &config, &script("writes", false, &rounds)).await;
    let url = rig.cri().attach_url(&container, PIPES).await;
    let mut eager = Client::command(&rig.machine, &url).await;
    let mut round = async || {
        assert!(eager.send(STDIN, b"\n").await, "the client that reads was cut off as well");
        let mut got = 0;
        while got < ROUND {
            let (channel, octets) = eager.next().await.expect("the client that reads goes on");
            assert_eq!(channel, STDOUT);
            got += octets.len();
        }
        assert_eq!(got, ROUND);
    };
    round().await;
    let before = Footprint::of(&rig, &[&pod]).await;
    let url = rig.cri().attach_url(&container, OUTPUT).await;
    let lazy = Client::command(&rig.machine, &url).await;
    for _ in 0..ROUNDS {
        round().await;
    }
    // Nobody but the lazy client itself ends its connection, were it not cut off.
    before.returns(&rig, &[&pod], 16 << 10).await;
    let rest = lazy.rest().await;
    println!("a client that never read was given {} octets: {}", rest.stdout.len(), rest.error);
    assert!(rest.stdout.len() < ROUND * ROUNDS, "everything was kept for a client that does not read");
    round().await;
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}
