//! Plugins made for the occasion: what the client promises whatever a plugin does.

use std::{
    fs,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    time::{Duration, Instant},
};

use serde_json::json;
use tempfile::TempDir;

use super::{process::Process, *};

/// A CNI installation in a directory of its own. Plugins are shell scripts; each call is a line in `log`.
struct Site {
    dir: TempDir,
    cni: Cni,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["conf", "bin", "cache"] {
            fs::create_dir(dir.path().join(sub)).unwrap();
        }
        let config = CniConfig {
            conf_dir: dir.path().join("conf"),
            bin_dirs: vec![dir.path().join("nowhere"), dir.path().join("bin")],
            cache_dir: dir.path().join("cache"),
            timeout: Duration::from_secs(5),
            netns_dir: None,
        };
        Self { cni: Cni::new(config), dir }
    }

    fn with_timeout(mut self, timeout: Duration) -> Self {
        self.cni.runner = Runner::new(vec![self.dir.path().join("bin")], timeout);
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A plugin that logs its command and keeps its input as `<name>.<command>`, then runs `script`.
    fn plugin(&self, name: &str, script: &str) {
        let dir = self.dir.path().display();
        let text = format!(
            "#!/bin/sh\ncd {dir}\necho \"$CNI_COMMAND {name} netns=$CNI_NETNS\" >> log\ncat > {name}.$CNI_COMMAND\n{script}\n"
        );
        let path = self.path("bin").join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn conflist(&self, file: &str, version: &str, plugins: Value) {
        let list = json!({"cniVersion": version, "name": "net", "plugins": plugins});
        fs::write(self.path("conf").join(file), list.to_string()).unwrap();
    }

    fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("log")).unwrap_or_default();
        text.lines().map(|line| line.split(" netns=").next().unwrap().to_owned()).collect()
    }

    fn input(&self, name: &str) -> Value {
        serde_json::from_str(&fs::read_to_string(self.path(name)).unwrap()).unwrap()
    }

    fn attachment(&self) -> Attachment {
        Attachment::new(pod("pod1"), "/nowhere/ns".into(), "default", "web", "uid-1")
    }
}

const GOOD: &str = r#"echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/ns"}],"ips":[{"address":"10.1.0.2/24","interface":0}]}'"#;
const FAIL_ADD: &str =
    r#"[ $CNI_COMMAND = ADD ] && { echo '{"code":11,"msg":"no luck","details":"at all"}'; exit 1; }; exit 0"#;

fn pod(id: &str) -> PodId {
    PodId::parse(id).unwrap()
}

#[tokio::test]
async fn plugins_are_chained_and_given_what_they_declare() {
    let site = Site::new();
    site.plugin("first", GOOD);
    site.plugin("second", "env | grep CNI_ > env\ncat second.$CNI_COMMAND | grep -q prevResult || exit 3\nprintf '%s' '{\"ips\":[{\"address\":\"10.1.0.3/24\"}]}'");
    let second = json!({"type": "second", "capabilities": {"portMappings": true, "bandwidth": false}});
    site.conflist("10.conflist", "1.0.0", json!([{"type": "first", "x": {"y": 1}}, second]));
    let mut attachment = site.attachment();
    let mapping = PortMapping { host_port: 80, container_port: 8080, protocol: Protocol::Tcp, host_ip: None };
    attachment.port_mappings = vec![mapping.clone(), PortMapping { host_port: 0, ..mapping }];
    attachment.bandwidth =
        Some(Bandwidth { ingress_rate: 1, ingress_burst: 1, egress_rate: 1, egress_burst: 1 });
    let attached = site.cni.add(&attachment).await.unwrap();
    assert_eq!(attached.ips, ["10.1.0.3".parse::<IpAddr>().unwrap()]);

    let first = site.input("first.ADD");
    assert_eq!(first["x"]["y"], 1);
    assert_eq!(first["name"], "net");
    assert!(first.get("runtimeConfig").is_none() && first.get("prevResult").is_none());
    let second = site.input("second.ADD");
    assert_eq!(second["prevResult"]["ips"][0]["address"], "10.1.0.2/24");
    let ports = second["runtimeConfig"]["portMappings"].as_array().unwrap();
    assert_eq!(ports.len(), 1);
    assert_eq!(ports[0]["protocol"], "tcp");
    assert!(second["runtimeConfig"].get("bandwidth").is_none());
    let env = fs::read_to_string(site.path("env")).unwrap();
    for wanted in
        ["CNI_CONTAINERID=pod1", "CNI_IFNAME=eth0", "K8S_POD_NAME=web", "K8S_POD_INFRA_CONTAINER_ID=pod1"]
    {
        assert!(env.contains(wanted), "{wanted}: {env}");
    }

    assert_eq!(site.cni.attached(&pod("pod1")).await.unwrap().unwrap(), attached);
    site.cni.check(&pod("pod1")).await.unwrap();
    site.cni.del(&pod("pod1")).await.unwrap();
    let log = site.log();
    assert_eq!(log, ["ADD first", "ADD second", "CHECK first", "CHECK second", "DEL second", "DEL first"]);
    assert_eq!(site.input("first.DEL")["prevResult"]["ips"][0]["address"], "10.1.0.3/24");
    site.cni.del(&pod("pod1")).await.unwrap();
    assert_eq!(site.log().len(), 6, "nothing is left to give back");
}

#[tokio::test]
async fn a_failed_add_is_taken_back_and_named() {
    let site = Site::new();
    site.plugin("first", GOOD);
    site.plugin("second", FAIL_ADD);
    site.conflist("10.conflist", "1.0.0", json!([{"type": "first"}, {"type": "second"}]));
    let error = site.cni.add(&site.attachment()).await.unwrap_err().to_string();
    for wanted in ["ADD", "second", "10.conflist", "no luck", "at all", "11", "try again later"] {
        assert!(error.contains(wanted), "{wanted}: {error}");
    }
    assert_eq!(site.log(), ["ADD first", "ADD second", "DEL second", "DEL first"]);
    assert!(site.cni.cached().is_empty());
}

#[tokio::test]
async fn a_failed_del_keeps_the_record_and_is_repeated_without_the_configuration() {
    let site = Site::new();
    site.plugin("first", GOOD);
    site.plugin(
        "second",
        &format!("[ $CNI_COMMAND = DEL ] && [ ! -e mended ] && {{ echo broken >&2; exit 1; }}\n{GOOD}"),
    );
    site.conflist("10.conflist", "1.0.0", json!([{"type": "first"}, {"type": "second"}]));
    site.cni.add(&site.attachment()).await.unwrap();
    fs::remove_file(site.path("conf/10.conflist")).unwrap();
    let error = site.cni.del(&pod("pod1")).await.unwrap_err().to_string();
    assert!(error.contains("broken") && error.contains("second"), "{error}");
    assert_eq!(site.cni.cached(), [pod("pod1")]);
    assert_eq!(site.log()[2..], ["DEL second", "DEL first"], "the others are given back all the same");
    fs::write(site.path("mended"), "").unwrap();
    site.cni.del(&pod("pod1")).await.unwrap();
    assert!(site.cni.cached().is_empty());
    let log = fs::read_to_string(site.path("log")).unwrap();
    assert!(log.contains("DEL first netns=\n"), "a namespace that is gone has no name: {log}");
}

#[tokio::test]
async fn a_hanging_plugin_is_killed_with_its_children() {
    let site = Site::new().with_timeout(Duration::from_millis(300));
    site.plugin(
        "hang",
        "[ $CNI_COMMAND = ADD ] || exit 0\nsleep 1000 & echo $! > child\necho stuck >&2\nsleep 1000",
    );
    site.conflist("10.conflist", "1.0.0", json!([{"type": "hang"}]));
    let begun = Instant::now();
    let error = site.cni.add(&site.attachment()).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert!(matches!(error, CniError::TimedOut { .. }) && error.to_string().contains("stuck"), "{error}");
    ended(&site.path("child")).await;
}

#[tokio::test]
async fn giving_up_kills_the_plugin() {
    let site = Site::new();
    site.plugin("hang", "sleep 1000 & echo $! > child.new; mv child.new child\nsleep 1000");
    site.conflist("10.conflist", "1.0.0", json!([{"type": "hang"}]));
    let attachment = site.attachment();
    let given_up = timeout_at(Duration::from_millis(500), site.cni.add(&attachment)).await;
    assert!(given_up);
    ended(&site.path("child")).await;
    assert_eq!(site.cni.cached(), [pod("pod1")], "the attempt is on record, to be given back");
}

#[tokio::test]
async fn a_child_that_holds_the_output_open_holds_up_nobody() {
    let site = Site::new();
    site.plugin("leave", &format!("sleep 3 &\n{GOOD}"));
    site.conflist("10.conflist", "1.0.0", json!([{"type": "leave"}]));
    let begun = Instant::now();
    site.cni.add(&site.attachment()).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn garbage_and_floods_are_refused() {
    for (script, wanted) in [
        ("echo nonsense", "not JSON"),
        ("echo '{\"ips\":[{\"address\":\"127.0.0.1/8\"}]}'", "cannot be the address of a pod"),
        ("echo '{}'", "no address"),
        ("exec cat /dev/zero", "more than 1048576"),
    ] {
        let site = Site::new();
        site.plugin("bad", &format!("[ $CNI_COMMAND = ADD ] || exit 0\n{script}"));
        site.conflist("10.conflist", "1.0.0", json!([{"type": "bad"}]));
        let error = site.cni.add(&site.attachment()).await.unwrap_err().to_string();
        assert!(error.contains(wanted), "{wanted}: {error}");
        assert_eq!(site.log(), ["ADD bad", "DEL bad"]);
    }
}

#[tokio::test]
async fn the_first_valid_configuration_is_used_and_changes_are_seen() {
    let site = Site::new();
    let error = site.cni.status().await.unwrap_err().to_string();
    assert!(error.contains("no valid CNI configuration") && error.contains("conf"), "{error}");
    fs::write(site.path("conf/00-bad.conflist"), "{").unwrap();
    let path = json!({"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "../../bin/sh"}]});
    fs::write(site.path("conf/01-path.conflist"), path.to_string()).unwrap();
    let error = site.cni.status().await.unwrap_err().to_string();
    assert!(error.contains("00-bad.conflist") && error.contains("plain file name"), "{error}");
    site.conflist("10.conflist", "1.0.0", json!([{"type": "absent"}]));
    let error = site.cni.status().await.unwrap_err().to_string();
    assert!(error.contains("absent") && error.contains("10.conflist"), "{error}");
    site.plugin("absent", GOOD);
    site.cni.status().await.unwrap();
    assert!(site.log().is_empty(), "plugins before 1.1.0 know no STATUS");
    // A single plugin, earlier in order.
    fs::write(
        site.path("conf/05.conf"),
        json!({"cniVersion": "0.2.0", "name": "n", "type": "other"}).to_string(),
    )
    .unwrap();
    assert!(site.cni.status().await.unwrap_err().to_string().contains("other"));
}

#[tokio::test]
async fn networks_of_1_1_are_asked_for_status_and_told_what_to_keep() {
    let site = Site::new();
    site.plugin(
        "new",
        &format!("[ $CNI_COMMAND = STATUS ] && [ -e down ] && {{ echo '{{\"code\":50,\"msg\":\"down\"}}'; exit 1; }}\n{GOOD}"),
    );
    site.conflist("10.conflist", "1.1.0", json!([{"type": "new"}]));
    site.cni.status().await.unwrap();
    fs::write(site.path("down"), "").unwrap();
    let error = site.cni.status().await.unwrap_err();
    assert!(matches!(error, CniError::Failed { code: Some(50), .. }), "{error}");
    for id in ["pod1", "pod2"] {
        let attachment = Attachment { pod: pod(id), ..site.attachment() };
        site.cni.add(&attachment).await.unwrap();
    }
    assert_eq!(site.cni.cached(), [pod("pod1"), pod("pod2")]);
    site.cni.del(&pod("pod2")).await.unwrap();
    site.cni.gc().await.unwrap();
    assert_eq!(site.cni.cached(), [pod("pod1")]);
    assert_eq!(
        site.input("new.GC")["cni.dev/valid-attachments"],
        json!([{"containerID": "pod1", "ifname": "eth0"}])
    );
    assert_eq!(site.log()[4..], ["DEL new", "GC new"]);
}

#[tokio::test]
async fn a_retried_add_gives_the_first_attempt_back() {
    let site = Site::new();
    site.plugin("one", GOOD);
    site.conflist("10.conflist", "1.0.0", json!([{"type": "one"}]));
    site.cni.add(&site.attachment()).await.unwrap();
    site.cni.add(&site.attachment()).await.unwrap();
    assert_eq!(site.log(), ["ADD one", "DEL one", "ADD one"]);
}

#[tokio::test]
async fn a_broken_record_harms_one_pod() {
    let site = Site::new();
    site.plugin("one", GOOD);
    site.conflist("10.conflist", "1.0.0", json!([{"type": "one"}]));
    fs::write(site.path("cache/pod2.json"), "{").unwrap();
    fs::write(site.path("cache/Not-Ours.json"), "{").unwrap();
    let damaged = site.cni.damaged().await;
    assert_eq!(damaged.len(), 1);
    assert!(damaged[0].1.to_string().contains("pod2.json"), "{:?}", damaged[0]);
    site.cni.add(&site.attachment()).await.unwrap();
    site.cni.del(&pod("pod1")).await.unwrap();
    assert_eq!(site.log(), ["ADD one", "DEL one"]);
    // What it was connected by is lost; it is given back by what is in force.
    site.cni.del(&pod("pod2")).await.unwrap();
    assert_eq!(site.log()[2..], ["DEL one"]);
    assert!(site.cni.cached().is_empty());
    assert_eq!(fs::read_dir(site.path("cache")).unwrap().count(), 1, "no lock file stays");
}

#[tokio::test]
async fn a_record_that_names_a_foreign_namespace_is_not_believed() {
    let mut site = Site::new();
    site.plugin("one", GOOD);
    site.conflist("10.conflist", "1.0.0", json!([{"type": "one"}]));
    site.cni.add(&site.attachment()).await.unwrap();
    let foreign = fs::read_to_string(site.path("cache/pod1.json")).unwrap();
    fs::write(site.path("cache/pod1.json"), foreign.replace("/nowhere/ns", "/proc/1/ns/net")).unwrap();
    site.cni.cache = Cache::new(site.path("cache"), Some("/nowhere".into()));
    let damage = &site.cni.damaged().await[0].1;
    assert!(
        matches!(damage, CniError::Cache { source, .. } if source.to_string().contains("/proc/1/ns/net"))
    );
    site.cni.del(&pod("pod1")).await.unwrap();
    assert!(fs::read_to_string(site.path("log")).unwrap().ends_with("DEL one netns=\n"));
}

#[tokio::test]
async fn gc_that_hangs_or_waits_holds_nobody_up_for_long() {
    let site = Site::new();
    site.plugin("slow", &format!("[ $CNI_COMMAND = DEL ] && while [ ! -e go ]; do sleep 0.05; done\n{GOOD}"));
    site.conflist("10.conflist", "1.1.0", json!([{"type": "slow"}]));
    site.cni.add(&site.attachment()).await.unwrap();
    let other = Attachment { pod: pod("pod2"), ..site.attachment() };
    let first = pod("pod1");
    let del = site.cni.del(&first);
    let gc = async {
        while !site.log().contains(&"DEL slow".to_owned()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        site.cni.gc().await.unwrap();
    };
    let add = async {
        while !site.log().contains(&"DEL slow".to_owned()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // GC waits for the DEL by now, and an ADD does not wait for it.
        tokio::task::yield_now().await;
        site.cni.add(&other).await.unwrap();
        fs::write(site.path("go"), "").unwrap();
    };
    let (deleted, (), ()) = tokio::join!(del, gc, add);
    deleted.unwrap();
    assert_eq!(site.log(), ["ADD slow", "DEL slow", "ADD slow", "GC slow"]);
    assert_eq!(site.input("slow.GC")["cni.dev/valid-attachments"][0]["containerID"], "pod2");
}

#[tokio::test]
async fn plugins_of_an_earlier_client_are_waited_for_and_then_killed() {
    let site = Site::new().with_timeout(Duration::from_secs(60));
    site.plugin("one", &format!("[ $CNI_COMMAND = ADD ] && {{ echo $$ > pid; while [ ! -e go ]; do sleep 0.05; done; echo end >> log; }}\n{GOOD}"));
    site.conflist("10.conflist", "1.0.0", json!([{"type": "one"}]));
    // A plugin that has outlived its daemon has the lock, and nobody else knows of it.
    let path = site.path("cache/pod1.lock");
    let file =
        fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    site.plugin(
        "daemon",
        &format!("cd {}; setsid bin/one </dev/null >/dev/null 2>&1 &", site.dir.path().display()),
    );
    let environment = process::environment(vec![("CNI_COMMAND".as_ref(), "ADD".into())]);
    let mut daemon = Process::start(&site.path("bin/daemon"), &environment, Some(&file)).unwrap();
    daemon.stdin = None;
    daemon.wait().await.unwrap();
    drop(file);
    while !site.path("pid").exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let patient = Locks::new(site.path("cache"), Duration::from_millis(300));
    let taken = patient.take("pod1").await.unwrap();
    ended(&site.path("pid")).await;
    taken.discard();
    assert!(!fs::read_to_string(site.path("log")).unwrap().contains("end"), "it was killed");
}

#[tokio::test]
async fn names_cannot_add_arguments() {
    let site = Site::new();
    site.plugin("one", GOOD);
    site.conflist("10.conflist", "1.0.0", json!([{"type": "one"}]));
    let attachment = Attachment { name: "a;K8S_POD_UID=other".to_owned(), ..site.attachment() };
    assert!(matches!(site.cni.add(&attachment).await, Err(CniError::BadRequest { field: "name", .. })));
    assert!(site.log().is_empty());
}

/// Whether the time ran out.
async fn timeout_at<T>(time: Duration, work: impl Future<Output = T>) -> bool {
    tokio::time::timeout(time, work).await.is_err()
}

/// Waits for a process whose number is in a file to be gone; there is no event for a stranger's child.
async fn ended(file: &Path) {
    let pid: u32 = fs::read_to_string(file).unwrap().trim().parse().unwrap();
    for _ in 0..200 {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if stat.is_empty() || stat.contains(") Z ") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("process {pid} lives on");
}
