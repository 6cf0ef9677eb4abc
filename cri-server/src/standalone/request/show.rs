//! The requests of a pod as JSON, for `podhold run --dry-run`. Pure.
//!
//! Fields that are not set are left out. Values of secrets are shown where the requests have them, which is in
//! the environment; of files in volumes only names and modes are.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{Pull, Requests, facts::PodFacts};
use crate::standalone::volume::Source;

/// All requests, in the order in which they are sent.
pub(in crate::standalone) fn shown(requests: &Requests) -> Value {
    let containers = |list: &[super::ContainerRequest]| -> Vec<Value> {
        let one = |request: &super::ContainerRequest| {
            let mut config = request.config.clone();
            PodFacts::unknown().fill_all(&mut config);
            for sub in &request.sub_paths {
                config.mounts[sub.mount].host_path =
                    sub.root.join(PodFacts::unknown().fill(&sub.path)).display().to_string();
            }
            message(&config)
        };
        list.iter().map(one).collect()
    };
    let images: Vec<Value> = requests
        .images()
        .into_iter()
        .map(|(image, pull)| {
            let policy = match pull {
                Pull::Always => "Always",
                Pull::IfNotPresent => "IfNotPresent",
                Pull::Never => "Never",
            };
            json!({"image": image, "pull": policy, "credentials": requests.credentials(image).is_some()})
        })
        .collect();
    json!({
        "notes": requests.notes,
        "images": images,
        "volumes": requests.volumes.iter().map(volume).collect::<Vec<_>>(),
        "runPodSandbox": message(&requests.pod),
        "createInitContainers": containers(&requests.init),
        "createContainers": containers(&requests.apps),
        "terminationGracePeriodSeconds": requests.grace.as_secs(),
    })
}

fn volume(volume: &crate::standalone::volume::Volume) -> Value {
    let mut shown = match &volume.source {
        Source::Empty { path, memory } => match memory {
            Some(size) => json!({"tmpfs": path, "sizeBytes": size}),
            None => json!({"directory": path}),
        },
        Source::Host { path, kind } => json!({"hostPath": path, "type": kind.name()}),
        Source::Image { reference, .. } => json!({"image": reference}),
        Source::Files { path, files } => {
            let files: Map<String, Value> = files
                .iter()
                .map(|(name, file)| (name.clone(), json!(format!("{:04o}", file.mode))))
                .collect();
            json!({"directory": path, "files": files})
        }
    };
    shown["name"] = json!(volume.name);
    shown
}

/// A message of the CRI; what is not set is left out, and the values of variables are text.
fn message(message: &impl Serialize) -> Value {
    let mut value = serde_json::to_value(message).unwrap_or_default();
    if let Some(variables) = value.get_mut("envs").and_then(Value::as_array_mut) {
        for variable in variables {
            let bytes = serde_json::from_value::<Vec<u8>>(variable["value"].take()).unwrap_or_default();
            variable["value"] = json!(String::from_utf8_lossy(&bytes));
        }
    }
    prune(&mut value);
    value
}

fn prune(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            // Maps of names are kept as they are: there an empty text says something.
            let mut rest = Map::new();
            for (name, mut inner) in std::mem::take(fields) {
                let texts = inner
                    .as_object()
                    .is_some_and(|map| !map.is_empty() && map.values().all(Value::is_string));
                if !(texts && matches!(name.as_str(), "labels" | "annotations" | "sysctls")) {
                    prune(&mut inner);
                }
                let unset = match &inner {
                    Value::Null => true,
                    Value::Bool(set) => !set,
                    Value::Number(number) => number.as_i64() == Some(0),
                    Value::String(text) => text.is_empty() && name != "value",
                    Value::Array(items) => items.is_empty(),
                    Value::Object(fields) => fields.is_empty(),
                };
                if !unset || (name == "value" && inner.is_number()) {
                    rest.insert(name, inner);
                }
            }
            *fields = rest;
        }
        Value::Array(items) => items.iter_mut().for_each(prune),
        _ => {}
    }
}
