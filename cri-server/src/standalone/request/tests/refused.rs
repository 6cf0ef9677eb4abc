//! What is refused, each with its place.

use super::made;

/// Rows of a container's fields, the pod's, and how the message begins behind file and column.
fn all_refused<'a>(rows: impl IntoIterator<Item = (&'a str, String, String)>) {
    let mut wrong = Vec::new();
    for (container, spec, want) in rows {
        let message = made(container, &spec).err().unwrap_or_default();
        // The column is a matter of the reader's own tests.
        let line = message.split(':').nth(1).unwrap_or_default();
        let rest = message.split_once(": ").unwrap_or_default().1;
        if !format!("{line}: {rest}").starts_with(&want) || message.lines().count() != 1 {
            wrong.push(format!("{message}\n  {want}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn pods_that_cannot_be_are_refused() {
    let rows = [
        (
            "initContainers: [{name: c, image: i}]",
            "5: spec.containers[0].name: two containers are named \"c\"",
        ),
        ("volumes: [{name: v}, {name: v}]", "6: spec.volumes[1].name: two volumes are named \"v\""),
        ("terminationGracePeriodSeconds: -1", "6: spec.terminationGracePeriodSeconds: -1 is not"),
        ("hostUsers: false\nhostPID: true", "7: spec.hostPID: cannot be had with hostUsers"),
        ("os: {name: windows}", "6: spec.os.name: is not linux"),
        (
            "imagePullSecrets: [{name: hush}]",
            "6: spec.imagePullSecrets[0].name: Secret \"hush\" is of type \"\"",
        ),
        ("hostAliases: [{ip: x}]", "6: spec.hostAliases[0].ip: \"x\" is not an address"),
        (
            "securityContext: {seccompProfile: {type: Some}}",
            "6: spec.securityContext.seccompProfile.type: \"Some\" is not",
        ),
        ("securityContext: {fsGroup: -1}", "6: spec.securityContext.fsGroup: -1 is not an id"),
        (
            "initContainers: [{name: first, image: Bad Image}]",
            "6: spec.initContainers[0].image: \"Bad Image\" names no image: ",
        ),
    ];
    all_refused(rows.map(|(spec, want)| ("", spec.to_owned(), want.to_owned())));
}

#[test]
fn volumes_that_cannot_be_are_refused() {
    let rows = [
        ("emptyDir: {}, hostPath: {path: /x}", ": has 2 sources, emptyDir and hostPath"),
        ("emptyDir: {medium: HugePages}", ".emptyDir.medium: \"HugePages\" is not supported"),
        ("emptyDir: {sizeLimit: x}", ".emptyDir.sizeLimit: \"x\" is not"),
        ("hostPath: {path: ../x}", ".hostPath.path: "),
        ("hostPath: {path: /x, type: Pipe}", ".hostPath.type: \"Pipe\" is not one of"),
        ("configMap: {name: nope}", ".configMap.name: no ConfigMap \"nope\" in this file; there is map:"),
        (
            "secret: {secretName: hush, items: [{key: nope, path: x}]}",
            ".secret.items[0].key: Secret \"hush\" has no key \"nope\"; it has key",
        ),
        (
            "secret: {secretName: hush, items: [{key: key, path: ../x}]}",
            ".secret.items[0].path: \"../x\" is not",
        ),
        ("secret: {secretName: hush, defaultMode: 01000}", ".secret.defaultMode: 512 is not from 0 to 0777"),
        (
            "projected: {sources: [{configMap: {name: map}}, {configMap: {name: map}}]}",
            ".projected.sources[1]: \"one\" and \"one\" cannot both",
        ),
        (
            "projected: {sources: [{serviceAccountToken: {path: t}}]}",
            ".projected.sources[0].serviceAccountToken: not supported by podhold run: there is no API",
        ),
        (
            "downwardAPI: {items: [{path: a, fieldRef: {fieldPath: status.podIP}}]}",
            ".downwardAPI.items[0].fieldRef.fieldPath: \"status.podIP\" cannot be had here",
        ),
        ("image: {reference: 'a b'}", ".image.reference: \"a b\" names no image: "),
    ];
    let row = |(source, want)| {
        ("", format!("volumes: [{{name: v, {source}}}]"), format!("6: spec.volumes[0]{want}"))
    };
    all_refused(rows.map(row));
}

#[test]
fn containers_that_cannot_be_are_refused() {
    let rows = [
        ("volumeMounts: [{name: v, mountPath: /v}]", "volumeMounts[0].name: spec.volumes has no \"v\""),
        ("env: [{name: A=B}]", "env[0].name: \"A=B\" is not the name of a variable"),
        (
            "env: [{name: A, valueFrom: {secretKeyRef: {name: raw, key: bytes}}}]",
            "env[0].valueFrom.secretKeyRef.key: the value of key bytes is not text",
        ),
        (
            "env: [{name: A, value: x, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]",
            "env[0]: has value and valueFrom",
        ),
        (
            "env: [{name: A, valueFrom: {fieldRef: {fieldPath: spec.x}}}]",
            "env[0].valueFrom.fieldRef.fieldPath: \"spec.x\" cannot be had here; use one of metadata.name",
        ),
        (
            "env: [{name: A, valueFrom: {resourceFieldRef: {resource: limits.gpu}}}]",
            "env[0].valueFrom.resourceFieldRef.resource: \"limits.gpu\" cannot",
        ),
        ("ports: [{containerPort: 0}]", "ports[0].containerPort: 0 is not a port"),
        (
            "ports: [{containerPort: 1, hostPort: 8}, {containerPort: 2, hostPort: 8}]",
            "ports[1].hostPort: 8 is asked for twice",
        ),
        (
            "securityContext: {runAsNonRoot: true, runAsUser: 0}",
            "securityContext.runAsNonRoot: is true, and runAsUser is 0",
        ),
        (
            "securityContext: {procMount: Unmasked}",
            "securityContext.procMount: Unmasked needs hostUsers: false",
        ),
        (
            "securityContext: {privileged: true, allowPrivilegeEscalation: false}",
            "securityContext.allowPrivilegeEscalation: is false, and",
        ),
        (
            "securityContext: {capabilities: {add: [NET_ADMIN, FOO], drop: [all]}}",
            "securityContext.capabilities.add[1]: \"FOO\" is not a capability",
        ),
        ("imagePullPolicy: Maybe", "imagePullPolicy: \"Maybe\" is not"),
        ("terminationMessagePolicy: Shout", "terminationMessagePolicy: is File or"),
        (
            "securityContext: {windowsOptions: {hostProcess: true}}",
            "securityContext.windowsOptions: not supported by podhold run: containers here are Linux",
        ),
        ("resources: {limits: {cpu: lots}}", "resources.limits.cpu: \"lots\" is not a quantity"),
    ];
    let row = |(container, want)| (container, String::new(), format!("5: spec.containers[0].{want}"));
    all_refused(rows.map(row));
}

#[test]
fn mounts_that_cannot_be_are_refused() {
    let mounts = [
        (
            "volumeMounts: [{name: v, mountPath: /v}, {name: v, mountPath: /v/}]",
            "volumeMounts[1].mountPath: \"/v/\" is mounted over twice",
        ),
        (
            "volumeMounts: [{name: v, mountPath: /v, subPath: ../x}]",
            "volumeMounts[0].subPath: \"../x\" is not a relative path",
        ),
        (
            "volumeMounts: [{name: v, mountPath: /v, subPathExpr: $(NO)}]",
            "volumeMounts[0].subPathExpr: the container has no variable NO",
        ),
        (
            "volumeMounts: [{name: v, mountPath: /v, mountPropagation: Bidirectional}]",
            "volumeMounts[0].mountPropagation: Bidirectional is for privileged",
        ),
        (
            "volumeMounts: [{name: v, mountPath: /v, recursiveReadOnly: Enabled}]",
            "volumeMounts[0].recursiveReadOnly: needs readOnly: true",
        ),
    ];
    let row = |(container, want)| {
        (container, "volumes: [{name: v}]".to_owned(), format!("5: spec.containers[0].{want}"))
    };
    all_refused(mounts.map(row));
}
