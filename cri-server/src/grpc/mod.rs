//! The CRI v1 services. Thin: decode, call a verb, encode. No decisions.

mod accept;
mod answer;
mod deadline;
mod events;
mod families;
mod image_service;
mod images;
mod lists;
mod metrics;
mod node;
mod runtime_service;
mod select;
mod socket;
mod streams;
mod usage;
mod verbs;

use std::{collections::HashMap, sync::Arc};

use futures::stream::BoxStream;

use podhold_proto::{
    cri::{image_service_server::ImageServiceServer, runtime_service_server::RuntimeServiceServer},
    images::images_server::ImagesServer,
};
use tokio::{io::DuplexStream, net::UnixListener};
use tonic::{Status, transport::Server};

pub use self::socket::{Listener, listen, listener};
use self::{deadline::InTime, images::OwnImages};
use crate::{descriptors, runtime::Runtime, streaming::Streaming};

/// Largest request that is read, in bytes; what containerd allows.
const LARGEST_REQUEST: usize = 16 << 20;
/// Largest answer that is sent: a full ExecSync has 32 MiB and its frame.
const LARGEST_ANSWER: usize = 64 << 20;

/// A stream of messages, each made when the client is ready for it.
type Batches<T> = BoxStream<'static, Result<T, Status>>;

/// Both services of the CRI over one runtime.
#[derive(Clone)]
struct Service {
    runtime: Arc<Runtime>,
    streaming: Streaming,
}

/// Serves our own service of images to the client at the other end of `connection`, until that is closed.
pub async fn serve_images(
    runtime: Arc<Runtime>,
    connection: DuplexStream,
) -> Result<(), tonic::transport::Error> {
    let connection = futures::stream::once(async { Ok::<_, std::io::Error>(connection) });
    Server::builder()
        .add_service(ImagesServer::new(OwnImages { runtime }))
        .serve_with_incoming(connection)
        .await
}

/// Serves until `stop` is ready. Clients of exec, attach and port-forward are sent to `streaming`.
pub async fn serve(
    runtime: Arc<Runtime>,
    streaming: Streaming,
    socket: UnixListener,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let store_of = Arc::clone(&runtime);
    // Streams without an end of their own would keep the server from ending.
    let stop = async move {
        stop.await;
        store_of.store().end_events();
    };
    let own = OwnImages { runtime: Arc::clone(&runtime) };
    let service = Service { runtime, streaming };
    Server::builder()
        .layer(tower::layer::layer_fn(InTime))
        .add_service(ImagesServer::new(own))
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
        .serve_with_incoming_shutdown(accept::connections(socket, descriptors::for_clients()), stop)
        .await
}

/// The answer to an RPC that is not built yet.
fn not_built(rpc: &str) -> Status {
    Status::unimplemented(format!("{rpc} is not built yet in podhold {}", env!("CARGO_PKG_VERSION")))
}

/// The verbose part of an answer, as peers give it: one entry `info` that holds JSON.
fn info(verbose: bool, value: impl FnOnce() -> serde_json::Value) -> HashMap<String, String> {
    if verbose { [("info".to_owned(), value().to_string())].into() } else { HashMap::new() }
}
