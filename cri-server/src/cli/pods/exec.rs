//! `podhold exec`: a command in a container, joined with this terminal over the CRI's streams (WebSocket).

use std::{
    io::{self, Write},
    process::ExitCode,
};

use futures::{SinkExt, StreamExt};
use podhold_proto::cri::{Container, ContainerState, ExecRequest};
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    signal::unix::{SignalKind, signal},
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest, http::HeaderValue},
};

use super::{
    Found, Where, name_of, said,
    terminal::{self, Raw},
};
use crate::{
    cli::Failure,
    output::{self, Unwritten},
    standalone,
};

/// Streams with half close (Kubernetes' remotecommand).
const PROTOCOL: &str = "v5.channel.k8s.io";
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Run a command in a container of a pod
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// Pass standard input on
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Give the command a terminal
    #[arg(short = 't', long)]
    tty: bool,
    /// In this container [default: the first app of podhold run, or the only one that runs]
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    #[command(flatten)]
    place: Where,
    /// Name of the pod, or the beginning of its id
    pod: String,
    /// The command
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(super) async fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let mut found = arguments.place.find(&arguments.pod).await?;
    let container = choose(&mut found, arguments).await?;
    let tty = arguments.tty && (io::IsTerminal::is_terminal(&io::stdin()) || !arguments.stdin);
    if arguments.tty && !tty {
        output::note(format_args!("standard input is no terminal, so the command gets none; leave -t out"));
    }
    let request = ExecRequest {
        container_id: container.id,
        cmd: arguments.command.clone(),
        tty,
        stdin: arguments.stdin,
        stdout: true,
        stderr: !tty,
    };
    let url = found.source.client.exec(request).await.map_err(said)?.into_inner().url;
    let stream = open(&url).await?;
    let session = Session { stream, input: arguments.stdin, tty };
    let code = session.run().await;
    found.source.close().await;
    code
}

async fn choose(found: &mut Found, arguments: &Arguments) -> Result<Container, Failure> {
    let mut running = found.containers().await?;
    running.retain(|container| container.state() == ContainerState::ContainerRunning);
    let names = running.iter().map(name_of).collect::<Vec<_>>().join(", ");
    let pod = &arguments.pod;
    let wanted = arguments.container.as_ref().or_else(|| found.pod.annotations.get(standalone::FIRST));
    let chosen = match wanted {
        Some(name) => running.into_iter().find(|container| name_of(container) == *name),
        None if running.len() == 1 => running.pop(),
        None => None,
    };
    let what = wanted.map_or_else(|| "one container".to_owned(), |name| format!("container {name:?}"));
    chosen.ok_or_else(|| {
        let names = if names.is_empty() { "none".to_owned() } else { names };
        Failure(format!("{pod}: {what} has to run for that; running: {names}; choose one with -c"))
    })
}

async fn open(url: &str) -> Result<WebSocketStream<TcpStream>, Failure> {
    let url = url.replacen("http://", "ws://", 1);
    let mut request = url.as_str().into_client_request()?;
    let authority = request.uri().authority().map(ToString::to_string).unwrap_or_default();
    request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static(PROTOCOL));
    let stream = TcpStream::connect(&authority).await;
    let stream = stream.map_err(|error| Failure(format!("streaming server {authority}: {error}")))?;
    Ok(client_async(request, stream).await?.0)
}

struct Session {
    stream: WebSocketStream<TcpStream>,
    input: bool,
    tty: bool,
}

impl Session {
    async fn run(mut self) -> Result<ExitCode, Failure> {
        // Restored when this function is left, whichever way.
        let _raw = if self.tty && self.input { Raw::begin()? } else { None };
        let mut input = self.input.then(terminal::input);
        let mut resized = signal(SignalKind::window_change())?;
        let mut ends = Vec::new();
        for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
            let mut signal = signal(kind)?;
            let code = u8::try_from(128 + kind.as_raw_value()).unwrap_or(255);
            ends.push(Box::pin(async move { signal.recv().await.map(|()| code) }));
        }
        let mut told_to_end = futures::future::select_all(ends);
        self.resize().await?;
        loop {
            tokio::select! {
                message = self.stream.next() => match message {
                    Some(Ok(Message::Binary(bytes))) => if let Some(code) = received(&bytes)? {
                        return Ok(code);
                    },
                    Some(Ok(Message::Close(_)) | Err(_)) | None => {
                        return Err(Failure("the connection ended before the command has; whether it runs on is not known".to_owned()));
                    }
                    Some(Ok(_)) => {}
                },
                piece = async { input.as_mut().expect("it is looked at before").recv().await }, if input.is_some() => {
                    let message = match &piece {
                        Some(piece) => [&[STDIN], piece.as_slice()].concat(),
                        None => vec![CLOSE, STDIN],
                    };
                    self.stream.send(Message::Binary(message.into())).await?;
                    if piece.is_none() {
                        input = None;
                    }
                }
                _ = resized.recv() => self.resize().await?,
                // The command ends with its client.
                (code, ..) = &mut told_to_end => return Ok(ExitCode::from(code.unwrap_or(1))),
            }
        }
    }

    async fn resize(&mut self) -> Result<(), Failure> {
        if let Some((columns, rows)) = terminal::size().filter(|_| self.tty) {
            let size = json!({"Width": columns, "Height": rows}).to_string();
            let message = [&[RESIZE], size.as_bytes()].concat();
            self.stream.send(Message::Binary(message.into())).await?;
        }
        Ok(())
    }
}

/// Prints output; the exit code once it is told.
fn received(bytes: &[u8]) -> Result<Option<ExitCode>, Failure> {
    match bytes.split_first() {
        Some((&STDOUT, text)) => print(&mut io::stdout().lock(), text).map_err(Unwritten)?,
        Some((&STDERR, text)) => drop(print(&mut io::stderr().lock(), text)),
        Some((&ERROR, status)) => return ended(&serde_json::from_slice(status)?).map(Some),
        _ => {}
    }
    Ok(None)
}

fn print(to: &mut impl Write, text: &[u8]) -> io::Result<()> {
    to.write_all(text)?;
    to.flush()
}

/// The end of a command, from its Kubernetes `Status`.
fn ended(status: &Value) -> Result<ExitCode, Failure> {
    if status["status"] == "Success" {
        return Ok(ExitCode::SUCCESS);
    }
    let causes = status["details"]["causes"].as_array().cloned().unwrap_or_default();
    let code = causes.iter().find(|cause| cause["reason"] == "ExitCode");
    let code = code.and_then(|cause| cause["message"].as_str()?.parse::<u8>().ok());
    if let Some(code) = code {
        return Ok(ExitCode::from(code));
    }
    let message = status["message"].as_str().unwrap_or("the command could not be run");
    let reason = message.split_once("in container: ").map_or(message, |(_, reason)| reason);
    match never_begun(reason) {
        Some(code) => {
            output::note(format_args!("{reason}"));
            Ok(ExitCode::from(code))
        }
        None => Err(Failure(reason.to_owned())),
    }
}

/// The exit code that shells give for a command that is not there, or not to be executed. The streams carry no more
/// than the runtime's words for it.
fn never_begun(reason: &str) -> Option<u8> {
    let words = [
        ("executable file not found in $PATH", 127),
        ("no such file or directory", 127),
        ("permission denied", 126),
    ];
    let of_program = |(end, _): &(&str, u8)| reason.starts_with("exec: ") && reason.ends_with(end);
    words.into_iter().find(of_program).map(|(_, code)| code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_the_commands() {
        let exit =
            json!({"status": "Failure", "details": {"causes": [{"reason": "ExitCode", "message": "7"}]}});
        assert_eq!(format!("{:?}", ended(&exit).unwrap()), format!("{:?}", ExitCode::from(7)));
        assert!(ended(&json!({"status": "Success"})).is_ok());
        let failed = ended(&json!({"status": "Failure", "message": "no such file"})).unwrap_err();
        assert_eq!(failed.0, "no such file");
        let prefix = "Internal error occurred: error executing command in container: exec: \"x\": ";
        for (end, code) in [
            ("executable file not found in $PATH", 127),
            ("no such file or directory", 127),
            ("permission denied", 126),
        ] {
            let status = json!({"status": "Failure", "message": format!("{prefix}{end}")});
            assert_eq!(
                format!("{:?}", ended(&status).unwrap()),
                format!("{:?}", ExitCode::from(code)),
                "{end}"
            );
        }
    }
}
