//! `podhold run` and what goes with it, in a rig's machine: directories and a cgroup of its own beside the
//! daemon's; registry and network are the daemon's.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::{Instant, interval};

use crate::{
    daemon::configuration,
    machine::Output,
    programs,
    rig::{BUSYBOX, Rig},
};

/// How long anything may take that is waited for.
pub const SOON: Duration = Duration::from_secs(30);

static NEXT: AtomicU32 = AtomicU32::new(1);

/// The words of a command: `verb`, the options that lead to the directories, `rest`.
///
/// # Panics
/// When the configuration cannot be written.
pub fn words(rig: &Rig, verb: &[&str], rest: &[&str]) -> Vec<String> {
    let directory = rig.machine.directory();
    let config = directory.join("alone.toml");
    let text = configuration(&rig.places, &format!("{}-alone", rig.cgroup));
    fs::write(&config, text).expect("write a configuration");
    let options = [
        ("--config", config),
        ("--run-dir", directory.join("alone/run")),
        ("--state-dir", directory.join("alone/state")),
    ];
    let program = programs::built("podhold").display().to_string();
    let options = options.into_iter().flat_map(|(name, path)| [name.to_owned(), path.display().to_string()]);
    let own = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    [program].into_iter().chain(own(verb)).chain(options).chain(own(rest)).collect()
}

/// A manifest in a file of its own: the pod `alone` with this `spec`.
///
/// # Panics
/// When it cannot be written.
pub fn manifest(rig: &Rig, spec: &Value) -> PathBuf {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "alone"}, "spec": spec});
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = rig.machine.directory().join(format!("pod-{number}.json"));
    fs::write(&path, pod.to_string()).expect("write a manifest");
    path
}

/// A container of a manifest that runs a script.
pub fn script(name: &str, script: &str) -> Value {
    json!({"name": name, "image": BUSYBOX, "command": ["/bin/sh", "-c", script]})
}

/// The same with more fields.
pub fn script_with(name: &str, text: &str, more: Value) -> Value {
    let mut container = script(name, text);
    if let (Some(container), Value::Object(more)) = (container.as_object_mut(), more) {
        container.extend(more);
    }
    container
}

/// Runs a pod to its end, which has to come within a minute and a half.
///
/// # Panics
/// When nothing can be run.
pub async fn run(rig: &Rig, options: &[&str], spec: &Value) -> Output {
    let path = manifest(rig, spec).display().to_string();
    let rest: Vec<&str> = options.iter().copied().chain([path.as_str()]).collect();
    let limited = ["timeout".to_owned(), "-k5".to_owned(), "90".to_owned()];
    rig.machine.run(limited.into_iter().chain(words(rig, &["run"], &rest))).await.expect("run")
}

/// A pod under way.
#[derive(Debug)]
pub struct UnderWay {
    /// Its process, as the machine counts them.
    pub pid: i32,
    /// What it says, on both streams.
    pub log: PathBuf,
}

/// Starts to run a pod.
///
/// # Panics
/// When nothing can be started.
pub async fn start(rig: &Rig, options: &[&str], spec: &Value) -> UnderWay {
    let path = manifest(rig, spec).display().to_string();
    let rest: Vec<&str> = options.iter().copied().chain([path.as_str()]).collect();
    let log = rig.machine.directory().join(format!("run-{}.log", NEXT.fetch_add(1, Ordering::Relaxed)));
    let pid = rig.machine.spawn(&words(rig, &["run"], &rest), BTreeMap::new(), &log).await.expect("start");
    UnderWay { pid, log }
}

impl UnderWay {
    /// Waits until it has said this.
    ///
    /// # Panics
    /// When it does not.
    pub async fn says(&self, word: &str) {
        until_said(&self.log, word).await;
    }

    /// Waits for its end; answers its exit code.
    ///
    /// # Panics
    /// When it does not end.
    pub async fn ends(&self, rig: &Rig) -> i32 {
        let ended = tokio::time::timeout(SOON, rig.machine.wait(self.pid)).await;
        let said = fs::read_to_string(&self.log);
        ended.unwrap_or_else(|_| panic!("it does not end: {said:?}")).expect("wait")
    }
}

/// Waits until a file holds a word.
///
/// # Panics
/// When it does not.
pub async fn until_said(log: &Path, word: &str) {
    let deadline = Instant::now() + SOON;
    // A file that another process writes.
    let mut ticks = interval(Duration::from_millis(20));
    while !fs::read_to_string(log).unwrap_or_default().contains(word) {
        ticks.tick().await;
        assert!(Instant::now() < deadline, "no {word:?} in {:?}", fs::read_to_string(log));
    }
}
