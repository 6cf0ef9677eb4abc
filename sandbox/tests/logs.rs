//! Output on its way into the log files.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    time::{Duration, Instant},
};

use podhold_sandbox::launch::{LaunchError, SignalTo};

use common::{Host, possible, until};

#[tokio::test(flavor = "multi_thread")]
async fn rotation_loses_and_tears_no_line() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let mut pod = host.open().await;
    let start = host.shell("c1", "seq 1 200000");
    let (id, log) = (start.id.clone(), host.log(&start.id));
    pod.live.start(start).await.unwrap();
    let mut parts = Vec::new();
    for n in 0..20 {
        let part = host.directory.path().join(format!("rotated-{n}"));
        fs::rename(&log, &part).unwrap();
        parts.push(part);
        match pod.live.reopen_log(&id).await {
            Ok(()) => {}
            Err(LaunchError::NotRunning { .. }) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(pod.exit(&id).await.code, 0);
    parts.push(log);
    let mut next = 1;
    for part in parts.iter().filter(|part| part.exists()) {
        let text = fs::read_to_string(part).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'));
        for line in text.lines() {
            let (_, number) = line.split_once(" stdout F ").unwrap_or_else(|| panic!("torn: {line}"));
            assert_eq!(number, next.to_string());
            next += 1;
        }
    }
    assert_eq!(next, 200_001);
    pod.close(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_lines_are_split_and_the_last_one_needs_no_newline() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let mut pod = host.open().await;
    let start = host.shell("c1", "head -c 40000 /dev/zero | tr '\\0' x; echo; printf end");
    let (id, log) = (start.id.clone(), host.log(&start.id));
    pod.run(start).await;
    let text = fs::read_to_string(log).unwrap();
    let entries: Vec<(&str, usize)> = text
        .lines()
        .map(|line| line.split_once(" stdout ").unwrap().1)
        .map(|rest| (&rest[..1], rest.len() - 2))
        .collect();
    assert_eq!(entries, [("P", 16384), ("P", 16384), ("F", 40000 - 2 * 16384), ("F", 3)]);
    let _ = id;
    pod.close(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stray_process_that_keeps_the_pipe_open_delays_no_exit() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let mut pod = host.open().await;
    let start = host.shell("keeper", "sleep 1000");
    let keeper = start.id.clone();
    let keeper_pid = pod.live.start(start).await.unwrap().pid;
    let start = host.shell("c1", "echo said; sleep 1000");
    let (id, log) = (start.id.clone(), host.log(&start.id));
    let pid = pod.live.start(start).await.unwrap().pid;
    // Outside the container, so that nothing ends it with the container.
    let _held = fs::OpenOptions::new().write(true).open(format!("/proc/{pid}/fd/1")).unwrap();
    until("it has spoken", || fs::read_to_string(&log).is_ok_and(|text| text.contains("said")));
    let before = Instant::now();
    pod.live.signal(&id, 9, SignalTo::Init).await.unwrap();
    assert_eq!(pod.exit(&id).await.code, 137);
    assert!(before.elapsed() < Duration::from_secs(4), "{:?}", before.elapsed());
    assert!(fs::metadata(format!("/proc/{keeper_pid}")).is_ok());
    pod.live.delete(&keeper).await.unwrap();
    pod.close(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminals_output_is_all_stdout() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let mut pod = host.open().await;
    let mut start = host.container("c1", &["sh", "-c", "tty; echo err >&2; exit 4"], |spec| {
        let mut process = spec.process().clone().unwrap();
        process.set_terminal(Some(true));
        spec.set_process(Some(process));
    });
    start.tty = true;
    start.stdin = true;
    let id = start.id.clone();
    assert_eq!(pod.run(start).await.code, 4);
    let text = host.log_text(&id);
    assert!(text.contains(" stdout F /dev/pts/0") && text.contains(" stdout F err"), "{text}");
    pod.close(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_not_written_through_a_link_and_none_is_needed() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let mut pod = host.open().await;
    let precious = host.directory.path().join("precious");
    fs::write(&precious, "x").unwrap();
    let start = host.shell("c1", "echo evil");
    std::os::unix::fs::symlink(&precious, host.log(&start.id)).unwrap();
    assert!(matches!(pod.live.start(start).await, Err(LaunchError::Refused(_))));
    assert_eq!(fs::read_to_string(&precious).unwrap(), "x");
    let mut start = host.shell("c2", "seq 1 100000; exit 6");
    start.log_path = None;
    assert_eq!(pod.run(start).await.code, 6);
    pod.close(&host).await;
}

/// A file system of its own that can be frozen: writing to it then hangs as on a dead disk.
struct FrozenDisk(std::path::PathBuf);

impl FrozenDisk {
    /// None when the machine cannot mount an image.
    fn mount(directory: &std::path::Path) -> Option<Self> {
        let (image, mount) = (directory.join("disk.img"), directory.join("disk"));
        fs::create_dir(&mount).unwrap();
        fs::File::create(&image).unwrap().set_len(32 << 20).unwrap();
        let disk = Self(mount);
        let made = run("mkfs.ext4", &["-q", image.to_str().unwrap()])
            && run("mount", &["-o", "loop", image.to_str().unwrap(), disk.0.to_str().unwrap()]);
        made.then_some(disk)
    }

    fn freeze(&self) {
        assert!(run("fsfreeze", &["-f", self.0.to_str().unwrap()]));
    }

    fn thaw(&self) -> bool {
        run("fsfreeze", &["-u", self.0.to_str().unwrap()])
    }
}

impl Drop for FrozenDisk {
    fn drop(&mut self) {
        self.thaw();
        let limit = Instant::now() + common::LIMIT;
        while !run("umount", &[self.0.to_str().unwrap()]) && Instant::now() < limit {
            std::thread::yield_now();
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> bool {
    let output = std::process::Command::new(program).args(arguments).output();
    output.is_ok_and(|output| output.status.success())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_disk_that_hangs_holds_up_neither_delete_nor_close() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let disks = tempfile::tempdir().unwrap();
    let Some(disk) = FrozenDisk::mount(disks.path()) else {
        println!("SKIPPED: needs mkfs.ext4 and a loop device");
        return;
    };
    let mut pod = host.open().await;
    let mut start = host.shell("c1", "while :; do echo line; usleep 1000; done");
    start.log_path = Some(disk.0.join("log"));
    let id = start.id.clone();
    pod.live.start(start).await.unwrap();
    until("lines are written", || fs::metadata(disk.0.join("log")).is_ok_and(|log| log.len() > 100));
    disk.freeze();
    let logger = host.logger();
    let stat = format!("/proc/{logger}/stat");
    until("the logger hangs", || fs::read_to_string(&stat).unwrap().contains(" D "));

    let waiting = host.shell("c2", "sleep 1000");
    let waiting_id = waiting.id.clone();
    let (started, deleted) = tokio::join!(pod.live.start(waiting), pod.live.delete(&waiting_id));
    assert!(matches!(started, Err(LaunchError::Refused(_))), "{started:?}");
    deleted.unwrap();
    pod.live.signal(&id, 9, SignalTo::All).await.unwrap();
    assert_eq!(pod.exit(&id).await.code, 137);
    pod.live.delete(&id).await.unwrap();

    let begun = Instant::now();
    tokio::time::timeout(common::LIMIT, pod.live.close()).await.expect("closed in time").unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(fs::read_to_string(&stat).unwrap().contains(" D "), "it hangs to the end");
    drop(disk);
    until("nothing is left", || host.left().is_empty());
}
