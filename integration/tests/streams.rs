//! Streams and the life of what they are joined with.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::time::Duration;

use podhold_integration::{
    configs::{self, Parts},
    footprint::Footprint,
    rig,
    rig::BUSYBOX,
    streams::{Client, OUTPUT, PIPES, STDIN, STDOUT, V4},
};
use podhold_proto::cri::{ContainerConfig, ContainerState, NamespaceMode};

const SOON: Duration = Duration::from_secs(10);

/// A container whose stdin lasts, as its first process: this script.
fn script(name: &str, script: &str) -> ContainerConfig {
    let mut config = configs::container(name, BUSYBOX, &["-c", script]);
    config.command = vec!["/bin/sh".into()];
    config.stdin = true;
    config
}

#[tokio::test]
async fn all_that_are_attached_get_the_rest_and_the_end() {
    let rig = rig!();
    let config = rig.pod("rest");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let ends = "echo ready; read line; head -c 1000000 /dev/zero; echo last >&2; printf last; exit 7";
    let container = rig.run(&pod, &config, &script("ends", ends)).await;
    podhold_integration::log::wait_for(&configs::log_file(&config, "ends"), "ready").await;
    let url = rig.cri().attach_url(&container, OUTPUT).await;
    let watching = Client::command(&rig.machine, &url).await;
    let url = rig.cri().attach_url(&container, PIPES).await;
    let mut asking = Client::command(&rig.machine, &url).await;
    // Both are attached, once the second has stdin.
    assert!(asking.send(STDIN, b"go on\n").await);
    for rest in [asking.rest().await, watching.rest().await] {
        assert_eq!(rest.stdout.len(), 1_000_004);
        assert!(rest.stdout.ends_with(b"\0last"));
        assert_eq!(rest.stderr, b"last\n");
        assert!(rest.error.contains("\"Success\"") && rest.closed, "{} {}", rest.error, rest.closed);
    }
    assert_eq!(rig.cri().ended(&container, SOON).await.unwrap().exit_code, 7);
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn all_sessions_end_with_their_pod() {
    let rig = rig!();
    let before = Footprint::of(&rig, &[]).await;
    let config = rig.pod("removed");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    rig.probe(&pod, &config, "echo", &["echo", "8080"]).await;
    let container = rig.run(&pod, &config, &script("cat", "cat")).await;
    let log = configs::log_file(&config, "echo");
    podhold_integration::log::wait_for(&log, "listening on 8080").await;
    let urls = [
        rig.cri().exec_url(&container, &["cat"], PIPES).await,
        rig.cri().attach_url(&container, PIPES).await,
        rig.cri().forward_url(&pod, 8080).await,
    ];
    let unused = rig.cri().exec_url(&container, &["cat"], PIPES).await;
    let mut clients = Vec::new();
    for url in urls {
        let mut client = Client::dial(&rig.machine, &url, V4).await.unwrap();
        assert!(client.send(STDIN, b"alive\n").await);
        // Data of the port is on channel 0, which is that of stdin; what is first there is its number.
        while !client.next().await.unwrap().1.ends_with(b"alive\n") {}
        clients.push(client);
    }
    rig.cri().end_pod(&pod).await.unwrap();
    for mut client in clients {
        while client.next().await.is_ok() {}
    }
    let rest = Client::command(&rig.machine, &unused).await.rest().await;
    assert!(rest.error.contains("is not known") && rest.closed, "{}", rest.error);
    before.returns(&rig, &[], 16 << 10).await;
    rig.finish().await;
}

/// What is at the other end of a host-network pod's port may be the host's, and outlive the pod.
#[tokio::test]
async fn a_port_of_a_host_network_pod_is_forwarded_as_long_as_the_pod_is_there() {
    let rig = rig!();
    let mut config = rig.pod("host");
    config.namespaces().network = NamespaceMode::Node.into();
    let pod = rig.cri().run_pod(&config).await.unwrap();
    // The registry of this machine. It keeps a connection open between two requests.
    let url = rig.cri().forward_url(&pod, 5000).await;
    let mut client = Client::dial(&rig.machine, &url, V4).await.unwrap();
    assert!(client.send(0, b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n").await);
    client.next().await.unwrap();
    client.next().await.unwrap();
    let answer = client.next().await.unwrap();
    assert!(answer.1.starts_with(b"HTTP/1.1 200"), "{answer:?}");
    rig.cri().stop_pod(&pod).await.unwrap();
    while client.next().await.is_ok() {}
    rig.cri().remove_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_container_outlives_the_daemon_its_client_was_attached_by() {
    let mut rig = rig!();
    let config = rig.pod("outlives");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let container = rig.run(&pod, &config, &script("cat", "cat")).await;
    for crash in [true, false] {
        let url = rig.cri().attach_url(&container, PIPES).await;
        let mut client = Client::command(&rig.machine, &url).await;
        assert!(client.send(STDIN, b"before\n").await);
        client.until(STDOUT, "before").await;
        if crash {
            rig.crash_and_restart().await;
        } else {
            rig.restart().await;
        }
        while client.next().await.is_ok() {}
        let status = rig.cri().status(&container).await.unwrap();
        assert_eq!(status.state(), ContainerState::ContainerRunning);
        // The first client's stdin is free, and the second one is heard.
        let url = rig.cri().attach_url(&container, PIPES).await;
        let mut client = Client::command(&rig.machine, &url).await;
        assert!(client.send(STDIN, b"after\n").await);
        client.until(STDOUT, "after").await;
        client.end(STDIN).await;
        client.rest().await;
    }
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_daemon_that_ends_tells_the_clients_it_leaves() {
    let mut rig = rig!();
    let config = rig.pod("told");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let container = rig.run(&pod, &config, &script("cat", "cat")).await;
    let exec = rig.cri().exec_url(&container, &["/bin/sleep", "1000"], PIPES).await;
    let attach = rig.cri().attach_url(&container, PIPES).await;
    let clients = [Client::command(&rig.machine, &exec).await, Client::command(&rig.machine, &attach).await];
    let told = tokio::spawn(futures::future::join_all(clients.map(Client::rest)));
    rig.restart().await;
    for rest in told.await.unwrap() {
        assert!(rest.error.contains("Failure") && rest.error.contains("podhold is ending"), "{rest:?}");
    }
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_port_that_is_open_on_ipv6_alone_is_forwarded() {
    let rig = rig!();
    let config = rig.pod("ipv6");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    rig.probe(&pod, &config, "echo", &["echo", "8080", "::1"]).await;
    let log = configs::log_file(&config, "echo");
    podhold_integration::log::wait_for(&log, "listening on 8080").await;
    let url = rig.cri().forward_url(&pod, 8080).await;
    let mut client = Client::dial(&rig.machine, &url, V4).await.unwrap();
    let (data, error) = (0, 1);
    assert_eq!(client.next().await.unwrap(), (data, 8080_u16.to_le_bytes().to_vec().into()));
    assert_eq!(client.next().await.unwrap(), (error, 8080_u16.to_le_bytes().to_vec().into()));
    assert!(client.send(data, b"over ::1").await);
    assert_eq!(client.next().await.unwrap(), (data, b"over ::1".to_vec().into()));
    drop(client);
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}
