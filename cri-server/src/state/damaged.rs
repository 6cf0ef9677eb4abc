//! What was found on disk and cannot be used, until it is removed or put back. No I/O.

use std::path::{Component, PathBuf};

use podhold_sandbox::{ContainerId, PodId};

use super::{Store, unique};

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

/// What a damage hides: no list has it, and whoever asks for it by its id is told why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hidden {
    /// Nothing: the object is there without that part.
    Nothing,
    /// The images of an archive that was to be imported at start.
    Archive,
    /// A pod.
    Pod(PodId),
    /// A container.
    Container(PodId, ContainerId),
}

impl Damage {
    /// What kind of object is concerned, and its id. Of a part of one its path tells.
    pub fn object(&self) -> (&'static str, String) {
        match &self.hides {
            Hidden::Pod(pod) => return ("pod", pod.to_string()),
            Hidden::Container(_, container) => return ("container", container.to_string()),
            Hidden::Archive => {
                let name = self.path.file_name().unwrap_or_default();
                return ("archive", name.to_string_lossy().into_owned());
            }
            Hidden::Nothing => {}
        }
        let names: Vec<&str> = self
            .path
            .components()
            .filter_map(|part| if let Component::Normal(name) = part { name.to_str() } else { None })
            .collect();
        let after = |name: &str| {
            names
                .iter()
                .rposition(|part| *part == name)
                .and_then(|at| names.get(at + 1))
                .map(|id| (*id).to_owned())
        };
        let last = names.last().copied().unwrap_or_default();
        let stem = last.strip_suffix(".json").unwrap_or(last).to_owned();
        match (after("containers"), after("pods")) {
            (Some(id), _) => ("container", id),
            (None, Some(id)) => ("pod", id),
            (None, None) if names.contains(&"cni") => ("network", stem),
            (None, None) if names.contains(&"images") => ("image", stem),
            (None, None) => ("file", stem),
        }
    }

    /// What can be done.
    pub fn mend(&self) -> String {
        match &self.hides {
            Hidden::Pod(id) => {
                format!("put that back as it was, or remove the pod for good: crictl rmp -f {id}")
            }
            Hidden::Container(_, id) => {
                format!("put that back as it was, or remove the container for good: crictl rm -f {id}")
            }
            Hidden::Archive => {
                "put an archive there that can be imported, or remove it; it is looked at again when the daemon \
                 starts (podhold image import tries it now)"
                    .to_owned()
            }
            Hidden::Nothing => {
                "put that back as it was, or remove its object, which works without it".to_owned()
            }
        }
    }

    /// The words for who asks for what it hides.
    pub fn words(&self) -> String {
        let ((object, id), path) = (self.object(), self.path.display());
        format!(
            "{object} {id} is damaged: {path}: {reason}; {mend}",
            reason = self.reason,
            mend = self.mend()
        )
    }
}

impl Store {
    /// Keeps what cannot be used, for who asks for it; `false` when it is known already. The first that is found
    /// of a hidden object stands for it.
    pub fn add_damage(&self, damage: Damage) -> bool {
        let mut inner = self.lock();
        let known = inner.damaged.iter().any(|known| match &damage.hides {
            Hidden::Nothing | Hidden::Archive => known.path == damage.path,
            hides => known.hides == *hides,
        });
        if !known {
            inner.damaged.push(damage);
        }
        !known
    }

    /// All that cannot be used.
    pub fn damaged(&self) -> Vec<Damage> {
        self.lock().damaged.clone()
    }

    /// The damaged pod whose id is `text` or, of all pods, uniquely begins with it.
    pub fn find_damaged_pod(&self, text: &str) -> Option<(PodId, Damage)> {
        let inner = self.lock();
        let damaged = inner.damaged.iter().filter_map(|damage| match &damage.hides {
            Hidden::Pod(id) => Some((id, damage)),
            _ => None,
        });
        let known = inner.pods.keys().map(|id| (id.as_str(), None));
        let (id, damage) = unique(known.chain(damaged.map(|it| (it.0.as_str(), Some(it)))), text)??;
        Some((id.clone(), damage.clone()))
    }

    /// The damaged container whose id is `text` or, of all containers, uniquely begins with it, and its pod.
    pub fn find_damaged_container(&self, text: &str) -> Option<(PodId, ContainerId, Damage)> {
        let inner = self.lock();
        let damaged = inner.damaged.iter().filter_map(|damage| match &damage.hides {
            Hidden::Container(pod, id) => Some((pod, id, damage)),
            _ => None,
        });
        let known = inner.containers.keys().map(|id| (id.as_str(), None));
        let (pod, id, damage) = unique(known.chain(damaged.map(|it| (it.1.as_str(), Some(it)))), text)??;
        Some((pod.clone(), id.clone(), damage.clone()))
    }

    /// Forgets damages that are no more.
    pub fn forget_damaged(&self, gone: impl Fn(&Damage) -> bool) {
        self.lock().damaged.retain(|damage| !gone(damage));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn damage(path: &str, hides: Hidden) -> Damage {
        Damage { path: path.into(), reason: "it is empty".into(), hides }
    }

    #[test]
    fn a_damage_names_its_object() {
        let (pod, container) = (PodId::parse("p1").unwrap(), ContainerId::parse("c1").unwrap());
        let of = |path: &str, hides| damage(path, hides).object();
        assert_eq!(of("/x/pods/p1/pod.json", Hidden::Pod(pod.clone())), ("pod", "p1".into()));
        assert_eq!(of("/x/pods/p1/pod.json", Hidden::Container(pod, container)), ("container", "c1".into()));
        let part = |path: &str| of(path, Hidden::Nothing);
        assert_eq!(part("/x/pods/p1/containers/c1/status.json"), ("container", "c1".into()));
        assert_eq!(part("/x/pods/p1/etc"), ("pod", "p1".into()));
        assert_eq!(part("/x/cni/p1.json"), ("network", "p1".into()));
        assert_eq!(part("/x/boot.json"), ("file", "boot".into()));
    }

    #[test]
    fn one_entry_stands_for_an_object_and_its_short_id_finds_it() {
        let store = Store::default();
        let (pod, other) = (PodId::parse("abc1").unwrap(), PodId::parse("abd2").unwrap());
        assert!(store.add_damage(damage("/pods/abc1/pod.json", Hidden::Pod(pod.clone()))));
        assert!(!store.add_damage(damage("/pods/abc1", Hidden::Pod(pod.clone()))));
        assert!(store.add_damage(damage("/pods/abd2/pod.json", Hidden::Pod(other))));
        assert_eq!(store.damaged().len(), 2);
        assert_eq!(store.find_damaged_pod("abc").unwrap().0, pod);
        assert!(store.find_damaged_pod("ab").is_none() && store.find_damaged_pod("").is_none());
    }
}
