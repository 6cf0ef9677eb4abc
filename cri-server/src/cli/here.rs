//! A runtime in this process that serves the CRI socket of its run directory, for as long as the command takes.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::{sync::oneshot, task::JoinHandle, time::timeout};

use super::Failure;
use crate::{config::Config, grpc, runtime::Runtime, streaming::Streaming};

/// Where pods run that no daemon holds.
pub(super) const RUN_DIR: &str = "/run/podhold-run";
/// Where their images and records are kept.
pub(super) const STATE_DIR: &str = "/var/lib/podhold-run";
/// How long calls that are under way may take once the command is over.
const LEAVE: Duration = Duration::from_secs(3);

/// Serves until [`close`](Self::close).
pub(super) struct Here {
    pub(super) runtime: Arc<Runtime>,
    pub(super) socket: PathBuf,
    streaming: Streaming,
    stop: oneshot::Sender<()>,
    served: JoinHandle<Result<(), tonic::transport::Error>>,
}

/// The configuration without what is the daemon's alone: its socket, its bridge, its usual cgroup. A parent of
/// cgroups that somebody has chosen is for all pods.
pub(super) fn alone(mut config: Config) -> Config {
    config.socket = PathBuf::new();
    config.network.bridge.clear();
    // The daemon's is swept by who knows nothing of them.
    config.cgroups.alone = true;
    config
}

/// Opens the directories of `config` and serves them.
pub(super) async fn open(config: Config) -> Result<Here, Failure> {
    let config = alone(config);
    let socket = config.socket();
    if let Some(listener) = grpc::listener(&socket).await {
        let who = listener.pid.map(|pid| format!(" (process {pid})")).unwrap_or_default();
        let dir = config.run_dir.display();
        return Err(Failure(format!(
            "{dir}: another podhold run{who} uses this directory; wait for its end, end it with podhold stop, or \
             give this one directories of its own with --run-dir and --state-dir"
        )));
    }
    // The port of the configuration is the daemon's.
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let runtime = Runtime::open(config).await?;
    let streaming = Streaming::bind(address, Arc::<Runtime>::clone(&runtime)).await?;
    let listener = grpc::listen(&socket)?;
    let (stop, stopped) = oneshot::channel();
    let served = tokio::spawn(grpc::serve(Arc::clone(&runtime), streaming.clone(), listener, async move {
        drop(stopped.await)
    }));
    Ok(Here { runtime, socket, streaming, stop, served })
}

impl Here {
    /// Serves nobody any more. Pods that run are left alone.
    pub(super) async fn close(self) {
        drop(self.stop);
        let (served, ()) = tokio::join!(timeout(LEAVE, self.served), self.streaming.close());
        if let Ok(Ok(Err(error))) = served {
            tracing::warn!(%error, "the CRI services in this process have ended early");
        }
        // The socket is ours as long as the directory is.
        let _gone = std::fs::remove_file(&self.socket);
        self.runtime.close().await;
    }
}

#[cfg(test)]
mod tests {
    use podhold_cgroups::Driver;

    use super::*;

    #[test]
    fn what_is_the_daemons_alone_is_not_shared() {
        let mut config = Config { socket: "/run/x.sock".into(), ..Config::default() };
        config.network.bridge = "mine".into();
        let own = alone(config.clone());
        assert_eq!(own.socket(), own.run_dir.join("podhold.sock"));
        assert_eq!(own.network.bridge, "");
        let parent = |config: &Config| config.cgroup_parent(Driver::Cgroupfs).unwrap().to_string();
        assert_eq!(parent(&own), "/podhold-run");
        assert_eq!(own.cgroup_parent(Driver::Systemd).unwrap().name(), "podhold-run.slice");
        config.cgroups.parent = "/chosen".into();
        assert_eq!(parent(&alone(config)), "/chosen");
    }
}
