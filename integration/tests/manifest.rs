//! `podhold run`: what containers see of their manifest, and manifests that are refused.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{fs, path::PathBuf};

use podhold_integration::{
    alone,
    machine::Output,
    rig,
    rig::{BUSYBOX, Rig},
};

/// The words of a run that has to end.
fn words(rig: &Rig, rest: &[&str]) -> Vec<String> {
    let limited = ["timeout", "-k5", "100"].map(str::to_owned);
    limited.into_iter().chain(alone::words(rig, &["run"], rest)).collect()
}

/// Writes a manifest and runs it.
async fn run(rig: &Rig, manifest: &str, options: &[&str]) -> Output {
    let path: PathBuf = rig.machine.directory().join("pod.yaml");
    fs::write(&path, manifest).unwrap();
    let path = path.display().to_string();
    let rest: Vec<&str> = options.iter().copied().chain([path.as_str()]).collect();
    rig.machine.run(words(rig, &rest)).await.unwrap()
}

/// A container, in YAML, that runs a script; `more` are further fields of it.
fn container(name: &str, script: &str, more: &str) -> String {
    let script = serde_json::Value::from(script).to_string().replace('$', "$$");
    let comma = if more.is_empty() { "" } else { ", " };
    format!("{{name: {name}, image: '{BUSYBOX}', command: [/bin/sh, -c, {script}]{comma}{more}}}")
}

/// A pod of these containers; `spec` are further lines of its spec, `data` further documents.
fn pod(containers: &[String], spec: &str, data: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: seen, labels: {{app: web}}}}\nspec:\n  restartPolicy: \
         Never\n  containers: [{}]\n{spec}\n{data}",
        containers.join(", ")
    )
}

/// The lines that a run printed, without the names of the containers.
fn lines(output: &Output) -> Vec<&str> {
    output.stdout.lines().map(|line| line.split_once("| ").map_or(line, |(_, text)| text)).collect()
}

/// Runs a pod that must end well, and compares all that it printed.
async fn prints(rig: &Rig, manifest: &str, want: &[&str]) {
    let output = run(rig, manifest, &[]).await;
    assert_eq!(output.code, 0, "{output:?}\n{manifest}");
    assert_eq!(lines(&output), want, "{output:?}");
}

const DATA: &str = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {colour: blue, size: '7'}\n\
                    ---\napiVersion: v1\nkind: Secret\nmetadata: {name: hush}\nstringData: {word: open}\n";

#[tokio::test]
async fn a_container_has_the_environment_of_its_manifest() {
    let rig = rig!();
    let env = "env: [{name: PLAIN, value: a b}, {name: REF, value: '$(PLAIN)/$(size)/$$(PLAIN)'}, {name: WORD, valueFrom: \
               {secretKeyRef: {name: hush, key: word}}}, {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}, \
               {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}, {name: MEMORY, valueFrom: {resourceFieldRef: \
               {resource: limits.memory, divisor: 1Mi}}}], envFrom: [{configMapRef: {name: settings}}], resources: \
               {limits: {memory: 64Mi}}, args: [zero, '$(PLAIN)', '$(IP)']";
    let script = "echo $PLAIN $REF $WORD $NAME $MEMORY $colour; echo $1; test -n \"$IP\" && test $IP = $2 && \
                  hostname -i | grep -q $IP && echo mine";
    let manifest = pod(&[container("c", script, env)], "", DATA);
    prints(&rig, &manifest, &["a b a b/7/$(PLAIN) open seen 64 blue", "a b", "mine"]).await;
    rig.finish().await;
}

#[tokio::test]
async fn volumes_hold_what_the_manifest_says() {
    let rig = rig!();
    let volumes = "  securityContext: {fsGroup: 4242}\n  volumes:\n  - {name: empty, emptyDir: {}}\n  - {name: memory, \
                   emptyDir: {medium: Memory, sizeLimit: 1Mi}}\n  - {name: map, configMap: {name: settings}}\n  - {name: \
                   hush, secret: {secretName: hush, defaultMode: 0400, items: [{key: word, path: deep/word}]}}\n  - {name: \
                   all, projected: {sources: [{configMap: {name: settings}}, {downwardAPI: {items: [{path: labels, \
                   fieldRef: {fieldPath: metadata.labels}}]}}]}}\n";
    let mounts = "volumeMounts: [{name: empty, mountPath: /empty}, {name: memory, mountPath: /memory}, {name: map, \
                  mountPath: /map}, {name: hush, mountPath: /hush}, {name: all, mountPath: /all}, {name: empty, mountPath: \
                  /part, subPath: a/b}, {name: map, mountPath: /one/colour, subPath: colour, readOnly: true}], \
                  securityContext: {runAsUser: 1000, runAsGroup: 1000}";
    let script = "stat -c '%a %g' /empty; echo x > /empty/mine; stat -c '%g' /empty/mine; stat -f -c %T /memory; dd \
                  if=/dev/zero of=/memory/big bs=64k count=40 2>/dev/null || echo full; cat /map/colour; echo; readlink \
                  /map/colour; touch /map/new 2>/dev/null || echo fixed; stat -L -c '%a %g' /hush/deep/word; cat \
                  /hush/deep/word; echo; cat /all/labels /all/size; echo; echo p > /part/p; ls /empty/a/b; cat /one/colour; \
                  echo; id -G";
    let want = [
        "2777 4242",
        "4242",
        "tmpfs",
        "full",
        "blue",
        "..data/colour",
        "fixed",
        "440 4242",
        "open",
        "app=\"web\"7",
        "p",
        "blue",
        // With the group that the image has this user in.
        "1000 2000 4242",
    ];
    prints(&rig, &pod(&[container("c", script, mounts)], volumes, DATA), &want).await;
    rig.finish().await;
}

#[tokio::test]
async fn an_init_container_makes_the_part_that_a_container_sees_and_no_link_leads_out() {
    let rig = rig!();
    let volume = |init: &str| {
        format!(
            "  volumes: [{{name: v, emptyDir: {{}}}}]\n  initContainers: [{}]",
            container("first", init, "volumeMounts: [{name: v, mountPath: /v}]")
        )
    };
    let mount =
        "env: [{name: N, value: sub}], volumeMounts: [{name: v, mountPath: /s, subPathExpr: $(N)/file}]";
    let app = [container("c", "cat /s", mount)];
    let made = pod(&app, &volume("mkdir /v/sub; echo made first > /v/sub/file"), "");
    prints(&rig, &made, &["made first"]).await;
    let linked = pod(&app, &volume("ln -s / /v/sub"), "");
    let output = run(&rig, &linked, &[]).await;
    assert_eq!(output.code, 3, "{output:?}");
    assert!(output.stderr.contains("leads out of its volume by a link"), "{output:?}");
    rig.finish().await;
}

#[tokio::test]
async fn host_paths_and_images_are_volumes() {
    let rig = rig!();
    let place = rig.machine.directory().join("host");
    fs::create_dir(&place).unwrap();
    fs::write(place.join("there"), "of the host").unwrap();
    let at = place.display();
    let volumes = format!(
        "  volumes:\n  - {{name: d, hostPath: {{path: {at}, type: Directory}}}}\n  - {{name: f, hostPath: {{path: {at}/new, \
         type: FileOrCreate}}}}\n  - {{name: m, hostPath: {{path: {at}/made/deep, type: DirectoryOrCreate}}}}\n  - {{name: \
         i, image: {{reference: '{BUSYBOX}'}}}}\n"
    );
    let mounts = "volumeMounts: [{name: d, mountPath: /d, readOnly: true}, {name: f, mountPath: /f}, {name: m, mountPath: \
                  /m}, {name: i, mountPath: /i, subPath: bin}]";
    let script = "cat /d/there; echo; echo written > /f; touch /m/x; touch /d/y 2>/dev/null || echo fixed; ls /i | grep \
                  -cx sh";
    prints(&rig, &pod(&[container("c", script, mounts)], &volumes, ""), &["of the host", "fixed", "1"]).await;
    assert_eq!(fs::read_to_string(place.join("new")).unwrap(), "written\n");
    assert!(place.join("made/deep/x").exists());
    for (kind, path) in
        [("Directory", "nothing"), ("File", "made"), ("Socket", "there"), ("CharDevice", "there")]
    {
        let volumes = format!("  volumes: [{{name: v, hostPath: {{path: {at}/{path}, type: {kind}}}}}]");
        let output = run(&rig, &pod(&[container("c", "echo ran", "")], &volumes, ""), &[]).await;
        assert!(output.code == 3 && output.stdout.is_empty(), "{kind}: {output:?}");
        assert!(output.stderr.contains("spec.volumes[0].hostPath.path: "), "{kind}: {output:?}");
    }
    rig.finish().await;
}

#[tokio::test]
async fn mounts_of_the_host_outlive_a_pod_that_sees_a_part_of_them() {
    let rig = rig!();
    let place = rig.machine.directory().join("shared");
    fs::create_dir(&place).unwrap();
    let at = place.display();
    let prepare = format!(
        "mount -t tmpfs none {at} && mount --make-shared {at} && mkdir -p {at}/data/disk {at}/data/new && mount -t tmpfs \
         none {at}/data/disk && echo kept > {at}/data/disk/file"
    );
    rig.machine.run_well(["sh", "-c", &prepare]).await.unwrap();
    // It begins twice: what an earlier start has left is replaced.
    let twice = "test -e /d/once || { touch /d/once; exit 1; }; rm /d/once";
    for (propagation, script, want) in [
        ("None", "cat /d/disk/file", "kept"),
        ("HostToContainer", "cat /d/disk/file", "kept"),
        ("Bidirectional", "mount -t tmpfs none /d/new && touch /d/new/own; ls /d/disk | wc -l", "0"),
    ] {
        let more = format!(
            "restartPolicy: OnFailure, securityContext: {{privileged: true}}, volumeMounts: [{{name: v, mountPath: /d, \
             subPath: data, mountPropagation: {propagation}}}]"
        );
        let volume = format!("  volumes: [{{name: v, hostPath: {{path: {at}}}}}]");
        prints(&rig, &pod(&[container("c", &format!("{twice}; {script}"), &more)], &volume, ""), &[want])
            .await;
        let kept = rig.machine.run(["cat", &format!("{at}/data/disk/file")]).await.unwrap();
        assert_eq!(kept.stdout, "kept\n", "{propagation}: {kept:?}");
    }
    // What the container has mounted for the host is the host's.
    let undone = format!("test -e {at}/data/new/own && umount {at}/data/new {at}/data/disk {at}");
    rig.machine.run_well(["sh", "-c", &undone]).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn limits_are_in_the_files_of_the_cgroup() {
    let rig = rig!();
    let limits = "resources: {limits: {cpu: 500m, memory: 64Mi}, requests: {cpu: 250m, memory: 32Mi}}";
    // Version 1 has a directory for each controller, version 2 one for all.
    let script = "cd /sys/fs/cgroup; if test -d memory; then cat memory/memory.limit_in_bytes; echo $(cat \
                  cpu*/cpu.cfs_quota_us | sort -u) $(cat cpu*/cpu.cfs_period_us | sort -u); else cat memory.max cpu.max; \
                  fi; score=$(cat /proc/self/oom_score_adj); test $score -gt 900 && test $score -lt 1000 && echo burstable";
    prints(&rig, &pod(&[container("c", script, limits)], "", ""), &["67108864", "50000 100000", "burstable"])
        .await;
    let best = container("c", "cat /proc/self/oom_score_adj", "");
    prints(&rig, &pod(&[best], "", ""), &["1000"]).await;
    rig.finish().await;
}

#[tokio::test]
async fn names_are_those_of_the_manifest() {
    let rig = rig!();
    let spec = "  hostname: web\n  subdomain: shop\n  setHostnameAsFQDN: true\n  hostAliases: [{ip: 10.9.9.9, hostnames: \
                [db, db.local]}]\n  dnsPolicy: None\n  dnsConfig: {nameservers: [10.9.9.1], searches: [a.example], options: \
                [{name: ndots, value: '3'}]}\n";
    let script = "hostname; grep -c '10.9.9.9.db.db.local' /etc/hosts; grep -q \"$IP.$(hostname).web\" /etc/hosts && echo \
                  listed; cat /etc/resolv.conf";
    let env = "env: [{name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]";
    let want = [
        "web.shop.default.svc.cluster.local",
        "1",
        "listed",
        "nameserver 10.9.9.1",
        "search a.example",
        "options ndots:3",
    ];
    prints(&rig, &pod(&[container("c", script, env)], spec, ""), &want).await;
    rig.finish().await;
}

#[tokio::test]
async fn a_container_is_confined_as_its_manifest_says() {
    let rig = rig!();
    let spec = "  shareProcessNamespace: true\n  securityContext: {runAsUser: 12, runAsGroup: 34, supplementalGroups: [56], \
                sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: '99'}]}\n";
    let more = "securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: \
                [ALL]}}";
    let script = "id -u; id -G; touch /x 2>/dev/null || echo read-only; grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status | \
                  tr -d '\\t'; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; test $$ -ne 1 && echo shared; echo last \
                  words > /dev/termination-log && echo left";
    let want = ["12", "34 56", "read-only", "NoNewPrivs:1", "Seccomp:2", "99", "shared", "left"];
    prints(&rig, &pod(&[container("c", script, more)], spec, ""), &want).await;
    let root = container("c", "echo ran", "securityContext: {runAsNonRoot: true}");
    let output = run(&rig, &pod(&[root], "", ""), &[]).await;
    assert!(output.code == 3 && output.stdout.is_empty(), "{output:?}");
    let word = "spec.containers[0].securityContext.runAsNonRoot: is true, and image";
    assert!(output.stderr.contains(word), "{output:?}");
    rig.finish().await;
}

#[tokio::test]
async fn the_template_of_a_workload_is_run_as_one_pod() {
    let rig = rig!();
    let template = format!(
        "template: {{spec: {{restartPolicy: Never, containers: [{}]}}}}",
        container(
            "c",
            "echo $NAME; hostname",
            "env: [{name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]"
        )
    );
    for (version, kind, name) in
        [("batch/v1", "Job", "work"), ("apps/v1", "Deployment", "work"), ("apps/v1", "StatefulSet", "work-0")]
    {
        let manifest =
            format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: work}}\nspec: {{{template}}}\n");
        prints(&rig, &manifest, &[name, name]).await;
    }
    rig.finish().await;
}

#[tokio::test]
async fn a_job_gives_up_after_as_many_failures_as_it_may_have() {
    let rig = rig!();
    let containers =
        [container("server", "exec sleep 1000", ""), container("fails", "echo tried; exit 7", "")];
    let manifest = format!(
        "apiVersion: batch/v1\nkind: Job\nmetadata: {{name: work}}\nspec:\n  backoffLimit: 2\n  template:\n    spec: \
         {{restartPolicy: OnFailure, terminationGracePeriodSeconds: 0, containers: [{}]}}\n",
        containers.join(", ")
    );
    let output = run(&rig, &manifest, &["--json", "--restart-backoff", "100ms"]).await;
    assert_eq!((output.code, output.stderr.matches("| tried").count()), (7, 3), "{output:?}");
    let report: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!((&report["reason"], &report["exitCode"]), (&"BackoffLimitExceeded".into(), &7.into()));
    assert_eq!(report["containers"][1]["restarts"], 2, "{report:#}");
    rig.finish().await;
}

#[tokio::test]
async fn a_dry_run_prints_the_requests_and_makes_nothing() {
    let rig = rig!();
    let env = "env: [{name: W, valueFrom: {secretKeyRef: {name: hush, key: word}}}]";
    let manifest = pod(&[container("c", "echo ran", env)], "  hostNetwork: false", DATA);
    let output = run(&rig, &manifest, &["--dry-run"]).await;
    assert_eq!(output.code, 0, "{output:?}");
    let shown: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(shown["runPodSandbox"]["metadata"]["name"], "seen");
    assert_eq!(shown["createContainers"][0]["envs"][0]["value"], "open");
    assert!(!rig.machine.directory().join("alone").exists(), "something was begun");
    rig.finish().await;
}

#[tokio::test]
async fn a_bad_manifest_is_refused_with_its_place_and_code_2() {
    let rig = rig!();
    let file = rig.machine.directory().join("pod.yaml").display().to_string();
    let good = pod(&[container("c", "echo ran", "")], "  volumes: []", "");
    let bomb: String = (1..30).fold("a0: &a0 lol\n".to_owned(), |text, level| {
        text + &format!("a{level}: &a{level} [{}]\n", vec![format!("*a{}", level - 1); 10].join(", "))
    });
    for (manifest, want) in [
        (
            good.replace("name: c,", "nam: c,"),
            "6:17: spec.containers[0].nam: no such field; did you mean name?",
        ),
        (
            good.replace("name: c,", "name: 7,"),
            "6:23: spec.containers[0].name: is the number 7, and must be a text; put it in quotes",
        ),
        (
            good.replace("volumes: []", "volumes: [{name: v, nfs: {server: s, path: /}}]"),
            "7:28: spec.volumes[0].nfs: not supported by podhold run: mount it on the host and use hostPath",
        ),
        (
            good.replace("volumes: []", "restartPolicy: Never"),
            "7:3: key \"restartPolicy\" is there twice; leave one out",
        ),
        (
            good.replace("name: seen", "name: Seen!"),
            "3:18: metadata.name: \"Seen!\" is not a name: at most 253 small letters, digits and '-', with a letter or digit at both ends",
        ),
        (
            good.replace("kind: Pod", "kind: Service"),
            "2:7: kind: Service is not supported by podhold run: pods are reached by their address or by hostPort; leave it out",
        ),
        (
            format!("{good}---\n{good}"),
            "9:1: a second pod (Pod \"seen\"); one is run at a time, so put each into a file of its own",
        ),
        ("a: [\n".to_owned(), "2:1: is not YAML: "),
        (bomb, "its aliases repeat more than a manifest can hold; write out what is meant"),
    ] {
        let output = run(&rig, &manifest, &[]).await;
        let said = output.stderr.strip_prefix(&format!("podhold: {file}:")).unwrap_or_default();
        let place = if want.starts_with(|c: char| c.is_ascii_digit()) {
            0
        } else {
            said.find(' ').map_or(0, |at| at + 1)
        };
        assert!(
            said[place..].starts_with(want),
            "{}
{want}",
            output.stderr
        );
        assert_eq!((output.code, output.stdout.as_str()), (2, ""), "{manifest}");
    }
    // What the stages after another find is told with it.
    let mistakes = good.replace("name: c,", "nam: c, tty: 1,").replace("name: seen", "name: Seen!");
    let several = run(&rig, &mistakes, &[]).await;
    let places: Vec<&str> = several.stderr.lines().filter_map(|line| line.rsplit(&file).next()).collect();
    let told =
        |place: &str, field: &str| places.iter().any(|line| line.starts_with(place) && line.contains(field));
    let all =
        told(":3:18:", " metadata.name: ") && told(":6:", "].nam: no such") && told(":6:", "].tty: is the");
    assert!(all && places.len() == 3 && several.code == 2, "{several:?}");
    let missing = rig.machine.run(words(&rig, &["/nosuch.yaml"])).await.unwrap();
    assert!(
        missing.code == 2 && missing.stderr.contains("/nosuch.yaml: cannot be read: No such file"),
        "{missing:?}"
    );
    assert!(!rig.machine.directory().join("alone").exists(), "something was begun");
    rig.finish().await;
}
