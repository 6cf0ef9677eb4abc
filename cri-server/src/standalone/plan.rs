//! What `podhold run` checks and shows before it does anything. Makes nothing, and needs no root.

use super::{
    host::Host,
    manifest::{Manifest, ManifestError},
    request::{self, Place},
};
use crate::config::Config;

/// Refuses a manifest that cannot be run whatever the host is like.
pub fn check(manifest: &Manifest, config: &Config) -> Result<(), ManifestError> {
    request::requests(manifest, &place(manifest, config)).map(drop)
}

/// The requests of a manifest as JSON, with the addresses of the pod left open.
pub fn dry_run(manifest: &Manifest, config: &Config) -> Result<String, ManifestError> {
    let requests = request::requests(manifest, &place(manifest, config))?;
    Ok(format!("{:#}", request::shown(&requests)))
}

/// Where this process runs the pod.
pub(super) fn place(manifest: &Manifest, config: &Config) -> Place {
    let host_network = manifest.pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
    Place {
        uid: format!("run-{}", std::process::id()),
        number: std::process::id(),
        dir: config.run_dir.join("pod"),
        disk: config.state_dir.join("pod"),
        host: Host::look(host_network),
    }
}
