//! Exec, Attach and PortForward: where a client is to connect. What it asks for is checked here, so that
//! a wrong request fails at once and not on a stream.

use podhold_proto::cri;
use tonic::Status;

use super::{Service, verbs::id};

impl Service {
    pub(super) async fn exec_url(&self, request: cri::ExecRequest) -> Result<cri::ExecResponse, Status> {
        id(&request.container_id, "container_id")?;
        let url = self.streaming.exec_url(self.runtime.check_exec(request)?)?;
        Ok(cri::ExecResponse { url })
    }

    pub(super) async fn attach_url(
        &self,
        request: cri::AttachRequest,
    ) -> Result<cri::AttachResponse, Status> {
        id(&request.container_id, "container_id")?;
        let url = self.streaming.attach_url(self.runtime.check_attach(request)?)?;
        Ok(cri::AttachResponse { url })
    }

    pub(super) async fn port_forward_url(
        &self,
        request: cri::PortForwardRequest,
    ) -> Result<cri::PortForwardResponse, Status> {
        id(&request.pod_sandbox_id, "pod_sandbox_id")?;
        let (pod, ports) = self.runtime.check_port_forward(request)?;
        let url = self.streaming.port_forward_url(pod, ports)?;
        Ok(cri::PortForwardResponse { url })
    }
}
