//! What changes at once when a pod's shim is found, and when it is dead. No I/O.
//!
//! Invariant: no answer has a part of such a change without the rest.

use std::sync::Arc;

use podhold_sandbox::{PodId, launch::LivePod};

use super::{PodEvent, PodPhase, Store};

impl Store {
    /// The pod's shim is dead: the pod is NotReady, and what runs in it belongs to nobody until it has been
    /// ended; all of that at once, so that no answer has one without the other. Gives its handle, if it had one.
    pub fn pod_is_unheld(&self, id: &PodId) -> Option<Arc<dyn LivePod>> {
        let mut inner = self.lock();
        let pod = &mut inner.pods.get_mut(id)?.value;
        (pod.ips, pod.wait) = (Vec::new(), None);
        let (live, containers) = (pod.live.take(), pod.containers.clone());
        for container in containers {
            if let Some(slot) = inner.containers.get_mut(&container) {
                slot.value.unheld = true;
                slot.wake();
            }
        }
        // Fits every phase.
        let _died = inner.pod_event(id, PodEvent::Died);
        live
    }

    /// The pod's shim has answered: it has its handle and its addresses again and is Ready, all of that at once.
    /// `false`, and nothing is changed, when it does not wait for its shim, or is stopped or removed meanwhile.
    pub fn pod_is_found(&self, id: &PodId, live: Arc<dyn LivePod>) -> bool {
        let mut inner = self.lock();
        let Some(slot) = inner.pods.get_mut(id) else { return false };
        let pod = &mut slot.value;
        match pod.phase {
            PodPhase::Unanswered => {}
            // It could not be stopped.
            PodPhase::NotReady if !pod.ended => {}
            _ => return false,
        }
        (pod.live, pod.wait) = (Some(live), None);
        pod.ips.clone_from(&pod.record.ips);
        // Fits both phases.
        let _found = inner.pod_event(id, PodEvent::Found);
        true
    }
}
