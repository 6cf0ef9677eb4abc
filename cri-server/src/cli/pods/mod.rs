//! `podhold ps`, `logs`, `exec`, `stop` and `rm`: pods of `podhold run` and of a daemon, over the CRI.

mod document;
mod exec;
mod list;
mod logs;
mod remove;
mod stop;
mod terminal;

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use hyper_util::rt::TokioIo;
use podhold_proto::cri::{
    Container, ListContainersRequest, ListPodSandboxRequest, PodSandbox, PodSandboxState,
    runtime_service_client::RuntimeServiceClient,
};
use tokio::net::UnixStream;
use tonic::{
    Status,
    transport::{Channel, Endpoint, Uri},
};

use super::{Failure, Settings, here, here::Here};
use crate::{config::Config, grpc};

pub(super) use self::{
    exec::Arguments as Exec, list::Arguments as List, logs::Arguments as Logs, remove::Arguments as Remove,
    stop::Arguments as Stop,
};

type Client = RuntimeServiceClient<Channel>;

/// Largest answer that is read.
const LARGEST_ANSWER: usize = 64 << 20;

/// Where pods are asked for.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Where {
    /// Unix socket of the CRI services to ask, and no other [default: those of podhold run and of the daemon]
    #[arg(long, visible_alias = "address", value_name = "PATH")]
    socket: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// One who knows pods.
struct Source {
    client: Client,
    /// Who listens, as this process sees it.
    pid: Option<i32>,
    /// This process itself, for pods that nobody serves.
    here: Option<Here>,
}

/// A pod and who knows it.
struct Found {
    source: Source,
    pod: PodSandbox,
}

/// What is asked of pods.
pub(super) enum Verb {
    List(List),
    Logs(Logs),
    Exec(Exec),
    Stop(Stop),
    Remove(Remove),
}

/// Runs one of the commands.
pub(super) fn main(verb: Verb) -> Result<ExitCode, Failure> {
    super::require_root()?;
    super::start_logging("warn")?;
    let threads = super::threads::plain()?;
    let result = threads.block_on(async {
        match verb {
            Verb::List(arguments) => list::run(&arguments).await,
            Verb::Logs(arguments) => logs::run(&arguments).await,
            Verb::Exec(arguments) => exec::run(&arguments).await,
            Verb::Stop(arguments) => stop::run(&arguments).await,
            Verb::Remove(arguments) => remove::run(&arguments).await,
        }
    });
    // A read of standard input cannot be called off.
    threads.shutdown_background();
    result
}

impl Where {
    /// Everybody who may know pods and answers.
    async fn sources(&self) -> Result<Vec<Source>, Failure> {
        if let Some(socket) = &self.socket {
            // As the kubelet and crictl write it.
            let plain =
                socket.strip_prefix("unix://").map_or(socket.clone(), |path| Path::new("/").join(path));
            return Ok(vec![connect(&plain).await?]);
        }
        let (mut settings, own) = (self.settings.clone(), self.settings.run_dir.is_some());
        settings.run_dir.get_or_insert_with(|| here::RUN_DIR.into());
        settings.state_dir.get_or_insert_with(|| here::STATE_DIR.into());
        let mut sources = Vec::new();
        let config = Config { socket: PathBuf::new(), ..settings.load()? };
        if grpc::listener(&config.socket()).await.is_some() {
            sources.push(connect(&config.socket()).await?);
        } else if has_pods(&config.state_dir) {
            let here = here::open(config).await?;
            let mut source = connect(&here.socket).await?;
            source.here = Some(here);
            sources.push(source);
        }
        let daemon = Config::load(self.settings.config.as_deref())?.socket();
        if !own && grpc::listener(&daemon).await.is_some() {
            sources.push(connect(&daemon).await?);
        }
        Ok(sources)
    }

    /// The only pod of this name (`NAME` or `NAMESPACE/NAME`) or whose id begins so.
    async fn find(&self, text: &str) -> Result<Found, Failure> {
        let mut found = Vec::new();
        let mut known = 0;
        for mut source in self.sources().await? {
            let pods = source.pods().await?;
            known += pods.len();
            let mut fits = pods.into_iter().filter(|pod| is_named(pod, text));
            match fits.next() {
                Some(pod) => {
                    let more = fits.next().is_some();
                    found.push((Found { source, pod }, more));
                }
                None => source.close().await,
            }
        }
        let ambiguous = found.len() > 1 || found.first().is_some_and(|(_, more)| *more);
        match found.pop() {
            Some((found, _)) if !ambiguous => Ok(found),
            Some(_) => Err(Failure(format!(
                "{text}: more than one pod is named so; give the beginning of an id that podhold ps shows"
            ))),
            None => Err(Failure(format!("{text}: no such pod; podhold ps shows the {known} that there are"))),
        }
    }
}

/// Whether there are pods that nobody serves.
fn has_pods(state: &Path) -> bool {
    std::fs::read_dir(state.join("pods")).is_ok_and(|mut pods| pods.next().is_some())
}

fn is_named(pod: &PodSandbox, text: &str) -> bool {
    let of = pod.metadata.clone().unwrap_or_default();
    of.name == text || format!("{}/{}", of.namespace, of.name) == text || pod.id.starts_with(text)
}

async fn connect(socket: &Path) -> Result<Source, Failure> {
    let failed = |error: io::Error| Failure(format!("{}: nobody answers: {error}", socket.display()));
    let first = UnixStream::connect(socket).await.map_err(failed)?;
    let pid = first.peer_cred().ok().and_then(|peer| peer.pid()).filter(|pid| *pid > 0);
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The address is not used.
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await?;
    let client = Client::new(channel).max_decoding_message_size(LARGEST_ANSWER);
    Ok(Source { client, pid, here: None })
}

/// What a service says of a failure, in words for the terminal.
fn said(status: Status) -> Failure {
    let words = status.message();
    Failure(if words.is_empty() { status.code().description().to_owned() } else { words.to_owned() })
}

impl Source {
    /// Its pods, oldest first.
    async fn pods(&mut self) -> Result<Vec<PodSandbox>, Failure> {
        let answer = self.client.list_pod_sandbox(ListPodSandboxRequest::default()).await.map_err(said)?;
        let mut pods = answer.into_inner().items;
        pods.sort_by_key(|pod| pod.created_at);
        Ok(pods)
    }

    /// Its containers, oldest first.
    async fn containers(&mut self) -> Result<Vec<Container>, Failure> {
        let answer = self.client.list_containers(ListContainersRequest::default()).await.map_err(said)?;
        let mut containers = answer.into_inner().containers;
        containers.sort_by_key(|container| container.created_at);
        Ok(containers)
    }

    async fn close(self) {
        drop(self.client);
        if let Some(here) = self.here {
            here.close().await;
        }
    }
}

impl Found {
    /// The containers of the pod: of each the last run, oldest first.
    async fn containers(&mut self) -> Result<Vec<Container>, Failure> {
        let mut all = self.source.containers().await?;
        all.retain(|container| container.pod_sandbox_id == self.pod.id);
        let latest = |name: &str| {
            all.iter().filter(|other| name_of(other) == name).map(attempt).max().unwrap_or_default()
        };
        let last: Vec<bool> = all.iter().map(|one| attempt(one) == latest(&name_of(one))).collect();
        Ok(all.iter().zip(last).filter(|(_, last)| *last).map(|(one, _)| one.clone()).collect())
    }

    fn is_ready(&self) -> bool {
        self.pod.state() == PodSandboxState::SandboxReady
    }

    /// The process of the `podhold run` whose pod it is, while that serves it.
    fn run_process(&self) -> Option<i32> {
        let noted = self.pod.annotations.get(crate::standalone::RUN_BY)?;
        self.source.pid.filter(|pid| pid.to_string() == *noted && self.source.here.is_none())
    }
}

fn name_of(container: &Container) -> String {
    container.metadata.clone().unwrap_or_default().name
}

fn attempt(container: &Container) -> u32 {
    container.metadata.clone().unwrap_or_default().attempt
}

/// A table with columns as wide as they have to be.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}
