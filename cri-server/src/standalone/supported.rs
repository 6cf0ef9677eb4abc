//! Which fields of the Kubernetes API `podhold run` understands. Pure.
//!
//! Invariant: what is not on a list is refused by its path; nothing is ignored in silence. That a field exists
//! at all is not decided here.

use super::manifest::{Node, Position, Value, join};

/// Of a pod; `[]` is any element of a list, `.*` at the end whatever is below.
const POD: &[&str] = &[
    "metadata.name",
    "metadata.generateName",
    "metadata.namespace",
    "metadata.uid",
    "metadata.labels.*",
    "metadata.annotations.*",
    "spec.dnsConfig.*",
    "spec.dnsPolicy",
    "spec.hostAliases[].*",
    "spec.hostIPC",
    "spec.hostNetwork",
    "spec.hostPID",
    "spec.hostUsers",
    "spec.hostname",
    "spec.hostnameOverride",
    "spec.imagePullSecrets[].name",
    "spec.nodeName",
    "spec.os.name",
    "spec.overhead.cpu",
    "spec.overhead.memory",
    "spec.securityContext.appArmorProfile.*",
    "spec.securityContext.fsGroup",
    "spec.securityContext.fsGroupChangePolicy",
    "spec.securityContext.runAsGroup",
    "spec.securityContext.runAsNonRoot",
    "spec.securityContext.runAsUser",
    "spec.securityContext.seLinuxOptions.*",
    "spec.securityContext.seccompProfile.*",
    "spec.securityContext.supplementalGroups[]",
    "spec.securityContext.supplementalGroupsPolicy",
    "spec.securityContext.sysctls[].*",
    "spec.setHostnameAsFQDN",
    "spec.shareProcessNamespace",
    "spec.subdomain",
    "spec.terminationGracePeriodSeconds",
    "spec.volumes[].configMap.*",
    "spec.volumes[].downwardAPI.*",
    "spec.volumes[].emptyDir.*",
    "spec.volumes[].hostPath.*",
    "spec.volumes[].image.*",
    "spec.volumes[].name",
    "spec.volumes[].projected.defaultMode",
    "spec.volumes[].projected.sources[].configMap.*",
    "spec.volumes[].projected.sources[].downwardAPI.*",
    "spec.volumes[].projected.sources[].secret.*",
    "spec.volumes[].secret.*",
];

/// Of a pod: what decides where or whether a cluster runs it, and changes nothing about it once it runs.
const POD_WITHOUT_EFFECT: &[&str] = &[
    "metadata.creationTimestamp",
    "metadata.finalizers.*",
    "metadata.generation",
    "metadata.managedFields.*",
    "metadata.ownerReferences.*",
    "metadata.resourceVersion",
    "metadata.selfLink",
    "spec.affinity.*",
    "spec.automountServiceAccountToken",
    "spec.enableServiceLinks",
    "spec.nodeSelector.*",
    "spec.preemptionPolicy",
    "spec.priority",
    "spec.priorityClassName",
    "spec.schedulerName",
    "spec.securityContext.seLinuxChangePolicy",
    "spec.serviceAccount",
    "spec.serviceAccountName",
    "spec.tolerations.*",
    "spec.topologySpreadConstraints.*",
];

/// Of a pod, what its life cycle reads.
const POD_LIFE: &[&str] = &["spec.activeDeadlineSeconds", "spec.restartPolicy"];

/// Of a container, below `spec.containers[]` and `spec.initContainers[]`.
const CONTAINER: &[&str] = &[
    "name",
    "image",
    "imagePullPolicy",
    "command[]",
    "args[]",
    "workingDir",
    "env[].name",
    "env[].value",
    "env[].valueFrom.configMapKeyRef.*",
    "env[].valueFrom.fieldRef.*",
    "env[].valueFrom.resourceFieldRef.*",
    "env[].valueFrom.secretKeyRef.*",
    "envFrom[].*",
    "ports[].*",
    "resizePolicy.*",
    "resources.limits.cpu",
    "resources.limits.ephemeral-storage",
    "resources.limits.memory",
    "resources.requests.cpu",
    "resources.requests.ephemeral-storage",
    "resources.requests.memory",
    "securityContext.allowPrivilegeEscalation",
    "securityContext.appArmorProfile.*",
    "securityContext.capabilities.*",
    "securityContext.privileged",
    "securityContext.procMount",
    "securityContext.readOnlyRootFilesystem",
    "securityContext.runAsGroup",
    "securityContext.runAsNonRoot",
    "securityContext.runAsUser",
    "securityContext.seLinuxOptions.*",
    "securityContext.seccompProfile.*",
    "stdin",
    "stdinOnce",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "tty",
    "volumeMounts[].*",
];

/// Of a container, what its life cycle reads.
const CONTAINER_LIFE: &[&str] = &[
    "lifecycle.postStart.*",
    "lifecycle.preStop.*",
    "livenessProbe.*",
    "readinessProbe.*",
    "restartPolicy",
    "startupProbe.*",
];

/// Of every document.
const DOCUMENT: &[&str] = &["apiVersion", "kind", "metadata.*", "status.*"];

/// Of ConfigMaps and Secrets.
const DATA: &[&str] = &["data.*", "binaryData.*", "stringData.*", "immutable", "type"];

/// Of workloads, besides the template: how many pods there are when, and here there is one, now.
const WORKLOAD: &[&str] = &[
    "spec.minReadySeconds",
    "spec.paused",
    "spec.podManagementPolicy",
    "spec.progressDeadlineSeconds",
    "spec.replicas",
    "spec.revisionHistoryLimit",
    "spec.selector.*",
    "spec.serviceName",
    "spec.strategy.*",
    "spec.updateStrategy.*",
];

/// Of jobs, besides the template.
const JOB: &[&str] = &[
    "activeDeadlineSeconds",
    "backoffLimit",
    "completionMode",
    "completions",
    "manualSelector",
    "parallelism",
    "podReplacementPolicy",
    "selector.*",
    "suspend",
    "ttlSecondsAfterFinished",
];

/// Of scheduled jobs, besides that.
const CRON_JOB: &[&str] = &[
    "spec.concurrencyPolicy",
    "spec.failedJobsHistoryLimit",
    "spec.jobTemplate.metadata.*",
    "spec.schedule",
    "spec.startingDeadlineSeconds",
    "spec.successfulJobsHistoryLimit",
    "spec.suspend",
    "spec.timeZone",
];

/// What to do without some fields; the pattern is found in the field's.
const HINTS: &[(&str, &str)] = &[
    (".persistentVolumeClaim", "there is no storage to claim; use emptyDir or hostPath"),
    (".volumeClaimTemplates", "there is no storage to claim; use emptyDir or hostPath"),
    (".serviceAccountToken", "there is no API server that gives tokens; leave it out"),
    (".nfs", "mount it on the host and use hostPath"),
    (".resources.limits.", "only cpu, memory, ephemeral-storage and hugepages are known here"),
    (".resources.requests.", "only cpu, memory, ephemeral-storage and hugepages are known here"),
    (".windowsOptions", "containers here are Linux ones; leave it out"),
    ("spec.runtimeClassName", "pods here have the built-in runtime; leave it out"),
];

/// A value that is not understood.
pub(super) struct Refused {
    pub(super) at: Position,
    pub(super) path: String,
    pub(super) reason: String,
}

/// All values that are not understood; `within` is where the pod is in the document.
pub(super) fn refused(document: &Node, within: &str) -> Vec<Refused> {
    let patterns = patterns(document.word("kind"), within);
    let mut found = Vec::new();
    walk(document, (String::new(), String::new()), &patterns, &mut found);
    found
}

fn patterns(kind: &str, within: &str) -> Vec<String> {
    let below = |base: &str, lists: &[&[&str]]| -> Vec<String> {
        let all = lists.iter().flat_map(|list| list.iter());
        all.map(|field| if base.is_empty() { (*field).to_owned() } else { format!("{base}.{field}") })
            .collect()
    };
    let mut patterns = below("", &[DOCUMENT]);
    match kind {
        "ConfigMap" | "Secret" => {
            patterns.extend(below("", &[DATA]));
            return patterns;
        }
        "Pod" => {}
        "Job" => patterns.extend(below("spec", &[JOB])),
        "CronJob" => {
            patterns.extend(below("", &[CRON_JOB]));
            patterns.extend(below("spec.jobTemplate.spec", &[JOB]));
        }
        _ => patterns.extend(below("", &[WORKLOAD])),
    }
    patterns.extend(below(within, &[POD, POD_WITHOUT_EFFECT, POD_LIFE]));
    for list in ["spec.containers[]", "spec.initContainers[]"] {
        let base = if within.is_empty() { list.to_owned() } else { format!("{within}.{list}") };
        patterns.extend(below(&base, &[CONTAINER, CONTAINER_LIFE]));
    }
    patterns
}

fn walk(node: &Node, (path, pattern): (String, String), known: &[String], found: &mut Vec<Refused>) {
    // An explicit null is the same as leaving the field out.
    if node.value == Value::Null || known.iter().any(|field| is_whole(field, &pattern)) {
        return;
    }
    let is_beginning =
        |field: &String| field.strip_prefix(&pattern).is_some_and(|rest| rest.starts_with(['.', '[']));
    if !pattern.is_empty() && !known.iter().any(is_beginning) {
        let hint = HINTS.iter().find(|(part, _)| pattern.contains(part));
        let hint = hint.map_or("leave it out", |(_, hint)| hint);
        found.push(Refused { at: node.at, path, reason: format!("not supported by podhold run: {hint}") });
        return;
    }
    match &node.value {
        Value::Map(fields) => {
            for field in fields {
                let plain =
                    if pattern.is_empty() { field.key.clone() } else { format!("{pattern}.{}", field.key) };
                walk(&field.node, (join(&path, &field.key), plain), known, found);
            }
        }
        Value::List(items) => {
            for (index, inner) in items.iter().enumerate() {
                walk(inner, (format!("{path}[{index}]"), format!("{pattern}[]")), known, found);
            }
        }
        // A plain value where a structure is expected: the typed reader says what is wrong with it.
        _ => {}
    }
}

fn is_whole(field: &str, pattern: &str) -> bool {
    // Sizes of huge pages are a kernel's own.
    if let Some((_, name)) = pattern.rsplit_once(".resources.")
        && let Some((_, size)) = name.split_once(".hugepages-")
    {
        return !size.is_empty();
    }
    match field.strip_suffix(".*") {
        Some(base) => pattern.strip_prefix(base).is_some_and(|rest| rest.starts_with(['.', '['])),
        None => field == pattern,
    }
}

#[cfg(test)]
mod tests {
    use crate::standalone::manifest::Manifest;

    /// The messages about a manifest, one a line.
    fn said(text: &str) -> String {
        Manifest::parse("m", text).map(|_| String::new()).unwrap_or_else(|error| error.to_string())
    }

    #[test]
    fn what_exists_and_is_not_understood_is_told_apart_from_what_does_not_exist() {
        let message = said(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, creationTimestamp: null}\nspec:\n  containers:\n\
             \x20 - name: c\n    image: i\n    livenesProbe: {x: 1}\n    volumeDevices: [{name: a}]\n\
             \x20   resources: {limits: {nvidia.com/gpu: 1, hugepages-2Mi: 4Mi}}\n  volumes:\n\
             \x20 - {name: w, nfs: {server: x, path: /}}\n  - {name: v, emptyDir: {}}\n  tolerations: [{key: a}]\n",
        );
        assert_eq!(
            message,
            "m:8:5: spec.containers[0].livenesProbe: no such field; did you mean livenessProbe?\n\
             m:9:20: spec.containers[0].volumeDevices: not supported by podhold run: leave it out\n\
             m:10:42: spec.containers[0].resources.limits[\"nvidia.com/gpu\"]: not supported by podhold run: \
             only cpu, memory, ephemeral-storage and hugepages are known here\n\
             m:12:20: spec.volumes[0].nfs: not supported by podhold run: mount it on the host and use hostPath"
        );
    }

    #[test]
    fn a_workload_has_the_fields_of_its_pod_in_its_template() {
        let workload = |kind: &str, more: &str| {
            format!(
                "apiVersion: apps/v1\nkind: {kind}\nmetadata: {{name: a}}\nspec:\n  selector: {{}}\n  {more}\n\
                 \x20 template:\n    spec: {{runtimeClassName: x, containers: [{{name: c, image: i}}]}}\n"
            )
        };
        assert_eq!(
            said(&workload("StatefulSet", "volumeClaimTemplates: [{}]")),
            "m:6:25: spec.volumeClaimTemplates: not supported by podhold run: there is no storage to claim; use \
             emptyDir or hostPath\nm:8:30: spec.template.spec.runtimeClassName: not supported by podhold run: \
             pods here have the built-in runtime; leave it out"
        );
        assert!(said(&workload("Deployment", "replica: 3")).contains("did you mean replicas?"));
    }
}
