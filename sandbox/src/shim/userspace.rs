//! The pod's user namespace and the network namespace that belongs to it.
//!
//! Invariant: held by the shim's own descriptors and by nothing else; the process they were made in has
//! ended when [`make`] returns.

use std::{
    fmt::Write,
    fs::{self, File},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    sched::CloneFlags,
    sys::{
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::{Gid, Pid, Uid, setgroups, setresgid, setresuid},
};
use podhold_proto::shim::{IdRange, MakeNamespaces, MakeNamespacesReply, reply::Result as Outcome};
use rustix::event::{PollFd, PollFlags, poll};

use super::{
    ReplyTo, Shim,
    connection::refused,
    report::{self, Heard, Report},
};
use crate::{netns, sys};

/// How long the process that makes them may take: nothing in it waits for anything outside the kernel.
const LIMIT: Duration = Duration::from_secs(10);

/// The namespaces of a pod with users of its own.
pub(super) struct UserSpace {
    /// As it was asked for.
    asked: MakeNamespaces,
    pub(super) user: OwnedFd,
    net: Option<OwnedFd>,
}

impl Shim {
    /// Answers MakeNamespaces.
    pub(super) fn make_namespaces(&mut self, to: ReplyTo, call: MakeNamespaces) {
        let wanted = !call.uids.is_empty() || !call.gids.is_empty();
        match &self.user_space {
            Some(made) if wanted && made.asked != call => {
                return self.reply(to, refused("the pod has another user namespace already"));
            }
            None if wanted && self.holder.is_some() => {
                return self.reply(to, refused("the pod is open and has no user namespace of its own"));
            }
            None if wanted => match make(call) {
                Ok(made) => self.user_space = Some(made),
                Err(words) => return self.reply(to, refused(words)),
            },
            _ => {}
        }
        let made = self.user_space.as_ref();
        let files = made.into_iter().flat_map(|made| std::iter::once(&made.user).chain(&made.net));
        let files: Result<Vec<OwnedFd>, _> = files.map(OwnedFd::try_clone).collect();
        match files {
            Ok(files) => {
                let net = made.is_some_and(|made| made.net.is_some());
                let reply = MakeNamespacesReply { user: made.is_some(), net };
                self.reply_with(to, Outcome::MakeNamespaces(reply), files);
            }
            Err(error) => self.reply(to, refused(format!("copy the namespaces' descriptors: {error}"))),
        }
    }
}

/// Takes on the ids of root in a user namespace that was joined, and no group of the host's. The others in
/// it cannot look into this process until it executes something.
pub(super) fn become_root() -> Result<(), String> {
    let failed = |error: nix::Error| format!("become root in the user namespace: {}", error.desc());
    setgroups(&[]).map_err(failed)?;
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(gid, gid, gid).map_err(failed)?;
    setresuid(uid, uid, uid).map_err(failed)?;
    // Changing ids has made it what fs.suid_dumpable says.
    nix::sys::prctl::set_dumpable(false).map_err(failed)
}

fn make(call: MakeNamespaces) -> Result<UserSpace, String> {
    let (near, far) = report::pair().map_err(|error| format!("socket pair: {error}"))?;
    let mut flags = CloneFlags::CLONE_NEWUSER;
    flags.set(CloneFlags::CLONE_NEWNET, call.net);
    let pid = sys::fork(flags, || {
        sys::close_fds_except(&[far.as_raw_fd()]);
        let ready = if call.net { netns::loopback_up() } else { Ok(()) };
        match ready {
            Ok(()) => report::tell(&far, &Report::Process(0), &[]),
            Err(error) => report::tell_failure(&far, &format!("bring up loopback: {error}")),
        }
        // The namespaces live as long as this process, until the shim has its descriptors.
        let _ = poll(&mut [PollFd::new(&far, PollFlags::IN)], None);
        0
    })
    .map_err(|error| match error.raw_os_error() {
        Some(libc::ENOSPC) => "make a user namespace: there are too many; raise the sysctls \
                               user.max_user_namespaces and user.max_net_namespaces"
            .to_owned(),
        _ => format!("make a user namespace: {error}"),
    })?;
    drop(far);
    let made = fetch(call, pid, &near);
    let _ = kill(pid, Signal::SIGKILL);
    let _ = waitpid(pid, None);
    made
}

fn fetch(asked: MakeNamespaces, pid: Pid, near: &OwnedFd) -> Result<UserSpace, String> {
    for (file, ranges) in [("uid_map", &asked.uids), ("gid_map", &asked.gids)] {
        let text = lines(ranges);
        fs::write(format!("/proc/{pid}/{file}"), &text)
            .map_err(|error| format!("map ids of the user namespace ({file}: {}): {error}", text.trim()))?;
    }
    await_ready(near)?;
    let open = |name: &str| -> Result<OwnedFd, String> {
        let path = format!("/proc/{pid}/ns/{name}");
        File::open(&path).map(OwnedFd::from).map_err(|error| format!("{path}: {error}"))
    };
    let user = open("user")?;
    let net = if asked.net { Some(open("net")?) } else { None };
    Ok(UserSpace { asked, user, net })
}

/// As user_namespaces(7) wants it; one write for all.
fn lines(ranges: &[IdRange]) -> String {
    let mut text = String::new();
    for range in ranges {
        let _ = writeln!(text, "{} {} {}", range.container, range.host, range.length);
    }
    text
}

fn await_ready(near: &OwnedFd) -> Result<(), String> {
    let until = Instant::now() + LIMIT;
    loop {
        match report::hear(near.as_fd()) {
            Heard::Report(Report::Failed(words), _) => return Err(words),
            Heard::Report(..) => return Ok(()),
            Heard::End => return Err("the process that makes the user namespace has died".into()),
            Heard::Nothing => {}
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(format!("the user namespace was not made within {LIMIT:?}"));
        }
        let left = rustix::event::Timespec::try_from(left).ok();
        let _ = poll(&mut [PollFd::new(near, PollFlags::IN)], left.as_ref());
    }
}
