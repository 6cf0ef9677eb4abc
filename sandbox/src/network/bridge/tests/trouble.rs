//! What somebody takes away beneath pods, and what the kernel or a damaged record would lead astray.

use std::{io::ErrorKind, net::UdpSocket};

use super::*;

/// Tells every client, by UDP at port 80 of the pod, `name`.
fn serve_udp(pod: &Attachment, name: &'static str) {
    let socket = netns::run_in(&pod.netns, || UdpSocket::bind("0.0.0.0:80").unwrap()).unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 16];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _gone = socket.send_to(name.as_bytes(), from);
        }
    });
}

fn udp(pod: &mut Attachment, port: u16) {
    let mapping = PortMapping { protocol: Protocol::Udp, ..mapping(port, None) };
    pod.port_mappings = vec![mapping];
}

/// What the first answer to this client says; a datagram may be lost.
fn answer(client: &UdpSocket, to: &str) -> Option<String> {
    let mut buffer = [0; 16];
    for _ in 0..10 {
        // What was refused earlier is told now.
        let _refused = client.send_to(b"?", to);
        if let Ok((length, _)) = client.recv_from(&mut buffer) {
            return Some(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
    }
    None
}

#[test]
fn a_udp_client_that_goes_on_reaches_the_pod_that_has_the_port_now() {
    on_a_host(|dir| {
        let bridge = bridge(dir, "a");
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let to = "127.0.0.1:5353";
        let (mut first, mut second) = (pod(dir, 1, &[]), pod(dir, 2, &[]));
        for (pod, name) in [(&mut first, "first"), (&mut second, "second")] {
            udp(pod, 5353);
            serve_udp_when_connected(&bridge, pod, name, (&client, to));
            bridge.give_back(&pod.pod).unwrap();
        }
    });
}

/// The client asks before the port is open, too: the kernel remembers that it led nowhere.
fn serve_udp_when_connected(
    bridge: &Bridge,
    pod: &Attachment,
    name: &'static str,
    (client, to): (&UdpSocket, &str),
) {
    let _nobody = client.send_to(b"?", to);
    connect(bridge, pod).unwrap();
    serve_udp(pod, name);
    assert_eq!(answer(client, to).as_deref(), Some(name));
}

#[test]
fn the_loopback_address_that_no_pod_can_be_reached_by_is_refused_at_once() {
    on_a_host(|dir| {
        let bridge = bridge(dir, "a");
        let a = pod(dir, 1, &[8087]);
        connect(&bridge, &a).unwrap();
        serve(&a);
        let refused = ask("[::1]:8087".parse().unwrap()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{refused}");
        assert_eq!(ask("127.0.0.1:8087".parse().unwrap()).unwrap(), "10.214.0.1");
    });
}

#[test]
fn rules_that_somebody_flushes_beneath_a_daemon_are_made_again() {
    on_a_host(|dir| {
        let bridge = bridge(dir, "a");
        let a = pod(dir, 1, &[8088]);
        connect(&bridge, &a).unwrap();
        serve(&a);
        rules::remove(&bridge.names.table).unwrap();
        assert!(ask("127.0.0.1:8088".parse().unwrap()).is_err());
        // What Status and the upkeep do.
        bridge.ready(&Links::open().unwrap()).unwrap();
        assert_eq!(ask("127.0.0.1:8088".parse().unwrap()).unwrap(), "10.214.0.1");
        rules::remove(&bridge.names.table).unwrap();
        // A pod without ports of its own.
        connect(&bridge, &pod(dir, 2, &[])).unwrap();
        assert_eq!(ask("127.0.0.1:8088".parse().unwrap()).unwrap(), "10.214.0.1");
    });
}

#[test]
fn a_pod_whose_record_is_damaged_keeps_its_ports() {
    on_a_host(|dir| {
        let first = bridge(dir, "a");
        let a = pod(dir, 1, &[8089]);
        connect(&first, &a).unwrap();
        serve(&a);
        fs::write(first.record_path(&a.pod), "{").unwrap();
        let second = bridge(dir, "a");
        assert_eq!(second.take_up(&|_| true).len(), 1);
        assert_eq!(ask("127.0.0.1:8089".parse().unwrap()).unwrap(), "10.214.0.1");
        let refused = connect(&second, &pod(dir, 2, &[8089])).unwrap_err().to_string();
        assert!(refused.contains("8089/tcp"), "{refused}");
        // It is at the bridge again when that has to be made anew.
        let links = Links::open().unwrap();
        links.remove(&second.names.bridge).unwrap();
        second.ready(&links).unwrap();
        assert_eq!(ask("127.0.0.1:8089".parse().unwrap()).unwrap(), "10.214.0.1");
        second.give_back(&a.pod).unwrap();
        assert!(ask("127.0.0.1:8089".parse().unwrap()).is_err());
        connect(&second, &pod(dir, 3, &[8089])).unwrap();
    });
}

#[test]
fn a_record_that_was_cut_off_while_it_was_written_goes() {
    let dir = tempfile::tempdir().unwrap();
    let bridge = bridge(dir.path(), "a");
    fs::create_dir(&bridge.config.dir).unwrap();
    let record = bridge.record_path(&PodId::parse("000000000001aa").unwrap());
    let unfinished = crate::record::temporary_of(&record).unwrap();
    fs::write(&unfinished, "{").unwrap();
    record::remove_unfinished(&bridge.config.dir);
    assert!(!unfinished.exists());
}
