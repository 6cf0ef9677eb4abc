//! Where a container sees the pod's volumes. Pure.

use k8s_openapi::api::core::v1::{Container, VolumeMount};
use podhold_proto::cri::{self, MountPropagation};

use super::{Around, environment::Environment, expansion, facts::SubPath};
use crate::standalone::{
    manifest::{Findings, ManifestError, refuse},
    volume::{Source, Volume},
};

/// The mounts of a container, and what of them is settled when it is made.
pub(super) fn of(
    container: &Container,
    field: &str,
    (environment, around): (&Environment, &Around<'_>),
    found: &mut Findings,
) -> (Vec<cri::Mount>, Vec<SubPath>) {
    let (mut mounts, mut sub_paths): (Vec<cri::Mount>, _) = (Vec::new(), Vec::new());
    let unread = around.volumes.get("").is_some() || around.manifest.is_flawed("spec.volumes");
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let field = format!("{field}.volumeMounts[{index}]");
        let volume = around.volumes.get(&mount.name);
        if volume.is_none() && !unread {
            let reason = format!("spec.volumes has no {:?}", mount.name);
            found.part::<()>(refuse(format!("{field}.name"), reason));
        }
        let target = found.part(target(&mount.mount_path, &field));
        let path = found.part(sub_path(mount, &field, environment));
        let made = volume.and_then(|volume| found.part(self::mount(mount, &field, volume, container)));
        let (Some(volume), Some(target), Some(path), Some(mut made)) = (volume, target, path, made) else {
            continue;
        };
        if mounts.iter().any(|made| made.container_path.trim_end_matches('/') == target.trim_end_matches('/'))
        {
            let reason = format!("{target:?} is mounted over twice; give one of them another path");
            found.part::<()>(refuse(format!("{field}.mountPath"), reason));
        }
        made.container_path = target;
        match (&volume.source, path) {
            (Source::Image { .. }, path) => made.image_sub_path = path,
            (_, path) if path.is_empty() => {}
            (source, path) => {
                let root = made.host_path.clone().into();
                let make = !matches!(source, Source::Files { .. });
                sub_paths.push(SubPath {
                    mount: mounts.len(),
                    root,
                    path,
                    field: format!("{field}.subPath"),
                    make,
                });
            }
        }
        mounts.push(made);
    }
    (mounts, sub_paths)
}

/// Where in the container; as the kubelet takes it, a path without `/` is below the root.
fn target(path: &str, field: &str) -> Result<String, ManifestError> {
    let field = format!("{field}.mountPath");
    if path.is_empty() || path.contains(['\0', ':']) {
        return refuse(field, format!("{path:?} is not a path (none is empty or has a ':')"));
    }
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let parts = std::path::Path::new(&path).components();
    if parts.clone().count() < 2 || parts.into_iter().any(|part| part == std::path::Component::ParentDir) {
        return refuse(field, format!("{path:?} is not a path below the container's root without '..'"));
    }
    Ok(path)
}

fn mount(
    mount: &VolumeMount,
    field: &str,
    volume: &Volume,
    container: &Container,
) -> Result<cri::Mount, ManifestError> {
    let privileged = container.security_context.as_ref().and_then(|context| context.privileged);
    let propagation = match mount.mount_propagation.as_deref() {
        None | Some("None") => MountPropagation::PropagationPrivate,
        Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
        Some("Bidirectional") if privileged == Some(true) => MountPropagation::PropagationBidirectional,
        Some("Bidirectional") => {
            let reason = "Bidirectional is for privileged containers; make it one, or use HostToContainer";
            return refuse(format!("{field}.mountPropagation"), reason);
        }
        Some(other) => {
            let reason = format!("{other:?} is not None, HostToContainer or Bidirectional");
            return refuse(format!("{field}.mountPropagation"), reason);
        }
    };
    // Files that come from the manifest cannot be changed by a pod, nor can images.
    let fixed = matches!(volume.source, Source::Files { .. } | Source::Image { .. });
    let readonly = mount.read_only == Some(true) || fixed;
    let private = propagation == MountPropagation::PropagationPrivate;
    let recursive = match mount.recursive_read_only.as_deref() {
        None | Some("Disabled") => false,
        Some("IfPossible") if mount.read_only == Some(true) => private,
        Some("Enabled") if mount.read_only == Some(true) && private => true,
        Some("Enabled" | "IfPossible") => {
            let reason = "needs readOnly: true, and no mountPropagation";
            return refuse(format!("{field}.recursiveReadOnly"), reason);
        }
        Some(other) => {
            let reason = format!("{other:?} is not Disabled, IfPossible or Enabled");
            return refuse(format!("{field}.recursiveReadOnly"), reason);
        }
    };
    let made = cri::Mount {
        readonly,
        recursive_read_only: recursive,
        propagation: propagation.into(),
        ..Default::default()
    };
    Ok(match &volume.source {
        Source::Image { reference, .. } if !private => {
            return refuse(
                format!("{field}.mountPropagation"),
                format!("image {reference} has no mounts; leave it out"),
            );
        }
        Source::Image { reference, .. } => {
            let image = cri::ImageSpec { image: reference.clone(), ..Default::default() };
            cri::Mount { image: Some(image), recursive_read_only: false, ..made }
        }
        source => cri::Mount { host_path: source.path().display().to_string(), ..made },
    })
}

/// The part of the volume to show; empty is all of it.
fn sub_path(mount: &VolumeMount, field: &str, environment: &Environment) -> Result<String, ManifestError> {
    let (path, name) = match (mount.sub_path.as_deref(), mount.sub_path_expr.as_deref()) {
        (None | Some(""), None | Some("")) => return Ok(String::new()),
        (Some(path), None | Some("")) => (path.to_owned(), "subPath"),
        (None | Some(""), Some(text)) => {
            let field = format!("{field}.subPathExpr");
            if let Some(name) = expansion::names(text).iter().find(|name| !environment.has(name)) {
                return refuse(field, format!("the container has no variable {name}; set it in env"));
            }
            (environment.expand(text), "subPathExpr")
        }
        _ => return refuse(format!("{field}.subPathExpr"), "is there beside subPath; leave one of them out"),
    };
    let plain = std::path::Path::new(&path)
        .components()
        .all(|part| matches!(part, std::path::Component::Normal(_) | std::path::Component::CurDir));
    if !plain {
        return refuse(format!("{field}.{name}"), format!("{path:?} is not a relative path without '..'"));
    }
    Ok(path)
}
