//! What `podhold run` checks and shows before it does anything. Makes nothing, and needs no root.

use std::{path::Path, time::SystemTime};

use super::{
    host::Host,
    life,
    manifest::{Manifest, ManifestError},
    request::{self, Place, Requests},
    run::Options,
};
use crate::config::Config;

/// Where what belongs to runs is, beneath the run directory and the state directory: for each a directory named
/// by it, so that a pod that is kept is in nobody's way.
pub(super) const RUNS: &str = "runs";

/// Refuses a manifest that cannot be run whatever the host is like.
pub fn check(manifest: &Manifest, config: &Config, options: &Options) -> Result<(), ManifestError> {
    decide(manifest, config, options).map(drop)
}

/// The requests of a manifest as JSON, with the addresses of the pod left open.
pub fn dry_run(manifest: &Manifest, config: &Config, options: &Options) -> Result<String, ManifestError> {
    let (requests, _) = decide(manifest, config, options)?;
    Ok(format!("{:#}", request::shown(&requests)))
}

/// Everything that the manifest decides.
pub(super) fn decide(
    manifest: &Manifest,
    config: &Config,
    options: &Options,
) -> Result<(Requests, life::Plan), ManifestError> {
    let mut requests = request::requests(manifest, &place(manifest, config))?;
    requests.pull = options.pull.map(Into::into);
    let plan = life::Plan::of(manifest, options.restart_policy);
    let mut plan = plan.map_err(|error| manifest.placed(error))?;
    plan.grace = requests.grace;
    Ok((requests, plan))
}

/// Where this process runs the pod.
fn place(manifest: &Manifest, config: &Config) -> Place {
    let host_network = manifest.pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let uid = format!("run-{}-{}", std::process::id(), since.as_millis());
    let own = |directory: &Path| directory.join(RUNS).join(&uid);
    Place {
        number: std::process::id(),
        dir: own(&config.run_dir),
        disk: own(&config.state_dir),
        host: Host::look(host_network),
        uid,
    }
}
