//! `podhold logs`.

use std::{collections::HashMap, io, path::PathBuf, process::ExitCode, sync::Arc};

use podhold_proto::cri::{
    Container, ContainerEventType, ContainerState, ContainerStatusRequest, GetEventsRequest,
};
use tokio::{sync::watch, task::JoinHandle};

use super::{Found, Where, attempt, name_of, said};
use crate::{
    cli::Failure,
    output::Unwritten,
    standalone::{Label, Screen, follow},
};

/// Print what the containers of a pod have said
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// Name of the pod, or the beginning of its id
    pod: String,
    /// Of this container only [default: all, each line with its container's name]
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Go on until they have ended
    #[arg(short, long)]
    follow: bool,
    /// Of the run before the last restart
    #[arg(short, long, conflicts_with = "follow")]
    previous: bool,
    #[command(flatten)]
    place: Where,
}

pub(super) async fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let mut found = arguments.place.find(&arguments.pod).await?;
    let events = match arguments.follow {
        // Before the list, so that nothing happens in between.
        true => {
            let events = found.source.client.get_container_events(GetEventsRequest::default()).await;
            Some(events.map_err(said)?.into_inner())
        }
        false => None,
    };
    let wanted = |container: &Container| match &arguments.container {
        Some(name) => name_of(container) == *name,
        None => true,
    };
    let containers = chosen(&mut found, arguments.previous).await?;
    let chosen: Vec<Container> = containers.iter().filter(|one| wanted(one)).cloned().collect();
    if let Some(name) = &arguments.container
        && chosen.is_empty()
    {
        let names = containers.iter().map(name_of).collect::<Vec<_>>().join(", ");
        return Err(Failure(format!(
            "{}: no container is named {name:?}; there are: {names}",
            arguments.pod
        )));
    }
    let mut printer = Printer::new(&chosen, arguments.container.is_none());
    for container in &chosen {
        printer.begin(&mut found, container).await?;
        if !arguments.follow || container.state() != ContainerState::ContainerRunning {
            printer.end(&container.id).await?;
        }
    }
    if let Some(mut events) = events {
        loop {
            // A stream that breaks off means that the server has ended, and its pods with it.
            let event = tokio::select! {
                event = events.message() => event.ok().flatten(),
                error = printer.screen.lost() => return Err(unwritten(&error)),
            };
            let Some(event) = event else { break };
            if event.container_id == found.pod.id
                && event.container_event_type() != ContainerEventType::ContainerStartedEvent
            {
                break;
            }
            match event.container_event_type() {
                ContainerEventType::ContainerStoppedEvent | ContainerEventType::ContainerDeletedEvent => {
                    printer.end(&event.container_id).await?;
                }
                ContainerEventType::ContainerStartedEvent => {
                    let all = found.containers().await?;
                    let started = all.iter().find(|one| one.id == event.container_id);
                    if let Some(container) = started.filter(|one| wanted(one)) {
                        printer.begin(&mut found, container).await?;
                    }
                }
                ContainerEventType::ContainerCreatedEvent => {}
            }
        }
    }
    printer.end_all().await?;
    printer.screen.close().await;
    if let Some(error) = printer.screen.failure() {
        return Err(unwritten(&error));
    }
    found.source.close().await;
    Ok(ExitCode::SUCCESS)
}

/// Standard output took no more.
fn unwritten(error: &io::Error) -> Failure {
    Unwritten(io::Error::new(error.kind(), error.to_string())).into()
}

/// The runs whose logs are wanted: of each container the last, or the one before it.
async fn chosen(found: &mut Found, previous: bool) -> Result<Vec<Container>, Failure> {
    let last = found.containers().await?;
    if !previous {
        return Ok(last);
    }
    let mut all = found.source.containers().await?;
    all.retain(|one| one.pod_sandbox_id == found.pod.id);
    let is_before = |one: &Container| {
        last.iter().any(|last| name_of(last) == name_of(one) && attempt(last) == attempt(one) + 1)
    };
    let before: Vec<Container> = all.into_iter().filter(is_before).collect();
    match before.is_empty() {
        true => Err(Failure("no container was restarted; leave --previous out".to_owned())),
        false => Ok(before),
    }
}

/// Prints logs that are under way.
struct Printer {
    screen: Arc<Screen>,
    /// The names before the lines, with the colour of each; none for a single container.
    names: Option<Vec<String>>,
    under_way: HashMap<String, (watch::Sender<bool>, JoinHandle<io::Result<()>>)>,
}

impl Printer {
    fn new(containers: &[Container], labelled: bool) -> Self {
        let names: Vec<String> = containers.iter().map(name_of).collect();
        let labelled = labelled && names.len() != 1;
        let screen = Screen::lines();
        Self { screen, names: labelled.then_some(names), under_way: HashMap::new() }
    }

    async fn begin(&mut self, found: &mut Found, container: &Container) -> Result<(), Failure> {
        if self.under_way.contains_key(&container.id) {
            return Ok(());
        }
        let request = ContainerStatusRequest { container_id: container.id.clone(), verbose: false };
        let status = found.source.client.container_status(request).await.map_err(said)?.into_inner().status;
        let path = PathBuf::from(status.unwrap_or_default().log_path);
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        let label = match &mut self.names {
            None => Label::none(),
            Some(names) => {
                let name = name_of(container);
                let index = names.iter().position(|known| *known == name).unwrap_or_else(|| {
                    names.push(name.clone());
                    names.len() - 1
                });
                Label::new(&name, index, names.iter().map(String::len).max().unwrap_or(0))
            }
        };
        let (over, ended) = watch::channel(false);
        let task = tokio::spawn(follow(path, label, Arc::clone(&self.screen), ended));
        self.under_way.insert(container.id.clone(), (over, task));
        Ok(())
    }

    async fn end(&mut self, id: &str) -> Result<(), Failure> {
        let Some((over, task)) = self.under_way.remove(id) else { return Ok(()) };
        over.send_replace(true);
        Ok(task.await??)
    }

    async fn end_all(&mut self) -> Result<(), Failure> {
        let ids: Vec<String> = self.under_way.keys().cloned().collect();
        for id in ids {
            self.end(&id).await?;
        }
        Ok(())
    }
}
