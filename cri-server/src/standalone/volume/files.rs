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
    manifest::{Kind, ManifestError, refuse},
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
    let mode = mode(source.default_mode, MODE, &format!("{field}.defaultMode"))?;
    let wanted = Wanted::of(Kind::ConfigMap, &source.name, &source.items, source.optional);
    of_data(&Wanted { mode, ..wanted }, field, around)
}

pub(super) fn of_secret(
    source: &SecretVolumeSource,
    field: &str,
    around: &Around<'_>,
) -> Result<Files, ManifestError> {
    let mode = mode(source.default_mode, MODE, &format!("{field}.defaultMode"))?;
    let name = source.secret_name.as_deref().unwrap_or_default();
    let wanted = Wanted::of(Kind::Secret, name, &source.items, source.optional);
    of_data(&Wanted { mode, name_field: "secretName", ..wanted }, field, around)
}

pub(super) fn of_downward_api(
    source: &DownwardAPIVolumeSource,
    field: &str,
    around: &Around<'_>,
) -> Result<Files, ManifestError> {
    let mode = mode(source.default_mode, MODE, &format!("{field}.defaultMode"))?;
    of_fields(source.items.as_deref().unwrap_or_default(), mode, field, around)
}

pub(super) fn of_projected(
    source: &ProjectedVolumeSource,
    field: &str,
    around: &Around<'_>,
) -> Result<Files, ManifestError> {
    let mode = mode(source.default_mode, MODE, &format!("{field}.defaultMode"))?;
    let mut files = Files::new();
    for (index, part) in source.sources.iter().flatten().enumerate() {
        let at = format!("{field}.sources[{index}]");
        let more = match (&part.config_map, &part.secret, &part.downward_api) {
            (Some(map), None, None) => {
                let wanted = Wanted::of(Kind::ConfigMap, &map.name, &map.items, map.optional);
                of_data(&Wanted { mode, ..wanted }, &format!("{at}.configMap"), around)?
            }
            (None, Some(secret), None) => {
                let wanted = Wanted::of(Kind::Secret, &secret.name, &secret.items, secret.optional);
                of_data(&Wanted { mode, ..wanted }, &format!("{at}.secret"), around)?
            }
            (None, None, Some(downward)) => {
                let items = downward.items.as_deref().unwrap_or_default();
                of_fields(items, mode, &format!("{at}.downwardAPI"), around)?
            }
            _ => return refuse(at, "takes one of configMap, secret and downwardAPI"),
        };
        for (path, file) in more {
            add(&mut files, path, file, &at)?;
        }
    }
    Ok(files)
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
    let mut files = Files::new();
    let items = wanted.items.unwrap_or_default();
    if items.is_empty() {
        for (key, content) in &object.entries {
            files.insert(key.clone(), File { content: content.clone(), mode: wanted.mode });
        }
    }
    for (index, item) in items.iter().enumerate() {
        let field = format!("{field}.items[{index}]");
        let Some(content) = object.entries.get(&item.key) else {
            if wanted.optional == Some(true) {
                continue;
            }
            let reason = request::no_key(wanted.kind, wanted.name, &item.key, object);
            return refuse(format!("{field}.key"), reason);
        };
        let mode = mode(item.mode, i32::try_from(wanted.mode).unwrap_or(MODE), &format!("{field}.mode"))?;
        check_path(&item.path, &format!("{field}.path"))?;
        add(
            &mut files,
            item.path.clone(),
            File { content: content.clone(), mode },
            &format!("{field}.path"),
        )?;
    }
    Ok(files)
}

fn of_fields(
    items: &[DownwardAPIVolumeFile],
    default: u32,
    field: &str,
    around: &Around<'_>,
) -> Result<Files, ManifestError> {
    let mut files = Files::new();
    for (index, item) in items.iter().enumerate() {
        let field = format!("{field}.items[{index}]");
        let content = match (&item.field_ref, &item.resource_field_ref) {
            (Some(selector), None) => {
                request::field_of_pod(selector, &format!("{field}.fieldRef"), FieldPlace::File, around)?
            }
            (None, Some(selector)) => {
                request::of_resource(selector, &format!("{field}.resourceFieldRef"), None, around)?
            }
            _ => return refuse(field, "takes one of fieldRef and resourceFieldRef"),
        };
        let mode = mode(item.mode, i32::try_from(default).unwrap_or(MODE), &format!("{field}.mode"))?;
        check_path(&item.path, &format!("{field}.path"))?;
        let file = File { content: content.into_bytes(), mode };
        add(&mut files, item.path.clone(), file, &format!("{field}.path"))?;
    }
    Ok(files)
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
