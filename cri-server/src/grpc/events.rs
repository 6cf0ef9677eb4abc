//! GetContainerEvents: what the store tells, as CRI messages.

use futures::{StreamExt, stream};
use podhold_proto::cri::{self, ContainerEventType};
use tokio::sync::broadcast::error::RecvError;
use tonic::Status;

use super::{Batches, Service, answer};
use crate::state::{Happening, Kind, Reader, nanos};

impl Service {
    /// What happens from now on. The stream ends with DATA_LOSS when its reader is too slow, and with
    /// UNAVAILABLE when the daemon ends.
    pub(super) fn events(&self) -> Batches<cri::ContainerEventResponse> {
        told(self.runtime.store().events())
    }
}

fn told(reader: Reader) -> Batches<cri::ContainerEventResponse> {
    let next = |reader: Option<Reader>| async move {
        let mut reader = reader?;
        Some(match reader.recv().await {
            Ok(happening) => (Ok(message(&happening)), Some(reader)),
            Err(RecvError::Lagged(lost)) => {
                let status = Status::data_loss(format!(
                    "{lost} container events were lost, since this reader took them too slowly; ask for \
                     events again, then list pods and containers"
                ));
                (Err(status), None)
            }
            Err(RecvError::Closed) => {
                let status =
                    Status::unavailable("podhold is ending; connect again, then list pods and containers");
                (Err(status), None)
            }
        })
    };
    stream::unfold(Some(reader), next).boxed()
}

fn message(happening: &Happening) -> cri::ContainerEventResponse {
    let kind = match happening.kind {
        Kind::Created => ContainerEventType::ContainerCreatedEvent,
        Kind::Started => ContainerEventType::ContainerStartedEvent,
        Kind::Stopped => ContainerEventType::ContainerStoppedEvent,
        Kind::Deleted => ContainerEventType::ContainerDeletedEvent,
    };
    cri::ContainerEventResponse {
        container_id: happening.id.clone(),
        container_event_type: kind.into(),
        created_at: nanos(happening.at),
        pod_sandbox_status: Some(answer::pod_status(&happening.pod)),
        containers_statuses: happening
            .containers
            .iter()
            .map(|it| answer::container_status(it, None))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use podhold_cgroups::CgroupPath;
    use podhold_sandbox::PodId;
    use tonic::Code;

    use super::*;
    use crate::state::{Pod, PodEvent, PodPhase, PodRecord, Store};

    /// Adds a pod, has it made ready, and forgets it: three events.
    fn life_of_a_pod(store: &Store, name: &str) {
        let id = PodId::parse(&format!("{:064x}", name.len())).unwrap();
        let record = PodRecord {
            id: id.clone(),
            config: cri::PodSandboxConfig::default(),
            runtime_handler: String::new(),
            created_at: SystemTime::now(),
            cgroup: CgroupPath::parse("/p").unwrap(),
            owned_cgroup: None,
            complete: true,
            ips: Vec::new(),
            boot: None,
            limits: None,
        };
        store.add_pod(Pod::new(record, PodPhase::Creating));
        store.pod_event(&id, PodEvent::RunDone).unwrap().unwrap();
        store.forget_pod(&id);
    }

    #[tokio::test]
    async fn a_reader_that_is_too_slow_is_told_so_and_others_miss_nothing() {
        let store = Store::default();
        let slow = told(store.events());
        let mut quick = told(store.events());
        for n in 0..400 {
            life_of_a_pod(&store, "pod");
            for kind in [
                ContainerEventType::ContainerCreatedEvent,
                ContainerEventType::ContainerStartedEvent,
                ContainerEventType::ContainerDeletedEvent,
            ] {
                assert_eq!(quick.next().await.unwrap().unwrap().container_event_type(), kind, "{n}");
            }
        }
        let got: Vec<_> = slow.collect().await;
        let last = got.last().unwrap().as_ref().unwrap_err();
        assert_eq!((got.len(), last.code()), (1, Code::DataLoss));
        assert!(last.message().contains("176 container events were lost"), "{last}");
        store.end_events();
        assert_eq!(quick.next().await.unwrap().unwrap_err().code(), Code::Unavailable);
        assert!(quick.next().await.is_none());
        assert_eq!(told(store.events()).next().await.unwrap().unwrap_err().code(), Code::Unavailable);
    }
}
