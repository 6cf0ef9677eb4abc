//! Debian's plugins for real: bridge, host-local and portmap, two address families.
//!
//! The "host" is a namespace as well, so that bridges and packet filter rules end with the test.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use podhold_sandbox::{
    PodId, netns,
    network::cni::{Attachment, Cni, CniConfig, PortMapping, Protocol},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;
use tempfile::TempDir;

struct Site {
    dir: TempDir,
    pod: PodId,
}

impl Site {
    /// `None`, with the reason printed, where the plugins cannot run.
    fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED: network namespaces need root");
            return None;
        }
        let needed =
            ["/usr/lib/cni/bridge", "/usr/lib/cni/host-local", "/usr/lib/cni/portmap", "/usr/sbin/iptables"];
        if let Some(missing) = needed.iter().find(|path| !Path::new(path).exists()) {
            println!("SKIPPED: {missing} is missing (apt install containernetworking-plugins iptables)");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let site = Self { dir, pod: PodId::parse("pod1").unwrap() };
        netns::create(&site.host()).unwrap();
        netns::create(&site.netns()).unwrap();
        fs::create_dir(site.dir.path().join("conf")).unwrap();
        let list = json!({
            "cniVersion": "1.0.0", "name": "podholdtest",
            "plugins": [
                {
                    "type": "bridge", "bridge": "ph0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
                    "ipam": {
                        "type": "host-local", "dataDir": site.leases(),
                        "ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]],
                        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
                    }
                },
                {"type": "portmap", "snat": false, "capabilities": {"portMappings": true}},
                {"type": "loopback"}
            ]
        });
        fs::write(site.dir.path().join("conf/10.conflist"), list.to_string()).unwrap();
        Some(site)
    }

    fn host(&self) -> PathBuf {
        self.dir.path().join("ns/host")
    }

    fn netns(&self) -> PathBuf {
        self.dir.path().join("ns/pod")
    }

    fn leases(&self) -> PathBuf {
        self.dir.path().join("leases")
    }

    /// Addresses that host-local has given away.
    fn leased(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.leases().join("podholdtest")) else { return Vec::new() };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.parse::<IpAddr>().is_ok() || name.contains("fd77")).collect()
    }

    fn attachment(&self) -> Attachment {
        let mapping =
            PortMapping { host_port: 8088, container_port: 8080, protocol: Protocol::Tcp, host_ip: None };
        let mut attachment = Attachment::new(self.pod.clone(), self.netns(), "default", "web", "uid");
        attachment.port_mappings = vec![mapping];
        attachment
    }

    /// Runs in the namespace that plays the host; plugins started there stay there.
    fn on_host<T: Send>(&self, work: impl AsyncFnOnce(&Cni) -> T + Send) -> T {
        let config = CniConfig {
            conf_dir: self.dir.path().join("conf"),
            ..CniConfig::new(self.dir.path().join("cache"))
        };
        let run = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(work(&Cni::new(config)))
        };
        netns::run_in(&self.host(), run).unwrap()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _reported_elsewhere = (netns::remove(&self.netns()), netns::remove(&self.host()));
    }
}

/// Sends a word there and back. Nothing waits for ever.
fn echo(listener: &TcpListener, to: SocketAddr) {
    let patience = Some(Duration::from_secs(5));
    let mut stream = connect(to);
    stream.set_read_timeout(patience).unwrap();
    stream.write_all(b"hello").unwrap();
    let mut peer = accept(listener, to);
    peer.set_read_timeout(patience).unwrap();
    let mut word = [0u8; 5];
    peer.read_exact(&mut word).unwrap();
    peer.write_all(&word).unwrap();
    let mut back = [0u8; 5];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"hello");
}

/// A new bridge's IPv6 address is tentative for a second or two, and a connection made meanwhile goes out
/// from the wrong address.
fn connect(to: SocketAddr) -> TcpStream {
    let tries = (0..20).map(|_| TcpStream::connect_timeout(&to, Duration::from_millis(500)));
    let connected = tries.filter_map(Result::ok).next();
    connected.unwrap_or_else(|| panic!("cannot connect to {to}"))
}

fn accept(listener: &TcpListener, to: SocketAddr) -> TcpStream {
    let mut fds = [PollFd::new(listener, PollFlags::IN)];
    let time = Timespec { tv_sec: 5, tv_nsec: 0 };
    assert_eq!(poll(&mut fds, Some(&time)).unwrap(), 1, "{to} led to somebody else");
    listener.accept().unwrap().0
}

#[test]
fn a_pod_is_reached_by_both_families_and_by_the_hosts_port() {
    let Some(site) = Site::new() else { return };
    let attached = site.on_host(async |cni| {
        cni.status().await.unwrap();
        cni.add(&site.attachment()).await.unwrap()
    });
    assert!(attached.ips[0].is_ipv4() && attached.ips[1].is_ipv6(), "{attached:?}");
    assert!(attached.interfaces.iter().any(|interface| interface.name == "ph0"));
    assert_eq!(site.leased().len(), 2);

    let listener = netns::run_in(&site.netns(), || TcpListener::bind("[::]:8080").unwrap()).unwrap();
    let gateway: IpAddr = "10.77.0.1".parse().unwrap();
    site.on_host(async |_| {
        echo(&listener, (attached.ips[0], 8080).into());
        echo(&listener, (attached.ips[1], 8080).into());
        echo(&listener, (gateway, 8088).into());
    });
    let stats = netns::interface_stats(&site.netns()).unwrap();
    let eth0 = stats.iter().find(|interface| interface.name == "eth0").unwrap();
    assert!(eth0.rx_bytes > 100 && eth0.tx_bytes > 100, "{eth0:?}");

    site.on_host(async |cni| {
        cni.del(&site.pod).await.unwrap();
        cni.del(&site.pod).await.unwrap();
        assert!(cni.cached().is_empty());
    });
    assert!(site.leased().is_empty(), "{:?}", site.leased());
    let gone =
        site.on_host(async |_| TcpStream::connect_timeout(&(gateway, 8088).into(), Duration::from_secs(1)));
    assert!(gone.is_err(), "the mapped port is gone");
}

#[test]
fn addresses_come_back_when_the_namespace_and_the_configuration_are_gone() {
    let Some(site) = Site::new() else { return };
    // No mapped port: CHECK of portmap 1.1.1 looks for the IPv4 rule among those of IPv6.
    let attachment = Attachment { port_mappings: Vec::new(), ..site.attachment() };
    site.on_host(async |cni| {
        cni.add(&attachment).await.unwrap();
        cni.check(&site.pod).await.unwrap();
    });
    assert_eq!(site.leased().len(), 2);
    netns::remove(&site.netns()).unwrap();
    fs::remove_file(site.dir.path().join("conf/10.conflist")).unwrap();
    site.on_host(async |cni| cni.del(&site.pod).await.unwrap());
    assert!(site.leased().is_empty(), "{:?}", site.leased());
}

#[test]
fn addresses_come_back_after_a_reboot_left_a_plain_file() {
    let Some(site) = Site::new() else { return };
    site.on_host(async |cni| cni.add(&site.attachment()).await.unwrap());
    netns::remove(&site.netns()).unwrap();
    fs::write(site.netns(), "").unwrap();
    site.on_host(async |cni| {
        for pod in cni.cached() {
            cni.del(&pod).await.unwrap();
        }
    });
    assert!(site.leased().is_empty(), "{:?}", site.leased());
}
