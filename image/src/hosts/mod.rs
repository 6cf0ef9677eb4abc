//! Which hosts serve a registry: containerd's directories of `hosts.toml`, read anew at each pull.
//!
//! In each of the configured directories, in order, these names are looked for: `HOST_PORT_`, `HOST:PORT` (as
//! the registry is written), `_default`. The first that is there decides alone. With a `hosts.toml` in it, the
//! hosts of the file come first, in the file's order, and the registry itself (key `server`) last; without one,
//! certificates that lie there in Docker's manner (`*.crt`, `*.cert` with `*.key`) are used for the registry.
//! Where nothing is configured there is only the registry, over https; at a loopback address with a port other
//! than 443, over plain http.
//!
//! Unlike containerd, a file that cannot be understood is refused, and does not silently count as absent.
//!
//! Does not talk to anybody.

mod certificates;
mod duration;
mod file;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{error::ImageError, small_file};

#[cfg(fuzzing)]
pub(crate) use file::parse;

/// One host to ask.
#[derive(Clone, PartialEq, Eq, Hash)]
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
    /// Longest wait for a connection.
    pub(crate) dial_timeout: Option<Duration>,
}

/// Headers and client keys are secrets.
impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host")
            .field("url", &format_args!("{}://{}{}", self.scheme, self.authority, self.path))
            .field("resolve", &self.resolve)
            .field("pull", &self.pull)
            .field("upstream", &self.upstream)
            .finish_non_exhaustive()
    }
}

/// The hosts to ask for a registry's content, in order.
pub(crate) fn hosts_for(dirs: &[PathBuf], registry: &str) -> Result<Vec<Host>, ImageError> {
    match directory(dirs, registry)? {
        Some((dir, own)) => in_directory(&dir, registry, own),
        None => Ok(vec![upstream(registry)]),
    }
}

/// The directory that decides for a registry, and whether it is the registry's own (not `_default`).
fn directory(dirs: &[PathBuf], registry: &str) -> Result<Option<(PathBuf, bool)>, ImageError> {
    let mut names = Vec::new();
    if let Some((host, port)) = registry.rsplit_once(':').filter(|(_, port)| !port.contains(']')) {
        names.push(format!("{host}_{port}_"));
    }
    names.push(registry.to_owned());
    names.push("_default".to_owned());
    for dir in dirs {
        for name in &names {
            let path = dir.join(name);
            match std::fs::metadata(&path) {
                Ok(metadata) if metadata.is_dir() => return Ok(Some((path, name != "_default"))),
                Ok(_) => {
                    let reason = format!("it is no directory; hosts.toml belongs into a directory {name}");
                    return Err(ImageError::Hosts { path, reason });
                }
                Err(error) if is_absent(&error) => {}
                Err(error) => {
                    return Err(ImageError::Hosts {
                        path,
                        reason: format!("it cannot be looked at: {error}"),
                    });
                }
            }
        }
    }
    Ok(None)
}

fn in_directory(dir: &Path, registry: &str, own: bool) -> Result<Vec<Host>, ImageError> {
    let path = dir.join("hosts.toml");
    let refuse = |path: &Path, reason: String| ImageError::Hosts { path: path.to_owned(), reason };
    match small_file::read(&path) {
        Ok(bytes) if !bytes.trim_ascii().is_empty() => {
            let text = String::from_utf8(bytes)
                .map_err(|_| refuse(&path, "it is not UTF-8 text; write it anew".to_owned()))?;
            file::parse(&text, registry, dir, own).map_err(|reason| refuse(&path, reason))
        }
        Err(error) if !is_absent(&error) => Err(refuse(&path, format!("it cannot be read: {error}"))),
        _ => {
            let mut host = upstream(registry);
            certificates::of_docker(dir, &mut host).map_err(|reason| refuse(dir, reason))?;
            Ok(vec![host])
        }
    }
}

fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

/// Where a registry is reached by default: host and port.
pub(crate) fn authority_of(registry: &str) -> &str {
    if registry == "docker.io" { "registry-1.docker.io" } else { registry }
}

/// The registry itself, with nothing configured.
pub(crate) fn upstream(registry: &str) -> Host {
    let authority = authority_of(registry);
    let port = authority.rsplit_once(':').map(|(_, port)| port).filter(|port| !port.contains(']'));
    let plain = is_loopback(authority) && port.is_some_and(|port| port != "443");
    Host {
        scheme: if plain { "http" } else { "https" }.to_owned(),
        authority: authority.to_owned(),
        path: "/v2".to_owned(),
        resolve: true,
        pull: true,
        upstream: true,
        ca: Vec::new(),
        client: None,
        // Nobody has a certificate for a loopback address, and nobody is on the way there.
        skip_verify: is_loopback(authority) && !plain,
        headers: Vec::new(),
        dial_timeout: None,
    }
}

fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => authority.split(':').next().unwrap_or(authority),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}
