//! Certificates and keys that a host is to be met with, in PEM.
//!
//! Invariant: what is taken holds what it should, so that an error names the file and not a connection.

use std::path::{Path, PathBuf};

use toml::Value;

use super::Host;
use crate::small_file;

/// Key `ca`: a path or a list of paths.
pub(super) fn authorities(base: &Path, value: &Value) -> Result<Vec<Vec<u8>>, String> {
    let paths = super::file::strings(value).ok_or("'ca' must be a path or a list of paths")?;
    paths.iter().map(|path| authority(&base.join(path)).map_err(|reason| format!("'ca': {reason}"))).collect()
}

fn authority(path: &Path) -> Result<Vec<u8>, String> {
    let pem = read(path)?;
    let count = reqwest::Certificate::from_pem_bundle(&pem).map(|list| list.len());
    match count {
        Ok(1..) => Ok(pem),
        _ => Err(format!("{} holds no certificate in PEM form", path.display())),
    }
}

/// Key `client`: one file with certificate and key, or a list of such files and of `[certificate, key]` pairs.
pub(super) fn client(base: &Path, value: &Value) -> Result<Vec<u8>, String> {
    const FORM: &str = "'client' must be a path, or a list of paths and of [certificate, key] pairs";
    let one = |path: &str| (base.join(path), None);
    let pairs: Vec<(PathBuf, Option<PathBuf>)> = match value {
        Value::String(path) => vec![one(path)],
        Value::Array(list) => list
            .iter()
            .map(|item| match item {
                Value::String(path) => Some(one(path)),
                Value::Array(_) => match super::file::strings(item)?.as_slice() {
                    [certificate, key] if key.is_empty() => Some(one(certificate)),
                    [certificate, key] => Some((base.join(certificate), Some(base.join(key)))),
                    _ => None,
                },
                _ => None,
            })
            .collect::<Option<_>>()
            .ok_or(FORM)?,
        _ => return Err(FORM.to_owned()),
    };
    identity(&pairs).map_err(|reason| format!("'client': {reason}"))
}

/// The first pair. A server's wish for another cannot be met: reqwest offers one.
fn identity(pairs: &[(PathBuf, Option<PathBuf>)]) -> Result<Vec<u8>, String> {
    let [(certificate, key), others @ ..] = pairs else {
        return Err("the list is empty; name a certificate and its key".to_owned());
    };
    if !others.is_empty() {
        tracing::warn!(certificate = %certificate.display(), "several client certificates: the first is used");
    }
    let mut pem = read(certificate)?;
    if let Some(key) = key {
        pem.push(b'\n');
        pem.extend(read(key)?);
    }
    match reqwest::Identity::from_pem(&pem) {
        Ok(_) => Ok(pem),
        Err(_) => {
            let key = key.as_ref().unwrap_or(certificate);
            let (certificate, key) = (certificate.display(), key.display());
            Err(format!("no certificate in {certificate}, or no private key for it in {key}, in PEM form"))
        }
    }
}

/// What lies in a directory in Docker's manner: authorities in `*.crt`, client certificates in `*.cert`, their
/// keys in `*.key`.
pub(super) fn of_docker(dir: &Path, host: &mut Host) -> Result<(), String> {
    let entries = std::fs::read_dir(dir).map_err(|error| format!("it cannot be listed: {error}"))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    let with = |extension: &str| {
        let found = files.iter().filter(|file| file.extension().is_some_and(|found| found == extension));
        found.cloned().collect::<Vec<PathBuf>>()
    };
    host.ca = with("crt").iter().map(|path| authority(path)).collect::<Result<_, _>>()?;
    let keys = with("key");
    let pairs: Vec<(PathBuf, Option<PathBuf>)> = with("cert")
        .into_iter()
        .map(|certificate| {
            let key = certificate.with_extension("key");
            let key = keys.contains(&key).then_some(key);
            (certificate, key)
        })
        .collect();
    if !pairs.is_empty() {
        host.client = Some(identity(&pairs)?);
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    small_file::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))
}
