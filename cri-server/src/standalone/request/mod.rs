//! A manifest as the CRI requests a kubelet would send. Pure, but for what is settled at the end.
//!
//! Invariant: everything is known from the manifest and the host before anything is made, except the pod's
//! addresses, parts of volumes that containers make, and the users of images: [`settle`] adds those.

mod container;
mod dns;
mod environment;
mod expansion;
mod facts;
mod fields;
mod hosts;
mod mounts;
mod ports;
mod resources;
mod secrets;
mod security;
mod settle;
mod show;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
    time::Duration,
};

use k8s_openapi::api::core::v1::{Container, PodSpec};
use podhold_image::{Credentials, Reference};
use podhold_proto::cri;

pub(super) use self::{
    container::{check_image, pull},
    environment::{no_key, object},
    facts::{PodFacts, SubPath},
    fields::{Place as FieldPlace, of_pod as field_of_pod, of_resource},
    show::shown,
};
use self::{dns::Names, hosts::Hosts, resources::Needs};
use super::{
    host::Host,
    left::{KEPT, RUN_BY},
    manifest::{Findings, Manifest, ManifestError, check_name, join, refuse},
    users,
    volume::{Source, Volumes},
};

/// Longest grace period, in seconds: a year.
const LONGEST_GRACE: i64 = 365 * 24 * 3600;
/// Grace period of a pod that names none.
const GRACE: Duration = Duration::from_secs(30);
/// What is told of a pod without a spec.
pub(super) const NO_SPEC: &str = "is missing; name the containers in it";

/// Where and for whom a pod is run.
#[derive(Debug, Clone, Default)]
pub(super) struct Place {
    /// The pod's uid, unless the manifest has one.
    pub(super) uid: String,
    /// Chooses the range of ids of a pod with users of its own; two runs at the same time differ in it.
    pub(super) number: u32,
    /// The pod's directory for logs, files and what may be secret; gone after a reboot.
    pub(super) dir: PathBuf,
    /// The pod's directory for what may be large.
    pub(super) disk: PathBuf,
    /// The host.
    pub(super) host: Host,
}

impl Place {
    fn hosts_file(&self) -> PathBuf {
        self.dir.join("hosts")
    }
}

/// The requests of one pod.
#[derive(Debug)]
pub(super) struct Requests {
    /// RunPodSandbox.
    pub(super) pod: cri::PodSandboxConfig,
    /// Run one after another, each to success.
    pub(super) init: Vec<ContainerRequest>,
    /// Run at once.
    pub(super) apps: Vec<ContainerRequest>,
    /// How long containers have to end.
    pub(super) grace: Duration,
    /// What is made before the pod runs, and removed after it.
    pub(super) volumes: Volumes,
    /// What is told to whoever runs it.
    pub(super) notes: Vec<String>,
    /// Takes the place of every policy by which an image is pulled.
    pub(super) pull: Option<Pull>,
    /// Where it is run.
    pub(super) place: Place,
    hosts: Hosts,
    host_network: bool,
    pull_secrets: Vec<Vec<u8>>,
}

/// One CreateContainer.
#[derive(Debug)]
pub(super) struct ContainerRequest {
    /// The configuration, as far as it is known before the pod runs: take it from [`Requests::settled`].
    pub(super) config: cri::ContainerConfig,
    pub(super) pull: Pull,
    /// The file on the host in which the container leaves its last words.
    pub(super) termination_message: PathBuf,
    non_root: bool,
    field: String,
    sub_paths: Vec<SubPath>,
}

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pull {
    Always,
    IfNotPresent,
    Never,
}

/// What a container's request is made from besides the container itself.
pub(super) struct Around<'a> {
    pub(super) manifest: &'a Manifest,
    pub(super) spec: &'a PodSpec,
    pub(super) place: &'a Place,
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) uid: String,
    needs: BTreeMap<String, Needs>,
    volumes: Volumes,
    namespaces: cri::NamespaceOption,
}

/// The requests of a manifest's pod. An error has fields of the pod, and no place yet.
pub(super) fn requests(manifest: &Manifest, place: &Place) -> Result<Requests, ManifestError> {
    let metadata = &manifest.pod.metadata;
    let Some(spec) = &manifest.pod.spec else {
        return refuse("spec", NO_SPEC);
    };
    let mut found = Findings::default();
    let name = metadata.name.clone().unwrap_or_default();
    found.part(check_name("metadata.name", &name, 253));
    let namespace = metadata.namespace.clone().unwrap_or_else(|| "default".to_owned());
    found.part(check_name("metadata.namespace", &namespace, 63));
    found.part(check_spec(spec));
    let mut around = Around {
        manifest,
        spec,
        place,
        uid: metadata.uid.clone().unwrap_or_else(|| place.uid.clone()),
        needs: needs(spec, &mut found),
        volumes: Volumes::default(),
        namespaces: found.part(security::namespaces(spec)).unwrap_or_default(),
        name,
        namespace,
    };
    around.volumes = Volumes::plan(&around, &mut found);
    let names = Names::of(spec, &around.name, &around.namespace, &place.host);
    let names = found.part(names).unwrap_or_default();
    let quality = resources::quality(around.needs.values());
    let mut list = |which: &str, containers: &[Container]| -> Vec<ContainerRequest> {
        let one = |(index, of): (usize, &Container)| {
            found.part(container::request(of, &format!("spec.{which}[{index}]"), quality, &around))
        };
        containers.iter().enumerate().filter_map(one).collect()
    };
    let mut init = list("initContainers", spec.init_containers.as_deref().unwrap_or_default());
    let apps = list("containers", &spec.containers);
    shield_sidecars(spec, &mut init, &apps);
    let hosts = found.part(Hosts::of(spec, &names, &place.host)).unwrap_or_default();
    let mut notes = manifest.notes.clone();
    notes.extend(unbounded(spec));
    let pull_secrets = found.part(secrets::of(manifest, spec, &mut notes)).unwrap_or_default();
    let pod = found.part(sandbox(&around, names.kernel, quality)).unwrap_or_default();
    let grace = found.part(grace(spec.termination_grace_period_seconds)).unwrap_or_default();
    let mut requests = found.whole(Requests {
        pod,
        init,
        apps,
        grace,
        volumes: around.volumes,
        notes,
        pull: None,
        place: place.clone(),
        hosts,
        host_network: spec.host_network == Some(true),
        pull_secrets,
    })?;
    if spec.host_users == Some(false) {
        users::give(&mut requests, place.number);
    }
    Ok(requests)
}

fn check_spec(spec: &PodSpec) -> Result<(), ManifestError> {
    let mut found = Findings::default();
    if spec.containers.is_empty() {
        found.part::<()>(refuse("spec.containers", "is empty; a pod needs at least one container"));
    }
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        found.part::<()>(refuse("spec.os.name", "is not linux, and this host is"));
    }
    let mut seen = BTreeSet::new();
    for (which, containers) in [
        ("initContainers", spec.init_containers.as_deref().unwrap_or_default()),
        ("containers", &spec.containers),
    ] {
        for (index, container) in containers.iter().enumerate() {
            // One without a name is told as that.
            if !seen.insert(container.name.as_str()) && !container.name.is_empty() {
                let reason = format!("two containers are named {:?}; give one another name", container.name);
                found.part::<()>(refuse(format!("spec.{which}[{index}].name"), reason));
            }
        }
    }
    found.whole(())
}

/// What each container needs; of one whose needs are wrong, nothing.
fn needs(spec: &PodSpec, found: &mut Findings) -> BTreeMap<String, Needs> {
    let mut needs = BTreeMap::new();
    for (which, containers) in [
        ("initContainers", spec.init_containers.as_deref().unwrap_or_default()),
        ("containers", &spec.containers),
    ] {
        for (index, container) in containers.iter().enumerate() {
            let of = Needs::of(container.resources.as_ref(), &format!("spec.{which}[{index}]"));
            needs.insert(container.name.clone(), found.part(of).unwrap_or_default());
        }
    }
    needs
}

/// What is asked for and not held to.
fn unbounded(spec: &PodSpec) -> Vec<String> {
    let disk = "ephemeral-storage";
    let all = spec.init_containers.iter().flatten().chain(&spec.containers);
    let limited = all.filter(|container| {
        let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
        limits.is_some_and(|limits| limits.contains_key(disk))
    });
    let names: Vec<&str> = limited.map(|container| container.name.as_str()).collect();
    let mut notes = Vec::new();
    if !names.is_empty() {
        notes.push(format!("limits of ephemeral-storage are not held to here ({})", names.join(", ")));
    }
    for volume in spec.volumes.iter().flatten() {
        let empty = volume.empty_dir.as_ref().filter(|empty| empty.medium.as_deref() != Some("Memory"));
        if empty.is_some_and(|empty| empty.size_limit.is_some()) {
            notes.push(format!(
                "sizeLimit of volume {} is not held to on a disk; with medium: Memory it is",
                volume.name
            ));
        }
    }
    notes
}

fn shield_sidecars(spec: &PodSpec, init: &mut [ContainerRequest], apps: &[ContainerRequest]) {
    let score = |request: &ContainerRequest| {
        let linux = request.config.linux.clone().unwrap_or_default();
        linux.resources.unwrap_or_default().oom_score_adj
    };
    for (container, request) in spec.init_containers.iter().flatten().zip(init) {
        let linux = request.config.linux.get_or_insert_default();
        if container.restart_policy.as_deref() == Some("Always") {
            resources::shield(linux.resources.get_or_insert_default(), apps.iter().map(score));
        }
    }
}

fn sandbox(
    around: &Around<'_>,
    hostname: String,
    quality: resources::Quality,
) -> Result<cri::PodSandboxConfig, ManifestError> {
    let (spec, metadata) = (around.spec, &around.manifest.pod.metadata);
    let none = Needs::default();
    let of = |container: &Container| around.needs.get(&container.name).unwrap_or(&none);
    let init: Vec<_> = spec
        .init_containers
        .iter()
        .flatten()
        .map(|container| (of(container), container.restart_policy.as_deref() == Some("Always")))
        .collect();
    let apps: Vec<_> = spec.containers.iter().map(of).collect();
    let mut found = Findings::default();
    let linux = cri::LinuxPodSandboxConfig {
        security_context: found.part(security::of_pod(spec, &around.namespaces)),
        sysctls: found.part(security::sysctls(spec)).unwrap_or_default(),
        overhead: found.part(resources::overhead(spec.overhead.as_ref())).flatten(),
        resources: Some(resources::pod(&init, &apps, quality)),
        ..Default::default()
    };
    let dns_config = found.part(dns::config(spec, &around.place.host)).flatten();
    let port_mappings = found.part(ports::of(spec)).unwrap_or_default();
    let annotations = metadata.annotations.clone().unwrap_or_default().into_iter().collect();
    found.part(no_own_annotation(&annotations));
    found.whole(cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: around.name.clone(),
            uid: around.uid.clone(),
            namespace: around.namespace.clone(),
            attempt: 0,
        }),
        hostname,
        log_directory: around.place.dir.join("logs").display().to_string(),
        dns_config,
        port_mappings,
        labels: metadata.labels.clone().unwrap_or_default().into_iter().collect(),
        annotations,
        linux: Some(linux),
        ..Default::default()
    })
}

/// Refuses the annotations by which the pods of runs are known: a run sets them itself.
fn no_own_annotation(annotations: &HashMap<String, String>) -> Result<(), ManifestError> {
    match [KEPT, RUN_BY].iter().find(|own| annotations.contains_key(**own)) {
        Some(own) => {
            let reason = "is podhold run's own; leave it out (its option --keep keeps a pod)";
            refuse(join("metadata.annotations", own), reason)
        }
        None => Ok(()),
    }
}

fn grace(seconds: Option<i64>) -> Result<Duration, ManifestError> {
    match seconds {
        None => Ok(GRACE),
        Some(seconds @ 0..=LONGEST_GRACE) => Ok(Duration::from_secs(seconds.unsigned_abs())),
        Some(seconds) => {
            let reason = format!("{seconds} is not a number of seconds from 0 to {LONGEST_GRACE}");
            refuse("spec.terminationGracePeriodSeconds", reason)
        }
    }
}

impl Requests {
    /// Every image the pod needs, those of volumes first, each with when it is pulled.
    pub(super) fn images(&self) -> Vec<(&str, Pull)> {
        let volumes = self.volumes.iter().filter_map(|volume| match &volume.source {
            Source::Image { reference, pull } => Some((reference.as_str(), *pull)),
            _ => None,
        });
        let containers = self
            .init
            .iter()
            .chain(&self.apps)
            .filter_map(|request| Some((request.config.image.as_ref()?.image.as_str(), request.pull)));
        let decided = |(image, pull)| (image, self.pull.unwrap_or(pull));
        volumes.chain(containers).map(decided).collect()
    }

    /// What the manifest's own secrets say about a registry (`spec.imagePullSecrets`).
    pub(super) fn credentials(&self, image: &str) -> Option<Credentials> {
        let reference = Reference::parse(image).ok()?;
        self.pull_secrets.iter().find_map(|file| Credentials::of_docker(file, &reference).ok().flatten())
    }
}
