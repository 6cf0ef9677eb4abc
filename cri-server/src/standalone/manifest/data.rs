//! The ConfigMaps and Secrets of a manifest. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::standalone) enum Kind {
    ConfigMap,
    Secret,
}

impl Kind {
    pub(in crate::standalone) fn name(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        }
    }
}

/// One of them.
#[derive(Clone, Default)]
pub(in crate::standalone) struct Object {
    /// Such as `kubernetes.io/dockerconfigjson`; empty for a ConfigMap.
    pub(in crate::standalone) kind: String,
    /// Its values by key.
    pub(in crate::standalone) entries: BTreeMap<String, Vec<u8>>,
    /// It could not be read as it stands, so that keys may be missing.
    pub(in crate::standalone) flawed: bool,
}

impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The values may be secret.
        f.debug_set().entries(self.entries.keys()).finish()
    }
}

/// All of a manifest, by name.
#[derive(Debug, Clone, Default)]
pub(in crate::standalone) struct Data {
    objects: BTreeMap<(Kind, String), Object>,
    /// Some of the file could not be read, so that there may be more of them.
    pub(in crate::standalone) flawed: bool,
}

impl Data {
    pub(in crate::standalone) fn get(&self, kind: Kind, name: &str) -> Option<&Object> {
        self.objects.get(&(kind, name.to_owned()))
    }

    /// The names of one kind, for messages.
    pub(in crate::standalone) fn names(&self, kind: Kind) -> Vec<&str> {
        self.objects.keys().filter(|(known, _)| *known == kind).map(|(_, name)| name.as_str()).collect()
    }

    pub(super) fn add(&mut self, kind: Kind, name: String, object: Object) {
        self.objects.insert((kind, name), object);
    }
}

impl From<ConfigMap> for Object {
    fn from(map: ConfigMap) -> Self {
        let text = map.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.into_bytes()));
        let binary = map.binary_data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0));
        Self { kind: String::new(), entries: binary.chain(text).collect(), flawed: false }
    }
}

impl From<Secret> for Object {
    fn from(secret: Secret) -> Self {
        let data = secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0));
        // As the API server does it, stringData wins.
        let text = secret.string_data.unwrap_or_default();
        let text = text.into_iter().map(|(key, value)| (key, value.into_bytes()));
        Self { kind: secret.type_.unwrap_or_default(), entries: data.chain(text).collect(), flawed: false }
    }
}

/// Why a word cannot be a key; keys become the names of files.
pub(super) fn bad_key(key: &str) -> Option<String> {
    let plain = key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    let good = plain && !key.is_empty() && key.len() <= 253 && key != "." && !key.starts_with("..");
    (!good).then(|| {
        format!("{key:?} is not a key: letters, digits, '-', '_' and '.', at most 253, no '..' at the front")
    })
}
