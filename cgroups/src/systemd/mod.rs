//! Scopes: the part of the tree of cgroups that systemd hands over, one for each pod.
//!
//! What is beneath a scope is ours alone (`Delegate=yes`), so that systemd is asked twice in a pod's life, by
//! whichever daemon is there then: for the scope when pause runs, and to end it when all in it has ended. Between
//! the two it may be reloaded, executed anew or hang. Knows no limits: they are written beneath the scope.

mod bus;
mod message;
mod turns;

use std::{
    fs,
    os::fd::AsFd,
    path::Path,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

pub use self::bus::BusError;
use self::{
    bus::{Bus, Deadline},
    message::Writer,
    turns::Turns,
};
use crate::events::settle;

/// How long systemd may take for a scope.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long it may take to say which version it is.
const GREETING: Duration = Duration::from_secs(5);
/// How long it may take to say what a unit is at.
const GLANCE: Duration = Duration::from_secs(3);
/// How long to wait before systemd is asked again that was not there.
const AGAIN: Duration = Duration::from_millis(50);
/// How long a scope that exists may take to have its process.
const ADOPTION: Duration = Duration::from_secs(3);

/// systemd as this machine's manager.
#[derive(Debug, Clone, Default)]
pub(crate) struct Systemd {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    version: OnceLock<u32>,
    turns: Turns,
}

/// What is to be made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scope<'a> {
    /// Its name, ending in `.scope`.
    pub(crate) unit: &'a str,
    /// The slice it is in.
    pub(crate) slice: &'a str,
    /// Its first process.
    pub(crate) pid: u32,
}

impl Systemd {
    /// Whether it runs here.
    pub(crate) fn is_running() -> bool {
        Path::new("/run/systemd/system").is_dir()
    }

    /// Its version; proof that it answers.
    pub(crate) fn version(&self) -> Result<u32, BusError> {
        if let Some(version) = self.inner.version.get() {
            return Ok(*version);
        }
        let deadline = Deadline::within(GREETING);
        let version = self.again_and_again(deadline, || {
            let text = Bus::open(deadline)?.property("Version")?;
            let digits = text.trim_start_matches('v').split(|c: char| !c.is_ascii_digit()).next();
            digits
                .and_then(|digits| digits.parse().ok())
                .ok_or_else(|| BusError::Malformed(format!("its version is {text:?}")))
        })?;
        Ok(*self.inner.version.get_or_init(|| version))
    }

    /// Makes the scope with its first process in it. One that has it already is taken as it is.
    pub(crate) fn start(&self, scope: Scope<'_>) -> Result<(), BusError> {
        let deadline = Deadline::within(PATIENCE);
        let version = self.version()?;
        let mut cleared = false;
        self.again_and_again(deadline, || match make(scope, version, deadline) {
            // Of a call that was heard and not answered, or of a crash before.
            Err(error) if error.is("UnitExists") => {
                if appears_in(scope, deadline) {
                    return Ok(());
                }
                if std::mem::replace(&mut cleared, true) {
                    return Err(error);
                }
                end(scope.unit, deadline)?;
                make(scope, version, deadline)
            }
            made => made,
        })
    }

    /// Ends the unit and whatever is in it. Success when there is none of this name.
    pub(crate) fn end(&self, unit: &str) -> Result<(), BusError> {
        let deadline = Deadline::within(PATIENCE);
        self.again_and_again(deadline, || end(unit, deadline))
    }

    /// Whether somebody has it stop the unit just now. Asked once, and not for long.
    pub(crate) fn stops(&self, unit: &str) -> Result<bool, BusError> {
        let deadline = Deadline::within(GLANCE);
        let _turn = self.inner.turns.take(deadline.at);
        let state = Bus::open(deadline)?.state_of(unit)?;
        Ok(state == "deactivating")
    }

    /// Does an errand when it is its turn, and again while systemd is not there, until the deadline.
    fn again_and_again<T>(
        &self,
        deadline: Deadline,
        mut errand: impl FnMut() -> Result<T, BusError>,
    ) -> Result<T, BusError> {
        let _turn = self.inner.turns.take(deadline.at);
        loop {
            match errand() {
                Err(error) if error.passes() && deadline.left().is_ok() => {
                    tracing::debug!(%error, "systemd is asked again");
                    settle(AGAIN);
                }
                done => return done,
            }
        }
    }
}

fn make(scope: Scope<'_>, version: u32, deadline: Deadline) -> Result<(), BusError> {
    let process = i32::try_from(scope.pid).ok().and_then(Pid::from_raw);
    let ended = || BusError::Job("its process has ended".to_owned());
    let process = pidfd_open(process.ok_or_else(ended)?, PidfdFlags::empty()).map_err(|_| ended())?;
    let mut bus = Bus::open(deadline)?;
    // By descriptor: systemd may count processes otherwise than we do, in another pid namespace.
    let by_fd = version >= FDS && bus.takes_fds;
    let body = properties(scope, version, by_fd);
    bus.run("StartTransientUnit", "ssa(sv)a(sa(sv))", body, by_fd.then(|| process.as_fd()))
}

fn end(unit: &str, deadline: Deadline) -> Result<(), BusError> {
    let named = || {
        let mut body = Writer::default();
        body.text(unit);
        body
    };
    let mut stop = named();
    stop.text("replace");
    let mut bus = Bus::open(deadline)?;
    match bus.run("StopUnit", "ss", stop, None) {
        Err(error) if error.is("NoSuchUnit") => return Ok(()),
        ended => ended?,
    }
    // One that has failed may stay on systemd's list.
    match bus.ask("ResetFailedUnit", "s", named(), None) {
        Err(error) if !error.is("NoSuchUnit") => Err(error),
        _ => Ok(()),
    }
}

/// First version that takes processes by descriptor.
const FDS: u32 = 255;
/// First version whose scopes have an OOM policy, which is to stop all of the scope.
const OOM_POLICY: u32 = 253;

fn properties(scope: Scope<'_>, version: u32, by_fd: bool) -> Writer {
    let mut body = Writer::default();
    body.text(scope.unit);
    body.text("fail");
    body.array(8, |all| {
        let mut property = |name: &str, signature: &str, value: &dyn Fn(&mut Writer)| {
            all.align(8);
            all.text(name);
            all.signature(signature);
            value(all);
        };
        property("Description", "s", &|w| w.text("Pod of Podhold"));
        property("Slice", "s", &|w| w.text(scope.slice));
        property("Delegate", "b", &|w| w.u32(1));
        // Else it would be stopped before what pods depend on, when the machine is shut down.
        property("DefaultDependencies", "b", &|w| w.u32(0));
        property("CollectMode", "s", &|w| w.text("inactive-or-failed"));
        // Else 15 percent of what the machine can have.
        property("TasksMax", "t", &|w| w.u64(u64::MAX));
        if version >= OOM_POLICY {
            property("OOMPolicy", "s", &|w| w.text("continue"));
        }
        if by_fd {
            property("PIDFDs", "ah", &|w| w.array(4, |fds| fds.u32(0)));
        } else {
            property("PIDs", "au", &|w| w.array(4, |pids| pids.u32(scope.pid)));
        }
    });
    body.array(8, |_no_other_units| {});
    body
}

/// Whether the process is in the scope, or comes to be in it soon.
fn appears_in(scope: Scope<'_>, deadline: Deadline) -> bool {
    let until = (Instant::now() + ADOPTION).min(deadline.at);
    loop {
        let groups = fs::read_to_string(format!("/proc/{}/cgroup", scope.pid)).unwrap_or_default();
        let within = |group: &str| group.split('/').any(|part| part == scope.unit);
        if groups.lines().any(within) {
            return true;
        }
        if groups.is_empty() || Instant::now() >= until {
            return false;
        }
        settle(AGAIN);
    }
}
