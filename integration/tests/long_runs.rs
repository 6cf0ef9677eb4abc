//! `podhold-kills` and `podhold-soak`, which people call by hand: nonsense is refused in words, a list kills
//! nothing, and whoever is told to end leaves nothing behind.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    fs,
    process::{Command, Output, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use podhold_integration::{processes, programs, require};
use tokio::time::{Instant, interval, timeout};

/// Longer than a rig takes to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

fn run(program: &str, words: &[&str]) -> Output {
    Command::new(programs::built(program)).args(words).output().unwrap()
}

/// Refused as wrong use, in words that hold these, and nothing was begun.
fn refuses(program: &str, words: &[&str], said: &[&str]) {
    let output = run(program, words);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{words:?}: {text}");
    for word in said {
        assert!(text.contains(word), "{words:?}: {word:?} is not in {text}");
    }
    assert!(output.stdout.is_empty(), "{words:?}: {:?}", output.stdout);
}

#[test]
fn nonsense_is_refused_in_words() {
    refuses(
        "podhold-kills",
        &["--verb", "Frobnicate"],
        &["--verb", "Frobnicate", "RunPodSandbox", "PullImage"],
    );
    for option in ["--count", "--rigs", "--minutes"] {
        refuses("podhold-kills", &[option, "0"], &[option, "1"]);
        refuses("podhold-kills", &[option, "many"], &[option, "many"]);
    }
    for option in ["--count", "--warm-up", "--at-once", "--bridge-every"] {
        refuses("podhold-soak", &["cycles", option, "0"], &[option, "1.."]);
    }
    for option in ["--minutes", "--clients"] {
        refuses("podhold-soak", &["storm", option, "0"], &[option, "1.."]);
    }
    refuses("podhold-soak", &["cycles", "--count", "5", "--warm-up", "10"], &["--warm-up 10", "--count 5"]);
}

#[test]
fn a_list_kills_nothing() {
    require!(root, program "docker-registry", program "nft", program "iptables", program "ip",
             plugin "bridge", plugin "portmap");
    let output = run("podhold-kills", &["--list", "--verb", "UpdateContainerResources, created"]);
    let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{wrong}");
    let step = |line: &&str| line.starts_with("UpdateContainerResources, created: ") && line.contains(" #");
    assert!(said.lines().filter(step).count() > 3, "{said}{wrong}");
    assert!(!said.contains("kills"), "{said}");
}

#[tokio::test]
async fn a_soak_that_is_told_to_end_leaves_nothing_behind() {
    require!(root, program "docker-registry", program "nft", program "iptables", program "ip",
             plugin "bridge", plugin "portmap");
    // Where it makes its directories.
    let place = tempfile::tempdir().unwrap();
    let mut command = tokio::process::Command::new(programs::built("podhold-soak"));
    command.args(["cycles", "--count", "1000000"]).env("TMPDIR", place.path()).stdout(Stdio::null());
    let mut soak = command.stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    let pid = Pid::from_raw(soak.id().unwrap().cast_signed());
    let has_pods = || {
        let entries = fs::read_dir(place.path()).unwrap().flatten();
        entries
            .map(|entry| entry.path().join("run/pods"))
            .any(|pods| fs::read_dir(pods).is_ok_and(|it| it.count() > 0))
    };
    let deadline = Instant::now() + PATIENCE;
    let mut ticks = interval(Duration::from_millis(50));
    while !has_pods() {
        ticks.tick().await;
        assert!(Instant::now() < deadline, "it makes no pods");
    }
    kill(pid, Signal::SIGTERM).unwrap();
    let ended = timeout(PATIENCE, soak.wait()).await.expect("it ends when it is told to").unwrap();
    assert_eq!(ended.code(), Some(143), "{ended:?}");
    let left: Vec<_> = fs::read_dir(place.path()).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "{left:?}");
    let cgroup = format!("podhold-it-{pid}-1");
    assert!(processes::in_cgroup(&cgroup).is_empty());
    assert!(!fs::read_to_string("/proc/self/mounts").unwrap().contains(place.path().to_str().unwrap()));
    let line = |pid: i32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    let word = place.path().to_str().unwrap().to_owned();
    let alive: Vec<i32> = pids.filter(|pid| String::from_utf8_lossy(&line(*pid)).contains(&word)).collect();
    assert!(alive.is_empty(), "{alive:?}");
}
