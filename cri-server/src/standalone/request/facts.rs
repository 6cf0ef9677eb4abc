//! What is known of a pod only once it runs: its addresses. Until then a placeholder stands for them.

use std::path::PathBuf;

use podhold_proto::cri;

/// Stand for the pod's first address and for all of them. No text of a manifest holds a NUL.
pub(super) const POD_IP: &str = "\0podIP\0";
pub(super) const POD_IPS: &str = "\0podIPs\0";

/// What is known of a pod that runs.
#[derive(Debug, Clone, Default)]
pub(in crate::standalone) struct PodFacts {
    /// Its addresses; a pod in the host's network has the host's.
    pub(in crate::standalone) addresses: Vec<String>,
}

impl PodFacts {
    /// What a pod that does not run is shown with.
    pub(super) fn unknown() -> Self {
        Self { addresses: vec!["<status.podIP>".to_owned()] }
    }

    /// A text with the addresses in it.
    pub(super) fn fill(&self, text: &str) -> String {
        if !text.contains('\0') {
            return text.to_owned();
        }
        let first = self.addresses.first().map(String::as_str).unwrap_or_default();
        text.replace(POD_IP, first).replace(POD_IPS, &self.addresses.join(","))
    }

    /// A container's configuration with the addresses in it.
    pub(super) fn fill_all(&self, config: &mut cri::ContainerConfig) {
        for text in config.command.iter_mut().chain(&mut config.args) {
            *text = self.fill(text);
        }
        for variable in &mut config.envs {
            if let Ok(text) = std::str::from_utf8(&variable.value) {
                variable.value = self.fill(text).into_bytes();
            }
        }
    }
}

/// A part of a volume that a container sees: settled when the container is made, since a container before it
/// may have made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::standalone) struct SubPath {
    /// Index of its mount in the request.
    pub(in crate::standalone) mount: usize,
    /// The volume on the host.
    pub(in crate::standalone) root: PathBuf,
    /// Relative, and with placeholders.
    pub(in crate::standalone) path: String,
    /// The mount's field in the manifest.
    pub(in crate::standalone) field: String,
    /// Whether a directory is made where there is nothing.
    pub(in crate::standalone) make: bool,
}
