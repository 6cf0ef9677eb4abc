//! Sessions that are real: processes with pipes or a terminal, TCP connections on the loopback.

use std::{
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use rustix::{
    fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl, open},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use tokio::{
    net::{TcpStream, unix::pipe},
    process::{Child, Command},
    sync::Notify,
};

use crate::{
    error::{Error, Result},
    runtime::session::{AttachRequest, Duplex, ExecRequest, Process, Session, Sessions, Streams},
};

/// Runs what is asked for on this machine, and counts what lives.
#[derive(Default)]
pub(super) struct Host {
    pub(super) alive: Arc<AtomicUsize>,
    pub(super) changed: Arc<Notify>,
}

impl Host {
    /// Waits until so many sessions live.
    pub(super) async fn settled(&self, count: usize) {
        let reached = async {
            loop {
                let changed = self.changed.notified();
                if self.alive.load(Ordering::SeqCst) == count {
                    return;
                }
                changed.await;
            }
        };
        let late = tokio::time::timeout(std::time::Duration::from_secs(10), reached).await;
        late.unwrap_or_else(|_| panic!("{} sessions live, not {count}", self.alive.load(Ordering::SeqCst)));
    }

    fn count(&self) -> Alive {
        self.alive.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_waiters();
        Alive { alive: self.alive.clone(), changed: self.changed.clone() }
    }
}

/// Counts a session while it exists.
struct Alive {
    alive: Arc<AtomicUsize>,
    changed: Arc<Notify>,
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::SeqCst);
        self.changed.notify_waiters();
    }
}

struct Running {
    child: Child,
    terminal: Option<OwnedFd>,
    _alive: Alive,
}

#[async_trait]
impl Process for Running {
    fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let Some(terminal) = &self.terminal else { return Ok(()) };
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(terminal, size).map_err(Error::doing("resize"))
    }

    async fn wait(&mut self) -> Result<i32> {
        let status = self.child.wait().await.map_err(Error::doing("wait"))?;
        Ok(status.code().unwrap_or(137))
    }
}

#[async_trait]
impl Sessions for Host {
    async fn exec(&self, exec: ExecRequest) -> Result<Session> {
        if exec.container != "c" {
            return Err(Error::not_found("container", exec.container));
        }
        if exec.streams.tty { self.terminal(&exec) } else { self.pipes(&exec.command, exec.streams) }
    }

    async fn attach(&self, attach: AttachRequest) -> Result<Session> {
        let command = ["sh", "-c", "cat; exit 9"].map(String::from);
        self.pipes(&command, attach.streams)
    }

    async fn connect(&self, pod: &str, port: u16) -> Result<Pin<Box<dyn Duplex>>> {
        let doing = format!("connect to port {port} of pod {pod}");
        let tcp = TcpStream::connect(("127.0.0.1", port)).await.map_err(Error::doing(doing))?;
        Ok(Box::pin(tcp))
    }

    async fn stopped(&self, _: &str) {
        std::future::pending().await
    }
}

impl Host {
    fn pipes(&self, command: &[String], streams: Streams) -> Result<Session> {
        let pipe = |wanted: bool| if wanted { Stdio::piped() } else { Stdio::null() };
        let mut child = Command::new(&command[0])
            .args(&command[1..])
            .stdin(pipe(streams.stdin))
            .stdout(pipe(streams.stdout))
            .stderr(pipe(streams.stderr))
            .kill_on_drop(true)
            .spawn()
            .map_err(Error::doing(format!("start {:?}", command[0])))?;
        Ok(Session {
            stdin: child.stdin.take().map(|stdin| Box::pin(stdin) as _),
            stdout: child.stdout.take().map(|stdout| Box::pin(stdout) as _),
            stderr: child.stderr.take().map(|stderr| Box::pin(stderr) as _),
            process: Box::new(Running { child, terminal: None, _alive: self.count() }),
        })
    }

    fn terminal(&self, exec: &ExecRequest) -> Result<Session> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        let stdio = || Stdio::from(slave.try_clone().unwrap());
        let child = Command::new("setsid")
            .arg("--ctty")
            .arg("--wait")
            .args(&exec.command)
            .stdin(stdio())
            .stdout(stdio())
            .stderr(stdio())
            .kill_on_drop(true)
            .spawn()
            .map_err(Error::doing("start"))?;
        fcntl_setfl(&master, fcntl_getfl(&master).unwrap() | OFlags::NONBLOCK).unwrap();
        let copy = || master.as_fd().try_clone_to_owned().unwrap();
        let stdout = pipe::Receiver::from_owned_fd_unchecked(copy()).unwrap();
        let stdin = pipe::Sender::from_owned_fd_unchecked(copy()).unwrap();
        Ok(Session {
            stdin: exec.streams.stdin.then(|| Box::pin(stdin) as _),
            stdout: exec.streams.stdout.then(|| Box::pin(stdout) as _),
            stderr: None,
            process: Box::new(Running { child, terminal: Some(master), _alive: self.count() }),
        })
    }
}
