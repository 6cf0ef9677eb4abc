//! Whether the pod network is ready, asked of its plugins for as long as somebody wants to know.
//!
//! A plugin that does not tell its status is killed after [`PATIENCE`]. While it has that habit, Status gives
//! the last answer at once and asks again in the background: a plugin that hangs costs nobody but the first
//! any time, and one that answers again is believed at the next Status.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{Runtime, flight::Flights};
use crate::error::{Error, Result};

/// How long one plugin may take to tell its status.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is known of it.
#[derive(Debug, Default)]
pub(super) struct NetworkStatus {
    asking: Flights<(), ()>,
    /// The last answer, when its time was over.
    late: Arc<Mutex<Option<Error>>>,
}

impl Runtime {
    /// Whether pods with a network of their own can be started now; the reason when not.
    pub async fn network_ready(&self) -> Result<()> {
        let NetworkStatus { asking, late } = &self.network_status;
        let (networks, last) = (Arc::clone(&self.networks), Arc::clone(late));
        let ask = async move {
            let status = networks.status_within(PATIENCE).await.map_err(Error::from);
            let late =
                status.as_ref().err().filter(|error| matches!(error.code(), tonic::Code::DeadlineExceeded));
            *last.lock().expect("no code panics while it holds the answer") = late.cloned();
            status
        };
        let late = late.lock().expect("no code panics while it holds the answer").clone();
        match late {
            None => asking.join((), || ask).await,
            Some(late) => {
                let asking = asking.clone();
                tokio::spawn(async move { drop(asking.join((), || ask).await) });
                Err(late)
            }
        }
    }
}
