//! A machine with a registry, and a disk of its own for the daemon's state: one that is recorded, or one that a
//! power cut has left.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use tokio::time::{Instant, interval};

use super::recording::{Recording, write_disk};
use crate::{
    cgroup,
    daemon::{self, Daemon, Places},
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

/// Numbers of cgroups; those of rigs are smaller.
static NEXT: AtomicU32 = AtomicU32::new(1000);

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
        let cgroup = format!("podhold-it-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let cgroup = cgroup::DRIVER.top(&cgroup);
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
    pub(super) fn disk(&self) -> PathBuf {
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

    pub(super) fn on_the_host(&self, path: &Path) -> PathBuf {
        self.machine.root().join(path.strip_prefix("/").unwrap_or(path))
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
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

    /// Records what `work` does in an empty file system, whose directory on the host it is given. What the file
    /// system itself writes when it is unmounted is not part of it.
    ///
    /// # Panics
    /// When anything fails.
    pub async fn record_work(&self, options: &str, work: impl FnOnce(&Path)) -> Recording {
        let device = self.begin_recording(options).await;
        work(&self.on_the_host(&self.disk()));
        let end = position(&self.file("record"));
        self.unmount().await;
        let mut recording = self.end_recording(device).await;
        recording.events.truncate(recording.events_within(end));
        recording
    }

    /// Mounts a disk and has `work` look at it; the directory is on the host.
    ///
    /// # Panics
    /// When it cannot be mounted.
    pub async fn look<T>(&self, disk: &[u8], work: impl FnOnce(&Path) -> T) -> T {
        let path = self.file("cut");
        write_disk(disk, &path).expect("write a disk");
        self.mount(&path, "noatime").await;
        let seen = work(&self.on_the_host(&self.disk()));
        self.unmount().await;
        seen
    }

    /// Mounts an empty disk that records what is written to it; answers the pid of its server.
    pub(super) async fn begin_recording(&self, options: &str) -> i32 {
        let (disk, record, place) = (self.file("recorded"), self.file("record"), self.file("device"));
        fs::copy(self.file("empty"), &disk).expect("copy the empty disk");
        let log = self.file("device.log");
        for earlier in [&record, &log] {
            let _ = fs::remove_file(earlier);
        }
        let program = programs::built("podhold-powercuts").display().to_string();
        let files = [&disk, &record, &place].map(|path| path.display().to_string());
        let words: Vec<String> = [program, "device".to_owned()].into_iter().chain(files).collect();
        let none = std::collections::BTreeMap::new();
        let device = self.machine.spawn(&words, none, &log).await.expect("start the device");
        until("the device", || fs::read_to_string(&log).is_ok_and(|said| said.contains("mounted"))).await;
        self.mount(&place, options).await;
        device
    }

    pub(super) async fn end_recording(&self, device: i32) -> Recording {
        let place = self.file("device").display().to_string();
        // The loop device lets go of it a moment after its file system has.
        let deadline = Instant::now() + PATIENCE;
        let mut ticks = interval(Duration::from_millis(20));
        while let Err(error) = self.machine.run_well(["umount", &place]).await {
            ticks.tick().await;
            assert!(Instant::now() < deadline, "unmount the device: {error}");
        }
        self.machine.wait(device).await.expect("wait for the device");
        Recording::read(&self.file("empty"), &self.file("record")).expect("read the record")
    }

    /// The daemon, or a script that takes system calls from it.
    pub(super) fn program(&self, without: &[String]) -> PathBuf {
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

    pub(super) async fn start_daemon(&mut self, program: &Path) -> Result<Daemon, daemon::DaemonError> {
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
pub(super) fn position(record: &Path) -> u64 {
    fs::metadata(record).map_or(0, |found| found.len())
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
