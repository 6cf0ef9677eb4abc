//! From files to a configuration: one file, drop-ins beside it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{Config, DEFAULT_FILE, error::ConfigError};

impl Config {
    /// Reads `file` and the drop-ins `conf.d/*.toml` beside it, in the order of their names; later
    /// values win. Without `file` the default file is read if it exists.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let main = file.unwrap_or(Path::new(DEFAULT_FILE));
        let mut merged = toml::Table::new();
        if file.is_some() || main.exists() {
            merge(&mut merged, read(main)?);
        }
        for drop_in in drop_ins(main)? {
            merge(&mut merged, read(&drop_in)?);
        }
        let config: Self = merged.try_into().map_err(|error: toml::de::Error| parse_error(main, &error))?;
        config.checked()
    }
}

/// Reads one file, and checks it alone so that an error names it.
fn read(path: &Path) -> Result<toml::Table, ConfigError> {
    let text =
        fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    toml::from_str::<Config>(&text).map_err(|error| parse_error(path, &error))?;
    toml::from_str(&text).map_err(|error| parse_error(path, &error))
}

fn parse_error(path: &Path, error: &toml::de::Error) -> ConfigError {
    ConfigError::Parse { path: path.to_owned(), message: error.to_string().trim_end().to_owned() }
}

/// The drop-ins of a configuration file.
fn drop_ins(main: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let dir = main.parent().unwrap_or(Path::new("/")).join("conf.d");
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(ConfigError::Read { path: dir, source }),
    };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|ext| ext == "toml"))
        .collect();
    files.sort();
    Ok(files)
}

/// Lays `over` on `base`, section by section.
fn merge(base: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(base)), toml::Value::Table(over)) => merge(base, over),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}
