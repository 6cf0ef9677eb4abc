//! Containers from start to delete, through a real shim.

#![allow(clippy::unwrap_used)]

mod common;

use std::{fs, time::Duration};

use podhold_sandbox::{
    ContainerId,
    launch::{Exit, KnownState, LaunchError, NamespaceJoin, NamespaceKind, NamespaceOf, PodEvent, SignalTo},
    record,
};

use common::{Host, namespace, possible, signal, until, until_async};

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_and_its_exit_code_is_on_disk_before_it_is_told() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let mut pod = host.open().await;
    let start = host.shell("c1", "echo out; echo err >&2; exit 7");
    let id = start.id.clone();
    let started = pod.live.start(start.clone()).await.unwrap();
    let exit = pod.exit(&id).await;
    assert_eq!((exit.code, exit.oom_killed, exit.started_at), (7, false, Some(started.at)));
    let on_disk: Exit = record::read(&host.layout.exit_record(&host.pod, &id)).unwrap();
    assert_eq!(on_disk, exit);
    let log = host.log_text(&id);
    assert!(log.contains(" stdout F out\n") && log.contains(" stderr F err\n"), "{log}");
    let state = KnownState::Exited { started_at: Some(started.at), exit };
    assert!(matches!(&pod.live.containers().await.unwrap()[..], [known] if known.state == state));
    assert_eq!(pod.live.start(start).await.expect("starting again succeeds"), started);
    let KnownState::Exited { exit, .. } = state else { unreachable!() };
    assert_eq!(pod.exit(&id).await, exit, "who starts an ended container hears of its end");
    pod.live.signal(&id, 15, SignalTo::Init).await.expect("an ended container takes any signal");
    pod.live.delete(&id).await.unwrap();
    pod.live.delete(&id).await.expect("deleting again succeeds");
    assert!(pod.live.containers().await.unwrap().is_empty());
    pod.close(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_it_with_128_plus_its_number() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let mut pod = host.open().await;
    let start = host.shell("c1", "trap 'exit 3' TERM; while :; do sleep 0.05; done");
    let id = start.id.clone();
    let first = pod.live.start(start.clone()).await.unwrap();
    let again = pod.live.start(start).await.expect("starting again succeeds");
    assert_eq!(first, again);
    until("the handler is set", || {
        let status = fs::read_to_string(format!("/proc/{}/status", first.pid)).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t")).unwrap();
        u64::from_str_radix(caught, 16).unwrap() & (1 << 14) != 0
    });
    pod.live.signal(&id, 15, SignalTo::Init).await.unwrap();
    assert_eq!(pod.exit(&id).await.code, 3);

    let start = host.shell("c2", "sleep 1000 & sleep 1000");
    let id = start.id.clone();
    pod.live.start(start).await.unwrap();
    pod.live.signal(&id, 9, SignalTo::All).await.unwrap();
    assert_eq!(pod.exit(&id).await.code, 137);
    pod.close(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_time_signal_reaches_the_init_and_one_that_does_not_exist_is_refused() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let mut spec = host.spec();
    spec.shared_pid = true;
    let mut pod = host.open_as(spec).await;
    for (name, to) in [("c1", SignalTo::Init), ("c2", SignalTo::All)] {
        let start = host.shell(name, "trap 'exit 3' 37; echo ready; while :; do sleep 0.05; done");
        let id = start.id.clone();
        pod.live.start(start).await.unwrap();
        until("the handler is set", || host.log_text(&id).contains("ready"));
        for wrong in [0, -9, 65] {
            let refused = pod.live.signal(&id, wrong, to).await;
            assert!(matches!(refused, Err(LaunchError::Refused(_))), "{wrong}: {refused:?}");
        }
        // SIGRTMIN+3, the STOPSIGNAL of images that run systemd.
        pod.live.signal(&id, 37, to).await.unwrap();
        assert_eq!(pod.exit(&id).await.code, 3);
    }
    let mut start = host.shell("c3", "kill -37 $$");
    start.join.push(NamespaceJoin { kind: NamespaceKind::Pid, of: NamespaceOf::Pod });
    assert_eq!(pod.run(start).await.code, 128 + 37, "its end is seen too");
    pod.close(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_workload_starts_clean() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let mut pod = host.open().await;
    let start = host.shell("c1", "tr '\\0' '\\n' </proc/1/environ; grep -E '^Sig(Blk|Ign)' /proc/self/status; ls /proc/self/fd | wc -l; id -u");
    let id = start.id.clone();
    assert_eq!(pod.run(start).await.code, 0);
    let log = host.log_text(&id);
    let lines: Vec<&str> =
        log.lines().filter_map(|line| line.split_once(" F ").map(|(_, text)| text)).collect();
    let at =
        |text: &str| lines.iter().position(|line| *line == text).unwrap_or_else(|| panic!("{text}: {log}"));
    assert!(at("PATH=/bin") < at("B=1") && at("B=1") < at("A=2"), "the order is kept: {log}");
    at("HOME=/root");
    at("SigBlk:\t0000000000000000");
    at("SigIgn:\t0000000000000000");
    // 0, 1, 2 and the one of ls itself.
    at("4");
    pod.close(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_of_a_pod_share_what_they_are_to_share() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let mut spec = host.spec();
    spec.shared_pid = true;
    let pod = host.open_as(spec).await;
    let pause = pod.live.pause_pid();
    let pid = |of| NamespaceJoin { kind: NamespaceKind::Pid, of };
    let mut shared = host.shell("c1", "sleep 1000");
    shared.join.push(pid(NamespaceOf::Pod));
    let shared = pod.live.start(shared).await.unwrap().pid;
    let own = host.shell("c2", "sleep 1000");
    let target = own.id.clone();
    let own = pod.live.start(own).await.unwrap().pid;
    let mut guest = host.shell("c3", "sleep 1000");
    guest.join.push(pid(NamespaceOf::Container(target)));
    let guest = pod.live.start(guest).await.unwrap().pid;

    for name in ["ipc", "uts", "net"] {
        for container in [shared, own, guest] {
            assert_eq!(namespace(container, name), namespace(pause, name), "{name}");
        }
    }
    assert_ne!(namespace(pause, "ipc"), namespace(std::process::id(), "ipc"));
    assert_eq!(namespace(shared, "pid"), namespace(pause, "pid"));
    assert_ne!(namespace(own, "pid"), namespace(pause, "pid"));
    assert_eq!(namespace(guest, "pid"), namespace(own, "pid"));
    let mounts = [pause, shared, own, guest].map(|pid| namespace(pid, "mnt"));
    assert!(mounts.iter().enumerate().all(|(at, mount)| !mounts[..at].contains(mount)));
    pod.close(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_start_says_why_and_leaves_nothing() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let pod = host.open().await;
    for (id, args, words) in [
        ("c1", vec!["nosuch"], "exec: \"nosuch\": executable file not found in $PATH"),
        ("c2", vec!["/nosuch"], "exec: \"/nosuch\": no such file or directory"),
        ("c3", vec!["/etc/passwd"], "exec: \"/etc/passwd\": permission denied"),
    ] {
        let refused = pod.live.start(host.container(id, &args, |_| {})).await.unwrap_err();
        assert!(matches!(&refused, LaunchError::Refused(text) if text == words), "{refused}");
    }
    let broken = host.container("c4", &["true"], |spec| {
        let mut process = spec.process().clone().unwrap();
        process.set_cwd("/dev/null".into());
        spec.set_process(Some(process));
    });
    assert!(matches!(pod.live.start(broken).await, Err(LaunchError::Refused(_))));
    let mut nowhere = host.shell("c5", "true");
    nowhere.log_path = Some("/nonexistent/dir/log".into());
    let refused = pod.live.start(nowhere).await.unwrap_err().to_string();
    assert!(refused.contains("/nonexistent/dir/log"), "{refused}");

    assert!(pod.live.containers().await.unwrap().is_empty());
    let left: Vec<String> = host
        .left()
        .into_iter()
        .filter(|what| what.starts_with("mount") || what.starts_with("cgroup"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    let states = fs::read_dir(host.layout.libcontainer(&host.pod)).into_iter().flatten();
    assert_eq!(states.count(), 0, "libcontainer's state");
    pod.close(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_outlive_their_daemon_and_nothing_is_forgotten() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let pod = host.open().await;
    let start = host.shell("c1", "echo before; sleep 0.3; echo after; exit 5");
    let id = start.id.clone();
    pod.live.start(start).await.unwrap();
    let other = host.shell("c2", "sleep 1000");
    let running = pod.live.start(other.clone()).await.unwrap();
    let pause = pod.live.pause_pid();
    drop(pod);

    let path = host.layout.exit_record(&host.pod, &id);
    until("the exit is recorded", || path.exists());
    let exit: Exit = record::read(&path).unwrap();
    assert_eq!(exit.code, 5);

    let launcher = common::launcher(&host.layout);
    use podhold_sandbox::launch::Launcher;
    let reopened = launcher.reopen_pod(&host.pod).await.unwrap();
    let mut pod = common::Pod { live: reopened.pod, events: reopened.events };
    assert_eq!(pod.live.pause_pid(), pause);
    let known = pod.live.containers().await.unwrap();
    assert_eq!(
        known.iter().find(|known| known.id == id).unwrap().state,
        KnownState::Exited { started_at: exit.started_at, exit }
    );
    assert_eq!(known.iter().find(|known| known.id == other.id).unwrap().state, KnownState::Running(running));
    assert!(host.log_text(&id).contains("after"));
    pod.live.signal(&other.id, 9, SignalTo::Init).await.unwrap();
    assert_eq!(pod.exit(&other.id).await.code, 137);
    pod.close(&host).await;
    assert!(matches!(launcher.reopen_pod(&host.pod).await, Err(LaunchError::Gone { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_under_way_is_found_by_the_next_daemon_and_its_end_is_heard() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let pod = host.open().await;
    // A log disk that hangs looks like this to the shim.
    let logger = host.logger();
    signal(logger, rustix::process::Signal::STOP);
    let start = host.shell("c1", "exit 4");
    let asked = {
        let (live, start) = (pod.live.clone(), start.clone());
        tokio::spawn(async move { live.start(start).await })
    };
    until_async("the start is under way", async || {
        let known = pod.live.containers().await.unwrap();
        known.len() == 1 && known[0].state == KnownState::Starting
    })
    .await;
    asked.abort();
    drop(pod);

    use podhold_sandbox::launch::Launcher;
    let reopened = host.launcher.reopen_pod(&host.pod).await.unwrap();
    let mut pod = common::Pod { live: reopened.pod, events: reopened.events };
    assert_eq!(pod.live.containers().await.unwrap()[0].state, KnownState::Starting);
    signal(logger, rustix::process::Signal::CONT);
    let started = pod.live.start(start.clone()).await.unwrap();
    let exit = pod.exit(&start.id).await;
    assert_eq!((exit.code, exit.started_at), (4, Some(started.at)));
    pod.close(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_pause_and_of_the_shim_is_told() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let mut pod = host.open().await;
    let pause = rustix::process::Pid::from_raw(pod.live.pause_pid().cast_signed()).unwrap();
    rustix::process::kill_process(pause, rustix::process::Signal::KILL).unwrap();
    assert_eq!(pod.event().await, PodEvent::PauseExited);
    pod.live.close().await.unwrap();
    assert!(matches!(pod.event().await, PodEvent::Gone(_)));
    assert!(matches!(pod.live.close().await, Err(LaunchError::Gone { .. })));
    let id = ContainerId::parse("c").unwrap();
    assert!(matches!(pod.live.delete(&id).await, Err(LaunchError::Gone { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_kills_what_runs() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let mut spec = host.spec();
    spec.shared_pid = true;
    let pod = host.open_as(spec).await;
    for (name, shared) in [("c1", false), ("c2", true)] {
        let mut start = host.shell(name, "trap '' TERM INT HUP; (setsid sleep 1000 &) ; sleep 1000");
        if shared {
            start.join.push(NamespaceJoin { kind: NamespaceKind::Pid, of: NamespaceOf::Pod });
        }
        pod.live.start(start).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    pod.close(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_cannot_be_opened_leaves_nothing() {
    if !possible() {
        return;
    }
    let host = Host::new();
    use podhold_sandbox::launch::Launcher;
    let mut bad = host.spec();
    bad.sysctls.insert("kernel.core_pattern".into(), "|/bin/evil".into());
    let refused = host.launcher.open_pod(bad).await.err().expect("refused").to_string();
    assert!(refused.contains("kernel.core_pattern"), "{refused}");
    let mut bad = host.spec();
    bad.netns = Some("/nonexistent/netns".into());
    let refused = host.launcher.open_pod(bad).await.err().expect("refused").to_string();
    assert!(refused.contains("/nonexistent/netns"), "{refused}");
    until("nothing is left", || host.left().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_over_its_memory_is_marked_as_such() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let mut pod = host.open().await;
    let start =
        host.container("c1", &["sh", "-c", "head -c 100m /dev/zero | sort >/dev/null; exit 3"], |spec| {
            let memory = oci_spec::runtime::LinuxMemoryBuilder::default().limit(20i64 << 20).build().unwrap();
            let resources =
                oci_spec::runtime::LinuxResourcesBuilder::default().memory(memory).build().unwrap();
            let mut linux = spec.linux().clone().unwrap();
            linux.set_resources(Some(resources));
            spec.set_linux(Some(linux));
        });
    let exit = pod.run(start).await;
    assert!(exit.oom_killed, "{exit:?}");
    pod.close(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn opening_an_open_pod_again_gives_the_same_pod() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let pod = host.open().await;
    let again = host.open().await;
    assert_eq!(pod.live.pause_pid(), again.live.pause_pid());
    again.close(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_is_deleted_while_it_starts_is_gone() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let mut pod = host.open().await;
    let start = host.shell("c1", "sleep 1000");
    let id = start.id.clone();
    let (started, deleted) = tokio::join!(pod.live.start(start), pod.live.delete(&id));
    deleted.unwrap();
    if started.is_ok() {
        assert_eq!(pod.exit(&id).await.code, 137);
    }
    assert!(pod.live.containers().await.unwrap().is_empty());
    pod.close(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures; run with PODHOLD_SHIM set to a release build"]
async fn memory_of_a_pods_own_processes() {
    let host = Host::new();
    let pod = host.open().await;
    pod.live.start(host.shell("c1", "sleep 1000")).await.unwrap();
    let path = host.directory.path().to_string_lossy().into_owned();
    for process in common::processes() {
        let command = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains(&path) || process == pod.live.pause_pid() {
            let memory = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap();
            let wanted =
                |line: &&str| ["Rss:", "Pss:", "Private_Dirty:"].iter().any(|name| line.starts_with(name));
            println!("{} {:?}", &command[..13], memory.lines().filter(wanted).collect::<Vec<_>>());
        }
    }
    pod.close(&host).await;
}

#[test]
fn help_is_no_error() {
    let shim = env!("CARGO_BIN_EXE_podhold-shim");
    let output = std::process::Command::new(shim).arg("--help").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout.starts_with(b"usage: podhold-shim "), "{output:?}");
    assert!(!std::process::Command::new(shim).output().unwrap().status.success());
}
