//! The life of a pod without a kubelet: order, sidecars, restarts, hooks, probes, deadlines, last words. Order is
//! proven by what the containers themselves have written, with the time of the kernel.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{collections::BTreeMap, fs};

use nix::sys::signal::Signal;
use podhold_integration::{
    alone::{run, script, script_with, start},
    machine::Output,
    rig,
    rig::Rig,
};
use serde_json::{Value, json};

/// A directory of the machine that every container sees at /d, fresh for each pod.
fn shared(rig: &Rig, name: &str, mut containers: Vec<Value>) -> (Value, Vec<Value>, std::path::PathBuf) {
    let path = rig.machine.directory().join(name);
    fs::create_dir_all(&path).unwrap();
    for container in &mut containers {
        container["volumeMounts"] = json!([{"name": "d", "mountPath": "/d"}]);
    }
    (json!([{"name": "d", "hostPath": {"path": path}}]), containers, path)
}

/// Says what happened and when, in hundredths of a second since the boot of the host.
fn stamp(word: &str) -> String {
    format!("read up idle < /proc/uptime; echo {word} $up >> /d/stamps")
}

/// The times of all stamps; the first of each word.
fn stamps(path: &std::path::Path) -> BTreeMap<String, f64> {
    let text = fs::read_to_string(path.join("stamps")).unwrap_or_default();
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let (word, time) = line.split_once(' ').unwrap();
        found.entry(word.to_owned()).or_insert_with(|| time.parse().unwrap());
    }
    found
}

fn report(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn container<'a>(report: &'a Value, name: &str) -> &'a Value {
    let all = report["containers"].as_array().unwrap();
    all.iter().find(|container| container["name"] == name).unwrap_or_else(|| panic!("{name} in {report:#}"))
}

#[tokio::test]
async fn init_containers_sidecars_and_apps_begin_in_their_order_and_end_in_reverse() {
    let rig = rig!();
    let phases = |name: &str| (stamp(&format!("{name}-begin")), stamp(&format!("{name}-end")));
    let init = |name: &str| {
        let (begin, end) = phases(name);
        script(name, &format!("{begin}; sleep 0.3; {end}"))
    };
    let sidecar = |name: &str| {
        let (begin, end) = phases(name);
        let text = format!(
            "trap '{end}; exit 0' TERM; {begin}; sleep 0.5; {}; touch /d/{name}; while :; do sleep 0.05; done",
            stamp(&format!("{name}-up"))
        );
        let probe = json!({"exec": {"command": ["/bin/test", "-f", format!("/d/{name}")]}, "periodSeconds": 1, "failureThreshold": 30});
        script_with(name, &text, json!({"restartPolicy": "Always", "startupProbe": probe}))
    };
    // Each waits for the other: neither can end unless both run at once.
    let app = |name: &str, other: &str| {
        let (begin, end) = phases(name);
        script(
            name,
            &format!(
                "{begin}; touch /d/{name}; until test -f /d/{other}; do sleep 0.05; done; sleep 0.3; {end}"
            ),
        )
    };
    let all = vec![init("i0"), sidecar("s0"), init("i1"), sidecar("s1"), app("a", "b"), app("b", "a")];
    let (volumes, mut containers, path) = shared(&rig, "order", all);
    let apps = containers.split_off(4);
    let spec = json!({"restartPolicy": "Never", "volumes": volumes, "initContainers": containers, "containers": apps});
    let output = run(&rig, &["--json"], &spec).await;
    assert_eq!(output.code, 0, "{output:?}");
    let times = stamps(&path);
    let order = ["i0-begin", "i0-end", "s0-begin", "s0-up", "i1-begin", "i1-end", "s1-begin", "s1-up"];
    for pair in order.windows(2) {
        assert!(times[pair[0]] <= times[pair[1]], "{} before {}: {times:?}", pair[0], pair[1]);
    }
    for app in ["a", "b"] {
        assert!(times["s1-up"] <= times[&format!("{app}-begin")], "{times:?}");
        assert!(times[&format!("{app}-end")] <= times["s1-end"], "{times:?}");
    }
    assert!(times["s1-end"] <= times["s0-end"], "sidecars end in reverse: {times:?}");
    let report = report(&output);
    assert_eq!((&report["result"], &report["exitCode"]), (&json!("Succeeded"), &json!(0)), "{report:#}");
    let kinds: Vec<&str> =
        report["containers"].as_array().unwrap().iter().map(|c| c["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["init", "sidecar", "init", "sidecar", "app", "app"]);
    for name in ["i0", "s0", "a"] {
        assert_eq!(container(&report, name)["exitCode"], 0, "{report:#}");
        assert!(container(&report, name)["startedAt"].is_string(), "{report:#}");
    }
    rig.finish().await;
}

#[tokio::test]
async fn containers_are_started_again_as_their_policy_says_with_backoff() {
    let rig = rig!();
    // The app fails three times; the sidecar ends well twice and is started again all the same.
    let count = "echo x >> /d/NAME; n=$(wc -l < /d/NAME)";
    let app =
        format!("{}; {}; echo attempt $n; test $n -ge 4", count.replace("NAME", "app"), stamp("run-$n"));
    let sidecar = format!(
        "{}; test $n -ge 3 || exit 0; touch /d/up; trap 'exit 0' TERM; while :; do sleep 0.05; done",
        count.replace("NAME", "side")
    );
    let init = format!("{}; test $n -ge 2", count.replace("NAME", "init"));
    let all = vec![
        script_with("side", &sidecar, json!({"restartPolicy": "Always"})),
        script("init", &init),
        script("app", &format!("until test -f /d/up; do sleep 0.05; done; {app}")),
        script_with("once", "exit 5", json!({"restartPolicy": "Never"})),
    ];
    let (volumes, mut containers, path) = shared(&rig, "again", all);
    let apps = containers.split_off(2);
    let spec = json!({"restartPolicy": "OnFailure", "volumes": volumes, "initContainers": containers, "containers": apps});
    let output = run(&rig, &["--json", "--restart-backoff", "300ms"], &spec).await;
    let report = report(&output);
    assert_eq!(output.code, 5, "one container has a policy of its own: {output:?}");
    for (name, restarts) in [("app", 3), ("init", 1), ("once", 0)] {
        assert_eq!(container(&report, name)["restarts"], restarts, "{name}: {report:#}");
    }
    assert!(container(&report, "side")["restarts"].as_u64().unwrap() >= 2, "{report:#}");
    let times = stamps(&path);
    let gap = |to: u32| times[&format!("run-{to}")] - times[&format!("run-{}", to - 1)];
    // At once, after 300 ms, after 600 ms; the clock of the stamps has hundredths.
    assert!(gap(3) >= 0.28 && gap(4) >= 0.58, "{times:?}");
    assert!(output.stderr.contains("begins again in"), "{output:?}");
    rig.finish().await;
}

#[tokio::test]
async fn a_pod_is_restarted_for_ever_unless_it_or_the_command_says_otherwise() {
    let rig = rig!();
    let spec = json!({"terminationGracePeriodSeconds": 1, "containers": [script("app", "echo again")]});
    let pod = start(&rig, &["--restart-backoff", "100ms"], &spec).await;
    pod.says("2 restarts").await;
    rig.machine.signal(pod.pid, Signal::SIGINT).await.unwrap();
    assert_eq!(pod.ends(&rig).await, 130);
    let output = run(&rig, &["--restart-policy", "Never"], &spec).await;
    assert_eq!((output.code, output.stdout.matches("again").count()), (0, 1), "{output:?}");
    rig.finish().await;
}

#[tokio::test]
async fn every_kind_of_probe_is_asked_and_decides() {
    let rig = rig!();
    // One container answers to all: a page, a port, a file. The second waits for what readiness has brought.
    let server = "echo page > /d/page; touch /d/file; busybox httpd -f -p 8080 -h /d & \
        trap 'exit 0' TERM; until test -f /d/done; do sleep 0.05; done";
    let page = json!({"path": "/page", "port": "web", "httpHeaders": [{"name": "X-A", "value": "b"}]});
    let ports = json!([{"name": "web", "containerPort": 8080}]);
    let probe = |action: Value| {
        let mut probe = json!({"periodSeconds": 1, "failureThreshold": 30});
        probe.as_object_mut().unwrap().extend(action.as_object().unwrap().clone());
        probe
    };
    let all = vec![
        script_with(
            "web",
            server,
            json!({
                "restartPolicy": "Always",
                "ports": ports,
                "startupProbe": probe(json!({"httpGet": page})),
                "livenessProbe": probe(json!({"tcpSocket": {"port": 8080}})),
                "readinessProbe": probe(json!({"exec": {"command": ["/bin/test", "-f", "/d/file"]}})),
            }),
        ),
        // Alive until its file goes away; killed for that; well the second time.
        script_with(
            "sick",
            "test -f /d/sick && exit 0; touch /d/sick /d/alive; (sleep 2; rm /d/alive) & exec sleep 1000",
            json!({"livenessProbe": {
                "exec": {"command": ["/bin/test", "-f", "/d/alive"]}, "periodSeconds": 1, "failureThreshold": 1,
                "initialDelaySeconds": 1, "terminationGracePeriodSeconds": 1,
            }}),
        ),
        // Its page is never there: it is killed before it counts as started.
        script_with(
            "late",
            "test -f /d/late && exit 0; touch /d/late; exec sleep 1000",
            json!({"startupProbe": {
                "httpGet": {"path": "/nothing", "port": 9}, "periodSeconds": 1, "failureThreshold": 2,
                "terminationGracePeriodSeconds": 1,
            }}),
        ),
    ];
    let (volumes, mut containers, _path) = shared(&rig, "probes", all);
    let apps = containers.split_off(1);
    let spec = json!({
        "restartPolicy": "OnFailure", "terminationGracePeriodSeconds": 5, "volumes": volumes,
        "initContainers": containers, "containers": apps,
    });
    let output = run(&rig, &["--json"], &spec).await;
    assert_eq!(output.code, 0, "{output:?}");
    let report = report(&output);
    for name in ["sick", "late"] {
        assert_eq!(container(&report, name)["restarts"], 1, "{name}: {report:#}");
    }
    assert_eq!(container(&report, "web")["restarts"], 0, "{output:?}");
    assert!(output.stderr.contains("sick: liveness probe failed"), "{output:?}");
    assert!(output.stderr.contains("late: startup probe failed"), "{output:?}");
    rig.finish().await;
}

#[tokio::test]
async fn readiness_is_shown_and_lost() {
    let rig = rig!();
    let probe = json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1, "failureThreshold": 1});
    let text = "busybox httpd -f -p 8080 -h / & server=$!; until test -f /d/seen; do sleep 0.05; done; kill $server; \
        until test -f /d/lost; do sleep 0.05; done";
    let (volumes, containers, path) =
        shared(&rig, "ready", vec![script_with("web", text, json!({"readinessProbe": probe}))]);
    let spec = json!({"restartPolicy": "Never", "volumes": volumes, "containers": containers});
    let pod = start(&rig, &[], &spec).await;
    pod.says("running, ready 1/1").await;
    fs::write(path.join("seen"), "").unwrap();
    pod.says("web: is not ready").await;
    fs::write(path.join("lost"), "").unwrap();
    assert_eq!(pod.ends(&rig).await, 0);
    rig.finish().await;
}

#[tokio::test]
async fn hooks_run_after_the_start_and_before_the_stop() {
    let rig = rig!();
    let hook = |word: &str| json!({"exec": {"command": ["/bin/sh", "-c", stamp(word)]}});
    let app =
        |first: &str| format!("{first}trap '{}; exit 0' TERM; while :; do sleep 0.05; done", stamp("term"));
    let (volumes, containers, path) = shared(
        &rig,
        "hooks",
        vec![
            script_with(
                "app",
                &app(""),
                json!({"lifecycle": {"postStart": hook("post"), "preStop": hook("pre")}}),
            ),
            script_with(
                "slow",
                &app("exec sleep 1000; "),
                json!({"lifecycle": {"preStop": {"sleep": {"seconds": 1000}}}}),
            ),
        ],
    );
    let spec = json!({
        "restartPolicy": "Never", "volumes": volumes, "containers": containers, "terminationGracePeriodSeconds": 3,
    });
    let pod = start(&rig, &[], &spec).await;
    pod.says("ready 2/2").await;
    rig.machine.signal(pod.pid, Signal::SIGTERM).await.unwrap();
    assert_eq!(pod.ends(&rig).await, 143);
    let times = stamps(&path);
    assert!(times["post"] <= times["pre"] && times["pre"] <= times["term"], "{times:?}");
    pod.says("slow: FailedPreStopHook").await;
    // A hook that fails costs the container its life; the next one's does not fail.
    let fails_once = "test -f /d/once && touch /d/go || { touch /d/once; exit 1; }";
    let lifecycle = json!({"postStart": {"exec": {"command": ["/bin/sh", "-c", fails_once]}}});
    let (volumes, containers, _path) = shared(
        &rig,
        "hooks",
        vec![script_with(
            "app",
            "trap 'exit 0' TERM; until test -f /d/go; do sleep 0.05; done",
            json!({"lifecycle": lifecycle}),
        )],
    );
    let spec = json!({"restartPolicy": "OnFailure", "volumes": volumes, "containers": containers});
    let output = run(&rig, &[], &spec).await;
    assert!(output.code == 0 && output.stderr.contains("FailedPostStartHook"), "{output:?}");
    rig.finish().await;
}

#[tokio::test]
async fn a_pod_whose_time_is_over_ends_with_124() {
    let rig = rig!();
    let app = script("app", "trap 'echo asked; exit 0' TERM; echo up; while :; do sleep 0.05; done");
    let deaf = script("deaf", "trap '' TERM; while :; do sleep 0.05; done");
    let spec = json!({
        "restartPolicy": "Never", "activeDeadlineSeconds": 8, "terminationGracePeriodSeconds": 5,
        "containers": [app, deaf],
    });
    let output = run(&rig, &["--json"], &spec).await;
    let of_manifest = report(&output);
    assert_eq!((output.code, &of_manifest["reason"]), (124, &json!("DeadlineExceeded")), "{output:?}");
    assert!(output.stderr.contains("asked"), "it is ended with grace: {output:?}");
    let late = "its grace period was over, and it was killed by SIGKILL";
    let killed = ["app", "deaf"].map(|name| container(&of_manifest, name)["killedFor"].clone());
    assert_eq!(killed, [json!(null), json!(late)], "{output:?}");
    assert!(output.stderr.contains(&format!("deaf failed with exit code 137 (Error): {late}")), "{output:?}");
    let spec = json!({"restartPolicy": "Never", "containers": [script("app", "exec sleep 1000")], "terminationGracePeriodSeconds": 0});
    let output = run(&rig, &["--timeout", "3s"], &spec).await;
    // On a busy machine the time may be over before the container begins.
    let said = ["--timeout", "before it has begun"].iter().any(|word| output.stderr.contains(word));
    assert!(output.code == 124 && said, "{output:?}");
    rig.finish().await;
}

#[tokio::test]
async fn a_second_interrupt_ends_the_grace() {
    let rig = rig!();
    let app = script("app", "trap 'echo asked' TERM; echo up; while :; do sleep 0.05; done");
    let spec = json!({"restartPolicy": "Never", "terminationGracePeriodSeconds": 1000, "containers": [app]});
    let pod = start(&rig, &[], &spec).await;
    pod.says("up").await;
    rig.machine.signal(pod.pid, Signal::SIGINT).await.unwrap();
    pod.says("asked").await;
    rig.machine.signal(pod.pid, Signal::SIGINT).await.unwrap();
    assert_eq!(pod.ends(&rig).await, 130);
    rig.finish().await;
}

#[tokio::test]
async fn last_words_limits_and_what_cannot_be_started_are_told() {
    let rig = rig!();
    let spec = json!({"restartPolicy": "Never", "containers": [
        script("file", "echo -n because > /dev/termination-log; exit 3"),
        script_with("log", "echo out of luck; exit 4", json!({"terminationMessagePolicy": "FallbackToLogsOnError"})),
        script_with("greedy", "exec tail -c 200m /dev/zero", json!({"resources": {"limits": {"memory": "16Mi"}}})),
        {"name": "none", "image": podhold_integration::rig::BUSYBOX, "command": ["/no/such/program"]},
    ]});
    let output = run(&rig, &["--json"], &spec).await;
    let report = report(&output);
    assert_eq!(output.code, 3, "the first that failed in the order of the manifest: {output:?}");
    assert_eq!(container(&report, "file")["message"], "because", "{report:#}");
    assert_eq!(container(&report, "log")["message"], "out of luck\n", "{report:#}");
    let greedy = container(&report, "greedy");
    assert_eq!(
        (&greedy["reason"], &greedy["limitsHit"]),
        (&json!("OOMKilled"), &json!(["memory"])),
        "{report:#}"
    );
    let none = container(&report, "none");
    assert_eq!((&none["reason"], &none["exitCode"]), (&json!("StartError"), &json!(128)), "{report:#}");
    assert!(none["message"].as_str().unwrap().contains("/no/such/program"), "{report:#}");
    rig.finish().await;
}
