//! What was found on disk and cannot be used, until it is removed or the daemon starts again. No I/O.

use std::path::PathBuf;

use podhold_sandbox::{ContainerId, PodId};

use super::Store;

/// A file or directory that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Which one.
    pub path: PathBuf,
    /// Why, in words.
    pub reason: String,
    /// What is not known because of it.
    pub hides: Hidden,
}

/// What a damage hides: no list has it, and whoever asks for it by its full id is told why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hidden {
    /// Nothing: the object is there without that part.
    Nothing,
    /// A pod.
    Pod(PodId),
    /// A container.
    Container(PodId, ContainerId),
}

impl Damage {
    /// The words for who asks for what it hides.
    pub fn words(&self, object: &str, id: &str) -> String {
        let remove = if object == "pod" { "rmp -f" } else { "rm -f" };
        format!(
            "{object} {id} is damaged: {}: {}; put that back as it was and start podhold again, or remove \
             the {object} for good: crictl {remove} {id}",
            self.path.display(),
            self.reason
        )
    }
}

impl Store {
    /// Keeps what cannot be used, for who asks for it; `false` when it is known already.
    pub fn add_damage(&self, damage: Damage) -> bool {
        let mut inner = self.lock();
        let new = !inner.damaged.contains(&damage);
        if new {
            inner.damaged.push(damage);
        }
        new
    }

    /// All that cannot be used.
    pub fn damaged(&self) -> Vec<Damage> {
        self.lock().damaged.clone()
    }

    /// Forgets damages that are no more.
    pub fn forget_damaged(&self, gone: impl Fn(&Damage) -> bool) {
        self.lock().damaged.retain(|damage| !gone(damage));
    }
}
