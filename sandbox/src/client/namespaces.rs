//! The user and network namespaces a shim makes and holds for its pod.

use podhold_proto::shim::{self as wire, reply::Result as Outcome, request::Call};

use super::{ShimPod, convert};
use crate::launch::{IdMap, LaunchError, UserNamespace};

impl ShimPod {
    /// Has them made, or gets those that were made before.
    pub(super) async fn make_namespaces(
        &self,
        ids: &IdMap,
        own_net: bool,
    ) -> Result<UserNamespace, LaunchError> {
        if !self.version.can_make_namespaces() {
            return Err(LaunchError::TooOld { pod: self.id.clone(), what: "make user namespaces" });
        }
        let made = self.namespaces(convert::make_namespaces(ids, own_net)).await?;
        made.ok_or_else(|| LaunchError::Protocol {
            pod: self.id.clone(),
            reason: "no user namespace in the answer".to_owned(),
        })
    }

    /// Asks the shim; none when there are none.
    pub(super) async fn namespaces(
        &self,
        call: wire::MakeNamespaces,
    ) -> Result<Option<UserNamespace>, LaunchError> {
        let (outcome, files) = self.line.request(Call::MakeNamespaces(call), Vec::new()).await?;
        match outcome {
            Outcome::MakeNamespaces(reply) => convert::user_namespace(&self.id, &reply, files),
            other => Err(self.unexpected(&other)),
        }
    }
}
