//! The environment of a container. Pure.
//!
//! No variables for services are made: there are none.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EnvFromSource, EnvVar, EnvVarSource};

use super::{Around, expansion, fields};
use crate::standalone::manifest::{Data, Findings, Kind, ManifestError, Object, join, refuse};

/// Names and values, in the order in which they were first named.
#[derive(Debug, Clone, Default)]
pub(super) struct Environment {
    names: Vec<String>,
    values: BTreeMap<String, String>,
    /// Something of it is wrong, so that there may be more of them.
    flawed: bool,
}

impl Environment {
    /// Of a container, as far as it is right; `field` is its path in the manifest.
    pub(super) fn of(container: &Container, field: &str, around: &Around<'_>, found: &mut Findings) -> Self {
        let parts = ["env", "envFrom"].map(|part| format!("{field}.{part}"));
        let flawed = around.manifest.data.flawed || parts.iter().any(|part| around.manifest.is_flawed(part));
        let mut environment = Self { flawed, ..Self::default() };
        for (index, source) in container.env_from.iter().flatten().enumerate() {
            let taken = environment.take_all(source, &format!("{field}.envFrom[{index}]"), around);
            environment.flawed |= found.part(taken).is_none();
        }
        for (index, entry) in container.env.iter().flatten().enumerate() {
            let field = format!("{field}.env[{index}]");
            match found.part(environment.value(entry, &field, container, around)) {
                Some(Some(value)) => environment.set(entry.name.clone(), value),
                Some(None) => {}
                None => environment.flawed = true,
            }
        }
        environment
    }

    /// The value of a variable; `None` where it is optional and not there.
    fn value(
        &self,
        entry: &EnvVar,
        field: &str,
        container: &Container,
        around: &Around<'_>,
    ) -> Result<Option<String>, ManifestError> {
        let mut found = Findings::default();
        if entry.name.is_empty() || entry.name.contains(['=', '\0']) {
            let reason = format!("{:?} is not the name of a variable", entry.name);
            found.part::<()>(refuse(format!("{field}.name"), reason));
        }
        let plain = entry.value.as_deref().unwrap_or_default();
        let value = match &entry.value_from {
            Some(_) if !plain.is_empty() => refuse(field, "has value and valueFrom; leave one of them out"),
            Some(source) => value_from(source, &format!("{field}.valueFrom"), container, around),
            None if plain.contains('\0') => {
                refuse(format!("{field}.value"), "holds a NUL, which no variable can")
            }
            None => Ok(Some(self.expand(plain))),
        };
        let value = found.part(value).flatten();
        found.whole(value)
    }

    fn take_all(
        &mut self,
        source: &EnvFromSource,
        field: &str,
        around: &Around<'_>,
    ) -> Result<(), ManifestError> {
        let (kind, name, optional, part) = match (&source.config_map_ref, &source.secret_ref) {
            (Some(map), None) => (Kind::ConfigMap, &map.name, map.optional, "configMapRef"),
            (None, Some(secret)) => (Kind::Secret, &secret.name, secret.optional, "secretRef"),
            _ => return refuse(field, "takes one of configMapRef and secretRef"),
        };
        let at = format!("{field}.{part}.name");
        let Some(object) = object(&around.manifest.data, kind, name, optional, &at)? else { return Ok(()) };
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if prefix.contains(['=', '\0']) {
            return refuse(
                format!("{field}.prefix"),
                format!("{prefix:?} does not begin the name of a variable"),
            );
        }
        self.flawed |= object.flawed;
        let mut found = Findings::default();
        for (key, value) in &object.entries {
            if let Some(value) = found.part(text(value, &at, key)) {
                self.set(format!("{prefix}{key}"), value);
            }
        }
        found.whole(())
    }

    fn set(&mut self, name: String, value: String) {
        if self.values.insert(name.clone(), value).is_none() {
            self.names.push(name);
        }
    }

    /// Replaces the references in a text.
    pub(super) fn expand(&self, text: &str) -> String {
        expansion::expand(text, |name| self.values.get(name).map(String::as_str))
    }

    /// Whether there is such a variable, or may be.
    pub(super) fn has(&self, name: &str) -> bool {
        self.flawed || self.values.contains_key(name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &String)> {
        self.names.iter().filter_map(|name| Some((name, self.values.get(name)?)))
    }
}

/// The value of a variable; `None` where it is optional and not there.
fn value_from(
    source: &EnvVarSource,
    field: &str,
    container: &Container,
    around: &Around<'_>,
) -> Result<Option<String>, ManifestError> {
    let of_data = |kind, (name, key): (&str, &str), optional, field: String| {
        let Some(object) = object(&around.manifest.data, kind, name, optional, &format!("{field}.name"))?
        else {
            return Ok(None);
        };
        match object.entries.get(key) {
            Some(value) => text(value, &format!("{field}.key"), key).map(Some),
            None if optional == Some(true) || object.flawed => Ok(None),
            None => refuse(format!("{field}.key"), no_key(kind, name, key, object)),
        }
    };
    match (&source.field_ref, &source.resource_field_ref, &source.config_map_key_ref, &source.secret_key_ref)
    {
        (Some(selector), None, None, None) => {
            let field = format!("{field}.fieldRef");
            fields::of_pod(selector, &field, fields::Place::Environment, around).map(Some)
        }
        (None, Some(selector), None, None) => {
            let field = format!("{field}.resourceFieldRef");
            fields::of_resource(selector, &field, Some(&container.name), around).map(Some)
        }
        (None, None, Some(selector), None) => {
            let place = (selector.name.as_str(), selector.key.as_str());
            of_data(Kind::ConfigMap, place, selector.optional, format!("{field}.configMapKeyRef"))
        }
        (None, None, None, Some(selector)) => {
            let place = (selector.name.as_str(), selector.key.as_str());
            of_data(Kind::Secret, place, selector.optional, format!("{field}.secretKeyRef"))
        }
        _ => refuse(field, "takes one of fieldRef, resourceFieldRef, configMapKeyRef and secretKeyRef"),
    }
}

/// A ConfigMap or Secret of the manifest; `None` when it is optional and not there, or may be among what cannot
/// be read.
pub(in crate::standalone) fn object<'d>(
    data: &'d Data,
    kind: Kind,
    name: &str,
    optional: Option<bool>,
    field: &str,
) -> Result<Option<&'d Object>, ManifestError> {
    match data.get(kind, name) {
        Some(object) => Ok(Some(object)),
        None if optional == Some(true) || data.flawed => Ok(None),
        None => {
            let names = data.names(kind);
            let there = if names.is_empty() {
                "there is none".to_owned()
            } else {
                format!("there is {}", names.join(", "))
            };
            let reason = format!(
                "no {} {name:?} in this file; {there}: add it as a document, or set optional",
                kind.name()
            );
            refuse(field, reason)
        }
    }
}

/// Why a key cannot be had.
pub(in crate::standalone) fn no_key(kind: Kind, name: &str, key: &str, object: &Object) -> String {
    let keys: Vec<&str> = object.entries.keys().map(String::as_str).collect();
    format!("{} {name:?} has no key {key:?}; it has {}", kind.name(), keys.join(", "))
}

fn text(value: &[u8], field: &str, key: &str) -> Result<String, ManifestError> {
    let text = std::str::from_utf8(value).ok().filter(|text| !text.contains('\0'));
    match text {
        Some(text) => Ok(text.to_owned()),
        None => refuse(field, format!("the value of key {} is not text, and a variable is", join("", key))),
    }
}
