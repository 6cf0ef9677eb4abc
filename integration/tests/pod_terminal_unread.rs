//! `podhold run`, `logs` and `exec` when nobody reads what they print, or reads nothing of it; and reports that
//! cannot be written.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{collections::BTreeMap, fs, path::Path};

use nix::sys::signal::Signal;
use podhold_integration::{
    alone::{UnderWay, manifest, script, script_with, start, words},
    rig,
    rig::Rig,
};
use serde_json::{Value, json};

const FOR_EVER: &str = "while :; do echo line; sleep 0.05; done";

/// Runs a command whose output goes to `reader`, which has a minute; answers its exit code and what was said on
/// standard error.
async fn piped(rig: &Rig, command: &[String], reader: &str) -> (String, String) {
    let code = rig.machine.directory().join("code");
    let _earlier = fs::remove_file(&code);
    let line =
        format!("{{ timeout -k5 60 {}; echo $? > {}; }} | {reader}", command.join(" "), code.display());
    let output = rig.machine.run(["sh", "-c", &line]).await.unwrap();
    (fs::read_to_string(&code).unwrap_or_default().trim().to_owned(), output.stderr)
}

fn run_words(rig: &Rig, options: &[&str], spec: &Value) -> Vec<String> {
    let path = manifest(rig, spec).display().to_string();
    words(rig, &["run"], &[options, &[path.as_str()]].concat())
}

/// No pod and no directory of a run is left.
fn assert_clean(rig: &Rig, what: &str) {
    for place in ["run/runs", "state/runs", "state/pods"] {
        let place = rig.machine.directory().join("alone").join(place);
        assert_eq!(
            fs::read_dir(&place).map_or(0, Iterator::count),
            0,
            "{what}: {} has more",
            place.display()
        );
    }
}

#[tokio::test]
async fn a_pod_that_nobody_reads_ends_with_141() {
    let rig = rig!();
    let server = json!({
        "restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [script("app", FOR_EVER)],
    });
    let (code, said) = piped(&rig, &run_words(&rig, &[], &server), "head -n 1").await;
    assert_eq!(code, "141", "{said}");
    assert!(said.contains("nobody reads what it says"), "{said}");
    assert_clean(&rig, "a server");
    // The report is what is not read here: containers' lines go elsewhere.
    let secret =
        json!([{"name": "memory", "emptyDir": {"medium": "Memory"}}, {"name": "disk", "emptyDir": {}}]);
    let job =
        json!({"restartPolicy": "Never", "volumes": secret, "containers": [script("app", "echo done")]});
    let junit = rig.machine.directory().join("junit.xml").display().to_string();
    let (code, said) = piped(&rig, &run_words(&rig, &["--json", "--junit", &junit], &job), "true").await;
    assert_eq!(code, "141", "{said}");
    assert!(fs::read_to_string(&junit).unwrap().contains("failures=\"0\""), "the other report is written");
    assert_clean(&rig, "a report");
    // And the commands for a pod that runs.
    let pod = start(&rig, &[], &server).await;
    pod.says("ready 1/1").await;
    for (verb, rest) in [("logs", vec!["-f", "alone"]), ("exec", vec!["alone", "/bin/busybox", "yes"])] {
        let (code, said) = piped(&rig, &words(&rig, &[verb], &rest), "head -n 1").await;
        assert_eq!(code, "141", "{verb}: {said}");
    }
    rig.machine.signal(pod.pid, Signal::SIGINT).await.unwrap();
    assert_eq!(pod.ends(&rig).await, 130);
    rig.finish().await;
}

/// Starts a pod with standard output in a pipe that has a reader, which never reads.
async fn start_unread(rig: &Rig, options: &[&str], spec: &Value) -> UnderWay {
    let directory = rig.machine.directory();
    let (fifo, log) = (directory.join("fifo"), directory.join("unread.log"));
    if !fifo.exists() {
        rig.machine.run_well(["mkfifo", &fifo.display().to_string()]).await.unwrap();
    }
    let command = run_words(rig, options, spec).join(" ");
    let line = format!("exec 3<> {}; exec {command} >&3", fifo.display());
    let words = ["sh", "-c", &line].map(str::to_owned);
    let _earlier = fs::remove_file(&log);
    let pid = rig.machine.spawn(&words, BTreeMap::new(), &log).await.unwrap();
    UnderWay { pid, log }
}

/// A container that says more than every pipe and queue holds, and then touches a file.
fn noisy(place: &Path, more: &str) -> Value {
    let text = format!("busybox yes | busybox head -c 4000000; touch /d/said; {more}");
    let mounts = json!([{"name": "d", "mountPath": "/d"}]);
    json!({
        "restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
        "volumes": [{"name": "d", "hostPath": {"path": place}}],
        "containers": [script_with("app", &text, json!({"volumeMounts": mounts}))],
    })
}

#[tokio::test]
async fn a_reader_that_takes_nothing_holds_up_nothing() {
    let rig = rig!();
    let place = rig.machine.directory().join("said");
    fs::create_dir(&place).unwrap();
    // A signal, while the container runs.
    let pod = start_unread(&rig, &[], &noisy(&place, "exec sleep 1000")).await;
    pod.says("ready 1/1").await;
    until(|| place.join("said").exists()).await;
    rig.machine.signal(pod.pid, Signal::SIGINT).await.unwrap();
    assert_eq!(pod.ends(&rig).await, 130);
    assert_clean(&rig, "interrupted");
    // Its time, after the container has ended: there is output that nobody takes.
    let pod = start_unread(&rig, &["--timeout", "6s"], &noisy(&place, "exit 0")).await;
    let code = pod.ends(&rig).await;
    // It has run to its end, unless the machine is slow.
    assert!(matches!(code, 0 | 124), "{code}: {:?}", fs::read_to_string(&pod.log));
    assert_clean(&rig, "timed out");
    rig.finish().await;
}

async fn until(is_so: impl Fn() -> bool) {
    let mut ticks = tokio::time::interval(std::time::Duration::from_millis(20));
    let waiting = async {
        while !is_so() {
            ticks.tick().await;
        }
    };
    tokio::time::timeout(podhold_integration::alone::SOON, waiting).await.expect("it takes too long");
}

#[tokio::test]
async fn a_report_that_cannot_be_written_is_refused_before_the_pod_runs() {
    let rig = rig!();
    let spec = json!({"restartPolicy": "Never", "containers": [script("app", "echo ran")]});
    let log = rig.machine.directory().join("refused.log");
    let words = run_words(&rig, &["--json", "--junit", "/no/such/directory/x.xml"], &spec);
    let pid = rig.machine.spawn(&words, BTreeMap::new(), &log).await.unwrap();
    let refused = UnderWay { pid, log };
    assert_eq!(refused.ends(&rig).await, 3);
    let said = fs::read_to_string(&refused.log).unwrap();
    assert!(said.contains("/no/such/directory/x.xml") && !said.contains("app | ran"), "{said}");
    assert!(said.contains("\"exitCode\": 3") && said.contains("HostFailure"), "{said}");
    assert_clean(&rig, "refused");
    rig.finish().await;
}
