//! Between the launch contract's types and the protocol's. No I/O.

use std::{
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use podhold_proto::shim::{
    self as wire, Exec, FailureKind, MakeNamespaces, NamespaceJoin, OpenPod, Start, reply::Result as Outcome,
};

use super::version;
use crate::{
    ContainerId, PodId,
    launch::{
        ExecIo, ExecSpec, Exit, IdMap, IdRange, KnownContainer, KnownState, LaunchError, NamespaceKind,
        NamespaceOf, PodEvent, PodSpec, StartSpec, Started, UserNamespace,
    },
};

pub(super) fn open_pod(pod: &PodSpec) -> Result<OpenPod, LaunchError> {
    let netns = pod.netns.as_deref().map(|path| text(path, "network namespace")).transpose()?;
    Ok(OpenPod {
        netns: netns.unwrap_or_default(),
        in_user_namespace: pod.in_user_namespace,
        hostname: pod.hostname.clone().unwrap_or_default(),
        own_ipc: pod.own_ipc,
        shared_pid: pod.shared_pid,
        sysctls: pod.sysctls.clone().into_iter().collect(),
        pause_oom_score_adj: pod.pause_oom_score_adj,
    })
}

pub(super) fn make_namespaces(ids: &IdMap, net: bool) -> MakeNamespaces {
    let ranges = |ranges: &[IdRange]| {
        let wire = |range: &IdRange| wire::IdRange {
            container: range.container,
            host: range.host,
            length: range.length,
        };
        ranges.iter().map(wire).collect()
    };
    MakeNamespaces { uids: ranges(&ids.uids), gids: ranges(&ids.gids), net }
}

/// The answer to MakeNamespaces with the files that came beside it.
pub(super) fn user_namespace(
    pod: &PodId,
    reply: &wire::MakeNamespacesReply,
    files: Vec<OwnedFd>,
) -> Result<Option<UserNamespace>, LaunchError> {
    let mut files = files.into_iter();
    let mut next = |there: bool| there.then(|| files.next()).flatten();
    let (user, net) = (next(reply.user), next(reply.net));
    if user.is_some() != reply.user || net.is_some() != reply.net {
        let reason = "namespaces without their descriptors".to_owned();
        return Err(LaunchError::Protocol { pod: pod.clone(), reason });
    }
    Ok(user.map(|user| UserNamespace { user, net }))
}

pub(super) fn start(start: &StartSpec) -> Result<Start, LaunchError> {
    let join = start.join.iter().map(|join| {
        let kind = match join.kind {
            NamespaceKind::User => wire::NamespaceKind::User,
            NamespaceKind::Ipc => wire::NamespaceKind::Ipc,
            NamespaceKind::Uts => wire::NamespaceKind::Uts,
            NamespaceKind::Pid => wire::NamespaceKind::Pid,
            NamespaceKind::Net => wire::NamespaceKind::Net,
        };
        let container = match &join.of {
            NamespaceOf::Pod => String::new(),
            NamespaceOf::Container(container) => container.to_string(),
        };
        NamespaceJoin { kind: kind.into(), container }
    });
    let log_path = start.log_path.as_deref().map(|path| text(path, "log path")).transpose()?;
    Ok(Start {
        container: start.id.to_string(),
        join: join.collect(),
        log_path: log_path.unwrap_or_default(),
        tty: start.tty,
        stdin: start.stdin,
        stdin_once: start.stdin_once,
    })
}

pub(super) fn exec(pod: &PodId, exec: ExecSpec) -> Result<(Exec, Vec<OwnedFd>), LaunchError> {
    let process = serde_json::to_vec(&exec.process).map_err(|error| LaunchError::Protocol {
        pod: pod.clone(),
        reason: format!("the process cannot be written as JSON: {error}"),
    })?;
    let mut call = Exec {
        container: exec.container.to_string(),
        process,
        // 0 means none, so the shortest timeout is a millisecond.
        timeout_ms: exec.timeout.map_or(0, |timeout| {
            u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).clamp(1, u64::from(u32::MAX))
        }),
        ..Exec::default()
    };
    let mut files = Vec::new();
    match exec.io {
        ExecIo::Terminal => call.terminal = true,
        ExecIo::Files { stdin, stdout, stderr } => {
            (call.stdin, call.stdout, call.stderr) = (stdin.is_some(), stdout.is_some(), stderr.is_some());
            files.extend([stdin, stdout, stderr].into_iter().flatten());
        }
    }
    Ok((call, files))
}

pub(super) fn known(pod: &PodId, known: wire::Known) -> Result<KnownContainer, LaunchError> {
    let id = ContainerId::parse(&known.container)
        .map_err(|error| LaunchError::Protocol { pod: pod.clone(), reason: error.to_string() })?;
    let state = match known.exit {
        _ if known.starting => KnownState::Starting,
        Some(end) => {
            let exit = exit(&end);
            KnownState::Exited { started_at: exit.started_at.or_else(|| some_time(known.started_at)), exit }
        }
        None => KnownState::Running(Started { pid: known.pid, at: time(known.started_at) }),
    };
    Ok(KnownContainer { id, state })
}

pub(super) fn exited(exited: wire::Exited) -> Result<PodEvent, String> {
    let id = ContainerId::parse(&exited.container).map_err(|error| error.to_string())?;
    let end = exited.exit.ok_or("an exit without its code")?;
    Ok(PodEvent::ContainerExited(id, exit(&end)))
}

fn exit(exit: &wire::Exit) -> Exit {
    Exit {
        code: exit.code,
        at: time(exit.at),
        oom_killed: exit.oom_killed,
        started_at: some_time(exit.started_at),
    }
}

/// A time that 0 leaves open.
fn some_time(nanoseconds: i64) -> Option<SystemTime> {
    (nanoseconds != 0).then(|| time(nanoseconds))
}

/// Nanoseconds since 1970 as a time.
pub(super) fn time(nanoseconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(nanoseconds.unsigned_abs())
}

/// A reply's result, with the shim's failures as errors. What concerns a container is to be given its
/// name by [`name_container`].
pub(super) fn outcome(pod: &PodId, result: Option<Outcome>) -> Result<Outcome, LaunchError> {
    let failure = match result {
        Some(Outcome::Failure(failure)) => failure,
        Some(outcome) => return Ok(outcome),
        None => {
            let reason = "a reply without a result".to_owned();
            return Err(LaunchError::Protocol { pod: pod.clone(), reason });
        }
    };
    Err(match failure.kind() {
        FailureKind::Refused => LaunchError::Refused(failure.message),
        FailureKind::NotRunning => LaunchError::NotRunning { container: nameless(), reason: failure.message },
        FailureKind::Io => LaunchError::Io {
            operation: failure.message,
            source: std::io::Error::from_raw_os_error(failure.errno),
        },
        FailureKind::Protocol if failure.version > 0 => version::foreign(pod, failure.version),
        FailureKind::Protocol | FailureKind::Unspecified => {
            LaunchError::Protocol { pod: pod.clone(), reason: failure.message }
        }
    })
}

/// Names the container an error is about.
pub(super) fn name_container(error: LaunchError, name: Option<&ContainerId>) -> LaunchError {
    match (error, name) {
        (LaunchError::NotRunning { reason, .. }, Some(name)) => {
            LaunchError::NotRunning { container: name.clone(), reason }
        }
        (error, _) => error,
    }
}

fn nameless() -> ContainerId {
    ContainerId::parse("unknown").expect("a plain word is an id")
}

fn text(path: &Path, what: &str) -> Result<String, LaunchError> {
    let text = path.to_str().filter(|text| !text.is_empty() && !text.contains('\0'));
    text.map(str::to_owned)
        .ok_or_else(|| LaunchError::Refused(format!("{what} {}: it must be plain text", path.display())))
}
