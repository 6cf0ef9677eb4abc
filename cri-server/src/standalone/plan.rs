//! What `podhold run` checks and shows before it does anything. Makes nothing, and needs no root.

use std::{path::Path, time::SystemTime};

use super::{
    host::Host,
    life,
    manifest::{Findings, Manifest, ManifestError},
    request::{self, Place, Requests},
    run::Options,
};
use crate::config::Config;

/// Where what belongs to runs is, beneath the run directory and the state directory: for each a directory named
/// by it, so that a pod that is kept is in nobody's way.
pub(super) const RUNS: &str = "runs";

/// Refuses a manifest that cannot be run whatever the host is like.
pub fn check(manifest: &Manifest, config: &Config, options: &Options) -> Result<(), ManifestError> {
    decide(manifest, config, options).map(drop)
}

/// The requests of a manifest as JSON, with the addresses of the pod left open.
pub fn dry_run(manifest: &Manifest, config: &Config, options: &Options) -> Result<String, ManifestError> {
    let (requests, _) = decide(manifest, config, options)?;
    Ok(format!("{:#}", request::shown(&requests)))
}

/// Everything that the manifest decides, or all that is wrong with it.
pub(super) fn decide(
    manifest: &Manifest,
    config: &Config,
    options: &Options,
) -> Result<(Requests, life::Plan), ManifestError> {
    let mut found = Findings::default();
    let requests = found.part(request::requests(manifest, &place(manifest, config)));
    let plan = found.part(life::Plan::of(manifest, options.restart_policy));
    let (mut requests, mut plan) = manifest.told(found, requests.zip(plan))?;
    requests.pull = options.pull.map(Into::into);
    plan.grace = requests.grace;
    Ok((requests, plan))
}

/// Where this process runs the pod.
fn place(manifest: &Manifest, config: &Config) -> Place {
    let host_network = manifest.pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let uid = format!("run-{}-{}", std::process::id(), since.as_millis());
    let own = |directory: &Path| directory.join(RUNS).join(&uid);
    Place {
        number: std::process::id(),
        dir: own(&config.run_dir),
        disk: own(&config.state_dir),
        host: Host::look(host_network),
        uid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told of a text, one a line, without the columns.
    fn told(text: &str) -> Vec<String> {
        let read = Manifest::draft("m", text);
        let decided = read.and_then(|read| decide(&read, &Config::default(), &Options::default()).map(drop));
        let message = decided.map_err(|error| error.to_string()).err().unwrap_or_default();
        let plain = |line: &str| {
            if !line.starts_with("m:") {
                return line.to_owned();
            }
            let mut parts = line.splitn(4, ':').skip(1);
            let (line, rest) = (parts.next().unwrap_or_default(), parts.nth(1).unwrap_or_default());
            format!("{line}:{rest}")
        };
        message.lines().map(plain).collect()
    }

    #[test]
    fn the_mistakes_of_all_stages_are_told_at_once_in_the_order_of_lines() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: Web}\nspec:\n  terminationGracePeriodSeconds: -1\n\
                    \x20 restartPolicy: Sometimes\n  hostAliases: [{ip: x}]\n  volumes:\n  - {name: v, hostPath: {path: x, \
                    type: Pipe}}\n  - {name: w, configMap: {name: nope}}\n  - {name: w, nfs: {path: /}}\n  containers:\n\
                    \x20 - name: c\n    image: Bad Image\n    imagPullPolicy: Never\n    env:\n    - {name: A, value: 5}\n\
                    \x20   - {name: B, valueFrom: {secretKeyRef: {name: hush, key: nope}}}\n    ports: [{containerPort: 0, \
                    hostIP: x}]\n    volumeMounts:\n    - {name: v, mountPath: /v}\n    - {name: x, mountPath: ../x}\n    \
                    livenessProbe: {periodSeconds: -1}\n  - name: c\n    image: i\n    securityContext: {runAsUser: -1, \
                    procMount: All}\n---\napiVersion: v1\nkind: Secret\nmetadata: {name: hush}\nstringData: {key: x}\n---\n\
                    apiVersion: v1\nkind: ConfigMap\nmetadata: {name: map}\ndata: {../k: v}\n";
        let told = told(text);
        let begins = [
            "3: metadata.name: \"Web\" is not a name",
            "5: spec.terminationGracePeriodSeconds: -1 is not",
            "6: spec.restartPolicy: \"Sometimes\"",
            "7: spec.hostAliases[0].ip: \"x\"",
            "9: spec.volumes[0].hostPath.path: ",
            "9: spec.volumes[0].hostPath.type: ",
            "10: spec.volumes[1].configMap.name: no ConfigMap \"nope\"",
            "11: spec.volumes[2].name: two volumes",
            "11: spec.volumes[2].nfs: not supported",
            "14: spec.containers[0].image: \"Bad Image\"",
            "15: spec.containers[0].imagPullPolicy: no such field; did you mean imagePullPolicy?",
            "17: spec.containers[0].env[0].value: is the number 5",
            "18: spec.containers[0].env[1].valueFrom.secretKeyRef.key: Secret \"hush\" has no key",
            "19: spec.containers[0].ports[0].containerPort: 0 is not",
            "19: spec.containers[0].ports[0].hostIP: \"x\"",
            "22: spec.containers[0].volumeMounts[1].name: spec.volumes has no \"x\"",
            "22: spec.containers[0].volumeMounts[1].mountPath: ",
            "23: spec.containers[0].livenessProbe: has 0 actions",
            "23: spec.containers[0].livenessProbe.periodSeconds: -1",
            "24: spec.containers[1].name: two containers",
        ];
        for (told, begin) in told.iter().zip(begins) {
            assert!(told.starts_with(begin), "{told}\n{begin}\n{told:#?}");
        }
        // runAsUser, procMount, and the key of the ConfigMap.
        assert_eq!(told.get(20..), Some(&["and 3 more".to_owned()][..]), "{told:#?}");
    }

    #[test]
    fn annotations_by_which_runs_are_known_are_refused() {
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, annotations: {podhold.io/OWN: x}}\nspec: {containers: \
                   [{name: c, image: i}]}\n";
        for own in ["keep", "run-by"] {
            let told = told(&pod.replace("OWN", own));
            let want = format!("3: metadata.annotations[\"podhold.io/{own}\"]: is podhold run's own");
            assert!(told.len() == 1 && told[0].starts_with(&want), "{told:#?}\n{want}");
        }
    }

    #[test]
    fn one_mistake_is_not_told_as_another_that_follows_from_it() {
        let pod = |name: &str, container: &str, spec: &str| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{{name}}}\nspec:\n  containers: [{{name: c, {container}}}]\n  \
                 {spec}\n"
            )
        };
        let map = |text: &str| format!("---\napiVersion: v1\nkind: {text}\n");
        let refers = "image: i, envFrom: [{configMapRef: {name: m}}], env: [{name: A, valueFrom: {configMapKeyRef: \
                      {name: m, key: k}}}]";
        let mounts = "image: i, volumeMounts: [{name: v, mountPath: /v, subPathExpr: $(B)}], env: [{name: B, value: 1}]";
        for (text, want) in [
            (pod("name: a", "imag: i", ""), "5: spec.containers[0].imag: "),
            (pod("name: a", "image: 7", ""), "5: spec.containers[0].image: is the number"),
            (pod("nam: a", "image: i", ""), "3: metadata.nam: "),
            (
                pod("name: a", refers, "") + &map("Configmap\nmetadata: {name: m}"),
                "9: kind: Configmap is not",
            ),
            (
                pod("name: a", refers, "") + &map("ConfigMap\nmetadata: {name: m}\ndate: {k: v}"),
                "11: date: no such",
            ),
            (
                pod("name: a", refers, "") + &map("ConfigMap\nmetadata: {nam: m}\ndata: {k: v}"),
                "10: metadata.nam: ",
            ),
            (
                pod("name: a", mounts, "volumes: [{name: v, emptyDir: {}}]"),
                "5: spec.containers[0].env[0].value: ",
            ),
            (
                pod("name: a", &mounts.replace("value: 1", "value: x"), "volume: [{name: v, emptyDir: {}}]"),
                "6: spec.volume: no such field",
            ),
            (
                pod(
                    "name: a",
                    &mounts.replace("value: 1", "value: x"),
                    "volumes: [{name: v, hostPath: {path: x}}]",
                ),
                "6: spec.volumes[0].hostPath.path: ",
            ),
        ] {
            let told = told(&text);
            assert!(told.len() == 1 && told[0].starts_with(want), "{told:#?}\n{want}");
        }
    }
}
