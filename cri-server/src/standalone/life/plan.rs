//! What a manifest says of the life of its pod: roles, policies, probes, hooks, deadlines. Pure.
//!
//! Invariant: a [`Plan`] that was read holds nothing that cannot be carried out; what does not fit is refused by
//! the path of its field. Its members are in the order of the requests: init containers first, then apps.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, PodSpec, Probe as ProbeSpec};

use super::{
    super::{
        manifest::{Findings, Manifest, ManifestError, refuse},
        request::NO_SPEC,
    },
    action::{self, Action},
};

/// Longest time of any field, in seconds: a year.
const LONGEST: i64 = 365 * 24 * 3600;
/// Grace of a pod that names none.
const GRACE: Duration = Duration::from_secs(30);

/// When a container that has ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum Policy {
    /// However it ended.
    Always,
    /// When it failed.
    OnFailure,
    /// Not at all.
    Never,
}

/// What a container is in its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::standalone) enum Role {
    /// Runs to success before anything after it begins.
    Init,
    /// Begins in the place of an init container and is kept until the apps have ended.
    Sidecar,
    /// What the pod is for.
    App,
}

/// The life of one pod.
#[derive(Debug, Clone)]
pub(in crate::standalone) struct Plan {
    /// Init containers and sidecars in their order, then apps.
    pub(in crate::standalone) members: Vec<Member>,
    /// How long all containers together have to end; the requests have it from the manifest.
    pub(in crate::standalone) grace: Duration,
    /// How long the pod may run.
    pub(super) deadline: Option<Duration>,
    /// The pod has the host's network.
    pub(super) host_network: bool,
    /// How often its containers may fail and begin again; without a number for ever.
    pub(super) retries: Option<u32>,
}

/// The life of one container.
#[derive(Debug, Clone)]
pub(in crate::standalone) struct Member {
    pub(in crate::standalone) name: String,
    pub(in crate::standalone) role: Role,
    pub(super) policy: Policy,
    pub(super) startup: Option<Probe>,
    pub(super) liveness: Option<Probe>,
    pub(super) readiness: Option<Probe>,
    pub(super) post_start: Option<Action>,
    pub(super) pre_stop: Option<Action>,
    /// Without last words of its own, the end of its log has them when it has failed.
    pub(super) log_speaks: bool,
}

/// A question that is put to a container again and again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Probe {
    pub(super) action: Action,
    pub(super) delay: Duration,
    pub(super) period: Duration,
    pub(super) timeout: Duration,
    pub(super) successes: u32,
    pub(super) failures: u32,
    /// How long the container has to end when it is killed for this probe.
    pub(super) grace: Option<Duration>,
}

impl Plan {
    /// Reads the plan; `over` takes the place of the pod's own restartPolicy. An error has fields of the pod, and
    /// no place yet.
    pub(in crate::standalone) fn of(
        manifest: &Manifest,
        over: Option<Policy>,
    ) -> Result<Self, ManifestError> {
        let Some(spec) = &manifest.pod.spec else { return refuse("spec", NO_SPEC) };
        let mut found = Findings::default();
        let of_manifest = found.part(policy("spec.restartPolicy", spec.restart_policy.as_deref())).flatten();
        let policy = over.or(of_manifest).unwrap_or(Policy::Always);
        let mut members = Vec::new();
        for (index, container) in spec.init_containers.iter().flatten().enumerate() {
            let field = format!("spec.initContainers[{index}]");
            members.extend(found.part(member(container, &field, policy, true)));
        }
        for (index, container) in spec.containers.iter().enumerate() {
            members.extend(found.part(member(
                container,
                &format!("spec.containers[{index}]"),
                policy,
                false,
            )));
        }
        let deadline = found.part(deadline(spec)).flatten();
        found.whole(Self {
            members,
            grace: GRACE,
            deadline,
            host_network: spec.host_network == Some(true),
            retries: manifest.retries,
        })
    }
}

fn deadline(spec: &PodSpec) -> Result<Option<Duration>, ManifestError> {
    spec.active_deadline_seconds.map(|value| seconds("spec.activeDeadlineSeconds", value, 1)).transpose()
}

fn policy(field: &str, word: Option<&str>) -> Result<Option<Policy>, ManifestError> {
    match word {
        None => Ok(None),
        Some("Always") => Ok(Some(Policy::Always)),
        Some("OnFailure") => Ok(Some(Policy::OnFailure)),
        Some("Never") => Ok(Some(Policy::Never)),
        Some(other) => refuse(field, format!("{other:?} is not Always, OnFailure or Never")),
    }
}

/// A number of seconds from `least` to a year.
pub(super) fn seconds(field: &str, value: i64, least: i64) -> Result<Duration, ManifestError> {
    if !(least..=LONGEST).contains(&value) {
        return refuse(field, format!("{value} is not a number of seconds from {least} to {LONGEST}"));
    }
    Ok(Duration::from_secs(value.unsigned_abs()))
}

fn member(container: &Container, field: &str, of_pod: Policy, setup: bool) -> Result<Member, ManifestError> {
    let mut found = Findings::default();
    let own = policy(&format!("{field}.restartPolicy"), container.restart_policy.as_deref());
    let own = found.part(own).flatten();
    let role = match (setup, own) {
        (true, Some(Policy::Always)) => Role::Sidecar,
        (true, _) => Role::Init,
        (false, _) => Role::App,
    };
    if role == Role::Init {
        found.part(refuse_on_init(container, field));
    }
    let probe = |name: &str, spec: &Option<ProbeSpec>| {
        let read = |spec| self::probe(spec, &format!("{field}.{name}"), container);
        spec.as_ref().map(read).transpose()
    };
    let lifecycle = container.lifecycle.clone().unwrap_or_default();
    let hook = |name: &str, handler: Option<_>| {
        let read = |handler| action::of_hook(&handler, &format!("{field}.lifecycle.{name}"), container);
        handler.map(read).transpose()
    };
    let startup = found.part(probe("startupProbe", &container.startup_probe)).flatten();
    let liveness = found.part(probe("livenessProbe", &container.liveness_probe)).flatten();
    let readiness = found.part(probe("readinessProbe", &container.readiness_probe)).flatten();
    let post_start = found.part(hook("postStart", lifecycle.post_start)).flatten();
    let pre_stop = found.part(hook("preStop", lifecycle.pre_stop)).flatten();
    found.whole(Member {
        name: container.name.clone(),
        role,
        policy: own.unwrap_or(of_pod),
        startup,
        liveness,
        readiness,
        post_start,
        pre_stop,
        log_speaks: container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError"),
    })
}

/// An init container is done when it ends: it has no probes and no hooks.
fn refuse_on_init(container: &Container, field: &str) -> Result<(), ManifestError> {
    let found = [
        ("startupProbe", container.startup_probe.is_some()),
        ("livenessProbe", container.liveness_probe.is_some()),
        ("readinessProbe", container.readiness_probe.is_some()),
        ("lifecycle", container.lifecycle.is_some()),
    ];
    let reason = "an init container has none; make it a sidecar with restartPolicy: Always, or leave it out";
    let mut wrong = Findings::default();
    for (name, _) in found.into_iter().filter(|(_, there)| *there) {
        wrong.part::<()>(refuse(format!("{field}.{name}"), reason));
    }
    wrong.whole(())
}

fn probe(spec: &ProbeSpec, field: &str, container: &Container) -> Result<Probe, ManifestError> {
    let time = |name: &str, value: Option<i32>, default: i64, least: i64| {
        let value = value.map_or(default, i64::from);
        // As the API server does: an explicit 0 is the default.
        seconds(&format!("{field}.{name}"), if value == 0 { default } else { value }, least)
    };
    let count = |name: &str, value: Option<i32>, default: u32| match value {
        None | Some(0) => Ok(default),
        Some(value @ 1..) => Ok(value.unsigned_abs()),
        Some(value) => refuse(format!("{field}.{name}"), format!("{value} is not a number from 1")),
    };
    let readiness = field.ends_with("readinessProbe");
    let mut found = Findings::default();
    let successes = found.part(count("successThreshold", spec.success_threshold, 1)).unwrap_or(1);
    if successes != 1 && !readiness {
        let reason = "must be 1; only readinessProbe takes more";
        found.part::<()>(refuse(format!("{field}.successThreshold"), reason));
    }
    let grace = match spec.termination_grace_period_seconds {
        Some(_) if readiness => {
            let reason = "nothing is ended for this probe; leave it out";
            refuse(format!("{field}.terminationGracePeriodSeconds"), reason)
        }
        Some(value) => seconds(&format!("{field}.terminationGracePeriodSeconds"), value, 1).map(Some),
        None => Ok(None),
    };
    let grace = found.part(grace).flatten();
    let delay = found.part(time("initialDelaySeconds", spec.initial_delay_seconds, 0, 0));
    let period = found.part(time("periodSeconds", spec.period_seconds, 10, 1));
    let timeout = found.part(time("timeoutSeconds", spec.timeout_seconds, 1, 1));
    let failures = found.part(count("failureThreshold", spec.failure_threshold, 3));
    // Without an action there is no probe, and its other fields are told all the same.
    let action =
        found.part(action::of_probe(spec, field, container)).unwrap_or(Action::Sleep(Duration::ZERO));
    found.whole(Probe {
        action,
        delay: delay.unwrap_or_default(),
        period: period.unwrap_or_default(),
        timeout: timeout.unwrap_or_default(),
        successes,
        failures: failures.unwrap_or_default(),
        grace,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(containers: &str, spec: &str) -> Result<Plan, ManifestError> {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec: {{{spec} containers: [{containers}]}}\n"
        );
        Plan::of(&Manifest::parse("m", &text)?, None)
    }

    #[test]
    fn the_policy_is_always_unless_the_manifest_or_the_command_says_otherwise() {
        let text = "{name: a, image: i}, {name: b, image: i, restartPolicy: Never}";
        let policies = |plan: &Plan| plan.members.iter().map(|member| member.policy).collect::<Vec<_>>();
        assert_eq!(policies(&plan(text, "").unwrap()), [Policy::Always, Policy::Never]);
        let on_failure = plan(text, "restartPolicy: OnFailure,").unwrap();
        assert_eq!(policies(&on_failure), [Policy::OnFailure, Policy::Never]);
        let pod =
            "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: a, image: i}]}\n";
        let over = Plan::of(&Manifest::parse("m", pod).unwrap(), Some(Policy::Never)).unwrap();
        assert_eq!(policies(&over), [Policy::Never]);
    }

    #[test]
    fn an_init_container_that_is_always_restarted_is_a_sidecar() {
        let init = "initContainers: [{name: i, image: i}, {name: s, image: i, restartPolicy: Always}],";
        let plan = plan("{name: a, image: i}", init).unwrap();
        let roles: Vec<Role> = plan.members.iter().map(|member| member.role).collect();
        assert_eq!(roles, [Role::Init, Role::Sidecar, Role::App]);
    }

    #[test]
    fn a_probe_has_the_defaults_of_kubernetes() {
        let plan = plan("{name: a, image: i, livenessProbe: {exec: {command: [\"true\"]}}}", "").unwrap();
        let probe = plan.members[0].liveness.clone().unwrap();
        let times = [probe.delay, probe.period, probe.timeout].map(|time| time.as_secs());
        assert_eq!((times, probe.successes, probe.failures, probe.grace), ([0, 10, 1], 1, 3, None));
    }

    #[test]
    fn what_no_life_can_have_is_refused_by_field() {
        let app = |more: &str| format!("{{name: a, image: i, {more}}}");
        for (container, spec, field) in [
            (app(""), "restartPolicy: Sometimes,", "spec.restartPolicy"),
            (app(""), "activeDeadlineSeconds: 0,", "spec.activeDeadlineSeconds"),
            (app("restartPolicy: Perhaps"), "", "spec.containers[0].restartPolicy"),
            (app("livenessProbe: {}"), "", "spec.containers[0].livenessProbe"),
            (
                app("livenessProbe: {tcpSocket: {port: 1}, successThreshold: 2}"),
                "",
                "spec.containers[0].livenessProbe.successThreshold",
            ),
            (
                app("readinessProbe: {tcpSocket: {port: 1}, terminationGracePeriodSeconds: 2}"),
                "",
                "spec.containers[0].readinessProbe.terminationGracePeriodSeconds",
            ),
            (
                app("livenessProbe: {tcpSocket: {port: http}}"),
                "",
                "spec.containers[0].livenessProbe.tcpSocket.port",
            ),
            (
                app("lifecycle: {preStop: {httpGet: {port: 0}}}"),
                "",
                "spec.containers[0].lifecycle.preStop.httpGet.port",
            ),
            (
                app(""),
                "initContainers: [{name: i, image: i, livenessProbe: {tcpSocket: {port: 1}}}],",
                "spec.initContainers[0].livenessProbe",
            ),
        ] {
            let message = plan(&container, spec).unwrap_err().to_string();
            assert!(message.starts_with(&format!("{field}: ")), "{message}");
        }
    }
}
