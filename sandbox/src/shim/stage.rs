//! Where the creator lays out what a container of a user-namespaced pod is mounted from.
//!
//! libcontainer makes a container's mounts once it is in the user namespace, whose root may not walk the
//! host's private directories; and it cannot shift the owners of a mount. So both are done before, in a
//! mount namespace of the creator's own: each source becomes a bind beneath one tmpfs that everybody may
//! walk, with shifted owners where the spec says so, and the spec names these instead.
//!
//! Invariant: nothing is mounted where the host could see it, and it all ends with the creator; the
//! container has copies.

use std::{
    fmt,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::setgroups,
};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, LinuxIdMapping, Mount, MountBuilder, Spec};
use rustix::{
    fs::{CWD, FileType, Gid, Mode, OFlags, Uid},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags},
};

use crate::{idmap, sys};

/// One of these is covered by the stage in the creator's mount namespace. There on every host, open to
/// everybody, and nothing that is still needed lies in them.
const PLACES: [&str; 3] = ["/etc", "/usr", "/var"];

/// The id on the host that `id` of a user namespace stands for.
pub(super) fn on_host(map: &[LinuxIdMapping], id: u32) -> Option<u32> {
    let range = map
        .iter()
        .find(|range| id.checked_sub(range.container_id()).is_some_and(|distance| distance < range.size()))?;
    range.host_id().checked_add(id - range.container_id())
}

/// Moves this process into a mount namespace of its own and rewrites the spec's sources as they are there.
/// What lies in `needed` stays to be seen.
pub(super) fn enter(spec: &mut Spec, user: &OwnedFd, needed: &[&Path]) -> Result<(), String> {
    // Groups of the host's would go along into the namespace.
    setgroups(&[]).map_err(failed("drop the host's groups"))?;
    unshare(CloneFlags::CLONE_NEWNS).map_err(failed("make a mount namespace"))?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
        .map_err(failed("make the mounts slaves of the host's"))?;

    let mut root = spec.root().clone().ok_or("config.json: root is missing")?;
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    // Taken before the stage covers anything.
    let rootfs = idmap::detached(root.path(), true).map_err(failed(root.path().display()))?;
    let sources = mounts.iter_mut().map(|mount| source(mount, user)).collect::<Result<Vec<_>, _>>()?;
    let place = PLACES.iter().find(|place| !needed.iter().any(|path| path.starts_with(place)));
    let stage = Stage::open(Path::new(place.ok_or("run_dir must not lie in /etc, /usr or /var")?))?;
    let place = stage.place("rootfs", &rootfs)?;
    make_private(&place)?;
    root.set_path(place);
    for (number, (mount, source)) in mounts.iter_mut().zip(sources).enumerate() {
        if let Some(source) = source {
            let place = stage.place(&format!("mount-{number}"), &source)?;
            if !has(mount, &["slave", "rslave"]) {
                make_private(&place)?;
            }
            mount.set_source(Some(place));
        }
    }
    let mut linux = spec.linux().clone().ok_or("config.json: linux is missing")?;
    for (number, device) in linux.devices().clone().unwrap_or_default().iter().enumerate() {
        mounts.push(stage.device(&format!("device-{number}"), device)?);
    }
    // libcontainer would bind the host's node of the same path, whatever that is.
    linux.set_devices(None);
    spec.set_linux(Some(linux));
    spec.set_mounts(Some(mounts));
    spec.set_root(Some(root));
    Ok(())
}

fn has(mount: &Mount, options: &[&str]) -> bool {
    mount.options().iter().flatten().any(|word| options.contains(&word.as_str()))
}

/// libcontainer leaves a bind the propagation of its source; so the source gets what was asked for. A
/// shared one is a slave in a user namespace, whatever one does.
fn make_private(place: &Path) -> Result<(), String> {
    let none = None::<&str>;
    mount(none, place, none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(failed(format_args!("keep {} private", place.display())))
}

/// The source of a bind mount as a detached mount; none for other mounts.
fn source(mount: &mut Mount, user: &OwnedFd) -> Result<Option<OwnedFd>, String> {
    let recursive = has(mount, &["rbind"]);
    let bind = has(mount, &["bind"]) || mount.typ().as_deref() == Some("bind");
    let Some(source) = mount.source().clone().filter(|_| bind || recursive) else { return Ok(None) };
    let detached = idmap::detached(&source, recursive).map_err(failed(source.display()))?;
    let mapped = mount.uid_mappings().iter().chain(mount.gid_mappings()).any(|map| !map.is_empty());
    if mapped {
        sys::map_ids(&detached, user).map_err(failed(format_args!(
            "mount {}: shift the owners of {}, whose file system does not take part in that",
            mount.destination().display(),
            source.display()
        )))?;
    }
    mount.set_uid_mappings(None).set_gid_mappings(None);
    Ok(Some(detached))
}

struct Stage {
    place: &'static Path,
    root: OwnedFd,
}

impl Stage {
    fn open(place: &'static Path) -> Result<Self, String> {
        let open = || -> rustix::io::Result<OwnedFd> {
            let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
            for (key, value) in [("source", "podhold-stage"), ("size", "64k"), ("mode", "0755")] {
                rustix::mount::fsconfig_set_string(context.as_fd(), key, value)?;
            }
            rustix::mount::fsconfig_create(context.as_fd())?;
            let flags = FsMountFlags::FSMOUNT_CLOEXEC;
            let root = rustix::mount::fsmount(context.as_fd(), flags, MountAttrFlags::empty())?;
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            rustix::mount::move_mount(root.as_fd(), "", CWD, place, flags)?;
            Ok(root)
        };
        open().map(|root| Self { place, root }).map_err(failed("make the stage"))
    }

    /// Attaches a detached mount beneath the stage, and tells the path it then has.
    fn place(&self, name: &str, mount: &OwnedFd) -> Result<PathBuf, String> {
        let place = || -> rustix::io::Result<()> {
            let found = rustix::fs::fstat(mount)?;
            if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
                rustix::fs::mkdirat(&self.root, name, Mode::from_raw_mode(0o755))?;
            } else {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                rustix::fs::openat(&self.root, name, flags, Mode::from_raw_mode(0o644))?;
            }
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            rustix::mount::move_mount(mount.as_fd(), "", self.root.as_fd(), name, flags)
        };
        place().map_err(failed(format_args!("stage {name}")))?;
        Ok(self.place.join(name))
    }

    /// Makes a device node, which could not be made within the user namespace, and the mount that shows it
    /// in the container. Its owner stays the host's.
    fn device(&self, name: &str, device: &LinuxDevice) -> Result<Mount, String> {
        let kind = match device.typ() {
            LinuxDeviceType::B => FileType::BlockDevice,
            _ => FileType::CharacterDevice,
        };
        let number = |number: i64| u32::try_from(number).unwrap_or(u32::MAX);
        let mode = Mode::from_raw_mode(device.file_mode().unwrap_or(0o666));
        let make = || -> rustix::io::Result<()> {
            let number = rustix::fs::makedev(number(device.major()), number(device.minor()));
            rustix::fs::mknodat(&self.root, name, kind, mode, number)?;
            rustix::fs::chmodat(&self.root, name, mode, rustix::fs::AtFlags::empty())?;
            let (uid, gid) = (device.uid().map(Uid::from_raw), device.gid().map(Gid::from_raw));
            rustix::fs::chownat(&self.root, name, uid, gid, rustix::fs::AtFlags::empty())
        };
        make().map_err(failed(format_args!("device {}", device.path().display())))?;
        MountBuilder::default()
            .destination(device.path())
            .typ("bind")
            .source(self.place.join(name))
            .options(["bind", "rprivate", "nosuid", "noexec"].map(str::to_owned).to_vec())
            .build()
            .map_err(|error| error.to_string())
    }
}

fn failed<E: Into<std::io::Error>>(operation: impl fmt::Display) -> impl FnOnce(E) -> String {
    let operation = operation.to_string();
    move |error| format!("{operation}: {}", error.into())
}
