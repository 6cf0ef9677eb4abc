//! What a caller, or this machine, proves itself with to a registry.
//!
//! A pull that brings credentials for its registry uses these and no others. For one that brings none, and for mirrors, the
//! machine's own are looked up: in Docker's and the containers tools' files, and by credential helpers these
//! name. All is read anew at each pull, so that a login counts at once.
//!
//! Invariant: secrets show neither in messages nor in debug output.

mod config_file;
mod helper;
mod key;
mod leftover;
#[cfg(test)]
mod tests;

use std::{
    collections::HashSet,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

pub(crate) use self::{key::Key, leftover::Marks};
use crate::small_file;

#[cfg(fuzzing)]
pub(crate) use self::{config_file::ConfigFile, helper::read_answer};

/// The padding may be left out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Complaints about files that are kept in mind.
const MOST_TOLD: usize = 256;

/// What a caller proves itself with to a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A user's name and password (or personal token).
    Basic {
        /// The name.
        username: String,
        /// The password.
        password: String,
    },
    /// A long-lived token that the registry's token service exchanges for a short-lived one.
    IdentityToken(String),
    /// A token to be sent to the registry as it is.
    RegistryToken(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic(redacted)",
            Self::IdentityToken(_) => "IdentityToken(redacted)",
            Self::RegistryToken(_) => "RegistryToken(redacted)",
        })
    }
}

/// The forms in which Docker's files and the CRI give credentials. Empty is absent.
#[derive(Clone, Copy, Default)]
pub struct Forms<'a> {
    /// A user's name.
    pub username: &'a str,
    /// The user's password.
    pub password: &'a str,
    /// `name:password` in base64.
    pub auth: &'a str,
    /// See [`Credentials::IdentityToken`].
    pub identity_token: &'a str,
    /// See [`Credentials::RegistryToken`].
    pub registry_token: &'a str,
}

impl Credentials {
    /// The credentials that are given, the most specific form first. Fails when `auth` is needed and is not
    /// what it should be; the reason does not tell it.
    pub fn from_forms(forms: Forms<'_>) -> Result<Option<Self>, &'static str> {
        let Forms { username, password, auth, identity_token, registry_token } = forms;
        if !registry_token.is_empty() {
            return Ok(Some(Self::RegistryToken(registry_token.to_owned())));
        }
        if !identity_token.is_empty() {
            return Ok(Some(Self::IdentityToken(identity_token.to_owned())));
        }
        if !username.is_empty() {
            return Ok(Some(Self::Basic { username: username.to_owned(), password: password.to_owned() }));
        }
        if auth.is_empty() { Ok(None) } else { Self::decode(auth).map(Some) }
    }

    /// What a file in Docker's form (`config.json`) says about an image's registry; credential helpers that it
    /// names are not asked.
    pub fn of_docker(file: &[u8], image: &crate::Reference) -> Result<Option<Self>, String> {
        config_file::ConfigFile::read(file)?.entry(image.registry(), image.repository())
    }

    fn decode(auth: &str) -> Result<Self, &'static str> {
        const FORM: &str = "is not base64 of user:password";
        let plain: String = auth.split_ascii_whitespace().collect();
        let bytes = BASE64.decode(plain).map_err(|_| FORM)?;
        let text = String::from_utf8(bytes).map_err(|_| FORM)?;
        let (username, password) = text.split_once(':').ok_or(FORM)?;
        Ok(Self::Basic { username: username.to_owned(), password: password.trim_matches('\0').to_owned() })
    }

    /// The value of an `Authorization` header for a name and password (RFC 7617).
    pub(crate) fn basic(username: &str, password: &str) -> String {
        format!("Basic {}", BASE64.encode(format!("{username}:{password}")))
    }
}

/// Whether `server`, as a pull request or a credentials file writes it, is the registry of image names that
/// begin with `registry`.
pub fn is_server_of(server: &str, registry: &str) -> bool {
    Key::read(server).is_host(registry)
}

/// Where this machine's credentials are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CredentialSources {
    /// Files in the form of Docker's `config.json` or the containers tools' `auth.json`; the first that has
    /// credentials counts.
    pub files: Vec<PathBuf>,
    /// Directories in which `docker-credential-NAME` programs are looked for, in order.
    pub helper_dirs: Vec<PathBuf>,
}

/// Looks credentials up.
pub(crate) struct Finder {
    sources: CredentialSources,
    marks: Arc<Marks>,
    /// What was complained of, by file and reason: each is told once.
    told: Mutex<HashSet<(PathBuf, String)>>,
}

/// What was found for one registry.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) credentials: Option<Credentials>,
    /// What went wrong on the way, for the message when the registry wants credentials.
    pub(crate) troubles: Vec<String>,
}

impl Finder {
    pub(crate) fn new(sources: CredentialSources, marks: Marks) -> Self {
        Self { sources, marks: Arc::new(marks), told: Mutex::default() }
    }

    /// This machine's credentials for a repository of a registry. What cannot be used is told in the log, and
    /// does not keep an image from being pulled that needs none.
    pub(crate) async fn find(&self, registry: &str, repository: &str) -> Found {
        let mut found = Found::default();
        for path in &self.sources.files {
            match self.in_file(path, registry, repository).await {
                Ok(None) => {}
                Ok(credentials) => {
                    tracing::debug!(file = %path.display(), registry, "credentials found");
                    found.credentials = credentials;
                    return found;
                }
                Err(reason) => {
                    if self.is_new(path, &reason) {
                        tracing::warn!(file = %path.display(), registry, reason, "credentials not used");
                    }
                    found.troubles.push(format!("{}: {reason}", path.display()));
                }
            }
        }
        found
    }

    /// Whether something about a file has not been told yet; every pull, and every layer of it, would tell it again.
    fn is_new(&self, path: &Path, reason: &str) -> bool {
        let mut told = self.told.lock().expect("no panics under this lock");
        // What helpers say may be new each time.
        if told.len() >= MOST_TOLD {
            told.clear();
        }
        told.insert((path.to_owned(), reason.to_owned()))
    }

    async fn in_file(
        &self,
        path: &Path,
        registry: &str,
        repository: &str,
    ) -> Result<Option<Credentials>, String> {
        let Some(file) = self.read(path)? else { return Ok(None) };
        if let Some((name, server)) = file.helper(registry, repository) {
            let asked = helper::get(&self.marks, &self.sources.helper_dirs, &name, &server).await;
            if let Some(credentials) = asked? {
                return Ok(Some(credentials));
            }
        }
        file.entry(registry, repository)
    }

    /// Reads a file. Whoever can write it can have programs run as root.
    fn read(&self, path: &Path) -> Result<Option<config_file::ConfigFile>, String> {
        use std::os::unix::fs::MetadataExt;
        let (bytes, metadata) = match small_file::read_with_metadata(path) {
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => return Ok(None),
            Err(error) => return Err(format!("it cannot be read: {error}")),
        };
        let ours = [0, rustix::process::geteuid().as_raw()].contains(&metadata.uid());
        if !ours || metadata.mode() & 0o022 != 0 {
            return Err("others than root can write it; run chown root and chmod 600 on it".to_owned());
        }
        if metadata.mode() & 0o044 != 0 && self.is_new(path, "can be read by others") {
            tracing::warn!(file = %path.display(), "credentials can be read by others than root; run chmod 600 on it");
        }
        config_file::ConfigFile::read(&bytes).map(Some)
    }
}
