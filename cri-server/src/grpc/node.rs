//! What the node tells of itself, and what it is told: Version, Status, RuntimeConfig, UpdateRuntimeConfig.

use std::sync::Arc;

use podhold_cgroups::Driver;
use podhold_proto::cri;
use tonic::Status;
use tracing::info;

use super::{Service, info};
use crate::{
    error::Error,
    runtime::{HANDLER, Room, Runtime},
    state::Damage,
};

/// What every handler of this node can do.
async fn features(runtime: &Arc<Runtime>) -> cri::RuntimeHandlerFeatures {
    cri::RuntimeHandlerFeatures {
        // Every mount is made with mount_setattr(2), which can do this wherever it exists.
        recursive_read_only_mounts: true,
        user_namespaces: runtime.user_namespaces().await,
    }
}

/// What the runtime can do whatever the handler.
pub(super) fn runtime_features() -> cri::RuntimeFeatures {
    cri::RuntimeFeatures { supplemental_groups_policy: true, mount_options: true, ..Default::default() }
}

/// Who answers here.
pub(super) fn version() -> cri::VersionResponse {
    cri::VersionResponse {
        version: "0.1.0".into(),
        runtime_name: "podhold".into(),
        runtime_version: env!("CARGO_PKG_VERSION").into(),
        runtime_api_version: "v1".into(),
    }
}

/// What the kubelet must adapt to.
pub(super) fn configuration(runtime: &Runtime) -> cri::RuntimeConfigResponse {
    let driver = match runtime.cgroup_driver() {
        Driver::Cgroupfs => cri::CgroupDriver::Cgroupfs,
        Driver::Systemd => cri::CgroupDriver::Systemd,
    };
    cri::RuntimeConfigResponse {
        linux: Some(cri::LinuxRuntimeConfiguration { cgroup_driver: driver.into() }),
    }
}

impl Service {
    pub(super) async fn readiness(&self, request: cri::StatusRequest) -> Result<cri::StatusResponse, Status> {
        let features = features(&self.runtime).await;
        if request.verbose {
            self.runtime.look_again().await;
        }
        let handler = |name: &str| cri::RuntimeHandler { name: name.into(), features: Some(features) };
        Ok(cri::StatusResponse {
            status: Some(cri::RuntimeStatus { conditions: conditions(&self.runtime).await }),
            info: info(request.verbose, || {
                serde_json::json!({
                    "cgroup_driver": self.runtime.cgroup_driver(),
                    "config": self.runtime.config(),
                    "damaged": damaged(&self.runtime),
                    "pulls": pulls(&self.runtime),
                })
            }),
            runtime_handlers: vec![handler(""), handler(HANDLER)],
            features: Some(runtime_features()),
        })
    }

    /// Takes note of the pod address ranges. Nothing is done with them: networks are configured by CNI
    /// files, as in a containerd without a configuration template.
    pub(super) async fn learn(
        &self,
        request: cri::UpdateRuntimeConfigRequest,
    ) -> Result<cri::UpdateRuntimeConfigResponse, Status> {
        let network = request.runtime_config.and_then(|config| config.network_config).unwrap_or_default();
        if !network.pod_cidr.is_empty() {
            check_ranges(&network.pod_cidr)?;
            info!(
                pod_cidr = network.pod_cidr,
                "told the pods' address ranges; CNI files decide over networks"
            );
        }
        Ok(cri::UpdateRuntimeConfigResponse {})
    }
}

/// What was found on disk and cannot be used.
fn damaged(runtime: &Runtime) -> Vec<serde_json::Value> {
    let entry = |damage: Damage| {
        let (kind, id) = damage.object();
        let mend = damage.mend();
        serde_json::json!({ "kind": kind, "id": id, "path": damage.path, "reason": damage.reason, "mend": mend })
    };
    runtime.store().damaged().into_iter().map(entry).collect()
}

/// What pulls of images have done since the daemon was started.
fn pulls(runtime: &Runtime) -> serde_json::Value {
    let activity = runtime.images().activity();
    let failed = activity.failed.iter().map(|(kind, count)| (format!("{kind:?}"), (*count).into()));
    serde_json::json!({
        "under_way": activity.pulls,
        "pulled": activity.pulled,
        "failed": serde_json::Map::from_iter(failed),
        "cancelled": activity.cancelled,
        "fetched_bytes": activity.fetched_bytes,
        "resumed_bytes": activity.resumed_bytes,
        "retries": activity.retries,
        "layers_unpacked": activity.layers,
        "layers_fetched_anew": activity.refetched,
    })
}

/// One range, or one of each address family with a comma between (CRI `NetworkConfig.pod_cidr`).
fn check_ranges(text: &str) -> Result<(), Error> {
    let range = |range: &str| {
        let (address, bits) = range.split_once('/')?;
        let address: std::net::IpAddr = address.parse().ok()?;
        let bits: u8 = bits.parse().ok()?;
        (bits <= if address.is_ipv4() { 32 } else { 128 }).then(|| address.is_ipv4())
    };
    let families: Option<Vec<bool>> = text.split(',').map(range).collect();
    match families.as_deref() {
        Some([_] | [true, false] | [false, true]) => Ok(()),
        _ => Err(Error::invalid(
            "runtime_config.network_config.pod_cidr",
            format!("{:?} is not a range such as 10.1.0.0/16, or one of each family", short(text)),
        )),
    }
}

/// The beginning of a text that may be long.
fn short(text: &str) -> &str {
    text.char_indices().nth(80).map_or(text, |(end, _)| &text[..end])
}

/// Whether pods can be made. A node whose disk is full stays ready: a kubelet touches no pod of one that is
/// not, also not those whose removal would make room; it acts on the sizes it is told (ImageFsInfo). One
/// whose disk is read-only can do nothing for itself.
fn runtime_ready(room: Room) -> cri::RuntimeCondition {
    let (status, reason, message) = match room {
        Room::Enough => (true, "", String::new()),
        Room::Full(words) => (true, "StateDirectoryFull", words),
        Room::ReadOnly(words) => (false, "StateDirectoryReadOnly", words),
        Room::Silent(words) => (true, "StateDirectorySilent", words),
    };
    cri::RuntimeCondition { r#type: "RuntimeReady".into(), status, reason: reason.into(), message }
}

async fn conditions(runtime: &Runtime) -> Vec<cri::RuntimeCondition> {
    let (network, room) = tokio::join!(runtime.network_ready(), runtime.room());
    vec![
        runtime_ready(room),
        cri::RuntimeCondition {
            r#type: "NetworkReady".into(),
            status: network.is_ok(),
            reason: if network.is_ok() { String::new() } else { "NetworkPluginNotReady".into() },
            message: network.err().map(|error| error.to_string()).unwrap_or_default(),
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::check_ranges;

    #[test]
    fn pod_ranges_are_one_of_each_family() {
        for good in ["10.1.0.0/16", "fd00::/64", "10.1.0.0/16,fd00::/64", "fd00::/64,10.1.0.0/16"] {
            assert!(check_ranges(good).is_ok(), "{good}");
        }
        for bad in ["10.1.0.0", "10.1.0.0/33", "10.1.0.0/16,10.2.0.0/16", "x/1", "10.1.0.0/16,"] {
            assert!(check_ranges(bad).is_err(), "{bad}");
        }
    }
}
