//! Runs the embedded program for real.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::Write,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use podhold_pause::PAUSE;
use rustix::{
    fs::{MemfdFlags, memfd_create},
    process::{Pid, Signal, kill_process},
};

fn program() -> OwnedFd {
    let fd = memfd_create("pause", MemfdFlags::CLOEXEC).unwrap();
    let mut file = fs::File::from(fd);
    file.write_all(PAUSE).unwrap();
    file.into()
}

fn wait(child: &mut Child, limit: Duration) -> Option<std::process::ExitStatus> {
    let until = Instant::now() + limit;
    while Instant::now() < until {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::yield_now();
    }
    None
}

fn runs(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < limit, "never came true: {what}");
        std::thread::yield_now();
    }
}

/// Ends the process with the test, also with one that fails.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether the process has blocked SIGHUP, that is, has come as far as its loop. (The signals it waits
/// for are shown as not blocked meanwhile.)
fn is_ready(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:\t"));
    mask.and_then(|mask| u64::from_str_radix(mask, 16).ok()).is_some_and(|mask| mask & 1 != 0)
}

#[test]
fn the_program_is_smaller_than_two_kibibytes() {
    assert!(PAUSE.starts_with(b"\x7fELF"));
    assert!(PAUSE.len() < 2048, "{} bytes", PAUSE.len());
}

#[test]
fn term_and_int_end_it_with_code_zero_and_nothing_else_does() {
    for (signal, ends) in
        [(Signal::TERM, true), (Signal::INT, true), (Signal::HUP, false), (Signal::USR1, false)]
    {
        let program = program();
        let child = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd())).spawn().unwrap();
        let mut child = Ended(child);
        until("the signals are blocked", || is_ready(child.0.id()));
        kill_process(Pid::from_child(&child.0), signal).unwrap();
        if ends {
            let status = wait(&mut child.0, Duration::from_secs(5)).expect("it ends");
            assert_eq!(status.code(), Some(0), "{signal:?}");
        } else {
            assert!(wait(&mut child.0, Duration::from_millis(100)).is_none(), "{signal:?}");
        }
    }
}

#[test]
fn as_pid_1_it_reaps_orphans() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: a new pid namespace needs root");
        return;
    }
    let program = program();
    let path = format!("/proc/self/fd/{}", program.as_raw_fd());
    // The shell becomes pid 1, leaves a child behind and turns into pause.
    let script = format!("(exec sleep 0.2) & exec {path}");
    rustix::io::fcntl_setfd(&program, rustix::io::FdFlags::empty()).unwrap();
    let unshare = Command::new("unshare")
        .args(["--fork", "--pid", "--kill-child", "sh", "-c", &script])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let mut unshare = Ended(unshare);
    let children = |pid: u32| -> Vec<u32> {
        let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    };
    until("pause runs as pid 1", || children(unshare.0.id()).first().is_some_and(|pid| is_ready(*pid)));
    let pause = children(unshare.0.id())[0];
    until("the orphan is reaped", || children(pause).is_empty());
    assert!(runs(pause));
    kill_process(Pid::from_raw(pause.cast_signed()).unwrap(), Signal::TERM).unwrap();
    let status = wait(&mut unshare.0, Duration::from_secs(5)).expect("it ends");
    assert_eq!(status.code(), Some(0));
}
