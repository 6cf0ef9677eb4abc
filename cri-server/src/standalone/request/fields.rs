//! Fields of a pod as text: for environments and for downward API volumes. Pure.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{ObjectFieldSelector, ResourceFieldSelector},
    apimachinery::pkg::api::resource::Quantity,
};

use super::{Around, facts};
use crate::standalone::{
    manifest::{ManifestError, refuse},
    quantity::Amount,
};

/// Where the text goes; not every field can be had everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::standalone) enum Place {
    Environment,
    File,
}

/// A field of the pod. What is known only once the pod runs is a placeholder (see [`facts`]).
pub(in crate::standalone) fn of_pod(
    selector: &ObjectFieldSelector,
    field: &str,
    place: Place,
    around: &Around<'_>,
) -> Result<String, ManifestError> {
    if !matches!(selector.api_version.as_deref(), None | Some("v1" | "")) {
        return refuse(format!("{field}.apiVersion"), "must be v1, or left out");
    }
    let path = selector.field_path.as_str();
    let metadata = &around.manifest.pod.metadata;
    let empty = BTreeMap::new();
    let map = |name: &str| match name {
        "labels" => Some(metadata.labels.as_ref().unwrap_or(&empty)),
        "annotations" => Some(metadata.annotations.as_ref().unwrap_or(&empty)),
        _ => None,
    };
    if let Some((name, rest)) = path.strip_prefix("metadata.").and_then(|rest| rest.split_once("['"))
        && let (Some(map), Some(key)) = (map(name), rest.strip_suffix("']"))
    {
        return Ok(map.get(key).cloned().unwrap_or_default());
    }
    let host = &around.place.host;
    let value = match (path, place) {
        ("metadata.name", _) => around.name.clone(),
        ("metadata.namespace", _) => around.namespace.clone(),
        ("metadata.uid", _) => around.uid.clone(),
        ("metadata.labels", Place::File) => listed(map("labels").unwrap_or(&empty)),
        ("metadata.annotations", Place::File) => listed(map("annotations").unwrap_or(&empty)),
        ("spec.nodeName", Place::Environment) => {
            around.spec.node_name.clone().unwrap_or_else(|| host.name.clone())
        }
        ("spec.serviceAccountName", Place::Environment) => {
            let named = around.spec.service_account_name.as_ref().or(around.spec.service_account.as_ref());
            named.cloned().unwrap_or_else(|| "default".to_owned())
        }
        ("status.hostIP", Place::Environment) => host.address(),
        ("status.hostIPs", Place::Environment) => {
            let all: Vec<String> = host.addresses.iter().map(ToString::to_string).collect();
            if all.is_empty() { host.address() } else { all.join(",") }
        }
        ("status.podIP", Place::Environment) => facts::POD_IP.to_owned(),
        ("status.podIPs", Place::Environment) => facts::POD_IPS.to_owned(),
        _ => {
            let known = match place {
                Place::Environment => {
                    "metadata.name, metadata.namespace, metadata.uid, metadata.labels['KEY'], \
                     metadata.annotations['KEY'], spec.nodeName, spec.serviceAccountName, status.hostIP, \
                     status.hostIPs, status.podIP, status.podIPs"
                }
                Place::File => {
                    "metadata.name, metadata.namespace, metadata.uid, metadata.labels, metadata.annotations, \
                     metadata.labels['KEY'], metadata.annotations['KEY']"
                }
            };
            let reason = format!("{path:?} cannot be had here; use one of {known}");
            return refuse(format!("{field}.fieldPath"), reason);
        }
    };
    Ok(value)
}

/// All labels or annotations as text, one a line.
fn listed(map: &BTreeMap<String, String>) -> String {
    map.iter().map(|(key, value)| format!("{key}={value:?}")).collect::<Vec<_>>().join("\n")
}

/// A resource of a container; without a limit, what the host has.
pub(in crate::standalone) fn of_resource(
    selector: &ResourceFieldSelector,
    field: &str,
    own: Option<&str>,
    around: &Around<'_>,
) -> Result<String, ManifestError> {
    let Some(name) = selector.container_name.as_deref().filter(|name| !name.is_empty()).or(own) else {
        return refuse(format!("{field}.containerName"), "is missing; name the container that is meant");
    };
    let Some(needs) = around.needs.get(name) else {
        return refuse(format!("{field}.containerName"), format!("the pod has no container {name:?}"));
    };
    let host = &around.place.host;
    // Amounts of processors are kept in thousandths.
    let (value, unit) = match selector.resource.as_str() {
        "limits.cpu" if needs.cpu.limit == 0 => (host.processors.saturating_mul(1000), 1000),
        "limits.cpu" => (needs.cpu.limit, 1000),
        "requests.cpu" => (needs.cpu.request, 1000),
        "limits.memory" if needs.memory.limit == 0 => (host.memory, 1),
        "limits.memory" => (needs.memory.limit, 1),
        "requests.memory" => (needs.memory.request, 1),
        "limits.ephemeral-storage" if needs.disk.limit > 0 => (needs.disk.limit, 1),
        "requests.ephemeral-storage" => (needs.disk.request, 1),
        other => {
            let reason = format!(
                "{other:?} cannot be had here; use limits or requests of cpu, memory, ephemeral-storage (of the \
                 latter only what the container names)"
            );
            return refuse(format!("{field}.resource"), reason);
        }
    };
    let divisor = selector.divisor.as_ref().map(|Quantity(text)| text.as_str()).filter(|text| *text != "0");
    let Some(divisor) = Amount::parse(divisor.unwrap_or("1")).filter(|divisor| !divisor.is_zero()) else {
        let reason = format!("{:?} is not a quantity such as 1m or 1Mi", divisor.unwrap_or_default());
        return refuse(format!("{field}.divisor"), reason);
    };
    let amount = match unit {
        1000 => Amount::of_thousandths(value),
        _ => Amount::of(value),
    };
    Ok(amount.in_units_of(divisor).to_string())
}
