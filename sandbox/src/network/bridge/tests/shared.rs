//! What is the host's own, or of several daemons: settings, ranges of addresses, names, and what is left over.

use super::*;

const IPV4: &str = "/proc/sys/net/ipv4/conf";
const IPV6: &str = "/proc/sys/net/ipv6/conf";

fn setting(conf: &str, interface: &str, name: &str) -> String {
    let text = fs::read_to_string(format!("{conf}/{interface}/{name}"));
    text.map(|text| text.trim().to_owned()).unwrap_or_else(|error| format!("{interface}/{name}: {error}"))
}

fn set(conf: &str, interface: &str, name: &str, value: &str) {
    fs::write(format!("{conf}/{interface}/{name}"), value).unwrap();
}

/// Has the host forward nothing, and gives it the interface `up0`, whose other end is here too.
fn with_an_uplink() -> Links {
    for conf in [IPV4, IPV6] {
        set(conf, "all", "forwarding", "0");
    }
    let links = Links::open().unwrap();
    // A pair at a bridge that goes: both ends stay, and are at none.
    make_a_bridge(&links, "brief", 0);
    let master = links.find("brief").unwrap().unwrap().index;
    let pair = Pair { name: "up0", alias: "", master, mac: [2, 0, 0, 0, 9, 9], mtu: 0, group: 0 };
    links.make_pair(pair, fs::File::open("/proc/thread-self/ns/net").unwrap()).unwrap();
    links.remove("brief").unwrap();
    links
}

fn forwards4() -> String {
    setting(IPV4, "up0", "forwarding")
}

/// As far as this kernel has it for single interfaces.
fn forwards6() -> String {
    let own = format!("{IPV6}/up0/force_forwarding");
    if Path::new(&own).exists() {
        setting(IPV6, "up0", "force_forwarding")
    } else {
        setting(IPV6, "all", "forwarding")
    }
}

#[test]
fn what_forwards_for_two_daemons_does_until_the_last_has_gone() {
    on_a_host(|dir| {
        let _links = with_an_uplink();
        let (a, b) = (bridge(dir, "a"), bridge(dir, "b"));
        let (pod_a, pod_b) = (pod(dir, 1, &[]), pod(dir, 2, &[]));
        connect(&a, &pod_a).unwrap();
        connect(&b, &pod_b).unwrap();
        assert_eq!((forwards4(), forwards6()), ("1".into(), "1".into()));
        a.give_back(&pod_a.pod).unwrap();
        close(&a);
        assert_eq!((forwards4(), forwards6()), ("1".into(), "1".into()), "the other's pods need it");
        // Somebody takes it away beneath the pods that are left.
        set(IPV4, "up0", "forwarding", "0");
        b.ready(&Links::open().unwrap()).unwrap();
        assert_eq!(forwards4(), "1");
        b.give_back(&pod_b.pod).unwrap();
        close(&b);
        assert_eq!((forwards4(), forwards6()), ("0".into(), "0".into()));
    });
}

#[test]
fn what_the_host_has_decided_meanwhile_stays() {
    on_a_host(|dir| {
        let _links = with_an_uplink();
        // The administrator's own, on one interface.
        set(IPV4, "eth0", "forwarding", "1");
        let bridge = bridge(dir, "a");
        let a = pod(dir, 1, &[]);
        connect(&bridge, &a).unwrap();
        assert_eq!(forwards4(), "1");
        let (own, others) = rules::uplinks(&bridge.names.table).unwrap();
        assert_eq!(own.v4.iter().collect::<Vec<_>>(), ["up0"], "eth0 forwards for itself");
        assert_eq!(others, forwarding::Uplinks::default());
        // As Docker does it.
        set(IPV4, "all", "forwarding", "1");
        bridge.ready(&Links::open().unwrap()).unwrap();
        let (own, _) = rules::uplinks(&bridge.names.table).unwrap();
        assert!(own.v4.is_empty(), "what the host forwards between others is not cut off: {own:?}");
        bridge.give_back(&a.pod).unwrap();
        close(&bridge);
        assert_eq!((forwards4(), setting(IPV4, "eth0", "forwarding")), ("1".into(), "1".into()));
    });
}

#[test]
fn what_the_host_decides_last_stays_also_when_nobody_has_looked() {
    on_a_host(|dir| {
        let _links = with_an_uplink();
        let bridge = bridge(dir, "a");
        let a = pod(dir, 1, &[]);
        connect(&bridge, &a).unwrap();
        set(IPV4, "all", "forwarding", "1");
        bridge.give_back(&a.pod).unwrap();
        close(&bridge);
        assert_eq!(forwards4(), "1");
    });
}

#[test]
fn nobody_on_the_bridge_is_believed_to_be_a_router() {
    on_a_host(|dir| {
        let bridge = bridge(dir, "a");
        let a = pod(dir, 1, &[]);
        connect(&bridge, &a).unwrap();
        let names = [(IPV6, "accept_ra"), (IPV6, "accept_redirects"), (IPV4, "accept_redirects")];
        for (conf, name) in names {
            assert_eq!(setting(conf, &bridge.names.bridge, name), "0", "{conf} {name} of the host");
            let inside = netns::run_in(&a.netns, || setting(conf, "eth0", name)).unwrap();
            assert_eq!(inside, "0", "{conf} {name} of the pod");
        }
    });
}

#[test]
fn daemons_that_begin_at_once_choose_different_ranges() {
    on_a_host(|dir| {
        let bridges: Vec<_> = (0..8).map(|n| bridge(dir, &n.to_string())).collect();
        thread::scope(|scope| {
            for bridge in &bridges {
                scope.spawn(|| bridge.ready(&Links::open().unwrap()).unwrap());
            }
        });
        let links = Links::open().unwrap();
        let pools = bridges.iter().map(|bridge| base::standing(&bridge.names, &links).unwrap().unwrap().1);
        let pools: std::collections::BTreeSet<String> = pools.map(|pools| pools.v4.to_string()).collect();
        assert_eq!(pools.len(), 8, "{pools:?}");
    });
}

#[test]
fn another_name_in_the_configuration_is_for_the_next_bridge() {
    on_a_host(|dir| {
        let first = bridge(dir, "a");
        let (a, b) = (pod(dir, 1, &[]), pod(dir, 2, &[]));
        connect(&first, &a).unwrap();
        let config = BridgeConfig { name: "chosen".to_owned(), ..first.config.clone() };
        let second = Arc::new(Bridge::new(config));
        assert!(second.take_up(&|_| true).is_empty());
        connect(&second, &b).unwrap();
        let links = Links::open().unwrap();
        let bridges = |links: &Links| {
            let all = links.list().unwrap().into_iter().filter(|link| link.kind == "bridge");
            all.map(|link| link.name).collect::<Vec<_>>()
        };
        assert_eq!(bridges(&links).concat(), first.names.bridge, "the pods stay on one");
        for pod in [&a, &b] {
            second.give_back(&pod.pod).unwrap();
        }
        let c = pod(dir, 3, &[]);
        *second.base.blocking_lock() = None;
        connect(&second, &c).unwrap();
        assert_eq!(bridges(&links), ["chosen"]);
    });
}

#[test]
fn what_a_daemon_has_left_is_found_and_removed_once_it_and_its_pods_are_gone() {
    on_a_host(|dir| {
        let links = with_an_uplink();
        let gone = bridge(dir, "a");
        let (a, b) = (pod(dir, 1, &[]), pod(dir, 2, &[8086]));
        connect(&gone, &a).unwrap();
        connect(&gone, &b).unwrap();
        assert!(left_over(|_| false).unwrap().is_empty(), "pods are there");
        for pod in [&a, &b] {
            links.remove(&link_of(&pod.pod)).unwrap();
        }
        assert!(left_over(|owner| *owner == dir.join("a")).unwrap().is_empty(), "its daemon lives");
        let successor = bridge(dir, "b");
        let refused = connect(&successor, &pod(dir, 3, &[8086])).unwrap_err().to_string();
        assert!(refused.contains("podhold doctor"), "{refused}");
        close(&successor);
        let left = left_over(|_| false).unwrap();
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(left[0].to_string().contains(dir.join("a").to_str().unwrap()), "{}", left[0]);
        remove(&left[0]).unwrap();
        assert!(links.find(&gone.names.bridge).unwrap().is_none());
        assert!(rules::tables().unwrap().is_empty());
        assert_eq!((forwards4(), forwards6()), ("0".into(), "0".into()));
        // A table whose bridge has gone is nobody's either.
        connect(&gone, &pod(dir, 4, &[])).unwrap();
        links.remove(&gone.names.bridge).unwrap();
        let left = left_over(|_| true).unwrap();
        assert_eq!(left.len(), 1, "{left:?}");
        remove(&left[0]).unwrap();
        assert!(rules::tables().unwrap().is_empty());
    });
}

#[test]
fn a_bridge_of_an_earlier_version_is_taken_up() {
    on_a_host(|dir| {
        let first = bridge(dir, "a");
        let a = pod(dir, 1, &[]);
        connect(&first, &a).unwrap();
        let (links, name) = (Links::open().unwrap(), &first.names.bridge);
        let index = links.find(name).unwrap().unwrap().index;
        links.write(name, &format!("{} 10.214.0.0/22 fd50:6f64::/64", first.names.table)).unwrap();
        assert!(left_over(|_| false).unwrap().is_empty(), "nobody knows whose it is");
        let second = bridge(dir, "a");
        assert!(second.take_up(&|_| true).is_empty());
        let link = links.find(name).unwrap().unwrap();
        assert_eq!(link.index, index);
        assert_eq!(base::owner(&link), Some(dir.join("a")));
    });
}

#[test]
fn all_that_a_network_is_made_of_can_be_tried_out() {
    on_a_host(|_| {
        try_out().unwrap();
        assert!(rules::tables().unwrap().is_empty());
        assert!(left_over(|_| false).unwrap().is_empty());
    });
}
