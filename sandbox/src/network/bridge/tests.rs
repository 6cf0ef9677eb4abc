//! The network on a host of its own: a network namespace in which threads of these tests are at home.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    thread,
    time::Duration,
};

mod shared;
mod trouble;

use super::*;
use crate::network::{PortMapping, Protocol};

const PATIENCE: Duration = Duration::from_secs(30);

/// Runs `test` on a host of its own, if that can be had.
fn on_a_host(test: impl FnOnce(&Path) + Send) {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: network namespaces need root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let host = dir.path().join("host");
    netns::create(&host).unwrap();
    let result = netns::run_in(&host, || test(dir.path()));
    // Whatever has become of it, nothing stays mounted: the host's and all pods' namespaces.
    for entry in fs::read_dir(dir.path()).unwrap().filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            netns::remove(&entry.path()).unwrap();
        }
    }
    result.unwrap();
}

fn bridge(dir: &Path, owner: &str) -> Arc<Bridge> {
    Arc::new(Bridge::new(BridgeConfig {
        dir: dir.join(owner),
        owner: dir.join(owner),
        name: String::new(),
        v4: "10.214.0.0/22".parse().unwrap(),
        v6: Some("fd50:6f64::/64".parse().unwrap()),
        mtu: 0,
    }))
}

/// A pod with these ports of the host, each leading to port 80.
fn pod(dir: &Path, n: u32, ports: &[u16]) -> Attachment {
    let id = PodId::parse(&format!("{n:012x}aa")).unwrap();
    let netns = dir.join(id.as_str());
    netns::create(&netns).unwrap();
    let mut pod = Attachment::new(id, netns, "default", "pod", "uid");
    pod.port_mappings = ports.iter().map(|port| mapping(*port, None)).collect();
    pod
}

fn mapping(host_port: u16, host_ip: Option<&str>) -> PortMapping {
    let host_ip = host_ip.map(|ip| ip.parse().unwrap());
    PortMapping { host_port, container_port: 80, protocol: Protocol::Tcp, host_ip }
}

fn connect(bridge: &Bridge, pod: &Attachment) -> Result<Vec<IpAddr>, BridgeError> {
    bridge.connect(pod, host_ports(pod)?)
}

/// Tells every client, at port 80 of the pod, who it is.
fn serve(pod: &Attachment) {
    let listener = netns::run_in(&pod.netns, || TcpListener::bind("[::]:80").unwrap()).unwrap();
    thread::spawn(move || {
        while let Ok((mut client, from)) = listener.accept() {
            let _gone = client.write_all(from.ip().to_canonical().to_string().as_bytes());
        }
    });
}

/// Whom the server takes this thread for.
fn ask(to: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn ask_from(pod: &Attachment, to: SocketAddr) -> std::io::Result<String> {
    netns::run_in(&pod.netns, || ask(to)).unwrap()
}

/// A bridge of somebody else.
fn make_a_bridge(links: &Links, name: &str, group: u32) {
    let bridge = links::NewBridge { name, alias: "mine", mac: [2, 0, 0, 0, 0, 1], mtu: 0, group };
    links.make_bridge(bridge).unwrap();
}

/// The links of this host.
fn links() -> Vec<String> {
    Links::open().unwrap().list().unwrap().into_iter().map(|link| link.name).collect()
}

fn close(bridge: &Arc<Bridge>) {
    let links = Links::open().unwrap();
    base::remove(&bridge.config, &bridge.names, &links).unwrap();
}

#[test]
fn pods_the_host_and_its_ports_reach_each_other() {
    on_a_host(|dir| {
        let bridge = bridge(dir, "a");
        let (a, b) = (pod(dir, 1, &[]), pod(dir, 2, &[8080]));
        let (at_a, at_b) = (connect(&bridge, &a).unwrap(), connect(&bridge, &b).unwrap());
        serve(&b);
        for (from, to) in at_a.iter().zip(&at_b) {
            assert_eq!(ask_from(&a, SocketAddr::new(*to, 80)).unwrap(), from.to_string(), "pod to pod");
        }
        let gateway: IpAddr = "10.214.0.1".parse().unwrap();
        let gateway6: IpAddr = "fd50:6f64::1".parse().unwrap();
        for from in [gateway, gateway6] {
            let to = at_b.iter().find(|to| to.is_ipv4() == from.is_ipv4()).unwrap();
            assert_eq!(ask(SocketAddr::new(*to, 80)).unwrap(), from.to_string(), "host to pod");
            assert_eq!(ask(SocketAddr::new(from, 8080)).unwrap(), from.to_string(), "host port");
            let hairpin = ask_from(&a, SocketAddr::new(from, 8080)).unwrap();
            assert_eq!(hairpin, from.to_string(), "pod to host port");
            let own = ask_from(&b, SocketAddr::new(from, 8080)).unwrap();
            assert_eq!(own, from.to_string(), "pod to its own host port");
        }
        let loopback = ask("127.0.0.1:8080".parse().unwrap()).unwrap();
        assert_eq!(loopback, gateway.to_string(), "loopback to host port");
        for pod in [&a, &b] {
            bridge.give_back(&pod.pod).unwrap();
            bridge.give_back(&pod.pod).unwrap();
        }
        assert!(ask("127.0.0.1:8080".parse().unwrap()).is_err());
        close(&bridge);
        assert_eq!(links(), ["lo"]);
        assert!(nft::tables(&nft::open().unwrap()).unwrap().is_empty());
        assert!(bridge.recorded().is_empty());
    });
}

#[test]
fn ports_that_somebody_has_are_refused() {
    on_a_host(|dir| {
        let (ours, theirs) = (bridge(dir, "a"), bridge(dir, "b"));
        let _listener = TcpListener::bind("127.0.0.1:8081").unwrap();
        connect(&ours, &pod(dir, 1, &[8080])).unwrap();
        let refused = |bridge: &Bridge, pod: &Attachment| connect(bridge, pod).unwrap_err().to_string();
        let by_pod = refused(&ours, &pod(dir, 2, &[8080]));
        assert!(by_pod.contains("8080/tcp") && by_pod.contains("pod 000000000001aa"), "{by_pod}");
        let by_daemon = refused(&theirs, &pod(dir, 3, &[8080]));
        assert!(by_daemon.contains("another daemon"), "{by_daemon}");
        let by_program = refused(&ours, &pod(dir, 4, &[8081]));
        assert!(by_program.contains("8081/tcp") && by_program.contains("program"), "{by_program}");
        let mut odd = pod(dir, 5, &[]);
        odd.port_mappings = vec![mapping(1, Some("224.0.0.1"))];
        assert!(refused(&ours, &odd).contains("host_ip"));
        odd.port_mappings.clear();
        odd.annotations.insert(ports::BANDWIDTH[0].to_owned(), "1M".to_owned());
        assert!(refused(&ours, &odd).contains("bandwidth"));
    });
}

#[test]
fn two_daemons_have_ranges_and_rules_of_their_own() {
    on_a_host(|dir| {
        let (first, second) = (bridge(dir, "a"), bridge(dir, "b"));
        let (a, b) = (pod(dir, 1, &[]), pod(dir, 2, &[8082]));
        let at_a = connect(&first, &a).unwrap();
        let at_b = connect(&second, &b).unwrap();
        assert_eq!(at_a[0].to_string(), "10.214.0.2");
        assert_eq!(at_b[0].to_string(), "10.214.4.2");
        serve(&b);
        let gateway = "10.214.4.1";
        let seen = ask_from(&a, SocketAddr::new(at_b[0], 80)).unwrap();
        assert_eq!(seen, gateway, "what leaves the pool is masqueraded");
        first.give_back(&a.pod).unwrap();
        close(&first);
        assert_eq!(ask("127.0.0.1:8082".parse().unwrap()).unwrap(), gateway);
    });
}

#[test]
fn a_successor_takes_up_what_there_is_and_mends_what_is_missing() {
    on_a_host(|dir| {
        let (a, b, c) = (pod(dir, 1, &[]), pod(dir, 2, &[8083]), pod(dir, 3, &[]));
        let first = bridge(dir, "a");
        for pod in [&a, &b, &c] {
            connect(&first, pod).unwrap();
        }
        serve(&b);
        // Of one the record is lost, and of one the pod.
        record::remove(&first.config.dir, &a.pod).unwrap();
        record::remove(&first.config.dir, &c.pod).unwrap();
        rules::remove(&first.names.table).unwrap();
        let second = bridge(dir, "a");
        let known = link_of(&a.pod)[3..].to_owned();
        assert!(second.take_up(&|pod| pod == known).is_empty());
        assert_eq!(ask("127.0.0.1:8083".parse().unwrap()).unwrap(), "10.214.0.1");
        let links = Links::open().unwrap();
        assert!(links.find(&link_of(&a.pod)).unwrap().is_some());
        assert!(links.find(&link_of(&c.pod)).unwrap().is_none());
        let fresh = connect(&second, &pod(dir, 4, &[])).unwrap();
        assert!(!["10.214.0.2", "10.214.0.3"].contains(&fresh[0].to_string().as_str()), "{fresh:?}");
        // Somebody removes the bridge: the next pod makes it again, and connects those that are there.
        links.remove(&second.names.bridge).unwrap();
        connect(&second, &pod(dir, 5, &[])).unwrap();
        assert_eq!(ask("127.0.0.1:8083".parse().unwrap()).unwrap(), "10.214.0.1");
    });
}

#[test]
fn a_link_of_somebody_else_is_left_alone() {
    on_a_host(|dir| {
        let bridge = bridge(dir, "a");
        let links = Links::open().unwrap();
        make_a_bridge(&links, &bridge.names.bridge, bridge.names.group);
        let error = connect(&bridge, &pod(dir, 1, &[])).unwrap_err();
        assert!(matches!(error, BridgeError::Foreign { .. }), "{error}");
        close(&bridge);
        assert!(links.find(&bridge.names.bridge).unwrap().is_some());
    });
}

#[test]
fn a_record_that_was_tampered_with_is_damaged_and_its_pod_can_be_removed() {
    on_a_host(|dir| {
        let bridge = bridge(dir, "a");
        let a = pod(dir, 1, &[]);
        connect(&bridge, &a).unwrap();
        let path = bridge.record_path(&a.pod);
        for text in ["", "{", r#"{"version":1,"data":{}}"#] {
            fs::write(&path, text).unwrap();
            assert!(Record::read(&bridge.config.dir, &a.pod).is_err(), "{text}");
        }
        let second = self::bridge(dir, "a");
        assert_eq!(second.take_up(&|_| true).len(), 1);
        assert_ne!(connect(&second, &pod(dir, 2, &[])).unwrap()[0].to_string(), "10.214.0.2");
        second.give_back(&a.pod).unwrap();
        assert!(!path.exists());
        assert!(Links::open().unwrap().find(&link_of(&a.pod)).unwrap().is_none());
    });
}

#[test]
fn the_last_pod_takes_the_bridge_with_it_where_that_is_wanted() {
    on_a_host(|dir| {
        let bridge = bridge(dir, "a");
        let (a, b) = (pod(dir, 1, &[8081]), pod(dir, 2, &[8082]));
        connect(&bridge, &a).unwrap();
        connect(&bridge, &b).unwrap();
        bridge.close_with_last();
        bridge.give_back(&b.pod).unwrap();
        assert_eq!(links(), ["lo", &bridge.names.bridge, &link_of(&a.pod)], "another pod is on it");
        bridge.give_back(&a.pod).unwrap();
        assert_eq!(links(), ["lo"]);
        assert!(nft::tables(&nft::open().unwrap()).unwrap().is_empty());
        assert!(bridge.recorded().is_empty() && bridge.ledger().is_empty());
        // One that comes later finds all of it made again.
        connect(&bridge, &a).unwrap();
        serve(&a);
        assert_eq!(ask("127.0.0.1:8081".parse().unwrap()).unwrap(), "10.214.0.1");
    });
}

#[test]
fn what_somebody_has_put_into_the_group_of_our_links_stays() {
    on_a_host(|dir| {
        let bridge = bridge(dir, "a");
        connect(&bridge, &pod(dir, 1, &[])).unwrap();
        make_a_bridge(&Links::open().unwrap(), "foreign", bridge.names.group);
        close(&bridge);
        assert_eq!(links(), ["lo", "foreign"]);
    });
}

#[test]
fn a_pod_that_comes_while_the_last_one_goes_is_connected() {
    on_a_host(|dir| {
        let bridge = bridge(dir, "a");
        let (a, b) = (pod(dir, 1, &[]), pod(dir, 2, &[8081]));
        serve(&b);
        bridge.close_with_last();
        connect(&bridge, &a).unwrap();
        for _ in 0..10 {
            thread::scope(|scope| {
                let goes = scope.spawn(|| bridge.give_back(&a.pod).unwrap());
                let comes = scope.spawn(|| connect(&bridge, &b).unwrap());
                bridge.mend_for_pods(&Links::open().unwrap()).unwrap();
                goes.join().unwrap();
                comes.join().unwrap();
            });
            assert_eq!(ask("127.0.0.1:8081".parse().unwrap()).unwrap(), "10.214.0.1");
            connect(&bridge, &a).unwrap();
            bridge.give_back(&b.pod).unwrap();
        }
        bridge.give_back(&a.pod).unwrap();
        bridge.mend_for_pods(&Links::open().unwrap()).unwrap();
        assert_eq!(links(), ["lo"]);
    });
}
