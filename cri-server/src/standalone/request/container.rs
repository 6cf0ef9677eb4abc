//! One container of a manifest as CreateContainer. Pure.

use k8s_openapi::api::core::v1::Container;
use podhold_proto::cri;

use super::{Around, ContainerRequest, Pull, environment::Environment, mounts, resources::Quality, security};
use crate::standalone::manifest::{Findings, ManifestError, check_name, refuse};

/// Where a container leaves its last words, unless it says otherwise.
const LAST_WORDS: &str = "/dev/termination-log";

/// The request; `field` is the container's path in the manifest.
pub(super) fn request(
    container: &Container,
    field: &str,
    quality: Quality,
    around: &Around<'_>,
) -> Result<ContainerRequest, ManifestError> {
    let mut found = Findings::default();
    found.part(check_name(&format!("{field}.name"), &container.name, 63));
    let image = container.image.clone().filter(|image| !image.trim().is_empty());
    let at = format!("{field}.image");
    found.part(match &image {
        Some(image) => check_image(image, &at),
        None => refuse(at, "is missing; name an image"),
    });
    let image = image.unwrap_or_default();
    let environment = Environment::of(container, field, around, &mut found);
    let (mut mounts, sub_paths) = mounts::of(container, field, (&environment, around), &mut found);
    let words = |name: &str, words: &Option<Vec<String>>| -> Result<Vec<String>, ManifestError> {
        let words = words.as_deref().unwrap_or_default();
        match words.iter().position(|word| word.contains('\0')) {
            Some(at) => refuse(format!("{field}.{name}[{at}]"), "holds a NUL, which no argument can"),
            None => Ok(words.iter().map(|word| environment.expand(word)).collect()),
        }
    };
    let command = found.part(words("command", &container.command)).unwrap_or_default();
    let args = found.part(words("args", &container.args)).unwrap_or_default();
    let termination_message = around.place.dir.join("termination").join(&container.name);
    let last_words = found.part(last_words(container, field)).unwrap_or_default();
    let asked =
        |target: &str| mounts.iter().any(|mount| mount.container_path.trim_end_matches('/') == target);
    let own = [(last_words.as_str(), &termination_message), ("/etc/hosts", &around.place.hosts_file())];
    let own: Vec<cri::Mount> = own
        .into_iter()
        .filter(|(target, _)| !asked(target))
        .map(|(target, path)| cri::Mount {
            container_path: target.to_owned(),
            host_path: path.display().to_string(),
            ..Default::default()
        })
        .collect();
    mounts.extend(own);
    let context = container.security_context.as_ref();
    let of_pod = around.spec.security_context.clone().unwrap_or_default();
    let needs = around.needs.get(&container.name).cloned().unwrap_or_default();
    let linux = cri::LinuxContainerConfig {
        resources: Some(needs.container(quality, &around.place.host)),
        security_context: found.part(security::of_container(context, field, around.spec, &around.namespaces)),
    };
    let envs = environment.iter();
    let pull = pull(container.image_pull_policy.as_deref(), &image, &format!("{field}.imagePullPolicy"));
    let pull = found.part(pull).unwrap_or(Pull::Never);
    found.whole(ContainerRequest {
        pull,
        non_root: security::is_non_root(context, &of_pod),
        field: field.to_owned(),
        sub_paths,
        termination_message,
        config: cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: container.name.clone(), attempt: 0 }),
            image: Some(cri::ImageSpec { image, ..Default::default() }),
            command,
            args,
            working_dir: container.working_dir.clone().unwrap_or_default(),
            envs: envs
                .map(|(name, value)| cri::KeyValue { key: name.clone(), value: value.clone().into_bytes() })
                .collect(),
            mounts,
            log_path: format!("{}.log", container.name),
            stdin: container.stdin == Some(true),
            stdin_once: container.stdin_once == Some(true),
            tty: container.tty == Some(true),
            linux: Some(linux),
            ..Default::default()
        },
    })
}

/// Refuses what is no reference of an image.
pub(in crate::standalone) fn check_image(image: &str, field: &str) -> Result<(), ManifestError> {
    match podhold_image::Reference::parse(image) {
        Ok(_) => Ok(()),
        Err(error) => refuse(field, format!("{image:?} names no image: {error}")),
    }
}

/// Where the container leaves its last words.
fn last_words(container: &Container, field: &str) -> Result<String, ManifestError> {
    if !matches!(
        container.termination_message_policy.as_deref(),
        None | Some("" | "File" | "FallbackToLogsOnError")
    ) {
        let reason = "is File or FallbackToLogsOnError";
        return refuse(format!("{field}.terminationMessagePolicy"), reason);
    }
    let path = container.termination_message_path.as_deref().filter(|path| !path.is_empty());
    let path = path.unwrap_or(LAST_WORDS);
    if !path.starts_with('/') || path.len() < 2 || path.contains("..") || path.contains('\0') {
        let reason = format!("{path:?} is not an absolute path without '..'");
        return refuse(format!("{field}.terminationMessagePath"), reason);
    }
    Ok(path.to_owned())
}

/// As Kubernetes decides it: `latest` is always pulled, anything else when it is missing.
pub(in crate::standalone) fn pull(
    policy: Option<&str>,
    image: &str,
    field: &str,
) -> Result<Pull, ManifestError> {
    match policy {
        Some("Always") => Ok(Pull::Always),
        Some("IfNotPresent") => Ok(Pull::IfNotPresent),
        Some("Never") => Ok(Pull::Never),
        Some(other) => refuse(field, format!("{other:?} is not Always, IfNotPresent or Never")),
        None => {
            let name = image.rsplit('/').next().unwrap_or(image);
            let latest = !image.contains('@') && (!name.contains(':') || name.ends_with(":latest"));
            Ok(if latest { Pull::Always } else { Pull::IfNotPresent })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latest_is_always_pulled() {
        let policy = |image: &str| pull(None, image, "c").unwrap();
        assert_eq!(policy("localhost:5000/busybox"), Pull::Always);
        assert_eq!(policy("busybox:latest"), Pull::Always);
        assert_eq!(policy("busybox:1.36"), Pull::IfNotPresent);
        assert_eq!(policy("busybox@sha256:00"), Pull::IfNotPresent);
    }
}
