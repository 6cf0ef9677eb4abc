//! Device nodes in a container and the rules that let it use them. Pure: the nodes have been looked up.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, Mount,
    MountBuilder,
};

use crate::error::{Error, Result};

/// A device of the host that a container gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDevice {
    /// Where in the container.
    pub target: String,
    /// Where on the host; no symbolic link in it.
    pub source: PathBuf,
    /// Character or block device.
    pub kind: LinuxDeviceType,
    /// Major and minor number.
    pub number: (i64, i64),
    /// Permission bits, owner and group on the host.
    pub owner: (u32, u32, u32),
    /// Some of `rwm`.
    pub access: String,
}

/// Always usable: null, zero, full, random, urandom, tty, console, ptmx, and terminals of devpts.
const ALWAYS: [(LinuxDeviceType, i64, Option<i64>); 9] = [
    (LinuxDeviceType::C, 1, Some(3)),
    (LinuxDeviceType::C, 1, Some(5)),
    (LinuxDeviceType::C, 1, Some(7)),
    (LinuxDeviceType::C, 1, Some(8)),
    (LinuxDeviceType::C, 1, Some(9)),
    (LinuxDeviceType::C, 5, Some(0)),
    (LinuxDeviceType::C, 5, Some(1)),
    (LinuxDeviceType::C, 5, Some(2)),
    (LinuxDeviceType::C, 136, None),
];

/// Whether a device is made as a node. The others are bound: libcontainer makes nodes in /dev only.
fn is_node(device: &&HostDevice) -> bool {
    Path::new(&device.target).starts_with("/dev")
}

/// The nodes of the host to bind.
pub fn binds(devices: &[HostDevice]) -> Result<Vec<Mount>> {
    let one = |device: &HostDevice| {
        MountBuilder::default()
            .destination(&device.target)
            .typ("bind")
            .source(&device.source)
            .options(["bind", "rprivate", "nosuid", "noexec"].map(str::to_owned))
            .build()
            .map_err(Error::doing("device"))
    };
    devices.iter().filter(|device| !is_node(device)).map(one).collect()
}

/// The nodes to make.
pub fn nodes(devices: &[HostDevice]) -> Result<Vec<LinuxDevice>> {
    let one = |device: &HostDevice| {
        LinuxDeviceBuilder::default()
            .path(&device.target)
            .typ(device.kind)
            .major(device.number.0)
            .minor(device.number.1)
            .file_mode(device.owner.0)
            .uid(device.owner.1)
            .gid(device.owner.2)
            .build()
            .map_err(Error::doing("device"))
    };
    devices.iter().filter(is_node).map(one).collect()
}

/// The rules: everything for a privileged container, otherwise nothing but the usual and the given ones.
pub fn rules(devices: &[HostDevice], privileged: bool) -> Result<Vec<LinuxDeviceCgroup>> {
    let mut rules = vec![rule(privileged, LinuxDeviceType::A, None, None, "rwm")?];
    if privileged {
        return Ok(rules);
    }
    // Nodes may be made, not used: what CAP_MKNOD alone allows.
    rules.push(rule(true, LinuxDeviceType::C, None, None, "m")?);
    rules.push(rule(true, LinuxDeviceType::B, None, None, "m")?);
    for (kind, major, minor) in ALWAYS {
        rules.push(rule(true, kind, Some(major), minor, "rwm")?);
    }
    for device in devices {
        let (major, minor) = device.number;
        rules.push(rule(true, device.kind, Some(major), Some(minor), &device.access)?);
    }
    Ok(rules)
}

fn rule(
    allow: bool,
    kind: LinuxDeviceType,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> Result<LinuxDeviceCgroup> {
    let mut rule = LinuxDeviceCgroupBuilder::default().allow(allow).typ(kind).access(access);
    if let Some(major) = major {
        rule = rule.major(major);
    }
    if let Some(minor) = minor {
        rule = rule.minor(minor);
    }
    rule.build().map_err(Error::doing("device rule"))
}
