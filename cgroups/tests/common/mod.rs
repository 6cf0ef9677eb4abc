//! A cgroup and child processes that do not outlive their test.

// Each test file uses a part of it.
#![allow(dead_code)]

use std::{
    io::Write,
    os::unix::process::ExitStatusExt,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use podhold_cgroups::{CgroupPath, Cgroups, Driver};

pub(crate) struct Scope {
    pub(crate) cgroups: Cgroups,
    pub(crate) path: CgroupPath,
}

impl Scope {
    /// `None`, with the reason printed, where cgroups cannot be made.
    pub(crate) fn new(name: &str) -> Option<Self> {
        let path = CgroupPath::parse(&format!("/podhold-test-{}-{name}", std::process::id())).unwrap();
        let cgroups = match Cgroups::detect(Driver::Cgroupfs) {
            Ok(cgroups) => cgroups,
            Err(error) => {
                println!("SKIPPED: {error}");
                return None;
            }
        };
        if let Err(error) = cgroups.create(&path) {
            println!("SKIPPED: {error}");
            return None;
        }
        Some(Self { cgroups, path })
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        let killed = self.cgroups.kill(&self.path);
        let removed = self.cgroups.remove(&self.path);
        if !std::thread::panicking() {
            killed.unwrap();
            removed.unwrap();
        }
    }
}

/// A shell that waits for a line before it does what it is for.
pub(crate) struct Child(std::process::Child);

impl Child {
    pub(crate) fn spawn(script: &str) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::piped()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn go(&mut self) {
        self.0.stdin.take().unwrap().write_all(b"\n").unwrap();
    }

    /// The signal that ended it.
    pub(crate) fn wait_signal(&mut self) -> Option<i32> {
        self.0.wait().unwrap().signal()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _reaped_already = self.0.wait();
    }
}

pub(crate) fn hierarchies() -> usize {
    std::fs::read_to_string("/proc/self/cgroup").unwrap().lines().count()
}

pub(crate) fn kill(pid: u32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL)
        .unwrap();
}

/// Waits for the kernel to have counted something; there is no event for it.
pub(crate) fn until(mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(10), "it did not happen");
        pause(Duration::from_millis(5));
    }
}

pub(crate) fn pause(time: Duration) {
    let (_keep, never) = std::sync::mpsc::channel::<()>();
    let _timeout = never.recv_timeout(time);
}
