//! Which fields of a Pod `podhold run` understands. Pure.
//!
//! Invariant: what is not on the list is refused by its path; nothing is ignored in silence.

use serde_json::Value;

/// Fields by path; `[]` is any element of a list, `*` any key or any value below.
const FIELDS: &[&str] = &[
    "apiVersion",
    "kind",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "metadata.labels.*",
    "metadata.annotations.*",
    "spec.hostIPC",
    "spec.hostNetwork",
    "spec.hostPID",
    "spec.hostUsers",
    "spec.hostname",
    "spec.restartPolicy",
    "spec.shareProcessNamespace",
    "spec.terminationGracePeriodSeconds",
    "spec.securityContext.runAsGroup",
    "spec.securityContext.runAsUser",
    "spec.securityContext.supplementalGroups[]",
    "spec.securityContext.sysctls[].name",
    "spec.securityContext.sysctls[].value",
    "spec.volumes[].name",
    "spec.volumes[].emptyDir",
    "spec.volumes[].hostPath.path",
    "spec.volumes[].hostPath.type",
];

/// Fields of a container, below `spec.containers[]` and `spec.initContainers[]`.
const CONTAINER_FIELDS: &[&str] = &[
    "name",
    "image",
    "imagePullPolicy",
    "command[]",
    "args[]",
    "workingDir",
    "env[].name",
    "env[].value",
    "ports[].name",
    "ports[].containerPort",
    "ports[].hostPort",
    "ports[].hostIP",
    "ports[].protocol",
    "resources.limits.cpu",
    "resources.limits.memory",
    "resources.requests.cpu",
    "resources.requests.memory",
    "securityContext.allowPrivilegeEscalation",
    "securityContext.capabilities.add[]",
    "securityContext.capabilities.drop[]",
    "securityContext.privileged",
    "securityContext.readOnlyRootFilesystem",
    "securityContext.runAsGroup",
    "securityContext.runAsUser",
    "volumeMounts[].name",
    "volumeMounts[].mountPath",
    "volumeMounts[].readOnly",
];

/// Fields of a pod that say how it lives, in `life/`.
const LIFE: &[&str] = &["spec.activeDeadlineSeconds"];

/// Fields of a container that say how it lives, in `life/`.
const LIFE_OF_CONTAINER: &[&str] = &["restartPolicy", "terminationMessagePath", "terminationMessagePolicy"];

/// Fields of a probe, below `livenessProbe`, `readinessProbe` and `startupProbe`.
const PROBE: &[&str] = &[
    "failureThreshold",
    "grpc.port",
    "grpc.service",
    "initialDelaySeconds",
    "periodSeconds",
    "successThreshold",
    "terminationGracePeriodSeconds",
    "timeoutSeconds",
];

/// What a probe or a hook does.
const ACTION: &[&str] = &[
    "exec.command[]",
    "httpGet.host",
    "httpGet.httpHeaders[].name",
    "httpGet.httpHeaders[].value",
    "httpGet.path",
    "httpGet.port",
    "httpGet.scheme",
    "sleep.seconds",
    "tcpSocket.host",
    "tcpSocket.port",
];

/// All fields of a container that say how it lives.
fn life_of_container() -> impl Iterator<Item = String> {
    let probes = ["livenessProbe", "readinessProbe", "startupProbe"];
    let of_probe = PROBE.iter().chain(ACTION).filter(|field| !field.starts_with("sleep"));
    let of_probes = probes
        .into_iter()
        .flat_map(move |probe| of_probe.clone().map(move |field| format!("{probe}.{field}")));
    let hooks = ["lifecycle.postStart", "lifecycle.preStop"];
    let of_hooks =
        hooks.into_iter().flat_map(|hook| ACTION.iter().map(move |field| format!("{hook}.{field}")));
    LIFE_OF_CONTAINER.iter().map(|field| (*field).to_owned()).chain(of_probes).chain(of_hooks)
}

/// The paths of all values that are not understood, such as `spec.containers[1].livenessProbe`.
pub(super) fn unknown(manifest: &Value) -> Vec<String> {
    let mut found = Vec::new();
    walk(manifest, String::new(), String::new(), &mut found);
    found
}

fn walk(value: &Value, path: String, pattern: String, found: &mut Vec<String>) {
    // An explicit null is the same as leaving the field out.
    if value.is_null() {
        return;
    }
    if matches(&pattern, Match::Whole) {
        // `emptyDir: {}` is understood, and nothing in it.
        if let Value::Object(fields) = value {
            found.extend(fields.keys().map(|name| format!("{path}.{name}")));
        }
        return;
    }
    if !pattern.is_empty() && !matches(&pattern, Match::Beginning) {
        found.push(path);
        return;
    }
    match value {
        Value::Object(fields) => {
            for (name, inner) in fields {
                let join = |base: &str| if base.is_empty() { name.clone() } else { format!("{base}.{name}") };
                walk(inner, join(&path), join(&pattern), found);
            }
        }
        Value::Array(items) => {
            for (index, inner) in items.iter().enumerate() {
                walk(inner, format!("{path}[{index}]"), format!("{pattern}[]"), found);
            }
        }
        // A plain value where a structure is expected: the typed reader says what is wrong with it.
        _ => {}
    }
}

#[derive(Clone, Copy)]
enum Match {
    Whole,
    Beginning,
}

fn matches(pattern: &str, how: Match) -> bool {
    let fits = |field: &str| match how {
        Match::Whole => match field.strip_suffix(".*") {
            Some(base) => pattern.strip_prefix(base).is_some_and(|rest| rest.starts_with('.')),
            None => field == pattern,
        },
        Match::Beginning => field.strip_prefix(pattern).is_some_and(|rest| rest.starts_with(['.', '['])),
    };
    FIELDS.iter().chain(LIFE).any(|field| fits(field))
        || ["spec.containers[]", "spec.initContainers[]"].iter().any(|list| {
            matches!(how, Match::Beginning) && (list.starts_with(pattern) && matches_boundary(list, pattern))
                || CONTAINER_FIELDS.iter().any(|field| fits(&format!("{list}.{field}")))
                || life_of_container().any(|field| fits(&format!("{list}.{field}")))
        })
}

fn matches_boundary(list: &str, pattern: &str) -> bool {
    list.strip_prefix(pattern).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_understood_is_named_by_its_path() {
        let manifest = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": "a", "labels": { "x": "y" }, "creationTimestamp": null },
            "spec": {
                "volumes": [{ "name": "v", "emptyDir": {} }, { "name": "w", "nfs": { "server": "x" } },
                    { "name": "m", "emptyDir": { "medium": "Memory" } }],
                "initContainers": [{ "name": "i", "image": "b", "restartPolicy": "Always" }],
                "containers": [
                    { "name": "a", "image": "b", "env": [{ "name": "E", "value": "1" }] },
                    { "name": "c", "image": "b", "livenessProbe": { "exec": {}, "ttl": 1 }, "env": [{ "name": "E", "valueFrom": {} }] },
                ],
            },
        });
        assert_eq!(
            unknown(&manifest),
            [
                "spec.containers[1].env[0].valueFrom",
                "spec.containers[1].livenessProbe.ttl",
                "spec.volumes[1].nfs",
                "spec.volumes[2].emptyDir.medium",
            ]
        );
    }
}
