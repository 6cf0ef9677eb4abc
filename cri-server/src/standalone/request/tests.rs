//! What manifests become, and which are refused.

mod refused;

use std::collections::BTreeMap;

use podhold_proto::cri::{self, MountPropagation, NamespaceMode};

use super::{ContainerRequest, Place, Pull, Requests, facts, requests, shown};
use crate::standalone::{
    host::Host,
    manifest::{Findings, Manifest},
    volume::Source,
};

/// Data beside every pod of these tests.
const DATA: &str = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: map}\ndata: {one: '1', two: '2'}\n\
                    ---\napiVersion: v1\nkind: Secret\nmetadata: {name: hush}\nstringData: {key: s3cret}\n\
                    ---\napiVersion: v1\nkind: Secret\nmetadata: {name: pull}\n\
                    type: kubernetes.io/dockerconfigjson\n\
                    stringData: {.dockerconfigjson: '{\"auths\": {\"r.example\": {\"username\": \"u\", \"password\": \"p\"}}}'}\n\
                    ---\napiVersion: v1\nkind: Secret\nmetadata: {name: raw}\ndata: {bytes: /w==}\n";

fn place() -> Place {
    Place {
        uid: "uid".into(),
        number: 1,
        dir: "/run/pod".into(),
        disk: "/disk/pod".into(),
        host: Host {
            name: "node".into(),
            addresses: vec!["10.1.1.1".parse().unwrap()],
            processors: 4,
            memory: 1 << 30,
            ..Host::default()
        },
    }
}

/// The requests of a pod with one container.
fn made(container: &str, spec: &str) -> Result<Requests, String> {
    let comma = if container.is_empty() { "" } else { ", " };
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, labels: {{app: web}}, annotations: {{note: 'a\"b'}}}}\n\
         spec:\n  containers: [{{name: c, image: i{comma}{container}}}]\n  {}\n{DATA}",
        spec.replace('\n', "\n  ")
    );
    let manifest = Manifest::parse("m", &text).map_err(|error| error.to_string())?;
    let mut found = Findings::default();
    let requests = found.part(requests(&manifest, &place()));
    manifest.told(found, requests).map_err(|error| error.to_string())
}

fn app(container: &str, spec: &str) -> cri::ContainerConfig {
    made(container, spec).unwrap_or_else(|error| panic!("{container}: {error}")).apps.remove(0).config
}

fn environment(config: &cri::ContainerConfig) -> BTreeMap<String, String> {
    let text = |variable: &cri::KeyValue| String::from_utf8(variable.value.clone()).unwrap();
    config.envs.iter().map(|variable| (variable.key.clone(), text(variable))).collect()
}

fn security(config: &cri::ContainerConfig) -> cri::LinuxContainerSecurityContext {
    config.linux.clone().unwrap().security_context.unwrap()
}

#[test]
fn variables_come_from_everywhere() {
    for (env, name, want) in [
        ("env: [{name: A, value: x}]", "A", "x"),
        ("env: [{name: A, value: x}, {name: B, value: $(A)-$(C)-$$(A)}]", "B", "x-$(C)-$(A)"),
        ("env: [{name: B, value: $(A)}, {name: A, value: x}]", "B", "$(A)"),
        ("env: [{name: A, value: x}, {name: A, value: $(A)y}]", "A", "xy"),
        ("envFrom: [{configMapRef: {name: map}, prefix: M_}]", "M_two", "2"),
        ("envFrom: [{secretRef: {name: hush}}], env: [{name: B, value: $(key)}]", "B", "s3cret"),
        ("envFrom: [{configMapRef: {name: map}}], env: [{name: one, value: mine}]", "one", "mine"),
        ("env: [{name: A, valueFrom: {configMapKeyRef: {name: map, key: one}}}]", "A", "1"),
        ("env: [{name: A, valueFrom: {secretKeyRef: {name: hush, key: key}}}]", "A", "s3cret"),
        ("env: [{name: A, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]", "A", "p"),
        ("env: [{name: A, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}]", "A", "default"),
        ("env: [{name: A, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}]", "A", "uid"),
        ("env: [{name: A, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['app']\"}}}]", "A", "web"),
        ("env: [{name: A, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['no']\"}}}]", "A", ""),
        ("env: [{name: A, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]", "A", "node"),
        ("env: [{name: A, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}]", "A", "default"),
        ("env: [{name: A, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}]", "A", "10.1.1.1"),
        ("env: [{name: A, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]", "A", facts::POD_IP),
        ("env: [{name: A, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}]", "A", "4"),
        (
            "env: [{name: A, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}]",
            "A",
            "1024",
        ),
        (
            "resources: {limits: {cpu: 1500m}}, env: [{name: A, valueFrom: {resourceFieldRef: {resource: \
             requests.cpu, divisor: 1m}}}]",
            "A",
            "1500",
        ),
        (
            "resources: {limits: {cpu: 1500m}}, env: [{name: A, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}]",
            "A",
            "2",
        ),
    ] {
        assert_eq!(environment(&app(env, "")).get(name).map(String::as_str), Some(want), "{env}");
    }
    for env in [
        "env: [{name: A, valueFrom: {configMapKeyRef: {name: nope, key: one, optional: true}}}]",
        "env: [{name: A, valueFrom: {configMapKeyRef: {name: map, key: nope, optional: true}}}]",
        "envFrom: [{secretRef: {name: nope, optional: true}}]",
    ] {
        assert!(environment(&app(env, "")).is_empty(), "{env}");
    }
}

#[test]
fn commands_and_arguments_are_expanded_and_addresses_come_later() {
    let env = "env: [{name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}, {name: IPS, valueFrom: \
               {fieldRef: {fieldPath: status.podIPs}}}]";
    let config = app(&format!("{env}, command: [sh, $(IP)], args: ['$(IPS) $$(IP) $(NO)']"), "");
    let facts = facts::PodFacts { addresses: vec!["10.0.0.5".into(), "fd00::5".into()] };
    let mut filled = config;
    facts.fill_all(&mut filled);
    assert_eq!(filled.command, ["sh", "10.0.0.5"]);
    assert_eq!(filled.args, ["10.0.0.5,fd00::5 $(IP) $(NO)"]);
    assert_eq!(environment(&filled)["IP"], "10.0.0.5");
}

#[test]
fn volumes_are_mounted_where_they_are_asked_for() {
    let volumes = "volumes: [{name: e, emptyDir: {}}, {name: m, emptyDir: {medium: Memory, sizeLimit: 1Mi}}, {name: h, \
                   hostPath: {path: /data}}, {name: s, secret: {secretName: hush, defaultMode: 0400}}, {name: i, \
                   image: {reference: 'img:1'}}]";
    let mount = |mount: &str| {
        let config = app(&format!("env: [{{name: A, value: x}}], volumeMounts: [{mount}]"), volumes);
        config.mounts[0].clone()
    };
    assert_eq!(mount("{name: e, mountPath: /e}").host_path, "/disk/pod/volumes/e");
    assert_eq!(mount("{name: m, mountPath: e}").container_path, "/e");
    assert_eq!(mount("{name: m, mountPath: /e}").host_path, "/run/pod/volumes/m");
    let secret = mount("{name: s, mountPath: /e}");
    assert!(secret.readonly && secret.host_path == "/run/pod/volumes/s");
    let image = mount("{name: i, mountPath: /e, subPath: a/b}");
    assert_eq!((image.image.unwrap().image.as_str(), image.image_sub_path.as_str()), ("img:1", "a/b"));
    assert!(image.readonly && image.host_path.is_empty());
    let recursive = mount("{name: h, mountPath: /e, readOnly: true, recursiveReadOnly: Enabled}");
    assert!(recursive.recursive_read_only && recursive.host_path == "/data");
    let slave = mount("{name: h, mountPath: /e, mountPropagation: HostToContainer}");
    assert_eq!(slave.propagation(), MountPropagation::PropagationHostToContainer);
    let requests = made(
        "env: [{name: A, value: x}], volumeMounts: [{name: e, mountPath: /e, subPathExpr: $(A)/y}]",
        volumes,
    );
    let requests = requests.unwrap();
    assert_eq!(requests.apps[0].sub_paths[0].path, "x/y");
    assert_eq!(requests.images(), [("img:1", Pull::IfNotPresent), ("i", Pull::Always)]);
}

#[test]
fn contents_of_volumes_come_from_the_manifest() {
    let files = |source: &str| -> Vec<(String, String, u32)> {
        let requests = made("", &format!("volumes: [{{name: v, {source}}}]"))
            .unwrap_or_else(|error| panic!("{source}: {error}"));
        let Source::Files { files, .. } = requests.volumes.get("v").unwrap().source.clone() else {
            panic!("{source}")
        };
        let text = |content: Vec<u8>| String::from_utf8(content).unwrap();
        files.into_iter().map(|(path, file)| (path, text(file.content), file.mode)).collect()
    };
    let file = |path: &str, content: &str, mode| (path.to_owned(), content.to_owned(), mode);
    assert_eq!(files("configMap: {name: map}"), [file("one", "1", 0o644), file("two", "2", 0o644)]);
    assert_eq!(
        files(
            "configMap: {name: map, defaultMode: 0400, items: [{key: one, path: a/b, mode: 0755}, {key: two, path: c}]}"
        ),
        [file("a/b", "1", 0o755), file("c", "2", 0o400)]
    );
    assert_eq!(files("secret: {secretName: nope, optional: true}"), []);
    assert_eq!(
        files(
            "secret: {secretName: hush, optional: true, items: [{key: nope, path: x}, {key: key, path: k}]}"
        ),
        [file("k", "s3cret", 0o644)]
    );
    assert_eq!(
        files(
            "downwardAPI: {items: [{path: l, fieldRef: {fieldPath: metadata.labels}}, {path: a, fieldRef: {fieldPath: \
             metadata.annotations}}, {path: m, mode: 0600, resourceFieldRef: {containerName: c, resource: limits.cpu}}]}"
        ),
        [file("a", "note=\"a\\\"b\"", 0o644), file("l", "app=\"web\"", 0o644), file("m", "4", 0o600)]
    );
    assert_eq!(
        files(
            "projected: {defaultMode: 0440, sources: [{configMap: {name: map, items: [{key: one, path: x/1}]}}, {secret: \
             {name: hush}}, {downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}]}"
        ),
        [file("key", "s3cret", 0o440), file("name", "p", 0o440), file("x/1", "1", 0o440)]
    );
}

#[test]
fn security_contexts_are_those_of_the_container_and_else_of_the_pod() {
    let spec = "securityContext: {runAsUser: 1, runAsGroup: 2, fsGroup: 7, supplementalGroups: [5], seccompProfile: {type: \
                Unconfined}, appArmorProfile: {type: RuntimeDefault}, seLinuxOptions: {level: s0}}";
    let of = security(&app("", spec));
    assert_eq!((of.run_as_user.unwrap().value, of.run_as_group.unwrap().value), (1, 2));
    assert_eq!(of.supplemental_groups, [5, 7]);
    assert_eq!((of.seccomp.unwrap().profile_type, of.apparmor.unwrap().profile_type), (1, 0));
    assert_eq!(of.selinux_options.unwrap().level, "s0");
    let own = "securityContext: {runAsUser: 9, seccompProfile: {type: Localhost, localhostProfile: a/b.json}, \
               capabilities: {add: [NET_ADMIN], drop: [ALL]}, allowPrivilegeEscalation: false, readOnlyRootFilesystem: true}";
    let of = security(&app(own, spec));
    assert_eq!(of.run_as_user.unwrap().value, 9);
    assert_eq!(of.seccomp.unwrap().localhost_ref, "/var/lib/kubelet/seccomp/a/b.json");
    assert!(of.no_new_privs && of.readonly_rootfs && !of.masked_paths.is_empty());
    let unmasked = security(&app("securityContext: {procMount: Unmasked}", "hostUsers: false"));
    assert!(unmasked.masked_paths.is_empty() && unmasked.readonly_paths.is_empty());
    let host =
        security(&app("", "hostNetwork: true\nhostPID: true\nhostIPC: true")).namespace_options.unwrap();
    assert_eq!(
        (host.network(), host.pid(), host.ipc()),
        (NamespaceMode::Node, NamespaceMode::Node, NamespaceMode::Node)
    );
    let shared = security(&app("", "shareProcessNamespace: true")).namespace_options.unwrap();
    assert_eq!(shared.pid(), NamespaceMode::Pod);
    let users = app("volumeMounts: [{name: v, mountPath: /v}]", "hostUsers: false\nvolumes: [{name: v}]");
    assert!(users.mounts.iter().all(|mount| mount.uid_mappings.len() == 1), "{:?}", users.mounts);
}

#[test]
fn pods_are_limited_by_their_class() {
    let resources = |requests: &Requests| requests.pod.linux.clone().unwrap().resources.unwrap();
    let of = |request: &ContainerRequest| request.config.linux.clone().unwrap().resources.unwrap();
    let best = made("", "").unwrap();
    assert_eq!((resources(&best).cpu_shares, of(&best.apps[0]).oom_score_adj), (2, 1000));
    let bound =
        made("resources: {limits: {cpu: 500m, memory: 64Mi}}", "overhead: {cpu: 100m, memory: 8Mi}").unwrap();
    assert_eq!((resources(&bound).cpu_quota, resources(&bound).memory_limit_in_bytes), (50_000, 64 << 20));
    assert_eq!((of(&bound.apps[0]).oom_score_adj, of(&bound.apps[0]).cpu_shares), (-997, 512));
    assert_eq!(bound.pod.linux.unwrap().overhead.unwrap().memory_limit_in_bytes, 8 << 20);
    let half = made("resources: {requests: {memory: 256Mi}, limits: {ephemeral-storage: 1Gi}}", "").unwrap();
    assert_eq!((of(&half.apps[0]).oom_score_adj, resources(&half).memory_limit_in_bytes), (750, 0));
    assert_eq!(half.notes, ["limits of ephemeral-storage are not held to here (c)"]);
}

#[test]
fn the_hosts_file_has_the_pod_and_its_aliases() {
    let spec = "hostname: web\nsubdomain: shop\nhostAliases: [{ip: 10.9.9.9, hostnames: [db, db.local]}]";
    let requests = made("", spec).unwrap();
    let text = requests.hosts.text(&facts::PodFacts { addresses: vec!["10.0.0.5".into()] });
    assert!(text.contains("10.0.0.5\tweb.shop.default.svc.cluster.local\tweb\n"), "{text}");
    assert!(text.ends_with("10.9.9.9\tdb\tdb.local\n"), "{text}");
    let mounts = &requests.apps[0].config.mounts;
    assert!(
        mounts
            .iter()
            .any(|mount| mount.container_path == "/etc/hosts" && mount.host_path == "/run/pod/hosts")
    );
    assert!(mounts.iter().any(|mount| mount.container_path == "/dev/termination-log"));
    assert_eq!(requests.pod.hostname, "web");
}

#[test]
fn images_are_pulled_with_the_secrets_of_the_manifest() {
    let requests = made("", "imagePullSecrets: [{name: pull}, {name: nope}]").unwrap();
    assert!(requests.credentials("r.example/a:1").is_some() && requests.credentials("other/a:1").is_none());
    assert_eq!(
        requests.notes,
        ["imagePullSecrets: no Secret \"nope\" is in this file; images are pulled without"]
    );
}

#[test]
fn a_dry_run_shows_what_is_set_and_text_as_text() {
    let requests = made(
        "env: [{name: E, value: ''}, {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}], \
                         volumeMounts: [{name: s, mountPath: /s}]",
        "volumes: [{name: s, secret: {secretName: hush}}]",
    );
    let shown = shown(&requests.unwrap());
    let envs = &shown["createContainers"][0]["envs"];
    assert_eq!(
        *envs,
        serde_json::json!([{"key": "E", "value": ""}, {"key": "IP", "value": "<status.podIP>"}])
    );
    assert_eq!(shown["volumes"][0]["files"], serde_json::json!({"key": "0644"}));
    assert_eq!(shown["runPodSandbox"]["metadata"]["name"], "p");
    assert!(
        shown["runPodSandbox"].get("dns_config").is_none() && !shown.to_string().contains("s3cret"),
        "{shown:#}"
    );
}
