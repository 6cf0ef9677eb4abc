//! One life of the daemon on a disk that is recorded.
//!
//! It begins on an empty file system: the first start, pulls, a pod with containers, removals. Meanwhile the disk
//! is as busy as a node's: files are written back at random moments, as the kernel does when it likes, and
//! somebody else syncs a file of his, which commits the journal for all.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::interval;

use super::{
    recording::Recording,
    stage::{LAYERS, Stage, position},
};
use crate::{
    configs,
    daemon::Daemon,
    kills::Dice,
    rig::{BUSYBOX, PROBE},
};

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

impl Life {
    /// A moment at which an image is pulled or removed.
    ///
    /// # Panics
    /// When none was.
    pub fn within_images(&self, dice: &mut Dice) -> usize {
        let about: Vec<&Step> =
            self.steps.iter().filter(|step| step.effect != Effect::None && step.begun < step.ended).collect();
        let step = dice.one(&about);
        step.begun + usize::try_from(dice.below((step.ended - step.begun) as u64)).expect("it is small")
    }
}

impl Stage {
    /// Runs one life of the daemon on an empty disk. `options` are mount options; the system calls `without` do
    /// nothing in the daemon.
    ///
    /// # Panics
    /// When anything fails: no disk has failed yet.
    pub async fn live(&mut self, options: &str, without: &[String], dice: &mut Dice) -> Life {
        let device = self.begin_recording(options).await;
        let record = self.file("record");
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
        let recording = self.end_recording(device).await;
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
        let config = configs::pod("power", &self.places.pod_logs());
        let pod = step!("RunPodSandbox", Effect::None, cri.run_pod(&config));
        let mut container = configs::container("one", PROBE, &["sleep"]);
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
