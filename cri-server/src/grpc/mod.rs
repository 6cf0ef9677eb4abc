//! The CRI v1 services. Thin: decode, call a verb, encode. No decisions.

mod answer;
mod image_service;
mod runtime_service;
mod select;

use std::sync::Arc;

use podhold_proto::cri::{
    image_service_server::ImageServiceServer, runtime_service_server::RuntimeServiceServer,
};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Status, transport::Server};

use crate::runtime::Runtime;

/// Largest request that is read, in bytes; what containerd allows.
const LARGEST_REQUEST: usize = 16 << 20;
/// Largest answer that is sent: a full ExecSync has 32 MiB and its frame.
const LARGEST_ANSWER: usize = 64 << 20;

/// Both services over one runtime.
#[derive(Debug, Clone)]
struct Service {
    runtime: Arc<Runtime>,
}

/// Serves until `stop` is ready.
pub async fn serve(
    runtime: Arc<Runtime>,
    socket: UnixListener,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let service = Service { runtime };
    Server::builder()
        .add_service(
            RuntimeServiceServer::new(service.clone())
                .max_decoding_message_size(LARGEST_REQUEST)
                .max_encoding_message_size(LARGEST_ANSWER),
        )
        .add_service(
            ImageServiceServer::new(service)
                .max_decoding_message_size(LARGEST_REQUEST)
                .max_encoding_message_size(LARGEST_ANSWER),
        )
        .serve_with_incoming_shutdown(UnixListenerStream::new(socket), stop)
        .await
}

/// The answer to an RPC that is not built yet.
fn not_built(rpc: &str) -> Status {
    Status::unimplemented(format!("{rpc} is not built yet in podhold {}", env!("CARGO_PKG_VERSION")))
}
