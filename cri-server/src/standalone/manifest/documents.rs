//! Which documents a manifest may hold, and the one pod they make. Pure.

use std::collections::HashSet;

use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
        batch::v1::{CronJob, Job, JobSpec},
        core::v1::{ConfigMap, Pod, PodTemplateSpec, ReplicationController, Secret},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::Deserialize;

use super::{
    Problem,
    data::{Data, Kind, Object, bad_key},
    draft::draft,
    node::{Node, Value, join, way_up},
    read,
};
use crate::standalone::supported::{self, Refused};

/// The kinds that make a pod: version, kind, where the pod is in it.
const PODS: [(&str, &str, &str); 8] = [
    ("v1", "Pod", ""),
    ("apps/v1", "Deployment", "spec.template"),
    ("apps/v1", "DaemonSet", "spec.template"),
    ("apps/v1", "StatefulSet", "spec.template"),
    ("apps/v1", "ReplicaSet", "spec.template"),
    ("v1", "ReplicationController", "spec.template"),
    ("batch/v1", "Job", "spec.template"),
    ("batch/v1", "CronJob", "spec.jobTemplate.spec.template"),
];

/// Kinds that are often beside a pod, and what to do without them.
const WITHOUT: [(&str, &str); 9] = [
    ("Service", "pods are reached by their address or by hostPort; leave it out"),
    ("Ingress", "there is no cluster to route in; publish a hostPort and leave it out"),
    (
        "PersistentVolumeClaim",
        "there is no storage to claim; use a hostPath or emptyDir volume and leave it out",
    ),
    ("PersistentVolume", "there is no storage to claim; use a hostPath or emptyDir volume and leave it out"),
    ("Namespace", "names need no namespace here; leave it out"),
    ("ServiceAccount", "there is no API server to have an account at; leave it out"),
    ("NetworkPolicy", "policies of a cluster's network are not kept here; leave it out"),
    ("HorizontalPodAutoscaler", "one pod is run; leave it out"),
    ("PodDisruptionBudget", "one pod is run; leave it out"),
];

/// How often a job's containers may fail and begin again, where it does not say.
const RETRIES: i32 = 6;
const SUSPENDED: &str = "is true, so that nothing of it would run; leave it out";

/// What was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) pod: Pod,
    pub(super) data: Data,
    pub(super) aside: Aside,
    pub(super) document: Node,
    pub(super) within: String,
    /// What is wrong in the pod's document.
    pub(super) flaws: Vec<Problem>,
    /// What is wrong in the other ones.
    pub(super) flaws_beside: Vec<Problem>,
}

/// What a workload says beside its pod.
#[derive(Debug, Default)]
pub(super) struct Aside {
    /// What of it has no effect.
    pub(super) notes: Vec<String>,
    /// How often its containers may fail and begin again.
    pub(super) retries: Option<u32>,
}

/// The pod of a text, as far as it can be read; all that is wrong when there is none.
pub(super) fn one_pod(text: &str) -> Result<Found, Vec<Problem>> {
    let documents = read::documents(text).map_err(|fault| {
        vec![Problem { file: None, at: Some(fault.at), field: String::new(), reason: fault.reason }]
    })?;
    let (mut problems, mut pods, mut data) = (Vec::new(), Vec::new(), Vec::new());
    for document in documents.into_iter().flat_map(items) {
        match sort(&document) {
            Ok(Sort::Pod(within)) => pods.push((document, within)),
            Ok(Sort::Data(kind)) => data.push((document, kind)),
            Err(problem) => problems.push(problem),
        }
    }
    if pods.is_empty() && problems.is_empty() {
        let reason = "holds no pod; it must hold one Pod, or one workload with a template of it";
        problems.push(Problem { file: None, at: None, field: String::new(), reason: reason.to_owned() });
    }
    if let Some((second, _)) = pods.get(1) {
        let reason = format!(
            "a second pod ({} {:?}); one is run at a time, so put each into a file of its own",
            second.word("kind"),
            second.get("metadata").map(|metadata| metadata.word("name")).unwrap_or_default()
        );
        problems.push(Problem { file: None, at: Some(second.at), field: String::new(), reason });
    }
    let unread = !problems.is_empty();
    let (mut aside, mut flaws, mut pod) = (Aside::default(), Vec::new(), None);
    let first = pods.into_iter().next();
    if let Some((document, within)) = &first {
        pod = self::pod(document, within, &mut aside, &mut flaws);
    }
    let named = pod.as_ref().map(|pod| pod.metadata.namespace.as_deref().unwrap_or("default"));
    let mut data = collect(&data, named.filter(|_| flaws.is_empty()), &mut problems);
    data.flawed |= unread;
    match (first, pod) {
        (Some((document, within)), Some(pod)) => {
            let within = within.to_owned();
            Ok(Found { pod, data, aside, document, within, flaws, flaws_beside: problems })
        }
        _ => {
            problems.append(&mut flaws);
            Err(problems)
        }
    }
}

/// What a `List` holds; anything else is itself.
fn items(document: Node) -> Vec<Node> {
    if (document.word("apiVersion"), document.word("kind")) == ("v1", "List")
        && let Some(Node { value: Value::List(items), .. }) = document.get("items")
    {
        return items.clone();
    }
    vec![document]
}

enum Sort {
    /// With the path of the pod in it.
    Pod(&'static str),
    Data(Kind),
}

fn sort(document: &Node) -> Result<Sort, Problem> {
    let refuse = |field: &str, reason: String| {
        let at = Some(document.locate(field));
        Err(Problem { file: None, at, field: field.to_owned(), reason })
    };
    if !matches!(document.value, Value::Map(_)) {
        return refuse("", "is no map with apiVersion, kind, metadata and spec".to_owned());
    }
    let (version, kind) = (document.word("apiVersion"), document.word("kind"));
    if version.is_empty() || kind.is_empty() {
        let (field, example) = if kind.is_empty() { ("kind", "Pod") } else { ("apiVersion", "v1") };
        return refuse(field, format!("is missing; for a pod it is {example}"));
    }
    let known = PODS.iter().map(|(of, name, within)| (*of, *name, Sort::Pod(within)));
    let data = [Kind::ConfigMap, Kind::Secret].map(|kind| ("v1", kind.name(), Sort::Data(kind)));
    for (of, name, sort) in known.chain(data) {
        match (name == kind, of == version) {
            (true, true) => return Ok(sort),
            (true, false) => {
                return refuse("apiVersion", format!("is {version:?}; {kind} is read as {of}"));
            }
            _ => {}
        }
    }
    let hint = WITHOUT.iter().find(|(name, _)| *name == kind).map_or_else(
        || {
            let names: Vec<&str> = PODS.iter().map(|(_, name, _)| *name).collect();
            format!("a manifest holds ConfigMaps, Secrets, and one of {}", names.join(", "))
        },
        |(_, hint)| (*hint).to_owned(),
    );
    refuse("kind", format!("{kind} is not supported by podhold run: {hint}"))
}

/// A document as a typed structure, as far as it can be read.
fn checked<T: for<'de> Deserialize<'de>>(
    document: &Node,
    within: &str,
    problems: &mut Vec<Problem>,
) -> Option<T> {
    let (value, mut wrong) = draft::<T>(document);
    let told: HashSet<String> = wrong.iter().map(|problem| problem.field.clone()).collect();
    // What is below a field that is wrong is not told, nor what is wrong with one in two ways.
    let is_new = |path: &str| !way_up(path).any(|path| told.contains(path));
    for Refused { at, path, reason } in supported::refused(document, within) {
        if is_new(&path) {
            wrong.push(Problem { file: None, at: Some(at), field: path, reason });
        }
    }
    problems.append(&mut wrong);
    value
}

fn pod(document: &Node, within: &str, aside: &mut Aside, problems: &mut Vec<Problem>) -> Option<Pod> {
    let notes = &mut aside.notes;
    match document.word("kind") {
        "Pod" => {
            let mut pod: Pod = checked(document, within, problems)?;
            let given =
                pod.metadata.generate_name.as_deref().map(|name| name.trim_end_matches('-').to_owned());
            pod.metadata.name = pod.metadata.name.or(given);
            pod.status = None;
            Some(pod)
        }
        "Deployment" => checked(document, within, problems).map(|workload: Deployment| {
            let spec = workload.spec.unwrap_or_default();
            one_of(notes, "spec.replicas", spec.replicas);
            if spec.paused == Some(true) {
                notes.push("spec.paused: one pod is run all the same".to_owned());
            }
            of_template(workload.metadata, spec.template)
        }),
        "ReplicaSet" => checked(document, within, problems).map(|workload: ReplicaSet| {
            let spec = workload.spec.unwrap_or_default();
            one_of(notes, "spec.replicas", spec.replicas);
            of_template(workload.metadata, spec.template.unwrap_or_default())
        }),
        "ReplicationController" => {
            checked(document, within, problems).map(|workload: ReplicationController| {
                let spec = workload.spec.unwrap_or_default();
                one_of(notes, "spec.replicas", spec.replicas);
                of_template(workload.metadata, spec.template.unwrap_or_default())
            })
        }
        "DaemonSet" => checked(document, within, problems).map(|workload: DaemonSet| {
            of_template(workload.metadata, workload.spec.unwrap_or_default().template)
        }),
        "StatefulSet" => checked(document, within, problems).map(|workload: StatefulSet| {
            let spec = workload.spec.unwrap_or_default();
            one_of(notes, "spec.replicas", spec.replicas);
            let mut metadata = workload.metadata;
            metadata.name = metadata.name.map(|name| format!("{name}-0"));
            let mut pod = of_template(metadata, spec.template);
            let name = pod.metadata.name.clone();
            let of_pod = pod.spec.get_or_insert_default();
            of_pod.hostname = of_pod.hostname.take().or(name);
            of_pod.subdomain = of_pod.subdomain.take().or(spec.service_name).filter(|name| !name.is_empty());
            pod
        }),
        "Job" => {
            let workload: Job = checked(document, within, problems)?;
            let spec = workload.spec.unwrap_or_default();
            let mut refuse =
                |field: &str, reason: &str| problems.push(wrong(document, format!("spec.{field}"), reason));
            Some(job(workload.metadata, spec, ("spec", aside), &mut refuse))
        }
        _ => {
            let workload: CronJob = checked(document, within, problems)?;
            if workload.spec.suspend == Some(true) {
                problems.push(wrong(document, "spec.suspend".to_owned(), SUSPENDED));
            }
            let spec = workload.spec.job_template.spec.unwrap_or_default();
            notes.push("spec.schedule: the job is run once, and now".to_owned());
            let path = "spec.jobTemplate.spec";
            let mut refuse = |field: &str, reason: &str| {
                problems.push(wrong(document, format!("{path}.{field}"), reason));
            };
            Some(job(workload.metadata, spec, (path, aside), &mut refuse))
        }
    }
}

fn wrong(document: &Node, field: String, reason: &str) -> Problem {
    Problem { file: None, at: Some(document.locate(&field)), field, reason: reason.to_owned() }
}

/// The pod of a job; `refuse` takes the fields of the job that no cluster would take, and why.
fn job(
    metadata: ObjectMeta,
    spec: JobSpec,
    (path, aside): (&str, &mut Aside),
    refuse: &mut dyn FnMut(&str, &str),
) -> Pod {
    if let Some(mode) = spec.completion_mode.as_deref().filter(|mode| *mode != "NonIndexed") {
        refuse("completionMode", &format!("{mode:?} is not supported by podhold run; use NonIndexed"));
    }
    if spec.suspend == Some(true) {
        refuse("suspend", SUSPENDED);
    }
    let policy = spec.template.spec.as_ref().and_then(|pod| pod.restart_policy.as_deref());
    match policy {
        Some("OnFailure" | "Never") => {}
        Some(other) => {
            let reason = format!("{other:?} is not for a job; it is OnFailure or Never");
            refuse("template.spec.restartPolicy", &reason);
        }
        None => refuse("template.spec.restartPolicy", "is missing; for a job it is OnFailure or Never"),
    }
    match u32::try_from(spec.backoff_limit.unwrap_or(RETRIES)) {
        Ok(limit) => aside.retries = Some(limit),
        Err(_) => refuse("backoffLimit", "is less than 0"),
    }
    if policy == Some("Never") && spec.backoff_limit.is_some_and(|limit| limit > 0) {
        let note = "one pod is run, and no other in its place when it fails; with restartPolicy OnFailure its \
                    containers begin again";
        aside.notes.push(format!("{}: {note}", join(path, "backoffLimit")));
    }
    one_of(&mut aside.notes, &join(path, "completions"), spec.completions);
    one_of(&mut aside.notes, &join(path, "parallelism"), spec.parallelism);
    let mut pod = of_template(metadata, spec.template);
    let of_pod = pod.spec.get_or_insert_default();
    // The job and its one pod are the same length of time.
    of_pod.active_deadline_seconds = match (of_pod.active_deadline_seconds, spec.active_deadline_seconds) {
        (Some(of_pod), Some(of_job)) => Some(of_pod.min(of_job)),
        (of_pod, of_job) => of_pod.or(of_job),
    };
    pod
}

fn one_of(notes: &mut Vec<String>, field: &str, wanted: Option<i32>) {
    if let Some(wanted) = wanted.filter(|wanted| *wanted != 1) {
        notes.push(format!("{field}: one pod is run, and not {wanted}"));
    }
}

fn of_template(workload: ObjectMeta, template: PodTemplateSpec) -> Pod {
    let mut metadata = template.metadata.unwrap_or_default();
    // Controllers name their pods after themselves.
    metadata.name =
        workload.name.or(workload.generate_name.map(|name| name.trim_end_matches('-').to_owned()));
    metadata.namespace = workload.namespace.or(metadata.namespace);
    Pod { metadata, spec: template.spec, status: None }
}

/// The ConfigMaps and Secrets; `namespace` is the pod's where that is known.
fn collect(documents: &[(Node, Kind)], namespace: Option<&str>, problems: &mut Vec<Problem>) -> Data {
    let mut data = Data::default();
    for (document, kind) in documents {
        let before = problems.len();
        let read = match kind {
            Kind::ConfigMap => checked::<ConfigMap>(document, "", problems)
                .map(|map| (map.metadata.clone(), Object::from(map))),
            Kind::Secret => checked::<Secret>(document, "", problems)
                .map(|secret| (secret.metadata.clone(), Object::from(secret))),
        };
        let Some((metadata, mut object)) = read else {
            data.flawed = true;
            continue;
        };
        object.flawed = problems.len() > before;
        let mut refuse =
            |field: &str, reason: String| problems.push(wrong(document, field.to_owned(), &reason));
        for key in object.entries.keys() {
            if let Some(reason) = bad_key(key) {
                refuse("data", reason);
            }
        }
        let other = |mine: &&str| metadata.namespace.as_deref().is_some_and(|of| of != *mine);
        if let Some(mine) = namespace.filter(other) {
            refuse(
                "metadata.namespace",
                format!("is not {mine:?}, the pod's; a pod sees what is in its own"),
            );
        }
        let name = metadata.name.unwrap_or_default();
        match (name.is_empty(), object.flawed) {
            (true, true) => data.flawed = true,
            (true, false) => {
                refuse("metadata.name", "is missing; give it a name".to_owned());
                data.flawed = true;
            }
            (false, _) if data.get(*kind, &name).is_some() => {
                refuse("metadata.name", format!("two {}s are named {name:?}", kind.name()));
            }
            (false, _) => data.add(*kind, name, object),
        }
    }
    data
}
