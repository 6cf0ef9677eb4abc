//! `--json`: how a pod ended, for programs. Pure.

use serde_json::{Value, json};

use super::{
    super::life::{Outcome, Report, RunEnd},
    Subject, kind, time,
};
use crate::error::Error;

/// The document; `failure` is what failed that is no container.
pub(super) fn of(subject: &Subject, outcome: &Outcome, code: u8, failure: Option<&Error>) -> Value {
    let Subject { name, namespace, uid, addresses } = subject;
    json!({
        "pod": {"name": name, "namespace": namespace, "uid": uid, "ips": addresses},
        "result": if code == 0 { "Succeeded" } else { "Failed" },
        "reason": outcome.reason().or(failure.map(|_| "HostFailure")),
        "message": failure.map(ToString::to_string),
        "exitCode": code,
        "startedAt": outcome.started.map(time),
        "finishedAt": time(outcome.finished),
        "containers": outcome.containers.iter().map(container).collect::<Vec<_>>(),
    })
}

fn container(report: &Report) -> Value {
    let last = report.last.as_ref();
    let ended = last.map(|run| &run.ended);
    let killed_for = last.and_then(RunEnd::killed_for);
    json!({
        "name": report.name,
        "kind": kind(report.role),
        "image": report.image,
        "imageRef": last.map(|run| &run.image_ref),
        "id": last.map(|run| &run.id),
        "exitCode": ended.map(|ended| ended.code),
        "reason": ended.map(|ended| &ended.reason),
        "message": last.map(|run| &run.message).filter(|words| !words.is_empty()),
        "killedFor": killed_for,
        "startedAt": ended.and_then(|ended| ended.started_at).map(time),
        "finishedAt": ended.map(|ended| time(ended.finished_at)),
        "restarts": report.restarts,
        "limitsHit": if report.oom > 0 { vec!["memory"] } else { Vec::new() },
    })
}
