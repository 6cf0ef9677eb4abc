//! How a pod is reached, and what it reaches.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    io::Read,
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use podhold_integration::{configs::log_file, log, rig, rig::Rig};
use podhold_proto::cri::PortMapping;

/// What a server at this address sends, seen from the machine.
async fn fetch(rig: &Rig, address: SocketAddr) -> Result<String, String> {
    let get = move || -> std::io::Result<String> {
        let limit = Duration::from_secs(5);
        let mut stream = TcpStream::connect_timeout(&address, limit)?;
        stream.set_read_timeout(Some(limit))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    rig.machine.in_network(get).await.unwrap().map_err(|error| format!("{address}: {error}"))
}

#[tokio::test]
async fn containers_of_a_pod_talk_over_localhost() {
    let rig = rig!();
    let config = rig.pod("localhost");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    rig.probe(&pod, &config, "server", &["serve", "80", "hello"]).await;
    log::wait_for(&log_file(&config, "server"), "listening on 80").await;
    let client = rig
        .probe(&pod, &config, "client", &["connect", "127.0.0.1", "80", "+", "connect", "::1", "80"])
        .await;
    let ended = rig.cri().ended(&client, Duration::from_secs(10)).await.unwrap();
    let lines = log::lines(&log_file(&config, "client"), "stdout").unwrap();
    assert_eq!((ended.exit_code, lines), (0, vec!["hello".to_owned(); 2]));
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_pod_is_reached_at_its_addresses_of_both_families() {
    let rig = rig!();
    let config = rig.pod("addresses");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    rig.probe(&pod, &config, "server", &["serve", "80", "hello"]).await;
    log::wait_for(&log_file(&config, "server"), "listening on 80").await;
    let network = rig.cri().pod_status(&pod).await.unwrap().network.unwrap();
    let v4: IpAddr = network.ip.parse().unwrap();
    assert_eq!(network.additional_ips.len(), 1, "{network:?}");
    let v6: IpAddr = network.additional_ips[0].ip.parse().unwrap();
    assert!(v4.is_ipv4() && v6.is_ipv6(), "{network:?}");
    for ip in [v4, v6] {
        assert_eq!(fetch(&rig, SocketAddr::new(ip, 80)).await.unwrap(), "hello\n");
    }
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn pods_reach_each_other_and_no_address_is_used_twice() {
    let rig = rig!();
    let (one, two) = (rig.pod("one"), rig.pod("two"));
    let (first, second) = tokio::join!(rig.cri().run_pod(&one), rig.cri().run_pod(&two));
    let (first, second) = (first.unwrap(), second.unwrap());
    rig.probe(&first, &one, "server", &["serve", "80", "hello"]).await;
    log::wait_for(&log_file(&one, "server"), "listening on 80").await;
    let ip = rig.cri().pod_status(&first).await.unwrap().network.unwrap().ip;
    assert_ne!(ip, rig.cri().pod_status(&second).await.unwrap().network.unwrap().ip);
    let client = rig.probe(&second, &two, "client", &["connect", &ip, "80"]).await;
    assert_eq!(rig.cri().ended(&client, Duration::from_secs(10)).await.unwrap().exit_code, 0);
    rig.cri().end_pod(&first).await.unwrap();
    rig.cri().end_pod(&second).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_host_port_leads_into_the_pod_and_goes_with_it() {
    let rig = rig!();
    let mut config = rig.pod("ports");
    config.port_mappings = vec![PortMapping { container_port: 80, host_port: 18080, ..Default::default() }];
    let pod = rig.cri().run_pod(&config).await.unwrap();
    rig.probe(&pod, &config, "server", &["serve", "80", "hello"]).await;
    log::wait_for(&log_file(&config, "server"), "listening on 80").await;
    // The gateway's address is one of the host's.
    let address: SocketAddr = "10.88.0.1:18080".parse().unwrap();
    assert_eq!(fetch(&rig, address).await.unwrap(), "hello\n");
    rig.cri().end_pod(&pod).await.unwrap();
    assert!(fetch(&rig, address).await.is_err(), "the port still leads somewhere");
    rig.finish().await;
}

#[tokio::test]
async fn a_stopped_pod_has_given_its_address_back() {
    let rig = rig!();
    let config = rig.pod("stopped");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let ip = rig.cri().pod_status(&pod).await.unwrap().network.unwrap().ip;
    let reserved = format!("/var/lib/cni/networks/podhold-it/{ip}");
    assert_eq!(rig.machine.run(["test", "-e", &reserved]).await.unwrap().code, 0);
    rig.cri().stop_pod(&pod).await.unwrap();
    assert_eq!(rig.machine.run(["test", "-e", &reserved]).await.unwrap().code, 1);
    rig.cri().remove_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn name_resolution_is_what_the_pod_asked_for() {
    let rig = rig!();
    let config = rig.pod("names");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let id = rig.probe(&pod, &config, "one", &["sleep"]).await;
    let read = async |path: &str| rig.cri().exec_well(&id, &["/probe", "read", path]).await.unwrap();
    let resolv = read("/etc/resolv.conf").await;
    for line in ["nameserver 192.0.2.53", "search default.svc.cluster.local", "options ndots:5"] {
        assert!(resolv.lines().any(|each| each == line), "{line:?} is not in {resolv:?}");
    }
    assert_eq!(read("/etc/hostname").await.trim(), "names");
    assert_eq!(
        rig.cri().exec_well(&id, &["/probe", "show", "hostname"]).await.unwrap().trim(),
        "hostname=names"
    );
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}
