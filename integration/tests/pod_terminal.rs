//! What `podhold run` shows and reports, and the commands for its pods and a daemon's: ps, logs, exec, stop, rm.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{collections::BTreeMap, fs, path::PathBuf};

use nix::sys::signal::Signal;
use podhold_integration::{
    alone::{run, script, script_with, start, until_said, words},
    machine::Output,
    programs, rig,
    rig::{BUSYBOX, Rig},
};
use serde_json::{Value, json};

/// A command for pods of `podhold run`.
async fn ask(rig: &Rig, verb: &str, rest: &[&str]) -> Output {
    rig.machine.run(words(rig, &[verb], rest)).await.unwrap()
}

const UNTIL_TERM: &str = "trap 'echo asked; exit 0' TERM; echo up; while :; do sleep 0.05; done";

#[tokio::test]
async fn reports_say_what_became_of_each_container() {
    let rig = rig!();
    let junit = rig.machine.directory().join("junit.xml").display().to_string();
    let spec = json!({
        "restartPolicy": "Never",
        "initContainers": [script("first", "echo one")],
        "containers": [script("good", "echo '<two>'"), script("bad", "echo three >&2; exit 9")],
    });
    let output = run(&rig, &["--json", "--junit", &junit, "--timeout", "80s"], &spec).await;
    assert_eq!(output.code, 9, "{output:?}");
    let report: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!((&report["result"], &report["exitCode"]), (&json!("Failed"), &json!(9)), "{report:#}");
    assert_eq!(report["pod"]["name"], "alone");
    let bad = &report["containers"][2];
    assert_eq!((&bad["name"], &bad["exitCode"], &bad["reason"]), (&json!("bad"), &json!(9), &json!("Error")));
    assert_eq!((&bad["image"], &bad["restarts"]), (&json!(BUSYBOX), &json!(0)));
    assert!(bad["imageRef"].as_str().unwrap().contains("sha256:"), "{report:#}");
    assert!(bad["startedAt"].as_str().unwrap() <= bad["finishedAt"].as_str().unwrap(), "{report:#}");
    for line in ["first | one", "good  | <two>", "bad   | three"] {
        assert!(output.stderr.contains(line), "lines go to standard error: {output:?}");
    }
    let xml = fs::read_to_string(&junit).unwrap();
    assert!(xml.contains("tests=\"3\" failures=\"1\" errors=\"0\" skipped=\"0\""), "{xml}");
    assert!(xml.contains("<failure type=\"Error\" message=\"exit code 9 (Error)\">"), "{xml}");
    assert!(xml.contains("<system-out>&lt;two&gt;\n</system-out>"), "{xml}");
    rig.finish().await;
}

#[tokio::test]
async fn failures_have_their_exit_codes() {
    let rig = rig!();
    let missing =
        json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "127.0.0.1:5000/none:1"}]});
    for (options, spec, code, word) in [
        (vec![], json!({"containers": []}), 2, "spec.containers"),
        (vec![], json!({"restartPolicy": "No", "containers": [script("a", "")]}), 2, "spec.restartPolicy"),
        (vec![], missing.clone(), 3, "none:1"),
        (vec!["--pull", "never"], json!({"containers": [script("a", "")]}), 3, "busybox"),
    ] {
        let output = run(&rig, &options, &spec).await;
        assert!(output.code == code && output.stderr.contains(word), "{code} {word}: {output:?}");
    }
    // A link that leads nowhere is the host's matter, wherever it is found.
    let link = rig.machine.directory().join("link");
    std::os::unix::fs::symlink("/nowhere/at/all", &link).unwrap();
    let app = script_with("a", "", json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}));
    let volumes = json!([{"name": "v", "hostPath": {"path": link}}]);
    let dangling = json!({"restartPolicy": "Never", "volumes": volumes, "containers": [app]});
    for spec in [missing, dangling] {
        let output = run(&rig, &["--json"], &spec).await;
        let report: Value = serde_json::from_str(&output.stdout).unwrap();
        let said = (output.code, &report["exitCode"], &report["reason"]);
        assert_eq!(said, (3, &json!(3), &json!("HostFailure")), "{report:#}");
    }
    // And what the manifest says wrongly is refused before anything is done, by a dry run too.
    let first = script("first", "echo ran");
    let foo = script_with("a", "", json!({"securityContext": {"capabilities": {"add": ["FOO"]}}}));
    let bad = json!({"name": "a", "image": "Bad Image"});
    for (container, field) in [(foo, "securityContext.capabilities.add[0]"), (bad, "image")] {
        let spec = json!({"restartPolicy": "Never", "initContainers": [first], "containers": [container]});
        for option in ["--json", "--dry-run"] {
            let output = run(&rig, &[option], &spec).await;
            assert_eq!((output.code, output.stdout.as_str()), (2, ""), "{output:?}");
            let at = format!("spec.containers[0].{field}");
            assert!(output.stderr.contains(&at) && !output.stderr.contains("ran"), "{output:?}");
        }
    }
    rig.finish().await;
}

#[tokio::test]
async fn a_pod_that_runs_is_listed_heard_entered_and_stopped() {
    let rig = rig!();
    let spec = json!({"restartPolicy": "Never", "containers": [script("app", UNTIL_TERM), script("other", UNTIL_TERM)]});
    let pod = start(&rig, &[], &spec).await;
    pod.says("ready 2/2").await;
    let second = run(&rig, &[], &spec).await;
    assert!(second.code == 3 && second.stderr.contains("another podhold run"), "{second:?}");
    let listed = ask(&rig, "ps", &[]).await;
    assert_eq!(listed.stdout.matches("running").count(), 2, "{listed:?}");
    let json = ask(&rig, "ps", &["--json"]).await;
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    let states: Vec<&str> =
        json[0]["containers"].as_array().unwrap().iter().filter_map(|one| one["state"].as_str()).collect();
    assert_eq!(states, ["running"; 2], "{json:#}");
    assert!(json[0]["ips"].as_array().is_some_and(|ips| !ips.is_empty()), "{json:#}");
    let logs = ask(&rig, "logs", &["-c", "app", "alone"]).await;
    assert_eq!(logs.stdout, "up\n", "{logs:?}");
    let logs = ask(&rig, "logs", &["alone"]).await;
    assert!(logs.stdout.contains("app   | up") && logs.stdout.contains("other | up"), "{logs:?}");
    let said = ask(&rig, "exec", &["alone", "sh", "-c", "echo in; echo err >&2; hostname; exit 7"]).await;
    assert_eq!((said.code, said.stdout.as_str(), said.stderr.as_str()), (7, "in\nalone\n", "err\n"));
    let piped =
        format!("echo piped | {}", words(&rig, &["exec"], &["-i", "-c", "other", "alone", "cat"]).join(" "));
    let piped = rig.machine.run(["sh", "-c", &piped]).await.unwrap();
    assert_eq!((piped.code, piped.stdout.as_str()), (0, "piped\n"), "{piped:?}");
    let none = ask(&rig, "exec", &["-c", "nobody", "alone", "true"]).await;
    let named = ["nobody", "app", "other"].iter().all(|word| none.stderr.contains(word));
    assert!(none.code == 1 && named, "it names those that run: {none:?}");
    let refused = ask(&rig, "rm", &["alone"]).await;
    assert!(refused.code == 1 && refused.stderr.contains("--force"), "{refused:?}");
    let heard = rig.machine.directory().join("followed.log");
    let follower = rig
        .machine
        .spawn(&words(&rig, &["logs"], &["-f", "-c", "app", "alone"]), BTreeMap::new(), &heard)
        .await
        .unwrap();
    until_said(&heard, "up").await;
    let stopped = ask(&rig, "stop", &["alone"]).await;
    assert_eq!(stopped.code, 0, "{stopped:?}");
    assert_eq!(pod.ends(&rig).await, 143);
    assert_eq!(rig.machine.wait(follower).await.unwrap(), 0);
    until_said(&heard, "asked").await;
    let gone = ask(&rig, "logs", &["alone"]).await;
    assert!(gone.code == 1 && gone.stderr.contains("no such pod"), "{gone:?}");
    rig.finish().await;
}

#[tokio::test]
async fn a_pod_that_is_kept_is_there_until_it_is_removed() {
    let rig = rig!();
    let mounts = json!([{"name": "disk", "mountPath": "/disk"}, {"name": "memory", "mountPath": "/memory"}]);
    let app = script_with(
        "app",
        "echo said | tee /disk/file > /memory/file; echo said; exit 4",
        json!({"volumeMounts": mounts, "ports": [{"containerPort": 80, "hostPort": 18080}]}),
    );
    let volumes =
        json!([{"name": "disk", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory"}}]);
    let spec = json!({"restartPolicy": "Never", "volumes": volumes, "containers": [app]});
    let output = run(&rig, &["--keep"], &spec).await;
    assert!(output.code == 4 && output.stderr.contains("podhold rm alone"), "{output:?}");
    let other = json!({"restartPolicy": "Never", "containers": [script("app", "echo other")]});
    assert_eq!(run(&rig, &[], &other).await.code, 0, "another run leaves it alone");
    let kept = fs::read_dir(rig.machine.directory().join("alone/state/runs")).unwrap();
    let kept: Vec<PathBuf> = kept.map(|run| run.unwrap().path()).collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(fs::read_to_string(kept[0].join("volumes/disk/file")).unwrap(), "said\n");
    let logs = ask(&rig, "logs", &["alone"]).await;
    assert_eq!(logs.stdout, "said\n", "{logs:?}");
    let listed = ask(&rig, "ps", &["--all", "--json"]).await;
    let listed: Value = serde_json::from_str(&listed.stdout).unwrap();
    let (kept_pod, container) = (&listed[0], &listed[0]["containers"][0]);
    let named = ["name", "namespace", "state"].map(|field| kept_pod[field].as_str().unwrap_or_default());
    assert_eq!(named, ["alone", "default", "not ready"], "{listed:#}");
    let port = json!([{"containerPort": 80, "hostPort": 18080, "hostIP": null, "protocol": "TCP"}]);
    assert_eq!(kept_pod["ports"], port, "{listed:#}");
    let told =
        ["name", "image", "state", "reason"].map(|field| container[field].as_str().unwrap_or_default());
    assert_eq!(told, ["app", BUSYBOX, "exited", "Error"], "{listed:#}");
    assert_eq!((&container["exitCode"], &container["restarts"]), (&json!(4), &json!(0)), "{listed:#}");
    for (of, field) in
        [(kept_pod, "id"), (kept_pod, "createdAt"), (container, "id"), (container, "finishedAt")]
    {
        assert!(of[field].as_str().is_some_and(|text| text.len() > 20), "{field}: {listed:#}");
    }
    let removed = ask(&rig, "rm", &["alone"]).await;
    assert_eq!(removed.code, 0, "{removed:?}");
    for runs in ["alone/run/runs", "alone/state/runs"] {
        let runs = rig.machine.directory().join(runs);
        assert_eq!(fs::read_dir(&runs).map_or(0, Iterator::count), 0, "its logs and volumes are left");
    }
    assert_eq!(ask(&rig, "logs", &["alone"]).await.code, 1);
    rig.finish().await;
}

#[tokio::test]
async fn a_daemons_pods_are_found_by_its_socket() {
    let rig = rig!();
    let config = rig.pod("served");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    rig.probe(&pod, &config, "talks", &["print", "hello", "+", "sleep"]).await;
    let podhold = programs::built("podhold").display().to_string();
    let socket = rig.places.socket().display().to_string();
    let ask = async |rest: &[&str]| {
        let words = [podhold.as_str(), rest[0], "--socket", socket.as_str()];
        rig.machine.run(words.iter().chain(&rest[1..]).map(|word| (*word).to_owned())).await.unwrap()
    };
    let listed = ask(&["ps"]).await;
    assert!(listed.stdout.contains("served") && listed.stdout.contains("talks"), "{listed:?}");
    let said = ask(&["exec", "served", "/probe", "print", "inside"]).await;
    assert_eq!((said.code, said.stdout.as_str()), (0, "inside\n"), "{said:?}");
    let stopped = ask(&["stop", "-t", "0", "served"]).await;
    assert_eq!(stopped.code, 0, "{stopped:?}");
    let logs = ask(&["logs", "-c", "talks", "served"]).await;
    assert_eq!(logs.stdout, "hello\n", "{logs:?}");
    assert_eq!(ask(&["rm", "served"]).await.code, 0);
    let listed = ask(&["ps", "--all"]).await;
    assert!(!listed.stdout.contains("served"), "{listed:?}");
    rig.finish().await;
}

/// Runs a command on a terminal of its own of 24 rows and 80 columns (script(1) makes it).
async fn on_a_terminal(rig: &Rig, words: &[String], input: &str, environment: &str) -> Output {
    let (script, done) =
        (rig.machine.directory().join("typed.sh"), rig.machine.directory().join("typed.done"));
    let _earlier = fs::remove_file(&done);
    let done = done.display();
    // Standard input stays open until the end: its end would be typed, too.
    let command =
        format!("stty rows 24 cols 80; {environment} {}; code=$?; touch {done}; exit $code", words.join(" "));
    let typed = format!(
        "({input}; until test -f {done}; do sleep 0.1; done) | timeout 80 script -qec '{command}' /dev/null"
    );
    fs::write(&script, typed).unwrap();
    rig.machine.run(["sh", &script.display().to_string()]).await.unwrap()
}

#[tokio::test]
async fn a_terminal_shows_names_in_colour_and_how_the_pod_is() {
    let rig = rig!();
    podhold_integration::require!(program "script");
    let spec = json!({"restartPolicy": "Never", "containers": [script("app", "echo hello; sleep 1")]});
    let path = podhold_integration::alone::manifest(&rig, &spec).display().to_string();
    let words = words(&rig, &["run"], &[&path]);
    let shown = on_a_terminal(&rig, &words, "sleep 0", "TERM=xterm").await;
    assert_eq!(shown.code, 0, "{shown:?}");
    assert!(shown.stdout.contains("\x1b[36mapp\x1b[0m | hello"), "{shown:?}");
    assert!(shown.stdout.contains("podhold: alone: running, ready 1/1"), "{shown:?}");
    assert!(shown.stdout.contains("\r\x1b[K"), "the line is taken away again: {shown:?}");
    let shown = on_a_terminal(&rig, &words, "sleep 0", "TERM=xterm NO_COLOR=1").await;
    assert!(shown.stdout.contains("app | hello") && !shown.stdout.contains("\x1b[36m"), "{shown:?}");
    rig.finish().await;
}

#[tokio::test]
async fn exec_with_a_terminal_has_its_size_and_gives_it_back() {
    let rig = rig!();
    podhold_integration::require!(program "script");
    let spec = json!({"restartPolicy": "Never", "containers": [script("app", UNTIL_TERM)]});
    let pod = start(&rig, &[], &spec).await;
    pod.says("ready 1/1").await;
    let mut exec = words(&rig, &["exec"], &["-it", "alone", "/bin/busybox", "sh"]);
    exec.extend([";", "echo", "code=$?;", "stty", "-a"].map(str::to_owned));
    let shown = on_a_terminal(&rig, &exec, "sleep 2; echo busybox stty size; echo exit 6; sleep 2", "").await;
    assert!(shown.stdout.contains("24 80"), "{shown:?}");
    assert!(shown.stdout.contains("code=6"), "{shown:?}");
    let after = &shown.stdout[shown.stdout.find("code=6").unwrap()..];
    assert!(after.contains(" icanon") && after.contains(" echo "), "it is as it was before: {after}");
    rig.machine.signal(pod.pid, Signal::SIGINT).await.unwrap();
    assert_eq!(pod.ends(&rig).await, 130);
    rig.finish().await;
}
