//! `podhold serve`.

use std::{
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    time::timeout,
};
use tracing::{info, warn};

use super::{Failure, Settings};
use crate::{
    config::Config,
    descriptors, grpc, numbers,
    runtime::Runtime,
    service::{self, Manager},
    streaming::Streaming,
};

/// How long calls that are under way may take once the daemon was told to end.
const LEAVE: Duration = Duration::from_secs(3);

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    settings: Settings,
    /// Unix socket of the CRI services [default: podhold.sock in the run directory]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

pub(super) fn main(arguments: &Arguments) -> Result<(), Failure> {
    let mut config = arguments.settings.load()?;
    if let Some(socket) = &arguments.socket {
        config.socket.clone_from(socket);
        config = config.checked()?;
    }
    super::start_logging(&config.log_level)?;
    super::require_root()?;
    let inherited = service::inherited()?;
    descriptors::raise();
    let threads = super::threads::serving()?;
    let result = threads.block_on(serve(config, inherited));
    // A thread that is stuck in the kernel must not keep the daemon from ending.
    threads.shutdown_timeout(LEAVE);
    result
}

async fn serve(config: Config, inherited: Option<UnixListener>) -> Result<(), Failure> {
    let path = config.socket();
    let manager = Manager::from_environment();
    // The manager itself answers on a socket of its own.
    if inherited.is_none() {
        refuse_second(&path).await?;
    }
    let (address, metrics) = (config.streaming_address(), config.metrics_address());
    let runtime = Runtime::open(config).await?;
    let streaming = Streaming::bind(address, Arc::<Runtime>::clone(&runtime)).await?;
    let sessions = streaming.clone();
    if let Some(address) = metrics {
        let listener = numbers::bind(address).await.map_err(Failure)?;
        tokio::spawn(numbers::serve(listener, Arc::clone(&runtime)));
    }
    let ours = inherited.is_none();
    let socket = match inherited {
        Some(socket) => take_over(socket, &path)?,
        None => grpc::listen(&path)?,
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    runtime.preload();
    runtime.load_profile();
    info!(socket = %path.display(), version = env!("CARGO_PKG_VERSION"), "podhold is serving");
    manager.ready(runtime.store().pods().len());
    manager.keep_alive(&runtime);
    let (tell, told) = oneshot::channel::<()>();
    let serving = grpc::serve(Arc::clone(&runtime), streaming, socket, async move { drop(told.await) });
    tokio::pin!(serving);
    tokio::select! {
        ended = &mut serving => return Ok(ended?),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("told to end; pods run on");
    manager.stopping();
    drop(tell);
    let (served, ()) = tokio::join!(timeout(LEAVE, serving), sessions.close());
    if let Ok(ended) = served {
        ended?;
    }
    runtime.close().await;
    // The socket is ours as long as the state directory is: nobody can have replaced it.
    if ours {
        let _gone = std::fs::remove_file(&path);
    }
    Ok(())
}

/// Serves on what a service manager holds for us. Our other commands look for the daemon where the configuration says.
fn take_over(socket: UnixListener, configured: &Path) -> std::io::Result<tokio::net::UnixListener> {
    let address = socket.local_addr()?;
    let inherited = address.as_pathname().unwrap_or(Path::new(""));
    if inherited != configured {
        warn!(inherited = %inherited.display(), configured = %configured.display(), "socket of the service manager is another than the configured one");
    }
    tokio::net::UnixListener::from_std(socket)
}

/// A daemon that listens on the socket is never pushed aside.
async fn refuse_second(path: &Path) -> Result<(), Failure> {
    let lives = grpc::listener(path).await.is_some();
    if lives {
        let path = path.display();
        return Err(Failure(format!(
            "{path}: a daemon answers on this socket; stop it or set another socket"
        )));
    }
    Ok(())
}
