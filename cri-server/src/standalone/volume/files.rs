//! Files whose contents come from the manifest: configMap, secret, downwardAPI and projected volumes. Pure.

use std::{
    collections::BTreeMap,
    path::{Component, Path},
};

use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, DownwardAPIVolumeFile, DownwardAPIVolumeSource, KeyToPath, ProjectedVolumeSource,
    SecretVolumeSource,
};

use crate::standalone::{
    manifest::{Findings, Kind, ManifestError, refuse},
    request::{self, Around, FieldPlace},
};

/// Mode of files for which none is named.
const MODE: i32 = 0o644;

/// One file.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::standalone) struct File {
    pub(in crate::standalone) content: Vec<u8>,
    pub(in crate::standalone) mode: u32,
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The content may be secret.
        write!(f, "{} bytes, {:04o}", self.content.len(), self.mode)
    }
}

/// Files by their path in the volume.
type Files = BTreeMap<String, File>;

pub(super) fn of_config_map(
    source: &ConfigMapVolumeSource,
    field: &str,
    around: &Around<'_>,
) -> Result<Files, ManifestError> {
    let mut found = Findings::default();
    let mode = default_mode(source.default_mode, field, &mut found);
    let wanted = Wanted::of(Kind::ConfigMap, &source.name, &source.items, source.optional);
    let files = found.part(of_data(&Wanted { mode, ..wanted }, field, around)).unwrap_or_default();
    found.whole(files)
}

pub(super) fn of_secret(
    source: &SecretVolumeSource,
    field: &str,
    around: &Around<'_>,
) -> Result<Files, ManifestError> {
    let mut found = Findings::default();
    let mode = default_mode(source.default_mode, field, &mut found);
    let name = source.secret_name.as_deref().unwrap_or_default();
    let wanted = Wanted::of(Kind::Secret, name, &source.items, source.optional);
    let wanted = Wanted { mode, name_field: "secretName", ..wanted };
    let files = found.part(of_data(&wanted, field, around)).unwrap_or_default();
    found.whole(files)
}

pub(super) fn of_downward_api(
    source: &DownwardAPIVolumeSource,
    field: &str,
    around: &Around<'_>,
) -> Result<Files, ManifestError> {
    let mut found = Findings::default();
    let mode = default_mode(source.default_mode, field, &mut found);
    let items = source.items.as_deref().unwrap_or_default();
    let files = found.part(of_fields(items, mode, field, around)).unwrap_or_default();
    found.whole(files)
}

pub(super) fn of_projected(
    source: &ProjectedVolumeSource,
    field: &str,
    around: &Around<'_>,
) -> Result<Files, ManifestError> {
    let (mut files, mut found) = (Files::new(), Findings::default());
    let mode = default_mode(source.default_mode, field, &mut found);
    for (index, part) in source.sources.iter().flatten().enumerate() {
        let at = format!("{field}.sources[{index}]");
        let more = match (&part.config_map, &part.secret, &part.downward_api) {
            (Some(map), None, None) => {
                let wanted = Wanted::of(Kind::ConfigMap, &map.name, &map.items, map.optional);
                of_data(&Wanted { mode, ..wanted }, &format!("{at}.configMap"), around)
            }
            (None, Some(secret), None) => {
                let wanted = Wanted::of(Kind::Secret, &secret.name, &secret.items, secret.optional);
                of_data(&Wanted { mode, ..wanted }, &format!("{at}.secret"), around)
            }
            (None, None, Some(downward)) => {
                let items = downward.items.as_deref().unwrap_or_default();
                of_fields(items, mode, &format!("{at}.downwardAPI"), around)
            }
            _ => refuse(at.as_str(), "takes one of configMap, secret and downwardAPI"),
        };
        for (path, file) in found.part(more).unwrap_or_default() {
            if found.part(add(&mut files, path, file, &at)).is_none() {
                break;
            }
        }
    }
    found.whole(files)
}

/// What is taken of a ConfigMap or Secret.
struct Wanted<'a> {
    kind: Kind,
    name: &'a str,
    name_field: &'static str,
    /// All keys when there are none.
    items: Option<&'a [KeyToPath]>,
    optional: Option<bool>,
    mode: u32,
}

impl<'a> Wanted<'a> {
    fn of(kind: Kind, name: &'a str, items: &'a Option<Vec<KeyToPath>>, optional: Option<bool>) -> Self {
        Self { kind, name, name_field: "name", items: items.as_deref(), optional, mode: MODE.unsigned_abs() }
    }
}

fn of_data(wanted: &Wanted<'_>, field: &str, around: &Around<'_>) -> Result<Files, ManifestError> {
    let at = format!("{field}.{}", wanted.name_field);
    let data = &around.manifest.data;
    let Some(object) = request::object(data, wanted.kind, wanted.name, wanted.optional, &at)? else {
        return Ok(Files::new());
    };
    let (mut files, mut found) = (Files::new(), Findings::default());
    let items = wanted.items.unwrap_or_default();
    if items.is_empty() {
        for (key, content) in &object.entries {
            files.insert(key.clone(), File { content: content.clone(), mode: wanted.mode });
        }
    }
    for (index, item) in items.iter().enumerate() {
        let field = format!("{field}.items[{index}]");
        let content = match object.entries.get(&item.key) {
            Some(content) => Some(content.clone()),
            None if wanted.optional == Some(true) || object.flawed => None,
            None => {
                let reason = request::no_key(wanted.kind, wanted.name, &item.key, object);
                found.part(refuse(format!("{field}.key"), reason))
            }
        };
        let asked = (item.path.as_str(), item.mode, wanted.mode);
        found.part(add_item(&mut files, asked, content, &field));
    }
    found.whole(files)
}

fn of_fields(
    items: &[DownwardAPIVolumeFile],
    default: u32,
    field: &str,
    around: &Around<'_>,
) -> Result<Files, ManifestError> {
    let (mut files, mut found) = (Files::new(), Findings::default());
    for (index, item) in items.iter().enumerate() {
        let field = format!("{field}.items[{index}]");
        let content = match (&item.field_ref, &item.resource_field_ref) {
            (Some(selector), None) => {
                request::field_of_pod(selector, &format!("{field}.fieldRef"), FieldPlace::File, around)
            }
            (None, Some(selector)) => {
                request::of_resource(selector, &format!("{field}.resourceFieldRef"), None, around)
            }
            _ => refuse(field.as_str(), "takes one of fieldRef and resourceFieldRef"),
        };
        let content = found.part(content).map(String::into_bytes);
        found.part(add_item(&mut files, (&item.path, item.mode, default), content, &field));
    }
    found.whole(files)
}

/// Adds a file by its path, its mode and the mode of its volume, where there is something to be in it.
fn add_item(
    files: &mut Files,
    (path, asked, default): (&str, Option<i32>, u32),
    content: Option<Vec<u8>>,
    field: &str,
) -> Result<(), ManifestError> {
    let mut found = Findings::default();
    let mode = mode(asked, i32::try_from(default).unwrap_or(MODE), &format!("{field}.mode"));
    let mode = found.part(mode);
    let at = format!("{field}.path");
    let plain = found.part(check_path(path, &at));
    if let (Some(content), Some(mode), Some(())) = (content, mode, plain) {
        found.part(add(files, path.to_owned(), File { content, mode }, &at));
    }
    found.whole(())
}

/// Adds a file, unless there is one at its path, below it, or in place of one of its directories.
fn add(files: &mut Files, path: String, file: File, field: &str) -> Result<(), ManifestError> {
    let path: String = Path::new(&path).components().collect::<std::path::PathBuf>().display().to_string();
    let within = |inner: &str, outer: &str| Path::new(inner).starts_with(outer);
    if let Some(other) = files.keys().find(|known| within(known, &path) || within(&path, known)) {
        return refuse(field, format!("{path:?} and {other:?} cannot both be files of one volume"));
    }
    files.insert(path, file);
    Ok(())
}

fn check_path(path: &str, field: &str) -> Result<(), ManifestError> {
    let parts = Path::new(path).components();
    let plain = parts.clone().all(|part| matches!(part, Component::Normal(_)));
    // Names that begin with two points are the volume's own.
    let own = path.split('/').next().is_some_and(|first| first.starts_with(".."));
    let long = path.len() > 4000 || parts.clone().any(|part| part.as_os_str().len() > 255);
    if path.is_empty() || !plain || own || long || path.contains('\0') {
        return refuse(field, format!("{path:?} is not a relative path without '..'"));
    }
    Ok(())
}

fn default_mode(asked: Option<i32>, field: &str, found: &mut Findings) -> u32 {
    found.part(mode(asked, MODE, &format!("{field}.defaultMode"))).unwrap_or_default()
}

fn mode(asked: Option<i32>, default: i32, field: &str) -> Result<u32, ManifestError> {
    let mode = asked.unwrap_or(default);
    match u32::try_from(mode) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => {
            let reason = format!("{mode} is not from 0 to 0777 (511); in JSON modes are decimal");
            refuse(field, reason)
        }
    }
}
