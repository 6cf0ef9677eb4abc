//! What a `hosts.toml` says.
//!
//! Reads the certificates it names, and nothing else.

use std::path::Path;

use reqwest::header::{HeaderName, HeaderValue};
use toml::{Table, Value};

use super::{Host, certificates, duration, upstream};

/// Keys of a host; those of the whole file come before them.
const KEYS: &[&str] = &[
    "server",
    "host",
    "capabilities",
    "ca",
    "client",
    "skip_verify",
    "header",
    "override_path",
    "dial_timeout",
];

/// Reads a `hosts.toml`. Certificates it names are read from beneath `base` or from absolute paths. `own`: it is
/// written for this registry alone, so its `server` is that registry and may see the caller's credentials.
pub(crate) fn parse(text: &str, registry: &str, base: &Path, own: bool) -> Result<Vec<Host>, String> {
    // The whole error would show the line, in which a secret header may stand.
    let file: Table = toml::from_str(text).map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        format!("line {}: it is not TOML: {}", before.matches('\n').count() + 1, error.message())
    })?;
    let mut hosts = Vec::new();
    warn_unknown(&file, KEYS, base);
    if let Some(tables) = file.get("host") {
        for (url, table) in
            tables.as_table().ok_or("'host' must be a table: write [host.\"https://mirror\"]")?
        {
            let table = table
                .as_table()
                .ok_or_else(|| format!("host {url:?} must be a table: write [host.{url:?}]"))?;
            warn_unknown(table, &KEYS[2..], base);
            let place = |reason| format!("host {url:?}: {reason}");
            let mut host = locate(url, table).map_err(place)?;
            host.upstream = host.authority == upstream(registry).authority;
            configure(&mut host, table, base).map_err(place)?;
            hosts.push(host);
        }
    }
    let mut server = match file.get("server") {
        Some(server) => {
            let url = server.as_str().ok_or("'server' must be a string: the registry's URL")?;
            let mut server = locate(url, &file).map_err(|reason| format!("'server': {reason}"))?;
            server.upstream = own || server.authority == upstream(registry).authority;
            server
        }
        None => upstream(registry),
    };
    configure(&mut server, &file, base)?;
    // Named as a host already, with everything it may do: not asked twice.
    let same = |host: &Host| {
        (&host.scheme, &host.authority, &host.path) == (&server.scheme, &server.authority, &server.path)
            && host.resolve
            && host.pull
    };
    if !hosts.iter().any(same) {
        hosts.push(server);
    }
    Ok(hosts)
}

/// Scheme, authority and path out of a host's URL; https where it has no scheme.
fn locate(url: &str, table: &Table) -> Result<Host, String> {
    let with_scheme = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
    let parsed = reqwest::Url::parse(&with_scheme)
        .map_err(|error| format!("it is not a URL ({error}); write it as https://HOST:PORT"))?;
    if !matches!(parsed.scheme(), "http" | "https") || parsed.host_str().is_none_or(str::is_empty) {
        return Err("it must be an http or https URL with a host".to_owned());
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err("it holds credentials; give them by the pull secret or a credentials file".to_owned());
    }
    if parsed.query().is_some() || parsed.fragment().is_some() {
        return Err("it has a query or fragment, which cannot be sent; leave out '?' and '#'".to_owned());
    }
    let host = parsed.host_str().unwrap_or_default();
    let authority = parsed.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    let mut path = parsed.path().trim_end_matches('/').to_owned();
    if !flag(table, "override_path")? && !path.ends_with("/v2") {
        path.push_str("/v2");
    }
    // `docker.io` itself serves no images.
    let default = upstream(&authority);
    Ok(Host {
        scheme: parsed.scheme().to_owned(),
        authority: default.authority.clone(),
        path,
        skip_verify: false,
        ..default
    })
}

/// The settings a host may have.
fn configure(host: &mut Host, table: &Table, base: &Path) -> Result<(), String> {
    if let Some(list) = table.get("capabilities") {
        capabilities(host, list, base)?;
    }
    if table.contains_key("skip_verify") {
        host.skip_verify = flag(table, "skip_verify")?;
    }
    if let Some(ca) = table.get("ca") {
        host.ca = certificates::authorities(base, ca)?;
    }
    if let Some(client) = table.get("client") {
        host.client = Some(certificates::client(base, client)?);
    }
    if let Some(header) = table.get("header") {
        let header = header.as_table().ok_or("'header' must be a table: write [header]")?;
        for (name, values) in header {
            host.headers.extend(headers(name, values)?);
        }
    }
    if let Some(span) = table.get("dial_timeout") {
        let text = span.as_str().ok_or("'dial_timeout' must be a string such as \"1s\"")?;
        let span = duration::parse(text).map_err(|reason| format!("'dial_timeout' {text:?} {reason}"))?;
        host.dial_timeout = Some(span).filter(|span| !span.is_zero());
    }
    Ok(())
}

/// What a host may be asked. An empty list counts as none given: everything.
fn capabilities(host: &mut Host, list: &Value, base: &Path) -> Result<(), String> {
    let list =
        list.as_array().and_then(|_| strings(list)).ok_or("'capabilities' must be a list of strings")?;
    if list.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = list.iter().map(|name| name.to_ascii_lowercase()).collect();
    host.resolve = list.iter().any(|name| name == "resolve");
    host.pull = list.iter().any(|name| name == "pull");
    // We never push, and never ask for referrers. What else is there comes from a newer containerd.
    for name in list.iter().filter(|name| !matches!(name.as_str(), "resolve" | "pull" | "push" | "referrers"))
    {
        tracing::warn!(directory = %base.display(), name, "hosts.toml: unknown capability ignored");
    }
    Ok(())
}

fn headers(name: &str, values: &Value) -> Result<Vec<(String, String)>, String> {
    let values =
        strings(values).ok_or_else(|| format!("header {name:?} must be a string or a list of strings"))?;
    let sendable = HeaderName::from_bytes(name.as_bytes()).is_ok()
        && values.iter().all(|value| HeaderValue::from_str(value).is_ok());
    if !sendable {
        return Err(format!("header {name:?} cannot be sent; it holds forbidden characters"));
    }
    Ok(values.into_iter().map(|value| (name.to_owned(), value)).collect())
}

fn flag(table: &Table, key: &str) -> Result<bool, String> {
    match table.get(key) {
        None => Ok(false),
        Some(value) => value.as_bool().ok_or_else(|| format!("'{key}' must be true or false")),
    }
}

/// A string, or a list of strings.
pub(super) fn strings(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(one) => Some(vec![one.clone()]),
        Value::Array(list) => list.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

/// A key we do not know may come from a newer containerd: it is told, not refused.
fn warn_unknown(table: &Table, known: &[&str], base: &Path) {
    for key in table.keys().filter(|key| !known.contains(&key.as_str())) {
        tracing::warn!(directory = %base.display(), key, "hosts.toml: unknown key ignored");
    }
}
