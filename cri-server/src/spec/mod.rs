//! The dictionary between CRI and OCI: what was asked for, as the specification of one container.
//!
//! Pure: everything that depends on the host has been looked up before, so that what can fail has failed
//! before anything is made. CRI types stop here.

pub mod devices;
pub mod mounts;
pub mod process;
pub mod resources;
pub mod seccomp;
pub mod signal;
pub mod user;

mod syscalls;

use oci_spec::runtime::LinuxSeccomp;
use std::path::PathBuf;

use oci_spec::{
    image::ImageConfiguration,
    runtime::{
        Linux, LinuxBuilder, LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespaceBuilder,
        LinuxNamespaceType, RootBuilder, Spec, SpecBuilder,
    },
};
use podhold_cgroups::{CgroupPath, Version};
use podhold_proto::cri::{self, NamespaceMode};
use podhold_sandbox::{
    ContainerId,
    launch::{IdMap, IdRange, NamespaceJoin, NamespaceKind, NamespaceOf},
};

pub use self::user::User;
use self::{
    devices::HostDevice,
    mounts::{HostMount, PodFiles, Surroundings},
    process::Granted,
};
use crate::{
    descriptors::Limit,
    error::{Error, Result},
};

/// Everything a specification is made of.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// The container, as asked for.
    pub config: &'a cri::ContainerConfig,
    /// Its image's configuration.
    pub image: &'a ImageConfiguration,
    /// Who it runs as.
    pub user: &'a User,
    /// What it may do.
    pub capabilities: &'a Granted,
    /// How many files it may have open.
    pub descriptors: Limit,
    /// Its seccomp profile.
    pub seccomp: Option<LinuxSeccomp>,
    /// Its AppArmor profile.
    pub apparmor: Option<String>,
    /// Mounts of the request.
    pub mounts: &'a [HostMount],
    /// Files of the pod.
    pub files: &'a PodFiles,
    /// The mapping of the pod's own user namespace.
    pub users: Option<&'a IdMap>,
    /// Devices of the request, or all of the host's for a privileged container.
    pub devices: &'a [HostDevice],
    /// Its cgroup.
    pub cgroup: &'a CgroupPath,
    /// The cgroup version of the host.
    pub cgroup_version: Version,
    /// The cgroup's directory in each hierarchy of version 1, by name; empty on version 2.
    pub cgroup_directories: &'a [(String, PathBuf)],
}

/// The specification of a container. Namespaces it shares are listed without a path; see [`joins`].
pub fn build(inputs: Inputs<'_>) -> Result<Spec> {
    let security = process::security(inputs.config);
    let root = RootBuilder::default()
        .path("rootfs")
        .readonly(security.readonly_rootfs)
        .build()
        .map_err(Error::doing("root"))?;
    let around = Surroundings {
        files: inputs.files,
        privileged: security.privileged,
        readonly_root: security.readonly_rootfs,
        cgroups: inputs.cgroup_directories,
        users: inputs.users,
        host_network: security.namespace_options.as_ref().is_some_and(|o| o.network() == NamespaceMode::Node),
    };
    let mut process = process::build(inputs.config, inputs.image, inputs.user, inputs.capabilities)?;
    process.set_rlimits(Some(vec![process::open_files(inputs.descriptors)?]));
    process.set_apparmor_profile(inputs.apparmor.clone());
    let mut spec = SpecBuilder::default()
        .version("1.0.2")
        .root(root)
        .process(process)
        .mounts(
            mounts::build(inputs.mounts, around)?
                .into_iter()
                .chain(devices::binds(inputs.devices)?)
                .collect::<Vec<_>>(),
        )
        .linux(linux(&inputs, &security)?)
        .build()
        .map_err(Error::doing("container specification"))?;
    // The host name is the pod's, set once by whoever made its namespace.
    spec.set_hostname(None);
    Ok(spec)
}

fn linux(inputs: &Inputs<'_>, security: &cri::LinuxContainerSecurityContext) -> Result<Linux> {
    let options = security.namespace_options.clone().unwrap_or_default();
    let limits = inputs.config.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default();
    let mut kinds = vec![LinuxNamespaceType::Mount];
    for (mode, kind) in [
        (options.network(), LinuxNamespaceType::Network),
        (options.network(), LinuxNamespaceType::Uts),
        (options.ipc(), LinuxNamespaceType::Ipc),
        (options.pid(), LinuxNamespaceType::Pid),
    ] {
        if mode != NamespaceMode::Node {
            kinds.push(kind);
        }
    }
    if inputs.users.is_some() {
        kinds.push(LinuxNamespaceType::User);
    }
    // The host's cgroups cannot be mounted from a user namespace of the pod's.
    if inputs.cgroup_version == Version::V2 && (!security.privileged || inputs.users.is_some()) {
        kinds.push(LinuxNamespaceType::Cgroup);
    }
    let namespaces = kinds
        .into_iter()
        .map(|kind| LinuxNamespaceBuilder::default().typ(kind).build().map_err(Error::doing("namespace")))
        .collect::<Result<Vec<_>>>()?;
    let rules = devices::rules(inputs.devices, security.privileged)?;
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces)
        .cgroups_path(inputs.cgroup.as_str())
        .resources(resources::build(&limits, rules)?)
        .devices(devices::nodes(inputs.devices)?);
    if let Some(map) = inputs.users {
        linux = linux.uid_mappings(id_mappings(&map.uids)?).gid_mappings(id_mappings(&map.gids)?);
    }
    // Said in either case: left out, they would be oci-spec's own.
    let paths = |list: &[String]| if security.privileged { Vec::new() } else { list.to_vec() };
    linux = linux.masked_paths(paths(&security.masked_paths)).readonly_paths(paths(&security.readonly_paths));
    if let Some(seccomp) = inputs.seccomp.clone().filter(|_| !security.privileged) {
        linux = linux.seccomp(seccomp);
    }
    linux.build().map_err(Error::doing("linux section"))
}

fn id_mappings(ranges: &[IdRange]) -> Result<Vec<LinuxIdMapping>> {
    let one = |range: &IdRange| {
        LinuxIdMappingBuilder::default()
            .container_id(range.container)
            .host_id(range.host)
            .size(range.length)
            .build()
            .map_err(Error::doing("id mapping"))
    };
    ranges.iter().map(one).collect()
}

/// The namespaces a container shares: with its pod, or by TARGET with another container.
pub fn joins(options: &cri::NamespaceOption) -> Result<Vec<NamespaceJoin>> {
    let of_pod = |kind| NamespaceJoin { kind, of: NamespaceOf::Pod };
    let mut joins = Vec::new();
    if options.userns_options.as_ref().is_some_and(|users| users.mode() == NamespaceMode::Pod) {
        joins.push(of_pod(NamespaceKind::User));
    }
    if options.network() != NamespaceMode::Node {
        joins.extend([of_pod(NamespaceKind::Net), of_pod(NamespaceKind::Uts)]);
    }
    if options.ipc() != NamespaceMode::Node {
        joins.push(of_pod(NamespaceKind::Ipc));
    }
    match options.pid() {
        NamespaceMode::Pod => joins.push(of_pod(NamespaceKind::Pid)),
        NamespaceMode::Target => {
            let target = ContainerId::parse(&options.target_id).map_err(|error| {
                Error::invalid("linux.security_context.namespace_options.target_id", error.to_string())
            })?;
            joins.push(NamespaceJoin { kind: NamespaceKind::Pid, of: NamespaceOf::Container(target) });
        }
        NamespaceMode::Container | NamespaceMode::Node => {}
    }
    Ok(joins)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(network: NamespaceMode, pid: NamespaceMode, ipc: NamespaceMode) -> cri::NamespaceOption {
        cri::NamespaceOption {
            network: network.into(),
            pid: pid.into(),
            ipc: ipc.into(),
            target_id: "abc".into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_container_shares_what_its_modes_say() {
        use NamespaceMode::{Container, Node, Pod, Target};
        let kinds = |network, pid, ipc| -> Vec<NamespaceKind> {
            joins(&options(network, pid, ipc)).unwrap().iter().map(|join| join.kind).collect()
        };
        use NamespaceKind::{Ipc, Net, Pid, Uts};
        assert_eq!(kinds(Pod, Pod, Pod), [Net, Uts, Ipc, Pid]);
        assert_eq!(kinds(Pod, Container, Pod), [Net, Uts, Ipc]);
        assert_eq!(kinds(Node, Container, Node), []);
        assert_eq!(kinds(Node, Node, Pod), [Ipc]);
        let target = joins(&options(Node, Target, Node)).unwrap();
        assert_eq!(target[0].of, NamespaceOf::Container(ContainerId::parse("abc").unwrap()));
    }
}
