//! A machine with a disk of its own for the daemon's state, and one life of the daemon on it, recorded.
//!
//! Each life begins on an empty file system: the first start, pulls, a pod with containers, removals. Meanwhile
//! the disk is as busy as a node's: files are written back at random moments, as the kernel does when it likes,
//! and somebody else syncs a file of his, which commits the journal for all.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use podhold_proto::cri::NamespaceMode;
use tokio::time::{Instant, interval};

use super::recording::{Recording, write_disk};
use crate::{
    cgroup,
    configs::{self, Parts},
    daemon::{self, Daemon, Places},
    kills::Dice,
    machine::Machine,
    programs,
    rig::{self, BUSYBOX, PROBE, REGISTRY},
    store,
};

/// An image of several layers.
pub const LAYERS: &str = "127.0.0.1:5000/layers:1";
/// The images that come and go.
pub const IMAGES: [&str; 3] = [BUSYBOX, PROBE, LAYERS];

/// Of the disk, in bytes.
const SIZE: u64 = 96 << 20;
/// How long anything of ours may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a step does to an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It is there afterwards.
    Brings(&'static str),
    /// It is gone afterwards.
    Removes(&'static str),
    /// Nothing.
    None,
}

/// A step of a recorded life.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// The verb.
    pub name: &'static str,
    /// What it does to an image.
    pub effect: Effect,
    /// Events before it was asked for.
    pub begun: usize,
    /// Events when it was answered.
    pub ended: usize,
}

/// A life of the daemon.
#[derive(Debug)]
pub struct Life {
    /// What happened to its disk.
    pub recording: Recording,
    /// What was asked of it.
    pub steps: Vec<Step>,
}

/// A machine with a registry, and room for a disk.
#[derive(Debug)]
pub struct Stage {
    /// The machine.
    pub machine: Machine,
    /// The daemon's other places.
    pub places: Places,
    cgroup: String,
    boots: u32,
}

/// A daemon on a disk that is mounted.
#[derive(Debug)]
pub struct Booted {
    /// The daemon.
    pub daemon: Daemon,
}

impl Stage {
    /// Sets up the machine and its registry.
    ///
    /// # Panics
    /// When something does not start: there is nothing to test then.
    pub async fn start() -> Self {
        let cgroup = format!("podhold-it-power-{}", std::process::id());
        store::directory().await.expect("build the test images");
        let mut machine = Machine::start().await.expect("start a machine");
        // So that it has a boot id of its own.
        machine.reboot().await.expect("boot the machine");
        let places = Places::new(machine.directory());
        places.make().expect("make the daemon's directories");
        places.allow_plain_http(REGISTRY).expect("write hosts.toml");
        fs::write(places.cni().join("10-podhold.conflist"), rig::network()).expect("write the network");
        let stage = Self { machine, places, cgroup, boots: 0 };
        fs::create_dir(stage.disk()).expect("make the mount point");
        let configuration = daemon::configuration(&stage.places, &stage.cgroup);
        let (state, ours) = (format!("{:?}", stage.places.state()), format!("{:?}", stage.state()));
        fs::write(stage.places.config(), configuration.replace(&state, &ours))
            .expect("write the configuration");
        rig::start_registry(&stage.machine).await;
        stage.make_file_system().await;
        stage
    }

    /// Where the disk is mounted.
    fn disk(&self) -> PathBuf {
        self.machine.directory().join("disk")
    }

    /// The daemon's state directory, in the machine.
    fn state(&self) -> PathBuf {
        self.disk().join("state")
    }

    /// The daemon's state directory, as the host sees it.
    pub fn state_on_the_host(&self) -> PathBuf {
        self.on_the_host(&self.state())
    }

    fn on_the_host(&self, path: &Path) -> PathBuf {
        self.machine.root().join(path.strip_prefix("/").unwrap_or(path))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.machine.directory().join(name)
    }

    /// An empty disk, in the file `empty`.
    async fn make_file_system(&self) {
        let empty = self.file("empty");
        fs::File::create_new(&empty).and_then(|file| file.set_len(SIZE)).expect("make a disk");
        let words = ["mkfs.ext4", "-q", "-F", "-m", "0", "-J", "size=8", "-E"];
        let tail = ["lazy_itable_init=0,lazy_journal_init=0,nodiscard", &empty.display().to_string()];
        self.machine.run_well(words.iter().chain(&tail).copied()).await.expect("make a file system");
    }

    /// Runs one life of the daemon on an empty disk. `options` are mount options; the system calls `without` do
    /// nothing in the daemon.
    ///
    /// # Panics
    /// When anything fails: no disk has failed yet.
    pub async fn live(&mut self, options: &str, without: &[String], dice: &mut Dice) -> Life {
        let (empty, disk, record, place) =
            (self.file("empty"), self.file("recorded"), self.file("record"), self.file("device"));
        fs::copy(&empty, &disk).expect("copy the empty disk");
        let _ = fs::remove_file(&record);
        let log = self.file("device.log");
        let _ = fs::remove_file(&log);
        let words = ["podhold-powercuts", "device"].map(|word| match word {
            "device" => word.to_owned(),
            program => programs::built(program).display().to_string(),
        });
        let files = [&disk, &record, &place].map(|path| path.display().to_string());
        let words: Vec<String> = words.into_iter().chain(files).collect();
        let device = self
            .machine
            .spawn(&words, std::collections::BTreeMap::new(), &log)
            .await
            .expect("start the device");
        until("the device", || fs::read_to_string(&log).is_ok_and(|said| said.contains("mounted"))).await;
        self.mount(&place, options).await;
        let begun = position(&record);
        let program = self.program(without);
        let daemon = self.start_daemon(&program).await.unwrap_or_else(|error| panic!("{error}"));
        let mut steps = vec![(("first start", Effect::None), begun, position(&record))];
        {
            let busy = self.keep_busy(dice);
            let work = self.verbs(&daemon, &record, &mut steps);
            tokio::select! { () = busy => {}, () = work => {} }
        }
        daemon.stop(&self.machine).await.unwrap_or_else(|error| panic!("{error}"));
        self.unmount().await;
        self.machine.run_well(["umount", &place.display().to_string()]).await.expect("unmount the device");
        self.machine.wait(device).await.expect("wait for the device");
        let recording = Recording::read(&empty, &record).expect("read the record");
        let step = |((name, effect), begun, ended)| {
            let (begun, ended) = (recording.events_within(begun), recording.events_within(ended));
            Step { name, effect, begun, ended }
        };
        let steps = steps.into_iter().map(step).collect();
        Life { recording, steps }
    }

    async fn verbs(
        &self,
        daemon: &Daemon,
        record: &Path,
        steps: &mut Vec<((&'static str, Effect), u64, u64)>,
    ) {
        let cri = &daemon.cri;
        macro_rules! step {
            ($name:literal, $effect:expr, $work:expr) => {{
                let begun = position(record);
                let answer = $work.await.unwrap_or_else(|status| panic!("{}: {status}", $name));
                steps.push((($name, $effect), begun, position(record)));
                answer
            }};
        }
        step!("PullImage", Effect::Brings(LAYERS), cri.pull(LAYERS));
        step!("PullImage", Effect::Brings(BUSYBOX), cri.pull(BUSYBOX));
        step!("PullImage", Effect::Brings(PROBE), cri.pull(PROBE));
        let mut config = configs::pod("power", &self.places.pod_logs());
        config.namespaces().network = NamespaceMode::Node.into();
        let pod = step!("RunPodSandbox", Effect::None, cri.run_pod(&config));
        let mut container = configs::container("one", PROBE, &["sleep"]);
        container.namespaces().network = NamespaceMode::Node.into();
        let one = step!("CreateContainer", Effect::None, cri.create(&pod, &config, &container));
        step!("StartContainer", Effect::None, cri.start(&one));
        container.metadata.get_or_insert_default().name = "two".into();
        let two = step!("CreateContainer", Effect::None, cri.create(&pod, &config, &container));
        step!("RemoveImage", Effect::Removes(LAYERS), cri.remove_image(LAYERS));
        step!("PullImage", Effect::Brings(LAYERS), cri.pull(LAYERS));
        step!("RemoveContainer", Effect::None, cri.remove(&two));
        step!("StopPodSandbox", Effect::None, cri.stop_pod(&pod));
        step!("RemovePodSandbox", Effect::None, cri.remove_pod(&pod));
        for image in [PROBE, LAYERS, BUSYBOX] {
            step!("RemoveImage", Effect::Removes(image), cri.remove_image(image));
        }
        step!("PullImage", Effect::Brings(PROBE), cri.pull(PROBE));
    }

    /// What goes on beside the daemon. Never ends.
    async fn keep_busy(&self, dice: &mut Dice) {
        let (top, state) = (self.on_the_host(&self.disk()), self.state_on_the_host());
        let mut ticks = interval(Duration::from_millis(4));
        loop {
            ticks.tick().await;
            if dice.below(12) == 0 {
                let other = fs::File::create(top.join("other"));
                other.and_then(|file| file.sync_all()).expect("sync another file");
            }
            for file in files(&state) {
                if dice.below(3) == 0
                    && let Ok(file) = fs::File::open(file)
                {
                    // Begins to write it back, and does not wait.
                    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
                }
            }
        }
    }

    /// The daemon, or a script that takes system calls from it.
    fn program(&self, without: &[String]) -> PathBuf {
        let product = programs::built("podhold");
        if without.is_empty() {
            return product;
        }
        let script = self.file("without");
        let calls: String = without.iter().map(|call| format!(" --call {call}")).collect();
        let tool = programs::built("podhold-powercuts");
        let (tool, product) = (tool.display(), product.display());
        let text = format!("#!/bin/sh\nexec {tool} without{calls} -- {product} \"$@\"\n");
        fs::write(&script, text).expect("write a script");
        let all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&script, all).expect("make it a program");
        script
    }

    async fn start_daemon(&mut self, program: &Path) -> Result<Daemon, daemon::DaemonError> {
        // As after a boot: another id, and nothing in the run directory.
        self.boots += 1;
        let id = format!("00000000-0000-4000-9000-{:012x}\n", self.boots);
        fs::write(self.file("boot_id"), id).expect("write a boot id");
        let _ = fs::remove_dir_all(self.places.run());
        Daemon::start_program(&self.machine, &self.places, program).await
    }

    /// Mounts a disk that a power cut has left, and starts a daemon on it.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn boot(&mut self, disk: &[u8], options: &str) -> Result<Booted, String> {
        let path = self.file("cut");
        write_disk(disk, &path).expect("write a disk");
        self.mount(&path, options).await;
        let daemon = self.start_daemon(&programs::built("podhold")).await;
        Ok(Booted { daemon: daemon.map_err(|error| error.to_string())? })
    }

    /// Ends the daemon and takes its disk away.
    ///
    /// # Panics
    /// When it does not end well.
    pub async fn halt(&self, booted: Booted) {
        let code = booted.daemon.stop(&self.machine).await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(code, 0, "exit code of the daemon after TERM");
        self.unmount().await;
    }

    async fn mount(&self, file: &Path, options: &str) {
        let (file, disk) = (file.display().to_string(), self.disk().display().to_string());
        let options = format!("loop,{options}");
        let words = ["mount", "-t", "ext4", "-o", &options, &file, &disk];
        self.machine.run_well(words).await.expect("mount the disk");
    }

    /// Takes the disk away, whatever is on it.
    ///
    /// # Panics
    /// When it is in use.
    pub async fn unmount(&self) {
        let disk = self.disk().display().to_string();
        self.machine.run_well(["umount", &disk]).await.expect("unmount the disk");
    }

    /// Ends everything.
    ///
    /// # Panics
    /// When it does not end.
    pub async fn stop(self) {
        self.machine.stop().await.unwrap_or_else(|error| panic!("{error}"));
        cgroup::remove(&self.cgroup);
    }
}

/// How long the record is.
fn position(record: &Path) -> u64 {
    fs::metadata(record).map_or(0, |found| found.len())
}

/// The regular files beneath a directory in which things come and go.
fn files(directory: &Path) -> Vec<PathBuf> {
    let (mut found, mut waiting) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => waiting.push(entry.path()),
                Ok(kind) if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found
}

/// Waits until `done`; nothing tells.
pub(super) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    let mut ticks = interval(Duration::from_millis(10));
    while !done() {
        ticks.tick().await;
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
    }
}
