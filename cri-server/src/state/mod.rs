//! What the daemon knows: pods and containers in memory, behind one lock that is held briefly.
//!
//! Invariant: the lock is never held across an await or a system call, so reads never wait for a verb
//! at work. Every change of a phase goes through [`Store::container_event`] or [`Store::pod_event`],
//! which wake whoever waits and tell who reads [`events`]. No I/O.

mod damaged;
mod events;
mod held;
mod object;
mod phase;
mod record;

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
    time::SystemTime,
};

use podhold_sandbox::{ContainerId, PodId};
use tokio::sync::watch;

use self::events::{Readers, Told};
pub use self::{
    damaged::{Damage, Hidden},
    events::{Happening, Kind, Reader},
    object::{Container, Pod, Wait},
    phase::{ContainerEvent, ContainerPhase, Ended, IllegalTransition, PodEvent, PodPhase, Run},
    record::{ContainerRecord, ContainerStatusRecord, PodLimits, PodRecord, id_ranges, log_path},
};

/// Whether a name could be given to a new object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reserve<Object> {
    /// Nothing had this name; the new object has it now.
    New,
    /// This object has the name.
    Taken(Object),
    /// The pod takes no containers; its phase, or `None` when it is gone.
    NotReady(Option<PodPhase>),
}

/// All pods and containers.
#[derive(Debug, Default)]
pub struct Store {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    pods: HashMap<PodId, Slot<Pod>>,
    containers: HashMap<ContainerId, Slot<Container>>,
    pod_names: HashMap<PodName, PodId>,
    container_names: HashMap<ContainerName, ContainerId>,
    readers: Readers,
    damaged: Vec<Damage>,
}

/// An object and the wire on which its changes are told.
#[derive(Debug)]
struct Slot<T> {
    value: T,
    changed: watch::Sender<u64>,
    told: Told,
}

/// What makes a pod the same pod: uid, namespace, name, attempt (CRI `PodSandboxMetadata`).
pub type PodName = (String, String, String, u32);
/// What makes a container the same container: pod, name, attempt (CRI `ContainerMetadata`).
pub type ContainerName = (PodId, String, u32);

impl<T> Slot<T> {
    fn new(value: T, told: Told) -> Self {
        Self { value, changed: watch::Sender::new(0), told }
    }

    fn wake(&self) {
        self.changed.send_modify(|n| *n += 1);
    }
}

impl Inner {
    fn insert_container(&mut self, container: Container, told: Told) -> Reserve<Container> {
        let name = container.record.name();
        if let Some(id) = self.container_names.get(&name)
            && let Some(slot) = self.containers.get(id)
        {
            return Reserve::Taken(slot.value.clone());
        }
        let id = container.record.id.clone();
        let Some(pod) = self.pods.get_mut(&container.record.pod) else { return Reserve::NotReady(None) };
        pod.value.containers.insert(id.clone());
        self.container_names.insert(name, id.clone());
        self.containers.insert(id, Slot::new(container, told));
        Reserve::New
    }

    fn pod_event(&mut self, id: &PodId, event: PodEvent) -> Option<Result<Pod, IllegalTransition>> {
        let slot = self.pods.get_mut(id)?;
        let phase = match slot.value.phase.after(event) {
            Ok(phase) => phase,
            Err(illegal) => return Some(Err(illegal)),
        };
        slot.value.phase = phase;
        slot.wake();
        let due = slot.told.of_pod(phase);
        let pod = slot.value.clone();
        self.tell(&due, id.as_str(), id);
        Some(Ok(pod))
    }

    /// Tells the readers, with the pod and its containers as they are now.
    fn tell(&mut self, kinds: &[Kind], id: &str, pod: &PodId) {
        if kinds.is_empty() || !self.readers.any() {
            return;
        }
        if let Some(slot) = self.pods.get(pod) {
            self.publish(kinds, id, &slot.value);
        }
    }

    fn publish(&self, kinds: &[Kind], id: &str, pod: &Pod) {
        let containers = pod.containers.iter().filter_map(|id| self.containers.get(id));
        let listed = containers.filter(|slot| slot.told != Told::Nothing);
        let mut containers: Vec<Container> = listed.map(|slot| slot.value.clone()).collect();
        containers.sort_by_key(|container| container.record.created_at);
        // An event that waits for its reader must not keep the connection to the shim.
        let pod = Pod { live: None, ..pod.clone() };
        for kind in kinds {
            self.readers.publish(Happening {
                kind: *kind,
                id: id.to_owned(),
                at: SystemTime::now(),
                pod: pod.clone(),
                containers: containers.clone(),
            });
        }
    }
}

impl Store {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no code panics while it holds the store")
    }

    /// Adds a pod unless its name is taken.
    pub fn add_pod(&self, pod: Pod) -> Reserve<Pod> {
        let mut inner = self.lock();
        let name = pod.record.name();
        if let Some(id) = inner.pod_names.get(&name)
            && let Some(slot) = inner.pods.get(id)
        {
            return Reserve::Taken(slot.value.clone());
        }
        inner.pod_names.insert(name, pod.record.id.clone());
        // One that is not new was told of by an earlier daemon.
        let told = if pod.phase == PodPhase::Creating { Told::Nothing } else { Told::Started };
        inner.pods.insert(pod.record.id.clone(), Slot::new(pod, told));
        Reserve::New
    }

    /// Adds a container to its pod, which must be ready, unless its name is taken.
    ///
    /// Who stops a pod claims it before listing its containers: none is added behind its back.
    pub fn add_container(&self, container: Container) -> Reserve<Container> {
        let mut inner = self.lock();
        let phase = inner.pods.get(&container.record.pod).map(|slot| slot.value.phase);
        if phase != Some(PodPhase::Ready) {
            return Reserve::NotReady(phase);
        }
        inner.insert_container(container, Told::Nothing)
    }

    /// Adds a container that was found on disk to its pod, which was added before.
    pub fn load_container(&self, container: Container) -> Reserve<Container> {
        let mut told = Told::Created;
        match &container.phase {
            ContainerPhase::Unknown { .. } => told = Told::Started,
            phase => drop(told.of_container(phase)),
        }
        self.lock().insert_container(container, told)
    }

    /// One pod.
    pub fn pod(&self, id: &PodId) -> Option<Pod> {
        self.lock().pods.get(id).map(|slot| slot.value.clone())
    }

    /// One container.
    pub fn container(&self, id: &ContainerId) -> Option<Container> {
        self.lock().containers.get(id).map(|slot| slot.value.clone())
    }

    /// The pod whose id is `text` or, uniquely, begins with it.
    pub fn find_pod(&self, text: &str) -> Option<Pod> {
        if let Some(pod) = PodId::parse(text).ok().and_then(|id| self.pod(&id)) {
            return Some(pod);
        }
        let inner = self.lock();
        let damaged = inner.damaged.iter().filter_map(|damage| match &damage.hides {
            Hidden::Pod(id) => Some((id.as_str(), None)),
            _ => None,
        });
        let known = inner.pods.iter().map(|(id, slot)| (id.as_str(), Some(slot)));
        unique(known.chain(damaged), text)?.map(|slot| slot.value.clone())
    }

    /// The container whose id is `text` or, uniquely, begins with it.
    pub fn find_container(&self, text: &str) -> Option<Container> {
        if let Some(container) = ContainerId::parse(text).ok().and_then(|id| self.container(&id)) {
            return Some(container);
        }
        let inner = self.lock();
        let damaged = inner.damaged.iter().filter_map(|damage| match &damage.hides {
            Hidden::Container(_, id) => Some((id.as_str(), None)),
            _ => None,
        });
        let known = inner.containers.iter().map(|(id, slot)| (id.as_str(), Some(slot)));
        unique(known.chain(damaged), text)?.map(|slot| slot.value.clone())
    }

    /// All pods, oldest first.
    pub fn pods(&self) -> Vec<Pod> {
        let mut all: Vec<Pod> = self.lock().pods.values().map(|slot| slot.value.clone()).collect();
        all.sort_by_key(|pod| pod.record.created_at);
        all
    }

    /// All containers, oldest first.
    pub fn containers(&self) -> Vec<Container> {
        let mut all: Vec<Container> = self.lock().containers.values().map(|s| s.value.clone()).collect();
        all.sort_by_key(|container| container.record.created_at);
        all
    }

    /// The containers of one pod, oldest first.
    pub fn containers_of(&self, pod: &PodId) -> Vec<Container> {
        let inner = self.lock();
        let ids = inner.pods.get(pod).map(|slot| &slot.value.containers);
        let known = ids.into_iter().flatten().filter_map(|id| inner.containers.get(id));
        let mut all: Vec<Container> = known.map(|slot| slot.value.clone()).collect();
        all.sort_by_key(|container| container.record.created_at);
        all
    }

    /// Moves a pod to its next phase and returns it as it is then. `None` when it is gone.
    pub fn pod_event(&self, id: &PodId, event: PodEvent) -> Option<Result<Pod, IllegalTransition>> {
        self.lock().pod_event(id, event)
    }

    /// Changes what is known of a pod besides its phase.
    pub fn change_pod<T>(&self, id: &PodId, change: impl FnOnce(&mut Pod) -> T) -> Option<T> {
        let mut inner = self.lock();
        let slot = inner.pods.get_mut(id)?;
        let result = change(&mut slot.value);
        slot.wake();
        Some(result)
    }

    /// Moves a container to its next phase and returns it as it is then. `None` when it is gone.
    pub fn container_event(
        &self,
        id: &ContainerId,
        event: ContainerEvent,
    ) -> Option<Result<Container, IllegalTransition>> {
        let mut inner = self.lock();
        let slot = inner.containers.get_mut(id)?;
        slot.value.phase = match slot.value.phase.after(event) {
            Ok(phase) => phase,
            Err(illegal) => return Some(Err(illegal)),
        };
        slot.wake();
        let due = slot.told.of_container(&slot.value.phase);
        let container = slot.value.clone();
        inner.tell(&due, id.as_str(), &container.record.pod);
        Some(Ok(container))
    }

    /// Changes what is known of a container besides its phase.
    pub fn change_container<T>(
        &self,
        id: &ContainerId,
        change: impl FnOnce(&mut Container) -> T,
    ) -> Option<T> {
        let mut inner = self.lock();
        let slot = inner.containers.get_mut(id)?;
        let result = change(&mut slot.value);
        slot.wake();
        Some(result)
    }

    /// Forgets a pod. Its containers must have been forgotten before.
    pub fn forget_pod(&self, id: &PodId) {
        let mut inner = self.lock();
        if let Some(slot) = inner.pods.remove(id) {
            inner.pod_names.remove(&slot.value.record.name());
            slot.wake();
            if slot.told != Told::Nothing && inner.readers.any() {
                inner.publish(&[Kind::Deleted], id.as_str(), &slot.value);
            }
        }
    }

    /// Forgets a container.
    pub fn forget_container(&self, id: &ContainerId) {
        let mut inner = self.lock();
        if let Some(slot) = inner.containers.remove(id) {
            inner.container_names.remove(&slot.value.record.name());
            if let Some(pod) = inner.pods.get_mut(&slot.value.record.pod) {
                pod.value.containers.remove(id);
            }
            slot.wake();
            if slot.told != Told::Nothing {
                inner.tell(&[Kind::Deleted], id.as_str(), &slot.value.record.pod);
            }
        }
    }

    /// What happens from now on, for one reader.
    pub fn events(&self) -> Reader {
        self.lock().readers.subscribe()
    }

    /// Ends all readers' streams: the daemon is about to end.
    pub fn end_events(&self) {
        self.lock().readers.end();
    }

    /// Waits until `done` gives an answer for the pod (`None`: it is gone).
    pub async fn wait_pod<T>(&self, id: &PodId, mut done: impl FnMut(Option<&Pod>) -> Option<T>) -> T {
        loop {
            let mut changed = {
                let inner = self.lock();
                let slot = inner.pods.get(id);
                if let Some(answer) = done(slot.map(|slot| &slot.value)) {
                    return answer;
                }
                slot.map(|slot| slot.changed.subscribe())
            };
            wait(changed.as_mut()).await;
        }
    }

    /// Waits until `done` gives an answer for the container (`None`: it is gone).
    pub async fn wait_container<T>(
        &self,
        id: &ContainerId,
        mut done: impl FnMut(Option<&Container>) -> Option<T>,
    ) -> T {
        loop {
            let mut changed = {
                let inner = self.lock();
                let slot = inner.containers.get(id);
                if let Some(answer) = done(slot.map(|slot| &slot.value)) {
                    return answer;
                }
                slot.map(|slot| slot.changed.subscribe())
            };
            wait(changed.as_mut()).await;
        }
    }
}

/// Waits for the next change; an object that is gone changes no more.
async fn wait(changed: Option<&mut watch::Receiver<u64>>) {
    match changed {
        // An error means that the object was forgotten: the caller looks again and sees it.
        Some(changed) => drop(changed.changed().await),
        None => std::future::pending().await,
    }
}

/// The value whose name is `text`, or the only one whose name begins with it.
fn unique<'a, T>(all: impl Iterator<Item = (&'a str, T)>, text: &str) -> Option<T> {
    if text.is_empty() {
        return None;
    }
    let mut found = None;
    for (name, value) in all.filter(|(name, _)| name.starts_with(text)) {
        if name == text {
            return Some(value);
        }
        if found.replace(value).is_some() {
            return None;
        }
    }
    found
}

/// Nanoseconds since 1970, as the CRI counts time; 0 for times before.
pub fn nanos(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
