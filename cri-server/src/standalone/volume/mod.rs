//! The volumes of a pod: what each is, where it is on the host, and its making and removal.
//!
//! Invariant: everything that is made lies beneath the pod's two directories, so that one removal serves a pod
//! that ended and one whose run was killed; what is mounted there is unmounted before anything is deleted, and
//! nothing elsewhere with it.
//! Contents that may be secret are only in the directory that a reboot forgets.

mod files;
mod host_path;
mod make;
mod mounted;
mod sub_path;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use k8s_openapi::{
    api::core::v1::{EmptyDirVolumeSource, Volume as Asked},
    apimachinery::pkg::api::resource::Quantity,
};

pub(super) use self::{
    files::File,
    host_path::HostKind,
    make::remove,
    sub_path::{Sub, settle},
};
use super::{
    manifest::{Findings, ManifestError, check_name, refuse},
    quantity::Amount,
    request::{self, Around, Pull},
};

/// One volume.
#[derive(Debug, Clone)]
pub(super) struct Volume {
    pub(super) name: String,
    pub(super) source: Source,
    /// Its path in the manifest.
    field: String,
}

/// What is in it.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// A directory; with `memory` a tmpfs of so many bytes, of which 0 are no limit.
    Empty { path: PathBuf, memory: Option<i64> },
    /// Something of the host's.
    Host { path: PathBuf, kind: HostKind },
    /// Files with contents from the manifest.
    Files { path: PathBuf, files: BTreeMap<String, File> },
    /// An image.
    Image { reference: String, pull: Pull },
}

impl Source {
    /// Where on the host; an image is nowhere.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Empty { path, .. } | Self::Host { path, .. } | Self::Files { path, .. } => path,
            Self::Image { .. } => Path::new(""),
        }
    }
}

/// All volumes of a pod.
#[derive(Debug, Clone, Default)]
pub(super) struct Volumes {
    list: Vec<Volume>,
    /// The group that everything made for the pod belongs to (`fsGroup`).
    group: Option<u32>,
}

impl Volumes {
    /// Decides what they are; one that is wrong is an empty directory. Pure.
    pub(super) fn plan(around: &Around<'_>, found: &mut Findings) -> Self {
        let group = around.spec.security_context.as_ref().and_then(|context| context.fs_group);
        let mut volumes = Self { list: Vec::new(), group: group.and_then(|group| u32::try_from(group).ok()) };
        for (index, asked) in around.spec.volumes.iter().flatten().enumerate() {
            let field = format!("spec.volumes[{index}]");
            found.part(check_name(&format!("{field}.name"), &asked.name, 63));
            if volumes.get(&asked.name).is_some() && !asked.name.is_empty() {
                let reason = format!("two volumes are named {:?}; give one another name", asked.name);
                found.part::<()>(refuse(format!("{field}.name"), reason));
            }
            let source = found.part(source(asked, &field, around));
            let source = source.unwrap_or(Source::Empty { path: PathBuf::new(), memory: None });
            volumes.list.push(Volume { name: asked.name.clone(), source, field });
        }
        volumes
    }

    pub(super) fn get(&self, name: &str) -> Option<&Volume> {
        self.list.iter().find(|volume| volume.name == name)
    }

    /// What of the host's is looked at when they are made, each with its field in the manifest.
    pub(super) fn host_paths(&self) -> impl Iterator<Item = (String, &Path)> {
        self.list.iter().filter_map(|volume| match &volume.source {
            Source::Host { path, kind } if *kind != HostKind::Any => {
                Some((format!("{}.hostPath.path", volume.field), path.as_path()))
            }
            _ => None,
        })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Volume> {
        self.list.iter()
    }
}

fn source(asked: &Asked, field: &str, around: &Around<'_>) -> Result<Source, ManifestError> {
    let named = [
        ("configMap", asked.config_map.is_some()),
        ("downwardAPI", asked.downward_api.is_some()),
        ("emptyDir", asked.empty_dir.is_some()),
        ("hostPath", asked.host_path.is_some()),
        ("image", asked.image.is_some()),
        ("projected", asked.projected.is_some()),
        ("secret", asked.secret.is_some()),
    ];
    let named: Vec<&str> = named.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect();
    if named.len() > 1 {
        return refuse(field, format!("has {} sources, {}; leave one", named.len(), named.join(" and ")));
    }
    let place = around.place;
    if let Some(host) = &asked.host_path {
        let (path, kind) = host_path::plan(host, field)?;
        return Ok(Source::Host { path, kind });
    }
    if let Some(image) = &asked.image {
        let at = format!("{field}.image");
        let mut found = Findings::default();
        let reference = image.reference.clone().filter(|name| !name.trim().is_empty());
        found.part(match &reference {
            Some(reference) => request::check_image(reference, &format!("{at}.reference")),
            None => refuse(format!("{at}.reference"), "is missing; name an image"),
        });
        let reference = reference.unwrap_or_default();
        let pull = request::pull(image.pull_policy.as_deref(), &reference, &format!("{at}.pullPolicy"));
        let pull = found.part(pull).unwrap_or(Pull::Never);
        return found.whole(Source::Image { reference, pull });
    }
    let contents = if let Some(map) = &asked.config_map {
        Some(files::of_config_map(map, &format!("{field}.configMap"), around)?)
    } else if let Some(secret) = &asked.secret {
        Some(files::of_secret(secret, &format!("{field}.secret"), around)?)
    } else if let Some(downward) = &asked.downward_api {
        Some(files::of_downward_api(downward, &format!("{field}.downwardAPI"), around)?)
    } else if let Some(projected) = &asked.projected {
        Some(files::of_projected(projected, &format!("{field}.projected"), around)?)
    } else {
        None
    };
    if let Some(files) = contents {
        return Ok(Source::Files { path: place.dir.join("volumes").join(&asked.name), files });
    }
    // As the API server has it, a volume without a source is an empty directory.
    empty_dir(&asked.empty_dir.clone().unwrap_or_default(), field, &asked.name, around)
}

fn empty_dir(
    asked: &EmptyDirVolumeSource,
    field: &str,
    name: &str,
    around: &Around<'_>,
) -> Result<Source, ManifestError> {
    let mut found = Findings::default();
    let limit = match &asked.size_limit {
        None => Ok(0),
        Some(Quantity(text)) => match Amount::parse(text).map(Amount::units) {
            Some(limit) => Ok(limit),
            None => {
                let reason = format!("{text:?} is not a quantity such as 64Mi");
                refuse(format!("{field}.emptyDir.sizeLimit"), reason)
            }
        },
    };
    let limit = found.part(limit).unwrap_or_default();
    let place = around.place;
    let (above, memory) = match asked.medium.as_deref() {
        None | Some("") => (&place.disk, None),
        Some("Memory") => (&place.dir, Some(limit)),
        Some(other) => {
            let reason = format!("{other:?} is not supported by podhold run: use Memory, or leave it out");
            found.part::<()>(refuse(format!("{field}.emptyDir.medium"), reason));
            (&place.disk, None)
        }
    };
    found.whole(Source::Empty { path: above.join("volumes").join(name), memory })
}
