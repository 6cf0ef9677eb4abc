//! What a text must be to be a manifest.

use super::Manifest;
use crate::{
    config::Config,
    standalone::{Options, plan::decide},
};

const POD: &str =
    "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: i}]}\n";

/// The pod's name and the message, of which one is empty.
fn read(text: &str) -> (String, String) {
    match Manifest::parse("m", text) {
        Ok(manifest) => (manifest.pod.metadata.name.unwrap_or_default(), String::new()),
        Err(error) => (String::new(), error.to_string()),
    }
}

fn workload(version: &str, kind: &str, spec: &str) -> String {
    format!(
        "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: w}}\nspec: {}\n",
        spec.replace("TEMPLATE", "template: {spec: {containers: [{name: c, image: i}]}}").replace(
            "JOB",
            "template: {spec: {restartPolicy: OnFailure, containers: [{name: c, image: i}]}}"
        )
    )
}

#[test]
fn every_kind_that_makes_a_pod_makes_one() {
    for (text, name) in [
        (POD.to_owned(), "a"),
        (POD.replace("name: a", "generateName: a-"), "a"),
        (workload("apps/v1", "Deployment", "{TEMPLATE}"), "w"),
        (workload("apps/v1", "DaemonSet", "{TEMPLATE}"), "w"),
        (workload("apps/v1", "ReplicaSet", "{TEMPLATE}"), "w"),
        (workload("apps/v1", "StatefulSet", "{TEMPLATE, serviceName: s}"), "w-0"),
        (workload("v1", "ReplicationController", "{TEMPLATE}"), "w"),
        (workload("batch/v1", "Job", "{JOB, backoffLimit: 0}"), "w"),
        (workload("batch/v1", "CronJob", "{schedule: '* * * * *', jobTemplate: {spec: {JOB}}}"), "w"),
        (format!("apiVersion: v1\nkind: List\nitems:\n- {}", POD.trim_end().replace('\n', "\n  ")), "a"),
        (format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a}}\ndata: {{k: v}}\n---\n{POD}"), "a"),
    ] {
        assert_eq!(read(&text), (name.to_owned(), String::new()), "{text}");
    }
}

#[test]
fn what_a_template_lacks_comes_from_its_workload() {
    let set =
        Manifest::parse("m", &workload("apps/v1", "StatefulSet", "{TEMPLATE, serviceName: s, replicas: 3}"));
    let set = set.unwrap();
    let spec = set.pod.spec.unwrap();
    assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("w-0"), Some("s")));
    assert_eq!(set.notes, ["spec.replicas: one pod is run, and not 3"]);
    let job =
        |more: &str| Manifest::parse("m", &workload("batch/v1", "Job", &format!("{{JOB, {more}}}"))).unwrap();
    let limited = job("activeDeadlineSeconds: 5, suspend: false");
    assert_eq!((limited.pod.spec.unwrap().active_deadline_seconds, limited.retries), (Some(5), Some(6)));
    assert_eq!(job("backoffLimit: 0").retries, Some(0));
    let paused =
        Manifest::parse("m", &workload("apps/v1", "Deployment", "{TEMPLATE, paused: true}")).unwrap();
    assert_eq!(
        (paused.notes, paused.retries),
        (vec!["spec.paused: one pod is run all the same".to_owned()], None)
    );
}

#[test]
fn a_job_that_no_cluster_would_run_is_refused() {
    let policy =
        |policy: &str| format!("{{template: {{spec: {{{policy} containers: [{{name: c, image: i}}]}}}}}}");
    for (kind, spec, want) in [
        (
            "Job",
            policy(""),
            "spec.template.spec.restartPolicy: is missing; for a job it is OnFailure or Never",
        ),
        (
            "Job",
            policy("restartPolicy: Always,"),
            "spec.template.spec.restartPolicy: \"Always\" is not for a job",
        ),
        ("Job", "{JOB, suspend: true}".to_owned(), "spec.suspend: is true, so that nothing of it would run"),
        ("Job", "{JOB, backoffLimit: -1}".to_owned(), "spec.backoffLimit: is less than 0"),
        (
            "CronJob",
            "{schedule: '* * * * *', suspend: true, jobTemplate: {spec: {JOB}}}".to_owned(),
            "spec.suspend: is true",
        ),
        (
            "CronJob",
            "{schedule: '* * * * *', jobTemplate: {spec: {JOB, suspend: true}}}".to_owned(),
            "spec.jobTemplate.spec.suspend: is true",
        ),
    ] {
        let message = read(&workload("batch/v1", kind, &spec)).1;
        assert!(message.contains(&format!(" {want}")), "{message}\n{want}");
    }
}

#[test]
fn what_is_no_manifest_of_one_pod_is_refused_with_the_whole_message() {
    let map = |name: &str, data: &str| {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {data}\n---\n")
    };
    let mut wrong = Vec::new();
    for (text, want) in [
        (String::new(), "m: holds no pod; it must hold one Pod, or one workload with a template of it"),
        (map("a", "{}"), "m: holds no pod; it must hold one Pod, or one workload with a template of it"),
        ("a: [\n".into(), "m:2:1: is not YAML: "),
        ("- a".into(), "m:1:1: is no map with apiVersion, kind, metadata and spec"),
        ("kind: Pod".into(), "m:1:1: apiVersion: is missing; for a pod it is v1"),
        ("apiVersion: v1".into(), "m:1:1: kind: is missing; for a pod it is Pod"),
        (
            format!("{POD}---\n{POD}"),
            "m:6:1: a second pod (Pod \"a\"); one is run at a time, so put each into a file of its own",
        ),
        (
            format!("{POD}---\napiVersion: v1\nkind: Service\n"),
            "m:7:7: kind: Service is not supported by podhold run: pods are reached by their address or by \
             hostPort; leave it out",
        ),
        (
            "apiVersion: x/v1\nkind: Foo\n".into(),
            "m:2:7: kind: Foo is not supported by podhold run: a manifest holds ConfigMaps, Secrets, and one of \
             Pod, Deployment, DaemonSet, StatefulSet, ReplicaSet, ReplicationController, Job, CronJob",
        ),
        (
            workload("extensions/v1beta1", "Deployment", "{TEMPLATE}"),
            "m:1:13: apiVersion: is \"extensions/v1beta1\"; Deployment is read as apps/v1",
        ),
        (
            workload("batch/v1", "Job", "{JOB, completionMode: Indexed}"),
            "m:4:105: spec.completionMode: \"Indexed\" is not supported by podhold run; use NonIndexed",
        ),
        (
            format!("{}{}{POD}", map("a", "{}"), map("a", "{}")),
            "m:8:18: metadata.name: two ConfigMaps are named \"a\"",
        ),
        (
            format!("{}{POD}", map("a", "{../x: y}")),
            "m:4:7: data: \"../x\" is not a key: letters, digits, '-', '_' and '.', at most 253, no '..' at the front",
        ),
        (
            format!("{}{POD}", map("a, namespace: other", "{}")),
            "m:3:32: metadata.namespace: is not \"default\", the pod's; a pod sees what is in its own",
        ),
        (
            POD.replace("image: i", "image: 7"),
            "m:4:38: spec.containers[0].image: is the number 7, and must be a text; put it in quotes",
        ),
        (
            POD.replace("image: i", "imag: i"),
            "m:4:31: spec.containers[0].imag: no such field; did you mean image?",
        ),
        (POD.replace("metadata", "metadate"), "m:3:1: metadate: no such field; did you mean metadata?"),
    ] {
        let message = read(&text).1;
        if !message.starts_with(want) {
            wrong.push(format!("{message}\n  {want}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn many_problems_are_told_at_once_and_not_all() {
    let fields: String = (0..32).map(|n| format!("  zz{n}: 1\n")).collect();
    let message = read(&POD.replace("spec: {", &format!("metadata2:\n{fields}spec: {{"))).1;
    assert_eq!(message.lines().count(), 1, "an unknown field hides what is below it: {message}");
    let message = read(&format!("apiVersion: v1\nkind: Pod\nspec:\n{fields}")).1;
    assert_eq!(message.lines().count(), 21);
    assert!(message.ends_with("and 12 more"), "{message}");
}

#[test]
fn every_value_of_a_wrong_type_is_told_and_what_stands_beside_it() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: 7}\nspec:\n  hostNetwork: 'no'\n  containers:\n  - name: \
                c\n    image: 5\n    args: [1, a, 2]\n    env: {A: b}\n    ports: [8, {containerPort: x, zz: 1}]\n  - \
                text\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {k: 1, l: [2], m: good}\n";
    let message = read(text).1;
    let fields: Vec<&str> = message.lines().map(|line| line.split(": ").nth(1).unwrap_or_default()).collect();
    let want = [
        "metadata.name",
        "spec.hostNetwork",
        "spec.containers[0].image",
        "spec.containers[0].args[0]",
        "spec.containers[0].args[2]",
        "spec.containers[0].env",
        "spec.containers[0].ports[0]",
        "spec.containers[0].ports[1].containerPort",
        "spec.containers[0].ports[1].zz",
        "spec.containers[1]",
        "data.k",
        "data.l",
    ];
    assert_eq!(fields, want, "{message}");
}

/// What this thread has had of the processor: other work on the machine does not count.
fn busy() -> std::time::Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

#[test]
fn a_file_within_the_limit_is_refused_in_a_time_that_grows_with_its_size() {
    // Each takes minutes when something is done for every value with the length of its path, or with all others.
    let (key, values) = ("k".repeat(300_000), "1,".repeat(300_000));
    let below = format!("{POD}x: {{{key}: [{values}]}}\n");
    let kept = POD.replace(
        "metadata: {",
        &format!("metadata: {{managedFields: [{{fieldsV1: {{{key}: [{values}]}}}}], "),
    );
    let wide = (0..40_000).fold(POD.to_owned(), |text, n| text + &format!("z{n}: 1\n"));
    let with_env = |entry: &str| {
        POD.replace("image: i", &format!("image: i, env: [{}]", vec![entry; 100_000].join(",")))
    };
    let long = format!("{POD}? \"{}\"\n: 1\n", "a.".repeat(400_000));
    let texts = [
        (below, false),
        (kept, true),
        (wide, false),
        (with_env("{}"), false),
        (with_env("{a: 1}"), false),
        (long, false),
    ];
    for (text, good) in texts {
        let before = busy();
        let draft = Manifest::draft("m", &text);
        let read = draft.and_then(|draft| decide(&draft, &Config::default(), &Options::default()).map(drop));
        assert_eq!(read.is_ok(), good, "{:?}", read.err().map(|error| error.to_string().len()));
        let took = busy() - before;
        assert!(took < std::time::Duration::from_secs(40), "{took:?}");
    }
}
