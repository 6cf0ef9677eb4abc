//! Resources of a container as cgroup limits, computed as the kubelet does. Pure.

use k8s_openapi::{api::core::v1::ResourceRequirements, apimachinery::pkg::api::resource::Quantity};
use podhold_proto::cri;

use super::{
    manifest::{ManifestError, refuse},
    quantity,
};

/// Period of the processor quota, in microseconds.
const CPU_PERIOD: i64 = 100_000;

/// The limits; `field` is the container's path in the manifest.
pub(super) fn of(
    resources: Option<&ResourceRequirements>,
    field: &str,
) -> Result<cri::LinuxContainerResources, ManifestError> {
    let Some(resources) = resources else { return Ok(cri::LinuxContainerResources::default()) };
    let read = |kind: &str, name: &str, parse: fn(&str) -> Option<i64>| {
        let map = if kind == "limits" { &resources.limits } else { &resources.requests };
        let Some(Quantity(text)) = map.as_ref().and_then(|map| map.get(name)) else { return Ok(None) };
        match parse(text) {
            Some(value) => Ok(Some(value)),
            None => refuse(format!("{field}.resources.{kind}.{name}"), format!("{text:?} is not a quantity")),
        }
    };
    let cpu = read("limits", "cpu", quantity::milli)?;
    let memory = read("limits", "memory", quantity::bytes)?;
    let asked = read("requests", "cpu", quantity::milli)?.or(cpu);
    read("requests", "memory", quantity::bytes)?;
    Ok(cri::LinuxContainerResources {
        cpu_period: if cpu.is_some() { CPU_PERIOD } else { 0 },
        cpu_quota: cpu.map_or(0, |milli| (milli * CPU_PERIOD / 1000).max(1000)),
        cpu_shares: asked.map_or(2, |milli| (milli * 1024 / 1000).clamp(2, 262_144)),
        memory_limit_in_bytes: memory.unwrap_or_default(),
        memory_swap_limit_in_bytes: memory.unwrap_or_default(),
        ..Default::default()
    })
}
