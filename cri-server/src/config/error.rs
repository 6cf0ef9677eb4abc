//! Why a configuration cannot be used, and the questions that several sections ask of their values.

use std::path::{Path, PathBuf};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("configuration {path}: cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// A file holds something that is not configuration; the message has line, column and key.
    #[error("configuration {path}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What and where.
        message: String,
    },
    /// A value cannot be used.
    #[error("configuration: {key} = {value}: {reason}")]
    Value {
        /// The key, with its section.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is wrong and the mend.
        reason: String,
    },
}

/// A value that cannot be used, and why.
pub(super) fn refused(key: &'static str, value: &dyn std::fmt::Debug, reason: &str) -> ConfigError {
    ConfigError::Value { key, value: format!("{value:?}"), reason: reason.to_owned() }
}

/// Whether a path that may be left out is absolute.
pub(super) fn absolute_or_empty(key: &'static str, path: &Path) -> Result<(), ConfigError> {
    if path.as_os_str().is_empty() || path.is_absolute() {
        return Ok(());
    }
    Err(refused(key, &path, "give an absolute path"))
}
