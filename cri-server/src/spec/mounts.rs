//! What a container sees where. Pure: host paths have been looked up and made by the caller.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Mount, MountBuilder};
use podhold_proto::cri;
use podhold_sandbox::launch::IdMap;

use crate::error::{Error, Result};

/// The group that terminals belong to.
const TTY: u32 = 5;

/// Files and directories of the pod that all its containers share.
#[derive(Debug, Clone)]
pub struct PodFiles {
    /// The tmpfs of the pod, or the host's when the pod uses the host's IPC namespace.
    pub shm: PathBuf,
    /// Host name file; `None` leaves the image's.
    pub hostname: Option<PathBuf>,
    /// Hosts file.
    pub hosts: PathBuf,
    /// Resolver configuration.
    pub resolv_conf: PathBuf,
}

/// One mount of the request, with its source looked up on the host.
#[derive(Debug, Clone)]
pub struct HostMount {
    /// Where in the container.
    pub target: String,
    /// Where on the host; no symbolic link in it.
    pub source: PathBuf,
    /// Options of the request.
    pub request: cri::Mount,
}

impl HostMount {
    /// Whether its source is to be shown with the ids of its pod's user namespace. Not an image volume: that
    /// is mounted so already, and the kubelet sends mappings with every mount.
    pub fn is_mapped(&self) -> bool {
        image(&self.request).is_none() && !self.request.uid_mappings.is_empty()
    }
}

/// What the mounts depend on besides the request's own.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// The pod's files.
    pub files: &'a PodFiles,
    /// Whether the container is privileged.
    pub privileged: bool,
    /// Whether its root filesystem is read-only.
    pub readonly_root: bool,
    /// Its cgroup's directory in each hierarchy of cgroup version 1, by name; empty on version 2.
    pub cgroups: &'a [(String, PathBuf)],
    /// The mapping of its pod's own user namespace.
    pub users: Option<&'a IdMap>,
    /// Whether it has the host's network.
    pub host_network: bool,
}

/// All mounts, in the order in which they are made: a mount never hides one that was asked for.
pub fn build(requested: &[HostMount], around: Surroundings<'_>) -> Result<Vec<Mount>> {
    let mut mounts = system(around)?;
    mounts.extend(cgroups(around)?);
    let wanted = |target: &str| requested.iter().any(|mount| clean(&mount.target) == Path::new(target));
    let files = around.files;
    let pod_files = [
        ("/dev/shm", Some(&files.shm), false),
        ("/etc/hostname", files.hostname.as_ref(), around.readonly_root),
        ("/etc/hosts", Some(&files.hosts), around.readonly_root),
        ("/etc/resolv.conf", Some(&files.resolv_conf), around.readonly_root),
    ];
    for (target, source, readonly) in pod_files {
        if let Some(source) = source.filter(|_| !wanted(target)) {
            mounts.push(bind(target, source, vec![if readonly { "ro" } else { "rw" }.to_owned()])?);
        }
    }
    let mut rest: Vec<&HostMount> = requested.iter().collect();
    rest.sort_by_key(|mount| clean(&mount.target).components().count());
    for mount in rest {
        // The tmpfs at /dev stays: libcontainer works in it, until the shim puts the bind in its place.
        let base = |made: &Mount| is_dev(&mount.request) && made.typ().as_deref() == Some("tmpfs");
        mounts.retain(|made| made.destination() != &clean(&mount.target) || base(made));
        let mut made = bind(&mount.target, &mount.source, options(&mount.request)?)?;
        if let Some(map) = around.users.filter(|_| mount.is_mapped()) {
            made.set_uid_mappings(Some(super::id_mappings(&map.uids)?));
            made.set_gid_mappings(Some(super::id_mappings(&map.gids)?));
        }
        mounts.push(made);
    }
    Ok(mounts)
}

/// What a mount of the request may not be, as far as it can be told without the host.
pub fn check(index: usize, mount: &cri::Mount) -> Result<()> {
    let field = |name: &str| format!("mounts[{index}].{name}");
    let target = Path::new(&mount.container_path);
    if cri::MountPropagation::try_from(mount.propagation).is_err() {
        let reason = format!("{} is not a value of this field", mount.propagation);
        return Err(Error::invalid(field("propagation"), reason));
    }
    let longest = target.components().map(|part| part.as_os_str().len()).max().unwrap_or(0);
    if mount.container_path.len() > 4000 || longest > 255 {
        return Err(Error::invalid(field("container_path"), "is longer than a path can be"));
    }
    if clean(&mount.container_path).starts_with("/proc") {
        let reason = format!("{:?} lies in /proc, which is the kernel's own", mount.container_path);
        return Err(Error::invalid(field("container_path"), reason));
    }
    if is_dev(mount) && mount.propagation() == cri::MountPropagation::PropagationBidirectional {
        let reason = "PROPAGATION_BIDIRECTIONAL at /dev would carry the container's own /dev/pts and /dev/shm \
                      to the host; use PROPAGATION_HOST_TO_CONTAINER";
        return Err(Error::invalid(field("propagation"), reason));
    }
    if is_dev(mount) && image(mount).is_some() {
        return Err(Error::invalid(field("container_path"), "is /dev, which cannot be an image"));
    }
    let walks_up = target.components().any(|part| part == Component::ParentDir);
    if !target.is_absolute()
        || walks_up
        || mount.container_path.contains('\0')
        || clean(&mount.container_path) == Path::new("/")
    {
        let reason = format!("{:?} is not an absolute path below the container's root", mount.container_path);
        return Err(Error::invalid(field("container_path"), reason));
    }
    if image(mount).is_some() {
        check_image(mount).map_err(|(name, reason)| Error::invalid(field(name), reason))?;
    } else if !mount.image_sub_path.is_empty() {
        return Err(Error::invalid(field("image_sub_path"), "needs an image; set image, or leave it out"));
    } else if mount.host_path.len() > 4095 {
        return Err(Error::invalid(field("host_path"), "is longer than a path can be"));
    } else if !Path::new(&mount.host_path).is_absolute() || mount.host_path.contains('\0') {
        let reason = format!("{:?} is not an absolute path on the host", mount.host_path);
        return Err(Error::invalid(field("host_path"), reason));
    }
    if mount.selinux_relabel && !Path::new("/sys/fs/selinux/enforce").exists() {
        // The kubelet sets this wherever a pod has volumes; without SELinux there is nothing to relabel.
        tracing::debug!(target = %mount.container_path, "no SELinux, nothing relabelled");
    }
    options(mount).map(drop).map_err(|error| match error {
        Error::Invalid { field: name, reason } => Error::invalid(field(&name), reason),
        other => other,
    })
}

/// Whether a mount takes the place of all of `/dev`.
pub fn is_dev(mount: &cri::Mount) -> bool {
    clean(&mount.container_path) == Path::new("/dev")
}

/// The image a mount names; `None` for one of a host path.
pub fn image(mount: &cri::Mount) -> Option<&str> {
    mount.image.as_ref().map(|image| image.image.as_str()).filter(|name| !name.is_empty())
}

/// What an image volume may not ask for: the field and the reason.
fn check_image(mount: &cri::Mount) -> std::result::Result<(), (&'static str, String)> {
    let sub_path = Path::new(&mount.image_sub_path);
    let plain = sub_path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !plain || mount.image_sub_path.contains('\0') || mount.image_sub_path.len() > 4000 {
        let reason = format!("{:?} is not a relative path without '..'", mount.image_sub_path);
        return Err(("image_sub_path", reason));
    }
    let refusals = [
        (!mount.host_path.is_empty(), "host_path", "and image exclude each other; set one"),
        (!mount.readonly, "readonly", "is false; a mounted image is read-only, set it"),
        (mount.propagation != 0, "propagation", "is for host paths; leave it private with image"),
    ];
    match refusals.into_iter().find(|(wrong, ..)| *wrong) {
        Some((_, field, reason)) => Err((field, reason.to_owned())),
        None => Ok(()),
    }
}

/// The options of a bind mount.
fn options(mount: &cri::Mount) -> Result<Vec<String>> {
    let mut options = vec![if mount.readonly { "ro" } else { "rw" }.to_owned()];
    if mount.recursive_read_only {
        if !mount.readonly || mount.propagation() != cri::MountPropagation::PropagationPrivate {
            let reason = "needs readonly and private propagation as well";
            return Err(Error::invalid("recursive_read_only", reason));
        }
        options.push("rro".to_owned());
    }
    let propagation = match mount.propagation() {
        cri::MountPropagation::PropagationPrivate => "rprivate",
        cri::MountPropagation::PropagationHostToContainer => "rslave",
        cri::MountPropagation::PropagationBidirectional => "rshared",
    };
    options.push(propagation.to_owned());
    for option in &mount.mount_options {
        if !matches!(option.as_str(), "noexec" | "nodev" | "nosuid") {
            let reason = format!("{option:?} is not one of noexec, nodev, nosuid");
            return Err(Error::invalid("mount_options", reason));
        }
        options.push(option.clone());
    }
    Ok(options)
}

/// A path without `.` and double or trailing slashes.
fn clean(path: &str) -> PathBuf {
    Path::new(path).components().filter(|part| *part != Component::CurDir).collect()
}

fn bind(target: &str, source: &Path, mut options: Vec<String>) -> Result<Mount> {
    options.insert(0, "rbind".to_owned());
    if !options.iter().any(|option| matches!(option.as_str(), "rprivate" | "rslave" | "rshared")) {
        options.push("rprivate".to_owned());
    }
    mount(clean(target), "bind", source.to_owned(), options)
}

/// The kernel's own file systems.
fn system(around: Surroundings<'_>) -> Result<Vec<Mount>> {
    let access = if around.privileged { "rw" } else { "ro" };
    let table: [(&str, &str, &str, &[&str]); 4] = [
        ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
        ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ];
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let mut mounts = Vec::new();
    for (target, kind, source, options) in table {
        let mut options = words(options);
        if kind == "devpts" && around.users.is_none_or(|map| map.gids.iter().any(|ids| ids.length > TTY)) {
            options.push(format!("gid={TTY}"));
        }
        mounts.push(mount(target.into(), kind, source.into(), options)?);
    }
    mounts.push(if around.users.is_some() && around.host_network {
        // A sysfs shows a network, and only who owns that may mount it; so the host's, and never writable.
        let options = ["rbind", "rprivate", "nosuid", "noexec", "nodev", "ro", "rro"];
        mount("/sys".into(), "bind", "/sys".into(), words(&options))?
    } else {
        mount("/sys".into(), "sysfs", "sysfs".into(), words(&["nosuid", "noexec", "nodev", access]))?
    });
    Ok(mounts)
}

/// The container's view of its own cgroups.
///
/// On version 1 each hierarchy is bound by itself: libcontainer would look itself up in a `/proc` that
/// belongs to another PID namespace, and find somebody else or nobody.
fn cgroups(around: Surroundings<'_>) -> Result<Vec<Mount>> {
    let access = if around.privileged { "rw" } else { "ro" };
    let options = |first: &[&str]| -> Vec<String> {
        first
            .iter()
            .chain(&["nosuid", "noexec", "nodev", access])
            .map(|option| (*option).to_owned())
            .collect()
    };
    let target = Path::new("/sys/fs/cgroup");
    if around.cgroups.is_empty() {
        return Ok(vec![mount(target.into(), "cgroup", "cgroup".into(), options(&["relatime"]))?]);
    }
    // Writable, since directories for the mounts beneath are made in it; it holds nothing else.
    let plain = ["nosuid", "noexec", "nodev", "mode=755", "size=64k"].map(str::to_owned).to_vec();
    let mut mounts = vec![mount(target.into(), "tmpfs", "tmpfs".into(), plain)?];
    for (name, directory) in around.cgroups {
        let options = options(&["bind", "rprivate"]);
        mounts.push(mount(target.join(name), "bind", directory.clone(), options)?);
    }
    Ok(mounts)
}

fn mount(target: PathBuf, kind: &str, source: PathBuf, options: Vec<String>) -> Result<Mount> {
    MountBuilder::default()
        .destination(target)
        .typ(kind)
        .source(source)
        .options(options)
        .build()
        .map_err(Error::doing("mount"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> PodFiles {
        PodFiles {
            shm: "/run/shm".into(),
            hostname: Some("/e/hostname".into()),
            hosts: "/e/hosts".into(),
            resolv_conf: "/e/resolv.conf".into(),
        }
    }

    fn request(target: &str) -> HostMount {
        let request =
            cri::Mount { container_path: target.into(), host_path: "/h".into(), ..Default::default() };
        HostMount { target: target.into(), source: "/h".into(), request }
    }

    #[test]
    fn what_was_asked_for_replaces_what_is_there_by_default_and_comes_last() {
        let files = files();
        let around = Surroundings {
            files: &files,
            privileged: false,
            readonly_root: false,
            cgroups: &[],
            users: None,
            host_network: false,
        };
        let asked = [request("/etc/hosts/"), request("/data/deep"), request("/data"), request("/dev/shm")];
        let mounts = build(&asked, around).unwrap();
        let targets: Vec<&str> = mounts.iter().filter_map(|mount| mount.destination().to_str()).collect();
        assert_eq!(targets.iter().filter(|target| **target == "/etc/hosts").count(), 1);
        assert_eq!(targets.iter().filter(|target| **target == "/dev/shm").count(), 1);
        let at = |target| targets.iter().position(|known| *known == target).unwrap();
        assert!(at("/data") < at("/data/deep") && at("/dev") < at("/dev/shm"));
    }

    #[test]
    fn a_bad_mount_is_named_by_its_field() {
        let good = request("/data").request;
        let table: [(&str, cri::Mount); 6] = [
            ("container_path", cri::Mount { container_path: "data".into(), ..good.clone() }),
            ("container_path", cri::Mount { container_path: "/a/../..".into(), ..good.clone() }),
            ("container_path", cri::Mount { container_path: "/".into(), ..good.clone() }),
            ("host_path", cri::Mount { host_path: String::new(), ..good.clone() }),
            ("recursive_read_only", cri::Mount { recursive_read_only: true, ..good.clone() }),
            ("mount_options", cri::Mount { mount_options: vec!["suid".into()], ..good.clone() }),
        ];
        for (field, mount) in table {
            let message = check(3, &mount).unwrap_err().to_string();
            assert!(message.starts_with(&format!("mounts[3].{field}: ")), "{message}");
        }
        assert!(check(0, &good).is_ok());
    }
}
