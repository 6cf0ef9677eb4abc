//! Which hosts serve a registry: containerd's `hosts.toml` directories, read anew at each pull.
//!
//! Looked up in this order beneath the directory: `HOST_PORT_`, `HOST:PORT` (as the registry is written),
//! `_default`. The hosts of the file come first, in the file's order; the registry itself (key `server`)
//! comes last. Without a file there is only the registry, over https, or over plain http when it is
//! `localhost` or a loopback address.
//!
//! Does not talk to anybody.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

use crate::error::ImageError;

/// Largest `hosts.toml`, certificate or key that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// One host to ask.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Host {
    /// `https` or `http`.
    pub(crate) scheme: String,
    /// Host name or address, with an optional port.
    pub(crate) authority: String,
    /// What comes before `/REPOSITORY/…`; `/v2` unless `override_path` says otherwise.
    pub(crate) path: String,
    /// May be asked what a tag means.
    pub(crate) resolve: bool,
    /// May be asked for content by digest.
    pub(crate) pull: bool,
    /// Whether this is the registry itself and not a mirror: only it sees the caller's credentials.
    pub(crate) upstream: bool,
    /// Certificate authorities to trust besides the system's, in PEM.
    pub(crate) ca: Vec<Vec<u8>>,
    /// Client certificate and key, in PEM.
    pub(crate) client: Option<Vec<u8>>,
    /// Accept any certificate.
    pub(crate) skip_verify: bool,
    /// Headers to send.
    pub(crate) headers: Vec<(String, String)>,
}

/// The hosts to ask for a registry's content, in order.
pub(crate) fn hosts_for(dir: &Path, registry: &str) -> Result<Vec<Host>, ImageError> {
    let mut names = Vec::new();
    if let Some((host, port)) = registry.rsplit_once(':').filter(|(_, port)| !port.contains(']')) {
        names.push(format!("{host}_{port}_"));
    }
    names.push(registry.to_owned());
    names.push("_default".to_owned());
    for name in names {
        let path = dir.join(name).join("hosts.toml");
        match read_bounded(&path) {
            Ok(bytes) => {
                let refuse = |reason: String| ImageError::Hosts { path: path.clone(), reason };
                let text = String::from_utf8(bytes).map_err(|_| refuse("it is not UTF-8 text".to_owned()))?;
                let base = path.parent().unwrap_or(dir);
                return parse(&text, registry, base).map_err(refuse);
            }
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
                ) => {}
            Err(error) => {
                return Err(ImageError::Hosts { path, reason: format!("it cannot be read: {error}") });
            }
        }
    }
    Ok(vec![upstream(registry)])
}

/// Reads a `hosts.toml`. Certificates it names are read from beneath `base` or from absolute paths.
fn parse(text: &str, registry: &str, base: &Path) -> Result<Vec<Host>, String> {
    let file: Table = toml::from_str(text).map_err(|error| format!("it is not TOML: {error}"))?;
    let mut hosts = Vec::new();
    let known = [
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
    warn_unknown(&file, &known, base);
    if let Some(tables) = file.get("host") {
        for (url, table) in
            tables.as_table().ok_or("'host' must be a table: write [host.\"https://mirror\"]")?
        {
            let table = table.as_table().ok_or_else(|| format!("host {url:?} must be a table"))?;
            warn_unknown(table, &known[2..], base);
            let mut host = locate(url, table)?;
            host.upstream = host.authority == upstream(registry).authority;
            configure(&mut host, table, base).map_err(|reason| format!("host {url:?}: {reason}"))?;
            hosts.push(host);
        }
    }
    let mut server = match file.get("server") {
        Some(server) => locate(server.as_str().ok_or("'server' must be a string")?, &file)?,
        None => upstream(registry),
    };
    server.upstream = true;
    configure(&mut server, &file, base)?;
    let same = |host: &Host| {
        (&host.scheme, &host.authority, &host.path) == (&server.scheme, &server.authority, &server.path)
    };
    if !hosts.iter().any(same) {
        hosts.push(server);
    }
    Ok(hosts)
}

/// The registry itself, with nothing configured.
fn upstream(registry: &str) -> Host {
    let authority = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
    let scheme = if is_loopback(authority) { "http" } else { "https" };
    Host {
        scheme: scheme.to_owned(),
        authority: authority.to_owned(),
        path: "/v2".to_owned(),
        resolve: true,
        pull: true,
        upstream: true,
        ca: Vec::new(),
        client: None,
        skip_verify: false,
        headers: Vec::new(),
    }
}

fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => authority.split(':').next().unwrap_or(authority),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Scheme, authority and path out of a host's URL.
fn locate(url: &str, table: &Table) -> Result<Host, String> {
    let with_scheme = match url.split_once("://") {
        Some(_) => url.to_owned(),
        None => format!(
            "{}://{url}",
            if is_loopback(url.split('/').next().unwrap_or(url)) { "http" } else { "https" }
        ),
    };
    let parsed =
        reqwest::Url::parse(&with_scheme).map_err(|error| format!("{url:?} is not a URL: {error}"))?;
    if !matches!(parsed.scheme(), "http" | "https") || parsed.host_str().is_none_or(str::is_empty) {
        return Err(format!("{url:?} must be an http or https URL with a host"));
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err(format!(
            "the URL for {:?} holds credentials; give them by the pull request",
            parsed.host_str()
        ));
    }
    let host = parsed.host_str().unwrap_or_default();
    let authority = parsed.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    let mut path = parsed.path().trim_end_matches('/').to_owned();
    if !flag(table, "override_path")? && !path.ends_with("/v2") {
        path.push_str("/v2");
    }
    Ok(Host {
        scheme: parsed.scheme().to_owned(),
        authority: authority.clone(),
        path,
        ..upstream(&authority)
    })
}

/// The settings a host may have.
fn configure(host: &mut Host, table: &Table, base: &Path) -> Result<(), String> {
    if let Some(list) = table.get("capabilities") {
        let list = strings(list).ok_or("'capabilities' must be a list of strings")?;
        host.resolve = list.iter().any(|c| c == "resolve");
        host.pull = list.iter().any(|c| c == "pull");
    }
    host.skip_verify = flag(table, "skip_verify")?;
    if let Some(ca) = table.get("ca") {
        let paths = strings(ca).ok_or("'ca' must be a path or a list of paths")?;
        host.ca = paths.iter().map(|path| read_pem(base, path)).collect::<Result<_, _>>()?;
    }
    if let Some(client) = table.get("client") {
        host.client = Some(client_pem(base, client)?);
    }
    if let Some(header) = table.get("header") {
        let header = header.as_table().ok_or("'header' must be a table")?;
        for (name, values) in header {
            let values = strings(values)
                .ok_or_else(|| format!("header {name:?} must be a string or a list of strings"))?;
            host.headers.extend(values.into_iter().map(|value| (name.clone(), value)));
        }
    }
    Ok(())
}

/// `client` is one file with both, a list of such files (the first is used), or a list of
/// `[certificate, key]` pairs.
fn client_pem(base: &Path, client: &Value) -> Result<Vec<u8>, String> {
    let wrong = || "'client' must be a path or a list of [certificate, key] pairs".to_owned();
    let files = match client {
        Value::String(path) => vec![path.clone()],
        Value::Array(list) => match list.first() {
            Some(Value::String(path)) => vec![path.clone()],
            Some(pair @ Value::Array(_)) => strings(pair).ok_or_else(wrong)?,
            _ => return Err(wrong()),
        },
        _ => return Err(wrong()),
    };
    let mut pem = Vec::new();
    for file in files.iter().filter(|file| !file.is_empty()) {
        pem.extend(read_pem(base, file)?);
        pem.push(b'\n');
    }
    Ok(pem)
}

fn read_pem(base: &Path, path: &str) -> Result<Vec<u8>, String> {
    let path: PathBuf = base.join(path);
    read_bounded(&path).map_err(|error| format!("{} cannot be read: {error}", path.display()))
}

fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(std::io::Error::other("it is larger than 1 MiB"));
    }
    Ok(bytes)
}

fn flag(table: &Table, key: &str) -> Result<bool, String> {
    match table.get(key) {
        None => Ok(false),
        Some(value) => value.as_bool().ok_or_else(|| format!("'{key}' must be true or false")),
    }
}

fn strings(value: &Value) -> Option<Vec<String>> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(hosts: &[Host]) -> Vec<String> {
        hosts.iter().map(|h| format!("{}://{}{}", h.scheme, h.authority, h.path)).collect()
    }

    #[test]
    fn without_a_file_the_registry_itself_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        for (registry, url) in [
            ("docker.io", "https://registry-1.docker.io/v2"),
            ("quay.io", "https://quay.io/v2"),
            ("localhost:5000", "http://localhost:5000/v2"),
            ("127.0.0.1:5000", "http://127.0.0.1:5000/v2"),
            ("[::1]:5000", "http://[::1]:5000/v2"),
            ("10.0.0.1:5000", "https://10.0.0.1:5000/v2"),
        ] {
            assert_eq!(urls(&hosts_for(dir.path(), registry).unwrap()), [url]);
        }
    }

    #[test]
    fn mirrors_come_in_the_order_of_the_file_and_the_server_last() {
        let text = r#"
            server = "https://registry-1.docker.io"
            [host."http://z.example:5000"]
              capabilities = ["pull", "resolve"]
            [host."https://a.example/proxy"]
              capabilities = ["pull"]
              skip_verify = true
              [host."https://a.example/proxy".header]
                x-one = "1"
                x-two = ["2", "3"]
            [host."https://b.example/odd/path"]
              override_path = true
        "#;
        let hosts = parse(text, "docker.io", Path::new("/")).unwrap();
        assert_eq!(
            urls(&hosts),
            [
                "http://z.example:5000/v2",
                "https://a.example/proxy/v2",
                "https://b.example/odd/path",
                "https://registry-1.docker.io/v2",
            ]
        );
        assert!(hosts[0].resolve && hosts[0].pull && !hosts[0].skip_verify && !hosts[0].upstream);
        assert!(!hosts[1].resolve && hosts[1].pull && hosts[1].skip_verify);
        let header = |n: &str, v: &str| (n.to_owned(), v.to_owned());
        assert_eq!(hosts[1].headers, [header("x-one", "1"), header("x-two", "2"), header("x-two", "3")]);
        assert!(hosts[3].upstream);
    }

    #[test]
    fn the_directory_of_the_registry_goes_before_default() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, host: &str| {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join("hosts.toml"), format!("[host.\"http://{host}\"]"))
                .unwrap();
        };
        write("_default", "default");
        write("quay.io", "quay-mirror");
        write("reg.example_5000_", "ported");
        let first = |registry: &str| hosts_for(dir.path(), registry).unwrap()[0].authority.clone();
        assert_eq!(first("docker.io"), "default");
        assert_eq!(first("quay.io"), "quay-mirror");
        assert_eq!(first("reg.example:5000"), "ported");
    }

    #[test]
    fn wrong_files_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("quay.io")).unwrap();
        let file = dir.path().join("quay.io/hosts.toml");
        for (text, expected) in [
            ("server = 1", "'server' must be a string"),
            ("= x", "not TOML"),
            ("[host.\"ftp://x\"]", "must be an http or https URL"),
            ("[host.\"https://x\"]\nskip_verify = 1", "'skip_verify' must be true or false"),
            ("[host.\"https://x\"]\nca = \"missing.pem\"", "missing.pem cannot be read"),
            ("[host.\"https://u:p@x\"]", "holds credentials"),
        ] {
            std::fs::write(&file, text).unwrap();
            let message = hosts_for(dir.path(), "quay.io").unwrap_err().to_string();
            assert!(message.contains(expected) && message.contains("hosts.toml"), "{message}");
        }
    }
}
