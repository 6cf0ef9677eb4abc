//! Network configurations: finding the one in force, and what each plugin is told.
//!
//! Invariant: a [`NetworkList`] has at least one plugin, and every plugin's name is a plain file name.

use std::{
    fs,
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::{Map, Value};

use super::CniError;

const LARGEST: u64 = 1 << 20;
const MOST_PLUGINS: usize = 64;

/// Versions of the specification whose differences matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    /// 0.1.0 to 0.3.1.
    Old,
    /// 0.4.0: CHECK, and DEL is told the result.
    V0_4,
    /// 1.0.0.
    V1_0,
    /// 1.1.0: GC and STATUS.
    V1_1,
}

/// A network: the plugins that make it up, in order.
#[derive(Debug, Clone)]
pub(super) struct NetworkList {
    /// Where it was read.
    pub(super) file: PathBuf,
    pub(super) name: String,
    pub(super) version: Version,
    pub(super) version_text: String,
    pub(super) disable_check: bool,
    pub(super) disable_gc: bool,
    pub(super) plugins: Vec<Plugin>,
    /// The configuration as it was written, for the record.
    pub(super) raw: Value,
}

/// One plugin of a network.
#[derive(Debug, Clone)]
pub(super) struct Plugin {
    /// The program's name.
    pub(super) kind: String,
    conf: Map<String, Value>,
}

impl NetworkList {
    /// Takes a list, or (`.conf`, `.json`) a single plugin, which becomes a list of one.
    pub(super) fn parse(file: &Path, raw: Value) -> Result<Self, String> {
        let object = raw.as_object().ok_or("it is not a JSON object")?;
        let name = object.get("name").and_then(Value::as_str).unwrap_or_default();
        if !is_plain(name) {
            return Err(format!("\"name\" {name:?} must be letters, digits, '.', '_' and '-'"));
        }
        let version_text = newest_version(object)?;
        let version = version_of(&version_text).ok_or_else(|| unsupported(&version_text))?;
        let plugins = match object.get("plugins") {
            Some(list) => {
                let list = list.as_array().ok_or("\"plugins\" is not a list")?;
                list.iter().map(Plugin::parse).collect::<Result<Vec<_>, _>>()?
            }
            None if object.contains_key("type") => vec![Plugin::parse(&raw)?],
            None => return Err("it has neither \"plugins\" nor \"type\"".to_owned()),
        };
        if plugins.is_empty() || plugins.len() > MOST_PLUGINS {
            return Err(format!("\"plugins\" must have 1 to {MOST_PLUGINS} entries"));
        }
        let flag = |key: &str| match object.get(key) {
            Some(Value::String(text)) => text == "true",
            other => other == Some(&Value::Bool(true)),
        };
        Ok(Self {
            file: file.to_owned(),
            name: name.to_owned(),
            version,
            version_text,
            disable_check: flag("disableCheck"),
            disable_gc: flag("disableGC"),
            plugins,
            raw: raw.clone(),
        })
    }

    /// What `plugin` reads from standard input.
    pub(super) fn netconf(
        &self,
        plugin: &Plugin,
        capabilities: &Map<String, Value>,
        result: Option<&Value>,
    ) -> Map<String, Value> {
        let mut conf = plugin.conf.clone();
        conf.insert("name".to_owned(), Value::from(self.name.clone()));
        conf.insert("cniVersion".to_owned(), Value::from(self.version_text.clone()));
        let declared = plugin.conf.get("capabilities").and_then(Value::as_object);
        let wanted: Map<String, Value> = capabilities
            .iter()
            .filter(|(key, _)| declared.is_some_and(|map| map.get(*key) == Some(&Value::Bool(true))))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        if !wanted.is_empty() {
            conf.insert("runtimeConfig".to_owned(), Value::from(wanted));
        }
        if let Some(result) = result {
            conf.insert("prevResult".to_owned(), result.clone());
        }
        conf
    }
}

impl Plugin {
    fn parse(raw: &Value) -> Result<Self, String> {
        let conf = raw.as_object().ok_or("a plugin is not a JSON object")?;
        let kind = conf.get("type").and_then(Value::as_str).unwrap_or_default();
        if !is_plain(kind) {
            return Err(format!("plugin \"type\" {kind:?} must be a plain file name"));
        }
        Ok(Self { kind: kind.to_owned(), conf: conf.clone() })
    }
}

/// Finds the configuration in force; reads files anew only when the directory looks different.
#[derive(Debug)]
pub(super) struct Loader {
    dir: PathBuf,
    loaded: Arc<Mutex<Option<Loaded>>>,
}

#[derive(Debug)]
struct Loaded {
    looks: Vec<Look>,
    outcome: Result<NetworkList, Vec<String>>,
}

/// What tells a changed file from an unchanged one.
#[derive(Debug, PartialEq, Eq)]
struct Look {
    path: PathBuf,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Loader {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, loaded: Arc::default() }
    }

    pub(super) async fn current(&self) -> Result<NetworkList, CniError> {
        let (dir, loaded) = (self.dir.clone(), Arc::clone(&self.loaded));
        let found = tokio::task::spawn_blocking(move || current(&dir, &loaded)).await;
        let found = found.unwrap_or_else(|_| Err(vec!["reading them panicked".to_owned()]));
        found.map_err(|refused_files| CniError::NoNetwork { dir: self.dir.clone(), refused_files })
    }
}

fn current(dir: &Path, loaded: &Mutex<Option<Loaded>>) -> Result<NetworkList, Vec<String>> {
    let looks = look(dir);
    let known = |loaded: &Option<Loaded>| {
        loaded.as_ref().filter(|loaded| loaded.looks == looks).map(|loaded| loaded.outcome.clone())
    };
    if let Some(outcome) = known(&loaded.lock().unwrap_or_else(PoisonError::into_inner)) {
        return outcome;
    }
    let outcome = load(&looks);
    if let Ok(list) = &outcome {
        tracing::info!(file = %list.file.display(), network = list.name, "CNI configuration loaded");
    }
    let fresh = Loaded { looks, outcome: outcome.clone() };
    *loaded.lock().unwrap_or_else(PoisonError::into_inner) = Some(fresh);
    outcome
}

/// The candidates in lexical order.
fn look(dir: &Path) -> Vec<Look> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let wanted = |path: &Path| {
        matches!(path.extension().and_then(|ext| ext.to_str()), Some("conflist" | "conf" | "json"))
    };
    let mut looks: Vec<Look> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| wanted(path))
        .filter_map(|path| {
            let meta = fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
            let changed = (meta.ctime(), meta.ctime_nsec());
            Some(Look { inode: meta.ino(), size: meta.size(), changed, path })
        })
        .collect();
    looks.sort_by(|a, b| a.path.cmp(&b.path));
    looks
}

fn load(looks: &[Look]) -> Result<NetworkList, Vec<String>> {
    let mut refused = Vec::new();
    for look in looks {
        match read(&look.path) {
            Ok(list) => return Ok(list),
            Err(reason) => {
                tracing::warn!(file = %look.path.display(), reason, "CNI configuration skipped");
                refused.push(format!("{}: {reason}", look.path.display()));
            }
        }
    }
    Err(refused)
}

fn read(path: &Path) -> Result<NetworkList, String> {
    let mut text = Vec::new();
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(LARGEST + 1).read_to_end(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > LARGEST {
        return Err("it is larger than 1 MiB".to_owned());
    }
    let raw: Value = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    NetworkList::parse(path, raw)
}

fn version_of(text: &str) -> Option<Version> {
    match text {
        "" | "0.1.0" | "0.2.0" | "0.3.0" | "0.3.1" => Some(Version::Old),
        "0.4.0" => Some(Version::V0_4),
        "1.0.0" => Some(Version::V1_0),
        "1.1.0" => Some(Version::V1_1),
        _ => None,
    }
}

/// `cniVersion`, or the newest of `cniVersions` that is known here.
fn newest_version(object: &Map<String, Value>) -> Result<String, String> {
    let one = match object.get("cniVersion") {
        None => "",
        Some(value) => value.as_str().ok_or("\"cniVersion\" is not a string")?,
    };
    let many = object.get("cniVersions").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let known = many.iter().filter_map(Value::as_str).chain([one].into_iter().filter(|v| !v.is_empty()));
    // Within `Old` the text decides; it is in order as it stands.
    let newest = known.filter_map(|text| version_of(text).map(|version| (version, text))).max();
    match newest {
        Some((_, text)) => Ok(text.to_owned()),
        None if one.is_empty() && many.is_empty() => Ok("0.1.0".to_owned()),
        None => Err(unsupported(one)),
    }
}

fn unsupported(version: &str) -> String {
    format!("\"cniVersion\" {version:?} is not supported; 0.1.0 to 1.1.0 are")
}

fn is_plain(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    first
        && name.len() <= 255
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(value: Value) -> Result<NetworkList, String> {
        NetworkList::parse(Path::new("x.conflist"), value)
    }

    #[test]
    fn the_newest_version_both_sides_know_is_spoken() {
        let version = |versions: Value| {
            let mut list = json!({"name": "n", "plugins": [{"type": "t"}]});
            list.as_object_mut().unwrap().extend(versions.as_object().unwrap().clone());
            parse(list).map(|list| list.version_text)
        };
        assert_eq!(version(json!({})).unwrap(), "0.1.0");
        assert_eq!(version(json!({"cniVersion": "0.4.0"})).unwrap(), "0.4.0");
        assert_eq!(
            version(json!({"cniVersion": "1.0.0", "cniVersions": ["1.1.0", "9.0.0"]})).unwrap(),
            "1.1.0"
        );
        assert!(version(json!({"cniVersion": "9.0.0"})).unwrap_err().contains("9.0.0"));
        assert!(version(json!({"cniVersion": 1})).is_err());
    }

    #[test]
    fn names_that_could_be_paths_are_refused() {
        for kind in ["", "..", "a/b", "/bin/sh", "a b", "-x", ".x"] {
            assert!(parse(json!({"name": "n", "plugins": [{"type": kind}]})).is_err(), "{kind:?}");
            assert!(parse(json!({"name": kind, "plugins": [{"type": "t"}]})).is_err(), "{kind:?}");
        }
        assert!(parse(json!({"name": "n", "plugins": []})).is_err());
        assert!(parse(json!({"name": "n"})).is_err());
        assert!(parse(json!([])).is_err());
    }
}
