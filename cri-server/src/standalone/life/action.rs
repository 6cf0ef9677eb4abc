//! What a probe or a hook does, as the manifest says it. Pure.

use std::time::Duration;

use k8s_openapi::{
    api::core::v1::{
        Container, ExecAction, HTTPGetAction, LifecycleHandler, Probe as ProbeSpec, TCPSocketAction,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{
    super::manifest::{ManifestError, refuse},
    plan::seconds,
};

/// One thing a probe or a hook does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// A command in the container.
    Exec(Vec<String>),
    /// A GET of a page.
    Http(HttpGet),
    /// A connection; without a host, to the pod.
    Tcp { host: Option<String>, port: u16 },
    /// A call of `grpc.health.v1.Health/Check` at the pod.
    Grpc { port: u16, service: String },
    /// Nothing, for a while.
    Sleep(Duration),
}

/// A GET of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HttpGet {
    pub(super) tls: bool,
    /// Without one, the pod.
    pub(super) host: Option<String>,
    pub(super) port: u16,
    pub(super) path: String,
    pub(super) headers: Vec<(String, String)>,
}

/// The one action of a probe.
pub(super) fn of_probe(
    spec: &ProbeSpec,
    field: &str,
    container: &Container,
) -> Result<Action, ManifestError> {
    let mut found = shared(spec.exec.as_ref(), spec.http_get.as_ref(), spec.tcp_socket.as_ref());
    if let Some(grpc) = &spec.grpc {
        let port = number(&format!("{field}.grpc.port"), grpc.port.into())?;
        let service = grpc.service.clone().unwrap_or_default();
        found.push(Found::Made(Action::Grpc { port, service }));
    }
    one(found, field, "exec, httpGet, tcpSocket or grpc", container)
}

/// The one action of a hook.
pub(super) fn of_hook(
    spec: &LifecycleHandler,
    field: &str,
    container: &Container,
) -> Result<Action, ManifestError> {
    let mut found = shared(spec.exec.as_ref(), spec.http_get.as_ref(), spec.tcp_socket.as_ref());
    if let Some(sleep) = &spec.sleep {
        let time = seconds(&format!("{field}.sleep.seconds"), sleep.seconds, 0)?;
        found.push(Found::Made(Action::Sleep(time)));
    }
    one(found, field, "exec, httpGet, tcpSocket or sleep", container)
}

enum Found<'a> {
    Exec(&'a ExecAction),
    Http(&'a HTTPGetAction),
    Tcp(&'a TCPSocketAction),
    Made(Action),
}

fn shared<'a>(
    exec: Option<&'a ExecAction>,
    http: Option<&'a HTTPGetAction>,
    tcp: Option<&'a TCPSocketAction>,
) -> Vec<Found<'a>> {
    [exec.map(Found::Exec), http.map(Found::Http), tcp.map(Found::Tcp)].into_iter().flatten().collect()
}

fn one(
    mut found: Vec<Found<'_>>,
    field: &str,
    choice: &str,
    container: &Container,
) -> Result<Action, ManifestError> {
    if found.len() != 1 {
        let count = found.len();
        return refuse(field, format!("has {count} actions; give one of {choice}"));
    }
    match found.remove(0) {
        Found::Made(action) => Ok(action),
        Found::Exec(exec) => match exec.command.clone().unwrap_or_default() {
            command if command.is_empty() => refuse(format!("{field}.exec.command"), "is missing"),
            command => Ok(Action::Exec(command)),
        },
        Found::Tcp(tcp) => Ok(Action::Tcp {
            host: tcp.host.clone().filter(|host| !host.is_empty()),
            port: port(&format!("{field}.tcpSocket.port"), &tcp.port, container)?,
        }),
        Found::Http(http) => of_http(http, &format!("{field}.httpGet"), container).map(Action::Http),
    }
}

fn of_http(spec: &HTTPGetAction, field: &str, container: &Container) -> Result<HttpGet, ManifestError> {
    let tls = match spec.scheme.as_deref() {
        None | Some("" | "HTTP") => false,
        Some("HTTPS") => true,
        Some(other) => return refuse(format!("{field}.scheme"), format!("{other:?} is not HTTP or HTTPS")),
    };
    let mut headers = Vec::new();
    for (index, header) in spec.http_headers.iter().flatten().enumerate() {
        let bad_name = reqwest::header::HeaderName::try_from(header.name.as_str()).is_err();
        if bad_name || reqwest::header::HeaderValue::try_from(header.value.as_str()).is_err() {
            let reason = format!("{:?}: {:?} is no header", header.name, header.value);
            return refuse(format!("{field}.httpHeaders[{index}]"), reason);
        }
        headers.push((header.name.clone(), header.value.clone()));
    }
    let path = spec.path.clone().filter(|path| !path.is_empty()).unwrap_or_else(|| "/".to_owned());
    Ok(HttpGet {
        tls,
        host: spec.host.clone().filter(|host| !host.is_empty()),
        port: port(&format!("{field}.port"), &spec.port, container)?,
        path: if path.starts_with('/') { path } else { format!("/{path}") },
        headers,
    })
}

/// A port by its number, or by its name among the container's.
fn port(field: &str, port: &IntOrString, container: &Container) -> Result<u16, ManifestError> {
    match port {
        IntOrString::Int(value) => number(field, (*value).into()),
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|port| port.name.as_deref() == Some(name));
            match named {
                // A number that is none is told where it stands.
                Some(port) => Ok(u16::try_from(port.container_port).unwrap_or_default()),
                None => match name.parse() {
                    Ok(value) => number(field, value),
                    Err(_) => refuse(field, format!("the container has no port named {name:?}")),
                },
            }
        }
    }
}

fn number(field: &str, value: i64) -> Result<u16, ManifestError> {
    match u16::try_from(value) {
        Ok(port @ 1..) => Ok(port),
        _ => refuse(field, format!("{value} is not a port from 1 to 65535")),
    }
}
