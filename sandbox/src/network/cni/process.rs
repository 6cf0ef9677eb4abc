//! A plugin's process.
//!
//! Invariant: it leads a process group, which is killed when this is dropped before its end was seen. It is
//! reaped in any case.

use std::{
    ffi::{CString, OsStr, OsString},
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, process::ExitStatusExt},
    },
    path::Path,
    process::ExitStatus,
};

use rustix::{
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process_group, pidfd_open, waitpid},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::unix::pipe,
};

use crate::sys;

/// A plugin that was started.
pub(super) struct Process {
    /// What it reads; taken by who writes it.
    pub(super) stdin: Option<pipe::Sender>,
    /// What it answers; taken by who reads it.
    pub(super) stdout: Option<pipe::Receiver>,
    /// What else it says; taken by who reads it.
    pub(super) stderr: Option<pipe::Receiver>,
    /// Nothing once it is reaped.
    running: Option<Running>,
}

struct Running {
    pid: Pid,
    /// Readable once it has ended.
    ended: AsyncFd<OwnedFd>,
}

impl Process {
    /// Starts a plugin, with this environment alone; it has `lock` open. Blocks until it is executed.
    pub(super) fn start(
        program: &Path,
        environment: &[(OsString, OsString)],
        lock: Option<&File>,
    ) -> io::Result<Self> {
        let path = CString::new(program.as_os_str().as_bytes())?;
        let variable = |(name, value): &(OsString, OsString)| {
            CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())
        };
        let environment = environment.iter().map(variable).collect::<Result<Vec<_>, _>>()?;
        let (input, stdin) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stdout, output) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, error) = pipe_with(PipeFlags::CLOEXEC)?;
        // Before there is a plugin, which nobody would end if this failed.
        let ours = (
            pipe::Sender::from_owned_fd(stdin)?,
            pipe::Receiver::from_owned_fd(stdout)?,
            pipe::Receiver::from_owned_fd(stderr)?,
        );
        let pid = sys::spawn(&sys::Program {
            path: &path,
            environment: &environment,
            standard: [input.as_fd(), output.as_fd(), error.as_fd()],
            kept: lock.map(AsFd::as_fd),
        })?;
        let pid = Pid::from_raw(pid.as_raw()).ok_or(Errno::SRCH)?;
        let running = Running::watch(pid).inspect_err(|_| {
            // Without a way to wait for it there is no plugin.
            let _ended_already = kill_process_group(pid, Signal::KILL);
            let _reaped = waitpid(Some(pid), WaitOptions::empty());
        })?;
        let (stdin, stdout, stderr) = (Some(ours.0), Some(ours.1), Some(ours.2));
        Ok(Self { stdin, stdout, stderr, running: Some(running) })
    }

    /// Waits for its end. To be called once; what it has left running is not killed after that.
    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        let running = self.running.as_ref().ok_or(Errno::CHILD)?;
        let status = running.wait().await?;
        self.running = None;
        Ok(status)
    }

    /// Kills it, with what it has started and not detached.
    pub(super) fn kill(&self) {
        if let Some(running) = &self.running {
            running.kill();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let Some(running) = self.running.take() else { return };
        running.kill();
        // Without a runtime this process is about to end, and init reaps.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { running.wait().await });
        }
    }
}

impl Running {
    fn watch(pid: Pid) -> io::Result<Self> {
        let ended = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        Ok(Self { pid, ended: sys::watch(ended, Interest::READABLE)? })
    }

    fn kill(&self) {
        // Not reaped, so the number is its own.
        let _ended_already = kill_process_group(self.pid, Signal::KILL);
    }

    async fn wait(&self) -> io::Result<ExitStatus> {
        loop {
            let mut ready = self.ended.readable().await?;
            match waitpid(Some(self.pid), WaitOptions::NOHANG)? {
                Some((_, status)) => return Ok(ExitStatus::from_raw(status.as_raw())),
                None => ready.clear_ready(),
            }
        }
    }
}

/// The environment of a plugin: ours but for what is meant for us alone, and `own`.
pub(super) fn environment(own: Vec<(&OsStr, OsString)>) -> Vec<(OsString, OsString)> {
    let for_us = ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID"];
    let passed =
        |name: &OsStr| for_us.iter().all(|ours| name != *ours) && own.iter().all(|(own, _)| name != *own);
    let mut all: Vec<_> = std::env::vars_os().filter(|(name, _)| passed(name)).collect();
    if all.iter().all(|(name, _)| name != "PATH") {
        all.push(("PATH".into(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()));
    }
    all.extend(own.into_iter().map(|(name, value)| (name.to_owned(), value)));
    all
}
