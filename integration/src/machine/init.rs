//! The first process of a machine: prepares its mounts and loopback link, starts programs on request,
//! reaps everything. Single-threaded. Ends, and with it everything in the machine, when its standard
//! input does: so a test that dies leaves no process behind.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Write},
    os::fd::AsFd,
    path::Path,
    process::{Command, Stdio},
};

use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount},
};

use super::protocol::{Answer, Call, Outcome, Program, Request};

/// Directories that a machine has for itself, empty.
const OWN: [&str; 2] = ["/dev/shm", "/var/lib/cni"];

/// How many processes stand in for the kernel threads that every host has under its lowest pids.
///
/// On cgroup v1 libcontainer takes the pid that a container has in its pod's namespace and looks it up in
/// the runtime's own /proc (`mount_cgroup_v1`). On a host a kernel thread is there, in the root cgroup,
/// which happens to be right; where nothing is, the container cannot be created.
const LOWEST: usize = 16;

/// Makes the mount and network namespace, which must be new, fit for a container runtime.
pub fn prepare() -> io::Result<()> {
    let context = |what: String| move |e: io::Error| io::Error::new(e.kind(), format!("{what}: {e}"));
    // unshare has made all mounts private: what the host mounts from now on does not appear here.
    drop_foreign_mounts().map_err(context("read the mount table".into()))?;
    // Shared among ourselves, as on every host that runs systemd.
    let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    mount_change("/", shared).map_err(|e| context("share /".into())(e.into()))?;
    for directory in OWN {
        std::fs::create_dir_all(directory).map_err(context(format!("make {directory}")))?;
        mount("tmpfs", directory, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, None)
            .map_err(|e| context(format!("mount {directory}"))(e.into()))?;
    }
    // Nobody else is on our links: an address need not wait until it is known to be ours alone.
    for links in ["all", "default"] {
        // Missing where the kernel has no IPv6.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{links}/accept_dad"), "0");
    }
    for _ in 0..LOWEST {
        Command::new("sleep").arg("infinity").spawn().map_err(context("start sleep".into()))?;
    }
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    let status = status.map_err(context("start ip (Debian package iproute2)".into()))?;
    if status.success() { Ok(()) } else { Err(io::Error::other("ip link set lo up failed")) }
}

/// Unmounts what other container runtimes on the host had mounted when this machine was made. A copy here
/// would keep their file systems and namespaces alive, and disappear when they remove its directory.
fn drop_foreign_mounts() -> io::Result<()> {
    const KINDS: [&str; 4] = ["overlay", "nsfs", "tmpfs", "mqueue"];
    let temporary = std::env::temp_dir();
    let needed = [std::env::current_exe()?, std::env::current_dir()?];
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    // The last mounted first: what lies on another mount goes before it.
    for line in table.lines().rev() {
        let (Some(point), Some((_, rest))) = (line.split(' ').nth(4), line.split_once(" - ")) else {
            continue;
        };
        let (point, kind) = (Path::new(point), rest.split(' ').next().unwrap_or_default());
        let runtime =
            matches!(kind, "overlay" | "nsfs") || point.starts_with(&temporary) && point != temporary;
        let ours = needed.iter().any(|path| path.starts_with(point));
        if KINDS.contains(&kind) && runtime && !ours {
            // Gone already, with its directory.
            let _ = unmount(point, UnmountFlags::DETACH);
        }
    }
    Ok(())
}

/// Serves requests from standard input until it ends.
pub fn serve() -> io::Result<()> {
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block()?;
    let signals = SignalFd::with_flags(&children, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let mut init = Init::default();
    let mut input = Vec::new();
    loop {
        let stdin = io::stdin();
        let mut ready =
            [PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN), PollFd::new(&signals, PollFlags::IN)];
        poll(&mut ready, None)?;
        let (asked, died) = (!ready[0].revents().is_empty(), !ready[1].revents().is_empty());
        if died {
            while signals.read_signal()?.is_some() {}
            init.reap()?;
        }
        if asked {
            let mut piece = [0; 65536];
            let count = stdin.lock().read(&mut piece)?;
            if count == 0 {
                return Ok(());
            }
            input.extend_from_slice(&piece[..count]);
            while let Some(end) = input.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = input.drain(..=end).collect();
                init.handle(serde_json::from_slice(&line)?)?;
            }
        }
    }
}

#[derive(Default)]
struct Init {
    /// Programs that have ended, and how.
    ended: HashMap<i32, i32>,
    /// Requests that wait for a program: its pid, their number.
    waiting: Vec<(i32, u64)>,
}

impl Init {
    fn handle(&mut self, request: Request) -> io::Result<()> {
        let outcome = match request.call {
            Call::Spawn(program) => match spawn(&program) {
                Ok(pid) => Outcome::Started { pid },
                Err(error) => {
                    Outcome::Refused { reason: format!("{}: {error}", program.arguments.join(" ")) }
                }
            },
            Call::Signal { pid, signal } => match send(pid, signal) {
                Ok(()) => Outcome::Sent,
                Err(error) => Outcome::Refused { reason: format!("signal {signal} to {pid}: {error}") },
            },
            Call::Wait { pid } => {
                self.waiting.push((pid, request.number));
                return self.tell();
            }
        };
        say(&Answer { number: request.number, outcome })
    }

    fn reap(&mut self) -> io::Result<()> {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => drop(self.ended.insert(pid.as_raw(), code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    self.ended.insert(pid.as_raw(), 128 + signal as i32);
                }
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return self.tell(),
                Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Answers those who wait for a program that has ended.
    fn tell(&mut self) -> io::Result<()> {
        for (pid, number) in std::mem::take(&mut self.waiting) {
            match self.ended.get(&pid) {
                Some(code) => say(&Answer { number, outcome: Outcome::Ended { code: *code } })?,
                None => self.waiting.push((pid, number)),
            }
        }
        Ok(())
    }
}

fn spawn(program: &Program) -> io::Result<i32> {
    let (name, arguments) = program.arguments.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let open = |path| File::options().create(true).append(true).open(path);
    let child = Command::new(name)
        .args(arguments)
        .envs(&program.environment)
        .stdin(Stdio::null())
        .stdout(open(&program.stdout)?)
        .stderr(open(&program.stderr)?)
        .spawn()?;
    // Dropped without waiting: reaped with everybody else.
    Ok(child.id().cast_signed())
}

fn send(pid: i32, signal: i32) -> io::Result<()> {
    let signal = Signal::try_from(signal)?;
    // Never a group, never everybody.
    if pid <= 1 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(kill(Pid::from_raw(pid), signal)?)
}

fn say(answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    out.flush()
}

/// Runs `command` and reaps whatever falls to the first process, until `command` ends; exits as it does.
pub fn supervise(command: &[String]) -> io::Result<std::process::ExitCode> {
    let (name, arguments) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let child = Command::new(name).args(arguments).spawn();
    let child = child.map_err(|e| io::Error::new(e.kind(), format!("{name}: {e}")))?.id().cast_signed();
    loop {
        let code = match waitpid(None, None)? {
            WaitStatus::Exited(pid, code) if pid.as_raw() == child => code,
            WaitStatus::Signaled(pid, signal, _) if pid.as_raw() == child => 128 + signal as i32,
            _ => continue,
        };
        return Ok(std::process::ExitCode::from(u8::try_from(code).unwrap_or(125)));
    }
}
