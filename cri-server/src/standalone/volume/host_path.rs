//! Volumes that are something of the host's. Planning is pure; only `make` looks and makes.

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt},
    path::{Component, Path, PathBuf},
};

use k8s_openapi::api::core::v1::HostPathVolumeSource;

use crate::{
    error::{Error, Result},
    standalone::manifest::{Findings, ManifestError, refuse},
};

/// What must be at the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::standalone) enum HostKind {
    /// Anything; nothing is looked at.
    Any,
    DirectoryOrCreate,
    Directory,
    FileOrCreate,
    File,
    Socket,
    CharDevice,
    BlockDevice,
}

/// The kinds by their names in a manifest.
const KINDS: [(&str, HostKind); 8] = [
    ("", HostKind::Any),
    ("DirectoryOrCreate", HostKind::DirectoryOrCreate),
    ("Directory", HostKind::Directory),
    ("FileOrCreate", HostKind::FileOrCreate),
    ("File", HostKind::File),
    ("Socket", HostKind::Socket),
    ("CharDevice", HostKind::CharDevice),
    ("BlockDevice", HostKind::BlockDevice),
];

impl HostKind {
    pub(in crate::standalone) fn name(self) -> &'static str {
        KINDS.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }
}

pub(super) fn plan(
    asked: &HostPathVolumeSource,
    field: &str,
) -> std::result::Result<(PathBuf, HostKind), ManifestError> {
    let mut found = Findings::default();
    let path = Path::new(&asked.path);
    if !path.is_absolute()
        || path.components().any(|part| part == Component::ParentDir)
        || asked.path.contains('\0')
    {
        let reason = format!("{:?} is not an absolute path without '..'", asked.path);
        found.part::<()>(refuse(format!("{field}.hostPath.path"), reason));
    }
    let name = asked.type_.as_deref().unwrap_or_default();
    let kind = match KINDS.iter().find(|(known, _)| *known == name) {
        Some((_, kind)) => Ok(*kind),
        None => {
            let names: Vec<&str> = KINDS.iter().skip(1).map(|(name, _)| *name).collect();
            refuse(format!("{field}.hostPath.type"), format!("{name:?} is not one of {}", names.join(", ")))
        }
    };
    let kind = found.part(kind).unwrap_or(HostKind::Any);
    found.whole((path.to_owned(), kind))
}

/// Makes what is missing and is to be made; refuses what is something else.
pub(super) fn make(path: &Path, kind: HostKind, field: &str) -> Result<()> {
    // The runtime looks at it, and makes a directory where there is nothing, as the CRI says.
    if kind == HostKind::Any {
        return Ok(());
    }
    let what = match fs::metadata(path) {
        Ok(there) => there.file_type(),
        Err(error) if error.kind() == ErrorKind::NotFound => return make_missing(path, kind, field),
        Err(error) => {
            return Err(Error::failed(format!("{field}.hostPath.path: {}", path.display()), &error));
        }
    };
    let good = match kind {
        HostKind::Any => true,
        HostKind::DirectoryOrCreate | HostKind::Directory => what.is_dir(),
        HostKind::FileOrCreate | HostKind::File => what.is_file(),
        HostKind::Socket => what.is_socket(),
        HostKind::CharDevice => what.is_char_device(),
        HostKind::BlockDevice => what.is_block_device(),
    };
    if good {
        return Ok(());
    }
    let reason = format!("{field}.hostPath.path: {} is not what type {} says", path.display(), kind.name());
    Err(Error::Precondition(reason))
}

fn make_missing(path: &Path, kind: HostKind, field: &str) -> Result<()> {
    let doing = || Error::doing(format!("{field}.hostPath.path: making {}", path.display()));
    match kind {
        HostKind::DirectoryOrCreate => {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(doing())
        }
        HostKind::FileOrCreate => {
            let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(path);
            made.map(drop).map_err(doing())
        }
        other => Err(Error::Precondition(format!(
            "{field}.hostPath.path: {} is not there, and type {} asks for it; make it, or leave type out",
            path.display(),
            other.name()
        ))),
    }
}
