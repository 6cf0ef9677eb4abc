//! The checked-in list of specs that may be skipped, and must be. Names are whole names; one that a
//! version of the suite does not have does no harm.

use std::{collections::BTreeMap, fs, path::Path};

use serde::Deserialize;

use super::{ConformanceError, file};

/// The list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Skips {
    /// How many specs of a whole run must pass, by the suite's version.
    #[serde(default)]
    least_passed: BTreeMap<String, usize>,
    skip: Vec<Class>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Class {
    /// Why these are skipped.
    why: String,
    /// Whether we have to take them out, because they do not skip themselves.
    #[serde(default)]
    by_name: bool,
    specs: Vec<String>,
}

impl Skips {
    /// Reads the list at `path`.
    pub fn read(path: &Path) -> Result<Self, ConformanceError> {
        let text = fs::read_to_string(path).map_err(file("read", path))?;
        Self::parse(&text)
            .map_err(|source| ConformanceError::Skips { path: path.to_owned(), source: Box::new(source) })
    }

    pub(super) fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// How many specs of a whole run must pass; an unlisted version is taken for the newest.
    pub fn least_passed(&self, version: &str) -> usize {
        let listed = self.least_passed.get(version);
        listed.or(self.least_passed.values().max()).copied().unwrap_or(0)
    }

    /// Why the spec `name` is to be skipped; `None` when it is to be run.
    pub fn reason(&self, name: &str) -> Option<&str> {
        let holds = |class: &&Class| class.specs.iter().any(|spec| spec == name);
        self.skip.iter().find(holds).map(|class| class.why.as_str())
    }

    /// The specs that the suite has to be told to leave out.
    pub fn by_name(&self) -> impl Iterator<Item = &str> {
        let classes = self.skip.iter().filter(|class| class.by_name);
        classes.flat_map(|class| class.specs.iter().map(String::as_str))
    }
}
