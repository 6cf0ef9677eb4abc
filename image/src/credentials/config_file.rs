//! Docker's `config.json` and the containers tools' `auth.json`. No I/O.
//!
//! Invariant: an error tells the place in the file and nothing of its content.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Credentials, Forms, Key};

/// The parts of the file that concern us; everything may be left out or null.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ConfigFile {
    auths: Option<BTreeMap<String, Option<Entry>>>,
    creds_store: Option<String>,
    cred_helpers: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

impl ConfigFile {
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, String> {
        if bytes.trim_ascii().is_empty() {
            return Ok(Self::default());
        }
        serde_json::from_slice(bytes)
            .map_err(|error| {
                let (line, column) = (error.line(), error.column());
                let what = if error.is_data() { "it is no credentials file" } else { "it is not JSON" };
                format!("{what}: look at line {line}, column {column}")
            })
            .and_then(|file| {
                // serde takes a list for a struct as well.
                let object = bytes.trim_ascii_start().starts_with(b"{");
                object.then_some(file).ok_or_else(|| "it is no credentials file: look at line 1".to_owned())
            })
    }

    /// The credential helper to ask for an image, and the server to ask it about.
    pub(crate) fn helper(&self, registry: &str, repository: &str) -> Option<(String, String)> {
        let helpers = self.cred_helpers.iter().flatten();
        if let Some((key, name)) = best(helpers, registry, repository) {
            return Some((name.clone(), address(key, registry)));
        }
        let store = self.creds_store.as_ref().filter(|name| !name.is_empty())?;
        // Docker keeps an entry without content for what is in the store, under the name that is stored.
        let key = best(self.auths.iter().flatten(), registry, repository).map(|(key, _)| key.as_str());
        Some((store.clone(), address(key.unwrap_or(registry), registry)))
    }

    /// The credentials in the file itself.
    pub(crate) fn entry(&self, registry: &str, repository: &str) -> Result<Option<Credentials>, String> {
        let entries = self.auths.iter().flatten().filter_map(|(key, entry)| Some((key, entry.as_ref()?)));
        let Some((key, entry)) = best(entries, registry, repository) else { return Ok(None) };
        fn given(field: &Option<String>) -> &str {
            field.as_deref().unwrap_or_default()
        }
        let forms = Forms {
            username: given(&entry.username),
            password: given(&entry.password),
            auth: given(&entry.auth),
            identity_token: given(&entry.identitytoken),
            registry_token: given(&entry.registrytoken),
        };
        Credentials::from_forms(forms).map_err(|reason| format!("auths[{key:?}].auth {reason}"))
    }
}

/// What is said most specifically about an image.
fn best<'a, T>(
    entries: impl Iterator<Item = (&'a String, T)>,
    registry: &str,
    repository: &str,
) -> Option<(&'a String, T)> {
    let fits =
        entries.filter_map(|(key, value)| Some((Key::read(key).fit(registry, repository)?, key, value)));
    let best = fits.max_by_key(|(fit, _, _)| *fit)?;
    Some((best.1, best.2))
}

/// How a helper knows a registry: Docker Hub by its old address, others as the key has it.
fn address(key: &str, registry: &str) -> String {
    if registry == "docker.io" {
        "https://index.docker.io/v1/".to_owned()
    } else if key.contains('*') {
        registry.to_owned()
    } else {
        key.to_owned()
    }
}
