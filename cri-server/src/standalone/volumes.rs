//! The volumes of a pod: where each is on the host. Looks at host paths, makes nothing.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::{PodSpec, Volume};

use super::manifest::{ManifestError, check_name, refuse};

/// Where each volume is on the host.
pub(super) fn of(spec: &PodSpec, dir: &Path) -> Result<HashMap<String, String>, ManifestError> {
    let mut found = HashMap::new();
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        check_name(&format!("spec.volumes[{index}].name"), &volume.name, 63)?;
        let path = match &volume.host_path {
            Some(_) if volume.empty_dir.is_some() => {
                return refuse(
                    format!("spec.volumes[{index}]"),
                    "has two sources; give emptyDir or hostPath",
                );
            }
            Some(host) => {
                check_host_path(index, &host.path, host.type_.as_deref())?;
                host.path.clone()
            }
            None if volume.empty_dir.is_some() => empty_dir(dir, volume).display().to_string(),
            None => {
                return refuse(format!("spec.volumes[{index}]"), "has no source; give emptyDir or hostPath");
            }
        };
        if found.insert(volume.name.clone(), path).is_some() {
            let reason = format!("two volumes are named {:?}", volume.name);
            return refuse(format!("spec.volumes[{index}].name"), reason);
        }
    }
    Ok(found)
}

fn check_host_path(index: usize, path: &str, kind: Option<&str>) -> Result<(), ManifestError> {
    let there = std::fs::metadata(path);
    let good = match kind {
        None | Some("" | "DirectoryOrCreate") => true,
        Some("Directory") => there.is_ok_and(|there| there.is_dir()),
        Some("File") => there.is_ok_and(|there| there.is_file()),
        Some(other) => {
            let reason = format!("{other:?} is not supported yet; use Directory, DirectoryOrCreate or File");
            return refuse(format!("spec.volumes[{index}].hostPath.type"), reason);
        }
    };
    if good {
        Ok(())
    } else {
        let reason = format!("{path:?} is not there, or is not a {}", kind.unwrap_or_default());
        refuse(format!("spec.volumes[{index}].hostPath.path"), reason)
    }
}

fn empty_dir(dir: &Path, volume: &Volume) -> PathBuf {
    dir.join("volumes").join(&volume.name)
}

/// Directories that are made for the pod and go with it.
pub(super) fn empty_dirs(spec: &PodSpec, dir: &Path) -> Vec<PathBuf> {
    let empty = spec.volumes.iter().flatten().filter(|volume| volume.empty_dir.is_some());
    empty.map(|volume| empty_dir(dir, volume)).collect()
}
