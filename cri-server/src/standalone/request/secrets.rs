//! The secrets with which a pod's images are pulled. Pure.

use k8s_openapi::api::core::v1::PodSpec;

use crate::standalone::manifest::{Findings, Kind, Manifest, ManifestError, Object, refuse};

/// Docker's credentials files, in the order in which they are named. One that is not in the manifest is noted:
/// as with a kubelet the image may be had without.
pub(super) fn of(
    manifest: &Manifest,
    spec: &PodSpec,
    notes: &mut Vec<String>,
) -> Result<Vec<Vec<u8>>, ManifestError> {
    let (mut files, mut found) = (Vec::new(), Findings::default());
    for (index, secret) in spec.image_pull_secrets.iter().flatten().enumerate() {
        let Some(object) = manifest.data.get(Kind::Secret, &secret.name) else {
            notes.push(format!(
                "imagePullSecrets: no Secret {:?} is in this file; images are pulled without",
                secret.name
            ));
            continue;
        };
        // What is wrong with it is told at its own place.
        if !object.flawed {
            let file = self::file(object, &secret.name, &format!("spec.imagePullSecrets[{index}].name"));
            files.extend(found.part(file));
        }
    }
    found.whole(files)
}

/// The credentials file of a secret.
fn file(object: &Object, name: &str, field: &str) -> Result<Vec<u8>, ManifestError> {
    let (key, old) = match object.kind.as_str() {
        "kubernetes.io/dockerconfigjson" => (".dockerconfigjson", false),
        "kubernetes.io/dockercfg" => (".dockercfg", true),
        other => {
            let reason = format!(
                "Secret {:?} is of type {other:?}; credentials of registries are kubernetes.io/dockerconfigjson",
                name
            );
            return refuse(field, reason);
        }
    };
    let Some(file) = object.entries.get(key) else {
        return refuse(field, format!("Secret {:?} has no key {key:?}", name));
    };
    let Ok(json) = serde_json::from_slice::<serde_json::Value>(file) else {
        return refuse(field, format!("key {key:?} of Secret {:?} is not JSON", name));
    };
    let json = if old { serde_json::json!({ "auths": json }) } else { json };
    Ok(json.to_string().into_bytes())
}
