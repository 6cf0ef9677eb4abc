//! The built-in network: no plugin, no iptables, and nothing left of it afterwards.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use nix::sys::signal::Signal;
use podhold_integration::{
    configs::{self, Parts, log_file},
    daemon::configuration,
    log, programs, require,
    rig::{self, BUSYBOX, Network, PROBE, REGISTRY, Rig, RunDirectory},
};
use podhold_proto::cri::{
    IdMapping, NamespaceMode, PodSandboxConfig, PodSandboxState, PortMapping, StatusRequest, UserNamespace,
};
use tonic::Code;

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(100);
const GATEWAY: &str = "10.214.0.1";
const GATEWAY6: &str = "fd50:6f64::1";

/// What these tests need of the machine they run on: `nft` and `ip` only look.
macro_rules! built_in {
    ($kind:literal) => {{
        require!(root, program "docker-registry", program "nft", program "ip");
        Rig::start_on(Network::BuiltIn($kind)).await
    }};
}

/// What a server at this address sends, seen from the machine.
async fn fetch(rig: &Rig, address: &str) -> Result<String, String> {
    let to: SocketAddr = address.parse().unwrap();
    let get = move || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&to, LONG)?;
        stream.set_read_timeout(Some(LONG))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    rig.machine.in_network(get).await.unwrap().map_err(|error| format!("{to}: {error}"))
}

fn port(host_port: i32, host_ip: &str) -> PortMapping {
    PortMapping { container_port: 80, host_port, host_ip: host_ip.to_owned(), ..Default::default() }
}

/// A pod that says `hello` at port 80; its id and addresses.
async fn server(rig: &Rig, config: &PodSandboxConfig) -> (String, Vec<IpAddr>) {
    let pod = rig.cri().run_pod(config).await.unwrap();
    rig.probe(&pod, config, "server", &["serve", "80", "hello"]).await;
    log::wait_for(&log_file(config, "server"), "listening on 80").await;
    let addresses = addresses(rig, &pod).await;
    (pod, addresses)
}

async fn addresses(rig: &Rig, pod: &str) -> Vec<IpAddr> {
    let network = rig.cri().pod_status(pod).await.unwrap().network.unwrap();
    let more = network.additional_ips.into_iter().map(|ip| ip.ip);
    [network.ip].into_iter().chain(more).map(|ip| ip.parse().unwrap()).collect()
}

/// Gives a pod users of its own, and its containers with it.
fn users() -> UserNamespace {
    let ids = |host_id| vec![IdMapping { host_id, container_id: 0, length: 65_536 }];
    UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids(200_000), gids: ids(400_000) }
}

/// What a container of the pod is told by a server at each of these addresses, port and all.
async fn told(
    rig: &Rig,
    pod: &str,
    config: &PodSandboxConfig,
    name: &str,
    to: &[(IpAddr, u16)],
) -> Vec<String> {
    let to: Vec<(String, String)> = to.iter().map(|(ip, port)| (ip.to_string(), port.to_string())).collect();
    let words: Vec<Vec<&str>> = to.iter().map(|(ip, port)| vec!["connect", ip, port]).collect();
    let words = words.join(&"+");
    let mut container = configs::container(name, PROBE, &words);
    container.namespaces().userns_options = config.clone().namespaces().userns_options.clone();
    let client = rig.run(pod, config, &container).await;
    let ended = rig.cri().ended(&client, LONG).await.unwrap();
    let said = log::lines(&log_file(config, name), "stdout").unwrap();
    let errors = log::lines(&log_file(config, name), "stderr").unwrap();
    assert_eq!(ended.exit_code, 0, "{name}: {said:?} {errors:?}");
    said
}

/// A network beyond the machine, with an address of each family there, and a server at port 80.
struct Outside {
    pids: [i32; 2],
}

impl Outside {
    async fn make(rig: &Rig) -> Self {
        let log = rig.machine.directory().join("outside.log");
        let spawn = async |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            rig.machine.spawn(&words, BTreeMap::new(), &log).await.unwrap()
        };
        let host = spawn(&["unshare", "-n", "sh", "-c", "echo made; exec sleep infinity"]).await;
        log_has(&log, "made").await;
        let script = format!(
            "set -e
             ip link add out0 type veth peer name out1 netns {host}
             ip addr add 192.0.2.1/24 dev out0
             ip addr add fd00:99::1/64 dev out0 nodad
             ip link set out0 up
             nsenter -t {host} -n ip addr add 192.0.2.2/24 dev out1
             nsenter -t {host} -n ip addr add fd00:99::2/64 dev out1 nodad
             nsenter -t {host} -n ip link set out1 up"
        );
        rig.machine.run_well(["sh", "-c", &script]).await.unwrap();
        let (probe, target) = (programs::built("podhold-probe").display().to_string(), host.to_string());
        let server = spawn(&["nsenter", "-t", &target, "-n", &probe, "serve", "80", "outside"]).await;
        log_has(&log, "listening on 80").await;
        Self { pids: [server, host] }
    }

    /// What a server of the machine says to somebody outside.
    async fn told(&self, rig: &Rig, ip: &str, port: u16) -> String {
        let probe = programs::built("podhold-probe").display().to_string();
        let (host, port) = (self.pids[1].to_string(), port.to_string());
        let words = ["timeout", "60", "nsenter", "-t", &host, "-n", &probe, "connect", ip, &port];
        rig.machine.run_well(words).await.unwrap()
    }

    async fn end(self, rig: &Rig) {
        rig.machine.run_well(["ip", "link", "delete", "out0"]).await.unwrap();
        for pid in self.pids {
            rig.machine.signal(pid, Signal::SIGKILL).await.unwrap();
            rig.machine.wait(pid).await.unwrap();
        }
        fs::remove_file(rig.machine.directory().join("outside.log")).unwrap();
    }
}

/// A server of the machine itself, at port 9000.
struct Host(i32);

impl Host {
    async fn serve(rig: &Rig) -> Self {
        let (log, probe) = (rig.machine.directory().join("host.log"), programs::built("podhold-probe"));
        let words = [&probe.display().to_string(), "serve", "9000", "host"].map(str::to_owned);
        let pid = rig.machine.spawn(&words, BTreeMap::new(), &log).await.unwrap();
        log_has(&log, "listening on 9000").await;
        Self(pid)
    }

    async fn end(self, rig: &Rig) {
        rig.machine.signal(self.0, Signal::SIGKILL).await.unwrap();
        rig.machine.wait(self.0).await.unwrap();
        fs::remove_file(rig.machine.directory().join("host.log")).unwrap();
    }
}

/// Waits until a program that the test has started says this.
async fn log_has(log: &std::path::Path, word: &str) {
    let deadline = tokio::time::Instant::now() + LONG;
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    while !fs::read_to_string(log).unwrap_or_default().contains(word) {
        ticks.tick().await;
        assert!(tokio::time::Instant::now() < deadline, "no {word:?} in {:?}", fs::read_to_string(log));
    }
}

#[tokio::test]
async fn pods_the_host_and_what_is_outside_reach_each_other() {
    let rig = built_in!("bridge");
    let status = rig.cri().runtime.clone().status(StatusRequest { verbose: false }).await.unwrap();
    let conditions = status.into_inner().status.unwrap().conditions;
    assert!(conditions.iter().all(|condition| condition.status), "{conditions:?}");
    let outside = Outside::make(&rig).await;
    let mut config = rig.pod("server");
    config.port_mappings = vec![port(18080, ""), port(18081, "127.0.0.1")];
    let (pod, at) = server(&rig, &config).await;
    assert!(at[0].is_ipv4() && at[1].is_ipv6(), "{at:?}");

    let mut theirs = rig.pod("client");
    theirs.namespaces().userns_options = Some(users());
    let client = rig.cri().run_pod(&theirs).await.unwrap();
    let to: Vec<(IpAddr, u16)> = at.iter().map(|ip| (*ip, 80)).collect();
    assert_eq!(told(&rig, &client, &theirs, "inside", &to).await, ["hello"; 2], "pod to pod");
    let host = Host::serve(&rig).await;
    let to = [GATEWAY, GATEWAY6].map(|ip| (ip.parse().unwrap(), 9000));
    assert_eq!(told(&rig, &client, &theirs, "host", &to).await, ["host"; 2], "pod to host");
    host.end(&rig).await;
    let to = [GATEWAY, GATEWAY6].map(|ip| (ip.parse().unwrap(), 18080));
    assert_eq!(told(&rig, &client, &theirs, "ports", &to).await, ["hello"; 2], "pod to host port");
    // Nobody out there knows the way to the pool: only masquerading brings the answer back.
    let to = ["192.0.2.2", "fd00:99::2"].map(|ip| (ip.parse().unwrap(), 80));
    assert_eq!(told(&rig, &client, &theirs, "away", &to).await, ["outside"; 2], "pod to outside");

    for address in at.iter().map(|ip| SocketAddr::new(*ip, 80).to_string()) {
        assert_eq!(fetch(&rig, &address).await.unwrap(), "hello\n", "host to pod");
    }
    let own = [format!("{GATEWAY}:18080"), format!("[{GATEWAY6}]:18080")];
    for address in own.iter().map(String::as_str).chain(["127.0.0.1:18080", "127.0.0.1:18081"]) {
        assert_eq!(fetch(&rig, address).await.unwrap(), "hello\n", "host port from the host");
    }
    assert!(fetch(&rig, &format!("{GATEWAY}:18081")).await.is_err(), "a port of one address is one of all");
    for ip in ["192.0.2.1", "fd00:99::1"] {
        assert_eq!(outside.told(&rig, ip, 18080).await, "hello\n", "host port from outside");
    }
    rig.cri().end_pod(&client).await.unwrap();
    rig.cri().end_pod(&pod).await.unwrap();
    assert!(fetch(&rig, "127.0.0.1:18080").await.is_err(), "the port still leads somewhere");
    outside.end(&rig).await;
    // With it go the settings of the link it was at, when the next pod is made.
    rig.leave_what_stays().await;
    rig.finish().await;
}

#[tokio::test]
async fn what_cannot_be_had_is_refused_in_words_and_leaves_nothing() {
    let rig = built_in!("bridge");
    let mut config = rig.pod("first");
    config.port_mappings = vec![port(18080, "")];
    let first = rig.cri().run_pod(&config).await.unwrap();
    let listener = rig.machine.in_network(|| TcpListener::bind("127.0.0.1:18082").unwrap()).await.unwrap();
    let cases: [(&str, Vec<PortMapping>, Code, &str); 4] = [
        ("pod", vec![port(18080, "127.0.0.1")], Code::FailedPrecondition, "18080/tcp"),
        ("program", vec![port(18082, "")], Code::FailedPrecondition, "program"),
        ("twice", vec![port(18083, ""), port(18083, "127.0.0.1")], Code::FailedPrecondition, "18083/tcp"),
        ("many", vec![port(18084, "224.0.0.1")], Code::InvalidArgument, "host_ip"),
    ];
    for (name, ports, code, word) in cases {
        let mut config = rig.pod(name);
        config.port_mappings = ports;
        let refused = rig.cri().run_pod(&config).await.unwrap_err();
        assert_eq!(refused.code(), code, "{name}: {refused}");
        assert!(refused.message().contains(word), "{name}: {refused}");
    }
    // What switches IPv6 off, and what is for an interface that has to be there first, is no race.
    let mut config = rig.pod("settings");
    let sysctls = [("net.ipv6.conf.all.disable_ipv6", "1"), ("net.ipv4.conf.eth0.arp_announce", "2")];
    config.linux.get_or_insert_default().sysctls =
        sysctls.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let at = addresses(&rig, &pod).await;
    assert!(at.len() == 1 && at[0].is_ipv4(), "{at:?}");
    rig.cri().end_pod(&pod).await.unwrap();
    let mut config = rig.pod("bandwidth");
    config.annotations.insert("kubernetes.io/egress-bandwidth".into(), "1M".into());
    let refused = rig.cri().run_pod(&config).await.unwrap_err();
    assert!(refused.message().contains("bandwidth"), "{refused}");
    drop(listener);
    rig.cri().end_pod(&first).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn pods_and_their_ports_outlive_the_daemon_and_what_it_left_half_made_goes() {
    let mut rig = built_in!("bridge");
    let mut config = rig.pod("server");
    config.port_mappings = vec![port(18080, "")];
    let (pod, at) = server(&rig, &config).await;
    let starts = (0..6).map(|n| {
        let (cri, config) = (rig.cri().clone(), rig.pod(&format!("cut-{n}")));
        tokio::spawn(async move { cri.run_pod(&config).await })
    });
    let starts: Vec<_> = starts.collect();
    let beginning = rig.places.run().join("bridge");
    let deadline = tokio::time::Instant::now() + LONG;
    // The second record says that some pods are half made.
    while fs::read_dir(&beginning).unwrap().count() < 3 && tokio::time::Instant::now() < deadline {
        tokio::task::yield_now().await;
    }
    rig.daemon.kill(&rig.machine).await.unwrap();
    for start in starts {
        let _cut_off = start.await.unwrap();
    }
    assert_eq!(fetch(&rig, "127.0.0.1:18080").await.unwrap(), "hello\n", "while no daemon is there");
    // Somebody empties the whole rule set meanwhile.
    rig.machine.run_well(["nft", "flush", "ruleset"]).await.unwrap();
    rig.restart_stopped().await;
    assert_eq!(fetch(&rig, "127.0.0.1:18080").await.unwrap(), "hello\n", "after the restart");
    // The same beside a daemon that runs: it looks every few seconds.
    rig.machine.run_well(["nft", "flush", "ruleset"]).await.unwrap();
    let (deadline, mut ticks) = (tokio::time::Instant::now() + LONG, tokio::time::interval(SHORT));
    while fetch(&rig, "127.0.0.1:18080").await.is_err() {
        ticks.tick().await;
        assert!(tokio::time::Instant::now() < deadline, "the port stays closed after a flush");
    }
    let second = rig.cri().run_pod(&rig.pod("second")).await.unwrap();
    let given = addresses(&rig, &second).await;
    assert!(given.iter().all(|ip| !at.contains(ip)), "{given:?}");
    for pod in rig.cri().list_pods().await.unwrap() {
        rig.cri().end_pod(&pod.id).await.unwrap();
    }
    assert_ne!(pod, second);
    rig.finish().await;
}

#[tokio::test]
async fn after_a_reboot_addresses_and_ports_are_free_again() {
    let mut rig = built_in!("bridge");
    for run in [RunDirectory::Lost, RunDirectory::Kept] {
        let mut config = rig.pod("server");
        config.port_mappings = vec![port(18080, "")];
        let (pod, _) = server(&rig, &config).await;
        rig.reboot(run).await;
        let state = rig.cri().pod_status(&pod).await.unwrap().state();
        assert_eq!(state, PodSandboxState::SandboxNotready);
        rig.cri().end_pod(&pod).await.unwrap();
        let mut config = rig.pod("again");
        config.port_mappings = vec![port(18080, "")];
        let (again, _) = server(&rig, &config).await;
        assert_eq!(fetch(&rig, "127.0.0.1:18080").await.unwrap(), "hello\n");
        rig.cri().end_pod(&again).await.unwrap();
    }
    rig.leave_what_stays().await;
    rig.finish().await;
}

#[tokio::test]
async fn a_plugin_configuration_that_appears_is_for_new_pods_only() {
    let rig = built_in!("auto");
    require!(plugin "bridge", plugin "portmap", program "iptables");
    let (first, at) = server(&rig, &rig.pod("first")).await;
    assert!(at[0].to_string().starts_with("10.214."), "{at:?}");
    fs::write(rig.places.cni().join("new"), rig::network()).unwrap();
    fs::rename(rig.places.cni().join("new"), rig.places.cni().join("10-podhold.conflist")).unwrap();
    let (second, at) = server(&rig, &rig.pod("second")).await;
    assert!(at[0].to_string().starts_with("10.88."), "{at:?}");
    for pod in [first, second] {
        rig.cri().end_pod(&pod).await.unwrap();
    }
    let left = rig.machine.run_well(["ip", "-o", "link", "show", "type", "veth"]).await.unwrap();
    assert_eq!(left.trim(), "");
    for records in [rig.places.run().join("bridge"), rig.places.state().join("cni")] {
        let names = fs::read_dir(records).unwrap().map(|entry| entry.unwrap().file_name());
        let names: Vec<_> = names.filter(|name| name.to_string_lossy().ends_with(".json")).collect();
        assert!(names.is_empty(), "{names:?}");
    }
    rig.give_up().await;
}

#[tokio::test]
async fn podhold_run_has_a_network_beside_the_daemons_and_leaves_nothing() {
    let rig = built_in!("bridge");
    let directory = rig.machine.directory().to_owned();
    let pod = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "alone"},
        "spec": {"restartPolicy": "Never", "containers": [{
            "name": "app", "image": BUSYBOX,
            "command": ["/bin/sh", "-c", "grep -w eth0: /proc/net/dev && grep -c . /proc/net/fib_trie && cat /proc/net/fib_trie"],
        }]},
    });
    let manifest = directory.join("pod.json");
    fs::write(&manifest, pod.to_string()).unwrap();
    let config = directory.join("alone.toml");
    // Without any plugin, and without iptables or any other program to be found.
    let text = configuration(&rig.places, &format!("{}-alone", rig.cgroup));
    let plugins = text.lines().find(|line| line.starts_with("bin_dirs")).unwrap();
    fs::write(&config, text.replace(plugins, "bin_dirs = [\"/nowhere\"]")).unwrap();
    let path = |path: &std::path::Path| path.display().to_string();
    let words = [
        "timeout".to_owned(),
        "120".to_owned(),
        "env".to_owned(),
        "PATH=/nowhere".to_owned(),
        path(&programs::built("podhold")),
        "run".to_owned(),
        "--config".to_owned(),
        path(&config),
        "--run-dir".to_owned(),
        path(&directory.join("alone/run")),
        "--state-dir".to_owned(),
        path(&directory.join("alone/state")),
        path(&manifest),
    ];
    // Names alone: whether a link has a carrier the kernel says when it finds time.
    let links = async || {
        let said = rig.machine.run_well(["ip", "-o", "-brief", "link"]).await.unwrap();
        said.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect::<Vec<_>>()
    };
    let tables = async || rig.machine.run_well(["nft", "list", "tables"]).await.unwrap();
    let before = (links().await, tables().await);
    let output = rig.machine.run(words).await.unwrap();
    let said = format!("{}{}", output.stdout, output.stderr);
    assert_eq!(output.code, 0, "{said}");
    // The first range is the daemon's.
    assert!(output.stdout.contains("10.214.4.2"), "{said}");
    assert!(output.stderr.contains("10.214.4.0/22"), "it says which range it took: {said}");
    assert_eq!((links().await, tables().await), before);
    assert!(!directory.join("alone/run/bridge").exists());
    assert!(said.contains("eth0"), "{REGISTRY}: {said}");
    rig.finish().await;
}
