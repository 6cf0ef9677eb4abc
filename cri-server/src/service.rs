//! What a service manager such as systemd gives the daemon and is told by it: a socket to serve on
//! (sd_listen_fds(3)), that the daemon is ready or ends (sd_notify(3)), and signs of life (sd_watchdog_enabled(3)).
//!
//! Invariant: without a manager nothing here does anything, and a manager that does not listen harms nothing.
//! Signs of life come from verbs' own ground (see [`Manager::keep_alive`]), never from a timer alone.

use std::{
    env, io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram, UnixListener},
    },
    sync::Arc,
    time::Duration,
};

use rustix::{
    io::{FdFlags, fcntl_setfd},
    net::sockopt,
};

use crate::{runtime::Runtime, sys};

/// Signs of life in the time after which the manager takes the daemon for dead.
const SIGNS: u32 = 3;

/// The manager that started this process, if one did.
#[derive(Debug, Clone, Default)]
pub(crate) struct Manager {
    socket: Option<Arc<UnixDatagram>>,
    watchdog: Option<Duration>,
}

impl Manager {
    /// The manager that the environment names.
    pub(crate) fn from_environment() -> Self {
        let watched = owner("WATCHDOG_PID", true);
        let watchdog = number("WATCHDOG_USEC").filter(|usec| watched && *usec > 0).map(Duration::from_micros);
        let Some(address) = env::var_os("NOTIFY_SOCKET") else { return Self::default() };
        match connect(&address.to_string_lossy()) {
            Ok(socket) => Self { socket: Some(Arc::new(socket)), watchdog },
            Err(error) => {
                tracing::warn!(%error, address = %address.display(), "service manager not reached");
                Self::default()
            }
        }
    }

    /// The daemon answers on its socket.
    pub(crate) fn ready(&self, pods: usize) {
        self.tell(&format!("READY=1\nSTATUS=serving; found {pods} pods at the start"));
    }

    /// The daemon ends; pods run on.
    pub(crate) fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=ending; pods run on");
    }

    /// Gives the manager signs of life as long as `runtime` gives any: a thread that verbs run on takes the lock
    /// that every verb takes. When that does not come about in time, nothing is sent, and the manager ends the
    /// daemon and starts it anew.
    pub(crate) fn keep_alive(&self, runtime: &Arc<Runtime>) {
        let Some(watchdog) = self.watchdog else { return };
        let (manager, runtime) = (self.clone(), Arc::clone(runtime));
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(watchdog / SIGNS);
            loop {
                ticks.tick().await;
                let asked = Arc::clone(&runtime);
                let answer = tokio::spawn(async move { asked.store().pods().len() });
                match tokio::time::timeout(watchdog, answer).await {
                    Ok(Ok(_pods)) => manager.tell("WATCHDOG=1"),
                    Ok(Err(error)) => tracing::error!(%error, "no sign of life: the pods cannot be listed"),
                    Err(_) => tracing::error!(?watchdog, "no sign of life: listing the pods takes too long"),
                }
            }
        });
    }

    fn tell(&self, state: &str) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = socket.send(state.as_bytes()) {
            tracing::warn!(%error, state, "service manager not told");
        }
    }
}

/// The socket that the manager holds for us, if it does: one that listens on a path. To be called once, before anything
/// is opened.
pub(crate) fn inherited() -> io::Result<Option<UnixListener>> {
    if !owner("LISTEN_PID", false) {
        return Ok(None);
    }
    let refused = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("LISTEN_FDS: {what}"));
    match number("LISTEN_FDS") {
        None | Some(0) => return Ok(None),
        Some(1) => {}
        Some(more) => return Err(refused(&format!("{more} sockets; give one, that of the CRI"))),
    }
    let socket = sys::first_inherited();
    // Shims and plugins are not to have it.
    fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
    let listens = sockopt::socket_acceptconn(&socket).unwrap_or(false);
    let listener = UnixListener::from(socket);
    let path = listener.local_addr().ok().and_then(|address| address.as_pathname().map(ToOwned::to_owned));
    if !listens || path.is_none() {
        return Err(refused(
            "not a unix socket that listens on a path; write ListenStream=/run/podhold/podhold.sock",
        ));
    }
    listener.set_nonblocking(true)?;
    Ok(Some(listener))
}

fn connect(address: &str) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    let address = match address.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(address)?,
    };
    socket.connect_addr(&address)?;
    // The manager is never waited for.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Whether a variable that names a process names this one: children have their parent's environment.
fn owner(variable: &str, unless_set: bool) -> bool {
    number(variable).map_or(unless_set, |pid| pid == u64::from(std::process::id()))
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_is_told_by_path_and_by_abstract_name() {
        let directory = tempfile::tempdir().expect("make a directory");
        let path = directory.path().join("notify");
        let told = UnixDatagram::bind(&path).expect("bind a socket");
        let socket = connect(path.to_str().expect("the path is text")).expect("connect by path");
        Manager { socket: Some(Arc::new(socket)), watchdog: None }.ready(3);
        let mut text = [0; 256];
        let length = told.recv(&mut text).expect("receive");
        let text = std::str::from_utf8(&text[..length]).expect("it is text");
        assert!(text.starts_with("READY=1\nSTATUS="), "{text}");

        let name = format!("podhold-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("an address");
        let told = UnixDatagram::bind_addr(&address).expect("bind an abstract socket");
        let socket = connect(&format!("@{name}")).expect("connect by name");
        Manager { socket: Some(Arc::new(socket)), watchdog: None }.stopping();
        let mut text = [0; 256];
        let length = told.recv(&mut text).expect("receive");
        assert!(text[..length].starts_with(b"STOPPING=1\n"));
    }

    #[test]
    fn a_manager_that_is_gone_harms_nothing() {
        let directory = tempfile::tempdir().expect("make a directory");
        let path = directory.path().join("notify");
        let told = UnixDatagram::bind(&path).expect("bind a socket");
        let socket = connect(path.to_str().expect("the path is text")).expect("connect");
        drop(told);
        Manager { socket: Some(Arc::new(socket)), watchdog: None }.stopping();
    }
}
