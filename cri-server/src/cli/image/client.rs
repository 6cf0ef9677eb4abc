//! Who answers `podhold image`: a daemon, or this process.

use std::{
    io,
    path::{Path, PathBuf},
};

use hyper_util::rt::TokioIo;
use podhold_proto::images::images_client::ImagesClient;
use tokio::net::UnixStream;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::{cli::Failure, config::Config, grpc, runtime::Runtime};

pub(super) type Client = ImagesClient<Channel>;

/// Bytes on their way between client and service in this process.
const BETWEEN: usize = 1 << 20;

/// Where images are asked for.
pub(super) enum Place {
    /// The daemon at this socket.
    Daemon(PathBuf),
    /// The directories of this configuration, which no daemon uses.
    Here(Config),
    /// The daemon of this configuration when it answers, else its directories.
    Either(Config),
}

pub(super) async fn connect(place: Place) -> Result<Client, Failure> {
    match place {
        Place::Daemon(socket) => {
            // As the kubelet and crictl write it.
            let socket =
                socket.strip_prefix("unix://").map_or(socket.clone(), |path| Path::new("/").join(path));
            let stream = UnixStream::connect(&socket).await;
            let stream = stream.map_err(|error| no_daemon(&socket, &error))?;
            through(TokioIo::new(stream)).await
        }
        Place::Here(config) => here(config).await,
        Place::Either(config) => match UnixStream::connect(config.socket()).await {
            Ok(stream) => through(TokioIo::new(stream)).await,
            Err(error) if is_nobody(&error) => here(config).await,
            Err(error) => Err(no_daemon(&config.socket(), &error)),
        },
    }
}

/// Whether there is no daemon, rather than one that cannot be reached.
fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

fn no_daemon(socket: &Path, error: &io::Error) -> Failure {
    Failure(format!("{}: no daemon answers: {error}", socket.display()))
}

async fn here(config: Config) -> Result<Client, Failure> {
    let runtime = Runtime::open(config).await?;
    let (ours, theirs) = tokio::io::duplex(BETWEEN);
    // Ends with this process, when its only client has what it wants.
    tokio::spawn(async move {
        if let Err(error) = grpc::serve_images(runtime, theirs).await {
            tracing::warn!(%error, "the service of images in this process has ended");
        }
    });
    through(TokioIo::new(ours)).await
}

/// A client over the one connection that is there.
async fn through<S>(stream: TokioIo<S>) -> Result<Client, Failure>
where
    TokioIo<S>: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let mut once = Some(stream);
    let connect = tower::service_fn(move |_| {
        let stream = once.take().ok_or_else(|| io::Error::other("the connection to the daemon is lost"));
        std::future::ready(stream)
    });
    // The address is not used.
    let endpoint = Endpoint::from_static("http://localhost");
    let channel = endpoint.connect_with_connector(connect).await?;
    Ok(ImagesClient::new(channel).max_decoding_message_size(64 << 20))
}

/// What a service says of a failure, in words for the terminal.
pub(super) fn said(status: &Status) -> Failure {
    match status.code() {
        tonic::Code::Unimplemented => Failure(
            "the daemon is of a version that has no such call; stop it, or start one of this version"
                .to_owned(),
        ),
        _ if status.message().is_empty() => Failure(status.code().description().to_owned()),
        _ => Failure(status.message().to_owned()),
    }
}
